"""Interleaved rounds, and what is made of their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.suite.machine import Others

BUSY = 0.3
"""A round in which others kept more cores than this busy is repeated, or marked."""

Run = Callable[[int], None]
"""Takes that many steps."""


@dataclass
class Times:
    """Seconds per step of each contender, one number a round.

    Attributes:
        seconds: contender -> seconds per step, by round.
        busy: cores that others kept busy, by round; None where the system does not say.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    busy: list[float | None] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.seconds[name])

    def paired(self, name: str, other: str) -> float:
        """Return how many times faster `name` is than `other`: the median over the rounds of the ratio in a round."""
        pairs = zip(self.seconds[other], self.seconds[name], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def excess(self, name: str, other: str) -> float:
        """Return how many seconds per step `name` takes over `other`: the median over the rounds."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return statistics.median(ours - theirs for ours, theirs in pairs)

    @property
    def marked(self) -> int:
        """Return how many of the rounds ran beside others."""
        return sum(busy is not None and busy > BUSY for busy in self.busy)

    def summary(self) -> dict[str, Any]:
        """Return median, least, quartiles and rounds of each contender, in seconds per step, as JSON values."""
        return {
            "contenders": {
                name: {
                    "median": statistics.median(values),
                    "min": min(values),
                    "iqr": list(quartiles(values)),
                    "rounds": values,
                }
                for name, values in self.seconds.items()
            },
            "busy_cores": self.busy,
            "marked_rounds": self.marked,
        }


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile; of one value, itself twice."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def measure(contenders: Mapping[str, Run], steps: int, rounds: int) -> Times:
    """Let contenders take turns: A B C in one round, C B A in the next, after a warm-up round.

    They take their turns in one process: a process for each would start anew in every round. A round that others
    disturbed is repeated, as long as the repetitions are not more than the rounds; what is disturbed still is kept and
    marked.

    Args:
        contenders: name -> takes a number of steps.
        steps: steps in a turn.
        rounds: how many rounds count.
    """
    for run in contenders.values():
        run(max(1, steps // 4))
    times = Times({name: [] for name in contenders})
    repeats = rounds
    number = 0
    while number < rounds:
        others = Others()
        found: dict[str, float] = {}
        order = list(contenders.items())
        for name, run in order if number % 2 == 0 else reversed(order):
            begin = time.perf_counter()
            run(steps)
            found[name] = (time.perf_counter() - begin) / steps
        busy = others.cores()
        if busy is not None and busy > BUSY and repeats:
            repeats -= 1
            continue
        for name, value in found.items():
            times.seconds[name].append(value)
        times.busy.append(busy)
        number += 1
    return times
