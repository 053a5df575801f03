"""What the suite is asked to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Options:
    """Sizes and places.

    Attributes:
        quick: tiny sizes, to see that everything runs.
        peer: why torchdistill takes no part, None when it does.
        data: folder of CIFAR-100 for the accuracy row, and for the error of gradients from a store.
        teacher: safetensors of its teacher.
        seconds: training time of each contender there.
        seeds: how many seeds there.
    """

    quick: bool = False
    peer: str | None = None
    data: str | None = None
    teacher: str | None = None
    seconds: float = 60.0
    seeds: int = 1

    def pick(self, usual: int, quick: int) -> int:
        """Return a size."""
        return quick if self.quick else usual
