"""What grows batch by batch: a statistic, and sums in float64 that are exact whatever the batches are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from understudy.data.source import Split
from understudy.errors import DataError, UnderstudyError
from understudy.teachers.readings import Reading, Seen

CHUNK = 32_768
"""Rows that are converted to float64 at a time."""


class Statistic(ABC):
    """Something that is learned from one pass.

    Attributes:
        kind: what a cache calls it.
        version: raised when its values change for the same settings.
        uses_labels: whether the labels have a part in it.
        provisional: whether it comes from an example instead of the training set: shapes are right, values mean
            nothing, and nothing that only few samples make impossible is refused.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    uses_labels: bool = False
    provisional: bool = False

    @property
    @abstractmethod
    def readings(self) -> tuple[Reading, ...]:
        """What the pass has to give."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return everything beside the data that decides the values, as JSON."""

    @abstractmethod
    def begin(self, folder: Path, split: Split) -> None:
        """Start anew; `folder` is for what does not fit in memory, `split` what will be seen."""

    @abstractmethod
    def update(self, seen: Seen) -> None:
        """Take one batch in."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Return what it has learned so far, on the CPU."""

    @abstractmethod
    def load(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Take over what `state` returned, and the files in `folder`."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of what was written into the folder."""
        return ()

    def size(self, samples: int) -> int:
        """Return the bytes on disk after a pass over `samples` samples; it has to have seen some."""
        return sum(value.nbytes for value in self.state().values())


class Accumulated(Statistic):
    """A statistic whose state is float64 tensors, made by the first rows."""

    def __init__(self, reading: Reading | str) -> None:
        """Start empty."""
        self.reading = Reading.of(reading)
        self._sums: dict[str, torch.Tensor] = {}

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The one reading."""
        return (self.reading,)

    def config(self) -> dict[str, Any]:
        """Return the reading."""
        return self.reading.config()

    def begin(self, folder: Path, split: Split) -> None:
        """Forget everything."""
        self._sums = {}

    def state(self) -> dict[str, torch.Tensor]:
        """Return the sums."""
        return {name: value.cpu() for name, value in self._known.items()}

    def load(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Take over the sums."""
        # Copied to aligned memory, on which the last bit of a product can depend.
        self._sums = {name: value.clone() for name, value in state.items()}

    @property
    def _known(self) -> dict[str, torch.Tensor]:
        if not self._sums:
            raise UnderstudyError(
                f"The statistic '{self.kind}' of '{self.reading.tap}' is empty; give it to `study.collect` first."
            )
        return self._sums

    def _ready(self, rows: torch.Tensor, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Return the sums on the device of the rows, zeros before the first batch."""
        device = rows.device if rows.device.type != "mps" else torch.device("cpu")
        if not self._sums:
            self._sums = {
                name: torch.zeros(shape, dtype=torch.float64, device=device)
                for name, shape in shapes.items()
            }
        self._sums = {name: value.to(device) for name, value in self._sums.items()}
        if self._sums["mean"].shape[-1] != rows.shape[1]:
            raise DataError(
                f"The teacher's tap '{self.reading.tap}' gave rows of {rows.shape[1]} values after rows of "
                f"{self._sums['mean'].shape[-1]}; a statistic needs one width."
            )
        return self._sums


def merge(sums: Mapping[str, torch.Tensor], rows: torch.Tensor) -> None:
    """Merge rows [R, D] into count [], mean [D] and, where there is one, scatter [D, D], in place.

    The scatter is the sum of the outer products of distances from the mean. Merging means and scatters instead of raw
    sums loses no digits when the mean is large (Chan, Golub and LeVeque, 1979).
    """
    for part in parts(rows, sums["mean"].device):
        mean = part.mean(dim=0)
        step, before = mean - sums["mean"], sums["count"].clone()
        total = before + len(part)
        sums["mean"].add_(step * (len(part) / total))
        if "scatter" in sums:
            centred = part - mean
            sums["scatter"].addmm_(centred.T, centred)
            sums["scatter"].add_(torch.outer(step, step) * (before * len(part) / total))
        sums["count"].copy_(total)


def merge_groups(
    sums: Mapping[str, torch.Tensor], rows: torch.Tensor, groups: torch.Tensor
) -> None:
    """Merge rows [R, D] of groups [R] into count [C], mean [C, D] and, where there is one, scatter [D, D], in place.

    The scatter is that of the distances from the groups' means, over all groups; otherwise as `merge`.
    """
    device = sums["mean"].device
    for part, own in zip(parts(rows, device), groups.to(device).split(CHUNK), strict=False):
        added = torch.bincount(own, minlength=len(sums["count"])).double()
        mean = torch.zeros_like(sums["mean"]).index_add_(0, own, part)
        mean /= added.clamp_min(1.0)[:, None]
        step = torch.where(added[:, None] > 0, mean - sums["mean"], 0.0)
        total = sums["count"] + added
        share = added / total.clamp_min(1.0)
        if "scatter" in sums:
            centred = part - mean[own]
            sums["scatter"].addmm_(centred.T, centred)
            sums["scatter"].addmm_((step * (sums["count"] * share)[:, None]).T, step)
        sums["mean"].add_(step * share[:, None])
        sums["count"].copy_(total)


def parts(rows: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """Return the rows in float64, a few at a time."""
    return [part.to(device).double() for part in rows.split(CHUNK)] if len(rows) else []
