"""How far what was stored is from what the teacher gave, measured while it was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Deviation:
    """The difference between numbers before and after, over all that were compared.

    Attributes:
        count: how many numbers.
        maximum: the largest absolute difference.
        squares: the sum of the squared differences.
        size: the sum of the squared numbers themselves.
        parts: further differences by name: that of the tail.
        sums: name -> (count, sum) of numbers of which the mean is worth knowing: the mass in the tail, the entropy.
    """

    count: int = 0
    maximum: float = 0.0
    squares: float = 0.0
    size: float = 0.0
    parts: Mapping[str, Deviation] = field(default_factory=dict)
    sums: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def between(cls, before: torch.Tensor, after: torch.Tensor) -> Deviation:
        """Compare two tensors of one shape."""
        if not before.numel():
            return cls()
        exact = before.detach().double()
        difference = (after.detach().double().to(exact.device) - exact).abs()
        return cls(
            before.numel(),
            float(difference.max()),
            float(difference.square().sum()),
            float(exact.square().sum()),
        )

    def with_part(self, name: str, before: torch.Tensor, after: torch.Tensor) -> Deviation:
        """Return this with a further difference."""
        return replace(self, parts={**self.parts, name: Deviation.between(before, after)})

    def with_mean(self, name: str, values: torch.Tensor) -> Deviation:
        """Return this with numbers whose mean is to be known."""
        total = (values.numel(), float(values.detach().double().sum()))
        return replace(self, sums={**self.sums, name: total})

    @classmethod
    def sum(cls, deviations: Iterable[Deviation]) -> Deviation:
        """Return the difference over all that several compared."""
        found = list(deviations)
        parts = dict.fromkeys(name for each in found for name in each.parts)
        names = dict.fromkeys(name for each in found for name in each.sums)
        return cls(
            sum(each.count for each in found),
            max((each.maximum for each in found), default=0.0),
            sum(each.squares for each in found),
            sum(each.size for each in found),
            {
                name: cls.sum(each.parts[name] for each in found if name in each.parts)
                for name in parts
            },
            {
                name: (
                    sum(each.sums[name][0] for each in found if name in each.sums),
                    sum(each.sums[name][1] for each in found if name in each.sums),
                )
                for name in names
            },
        )

    @property
    def root_mean_square(self) -> float:
        """The root of the mean squared difference."""
        return float((self.squares / max(1, self.count)) ** 0.5)

    @property
    def relative(self) -> float:
        """The root mean square of the difference over that of the numbers."""
        return float((self.squares / self.size) ** 0.5) if self.size else 0.0

    @property
    def means(self) -> dict[str, float]:
        """The means of `sums`."""
        return {name: total / max(1, count) for name, (count, total) in self.sums.items()}

    def json(self) -> dict[str, Any]:
        """Return JSON values from which `from_json` makes it again."""
        return {
            "count": self.count,
            "maximum": self.maximum,
            "squares": self.squares,
            "size": self.size,
            "parts": {name: part.json() for name, part in self.parts.items()},
            "sums": {name: list(total) for name, total in self.sums.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Deviation:
        """Make it again."""
        return cls(
            values["count"],
            values["maximum"],
            values["squares"],
            values["size"],
            {name: cls.from_json(part) for name, part in values["parts"].items()},
            {name: (total[0], total[1]) for name, total in values["sums"].items()},
        )
