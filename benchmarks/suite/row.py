"""A row of the results: what was measured, against which bound and goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.suite.rounds import Times


@dataclass
class Goal:
    """What was to be reached.

    Attributes:
        what: the sentence that the table prints.
        value: what was measured, None where it could not be.
        limit: what it is compared with.
        at_most: whether the value is to be at most the limit, instead of at least.
    """

    what: str
    value: float | None
    limit: float
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; None when it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass
class Row:
    """One row.

    Attributes:
        name: C1, C2, ...
        title: what was measured.
        unit: of `values`.
        values: contender -> the figure that the table shows.
        ratios: what is divided by what -> the median of the ratios of paired rounds.
        bound: what limits the figure, in words.
        share: how much of the bound understudy reached, None where there is no number for it.
        goals: what was to be reached.
        gate: contender -> largest relative difference of its losses to the plain loop's.
        notes: what a reader has to know.
        details: everything measured, as JSON values.
        skipped: why the row was not measured, None when it was.
    """

    name: str
    title: str
    unit: str = ""
    values: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    bound: str = ""
    share: float | None = None
    goals: list[Goal] = field(default_factory=list)
    gate: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None

    def take(self, times: Times, scale: float, pairs: Sequence[tuple[str, str]]) -> None:
        """Enter medians (seconds per step times `scale`), paired ratios and all rounds."""
        self.values |= {name: times.median(name) * scale for name in times.seconds}
        self.ratios |= {
            f"{name} / {other}": times.paired(name, other)
            for name, other in pairs
            if {name, other} <= set(times.seconds)
        }
        self.details["rounds"] = times.summary()
        if times.marked:
            self.notes.append(
                f"{times.marked} of {len(times.busy)} rounds ran beside other processes."
            )

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self) | {"goals": [asdict(goal) | {"met": goal.met} for goal in self.goals]}
