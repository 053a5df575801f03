"""Statistics that grow batch by batch, in float64: exact whatever the batches are, bounded by their own size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from understudy.data.batch import UNLABELLED
from understudy.data.source import Split
from understudy.errors import DataError, UnderstudyError
from understudy.teachers.principal import Principal, principal
from understudy.teachers.readings import LOGITS, Reading, Seen

CHUNK = 32_768
"""Rows that are converted to float64 at a time."""

By = Literal["labels", "teacher"]
Spread = Literal["each", "pooled", "none"]


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


class _Accumulated(Statistic):
    """A statistic whose state is float64 tensors, made by the first rows."""

    def __init__(self, reading: Reading | str) -> None:
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


class Moments(_Accumulated):
    """Mean and covariance of a reading's rows.

    Args:
        reading: what is read; a tap alone is read in its default form.

    Attributes after `study.collect`:
        count: number of rows N.
        mean: float64 [D].
        covariance: float64 [D, D], with the divisor N.
    """

    kind = "moments"

    def update(self, seen: Seen) -> None:
        """Take one batch in."""
        rows, _ = seen.rows(self.reading)
        width = rows.shape[1]
        sums = self._ready(rows, count=(), mean=(width,), scatter=(width, width))
        merge(sums, rows)

    @property
    def count(self) -> int:
        """Number of rows N."""
        return int(self._known["count"])

    @property
    def mean(self) -> torch.Tensor:
        """Mean of the rows, float64 [D]."""
        return self._known["mean"].cpu()

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance of the rows with the divisor N, float64 [D, D]."""
        known = self._known
        return (known["scatter"] / known["count"].clamp_min(1.0)).cpu()

    def principal(self, count: int | None = None) -> Principal:
        """Return the `count` directions of largest variance (see `principal`); None for all that have any."""
        what = f"the tap '{self.reading.tap}'"
        return principal(
            self.mean, self.covariance, self.count, count, what=what, provisional=self.provisional
        )


class ClassMoments(_Accumulated):
    """Mean and covariance of a reading's rows, class by class.

    Args:
        reading: what is read.
        by: "labels" for the labels that may be seen (samples without one are left out), "teacher" for the class that
            the teacher's logits put first.
        covariance: "each" keeps one of each class (C x D x D numbers), "pooled" one of the distances from the class
            means over all classes (D x D), "none" only the means (C x D).
    """

    kind = "class_moments"

    def __init__(
        self, reading: Reading | str, *, by: By = "labels", covariance: Spread = "each"
    ) -> None:
        super().__init__(reading)
        if by not in ("labels", "teacher"):
            raise UnderstudyError(f"classes are told by 'labels' or by 'teacher', not by '{by}'.")
        if covariance not in ("each", "pooled", "none"):
            raise UnderstudyError(
                f"covariance is '{covariance}'; it must be 'each', 'pooled' or 'none'."
            )
        self.by, self.spread = by, covariance
        self.uses_labels = by == "labels"
        self._logits = Reading(LOGITS, teacher=self.reading.teacher)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The reading, and the logits when they tell the class."""
        return (self.reading,) if self.uses_labels else (self.reading, self._logits)

    def config(self) -> dict[str, Any]:
        """Return the reading and how classes are told."""
        return {**super().config(), "by": self.by, "covariance": self.spread}

    def update(self, seen: Seen) -> None:
        """Take one batch in."""
        rows, owners = seen.rows(self.reading)
        classes, width = seen.classes, rows.shape[1]
        shapes: dict[str, tuple[int, ...]] = {"count": (classes,), "mean": (classes, width)}
        if self.spread != "none":
            shapes["scatter"] = (*shapes["count"], width, width)[self.spread == "pooled" :]
        sums = self._ready(rows, **shapes)
        told = self._classes_of(seen)[owners]
        if self.spread != "each":
            merge_groups(sums, rows[told != UNLABELLED], told[told != UNLABELLED])
            return
        for number in told.unique().tolist():
            if number != UNLABELLED:
                own = {name: value[number] for name, value in sums.items()}
                merge(own, rows[told == number])

    def _classes_of(self, seen: Seen) -> torch.Tensor:
        """Return int64 [B], the class of each sample; -1 for none."""
        if self.by == "teacher":
            return seen.values(self._logits).argmax(dim=1)
        labels = seen.batch.labels
        if labels is None:
            return torch.full_like(seen.batch.index, UNLABELLED)
        if labels.is_floating_point():
            raise DataError(
                "Statistics of classes need one label a sample; this view mixes samples."
            )
        return labels

    @property
    def count(self) -> torch.Tensor:
        """Number of rows of each class, int64 [C]."""
        return self._known["count"].cpu().long()

    @property
    def mean(self) -> torch.Tensor:
        """Mean of each class's rows, float64 [C, D]; 0 for a class without rows."""
        return self._known["mean"].cpu()

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance of each class's rows with the divisor N, float64 [C, D, D]; [D, D] when they are pooled."""
        known = self._known
        if self.spread == "none":
            raise UnderstudyError("These class moments were collected without covariances.")
        count = known["count"].sum() if self.spread == "pooled" else known["count"][:, None, None]
        return (known["scatter"] / count.clamp_min(1.0)).cpu()

    def principal(
        self, count: int | None = None, *, names: tuple[str, ...] | None = None
    ) -> list[Principal]:
        """Return each class's directions of largest variance; an error names the class.

        Args:
            count: how many; None for all that have any variance.
            names: class names, for errors.
        """
        if self.spread != "each":
            raise UnderstudyError("Principal directions of classes need the covariance of 'each'.")
        means, covariances, counts = self.mean, self.covariance, self.count.tolist()
        return [
            principal(
                mean,
                covariance,
                counts[number],
                count,
                what=f"class '{names[number]}'" if names else f"class {number}",
                provisional=self.provisional,
            )
            for number, (mean, covariance) in enumerate(zip(means, covariances, strict=True))
        ]


class ResponseMeans(_Accumulated):
    """Mean of the negative (or positive) values of each channel, as margins of rectifiers need them.

    Args:
        reading: what is read, before the activation.
        sign: which values count: "negative" or "positive".
    """

    kind = "response_means"

    def __init__(
        self, reading: Reading | str, *, sign: Literal["negative", "positive"] = "negative"
    ) -> None:
        super().__init__(reading)
        if sign not in ("negative", "positive"):
            raise UnderstudyError(f"sign is '{sign}'; it must be 'negative' or 'positive'.")
        self.sign = sign

    def config(self) -> dict[str, Any]:
        """Return the reading and the sign."""
        return {**super().config(), "sign": self.sign}

    def update(self, seen: Seen) -> None:
        """Take one batch in."""
        rows, _ = seen.rows(self.reading)
        sums = self._ready(rows, count=(rows.shape[1],), mean=(rows.shape[1],))
        for part in _parts(rows, sums["mean"].device):
            counts = part < 0 if self.sign == "negative" else part > 0
            added = counts.sum(dim=0, dtype=torch.float64)
            total = sums["count"] + added
            # The mean moves by the sum of the new values' distances from it, over the new number of values.
            distance = torch.where(counts, part - sums["mean"], 0.0).sum(dim=0)
            sums["mean"] += distance / total.clamp_min(1.0)
            sums["count"].copy_(total)

    @property
    def count(self) -> torch.Tensor:
        """Number of values of that sign in each channel, int64 [D]."""
        return self._known["count"].cpu().long()

    @property
    def mean(self) -> torch.Tensor:
        """Their mean, float64 [D]; 0 where there is none."""
        return self._known["mean"].cpu()


def merge(sums: Mapping[str, torch.Tensor], rows: torch.Tensor) -> None:
    """Merge rows [R, D] into count [], mean [D] and, where there is one, scatter [D, D], in place.

    The scatter is the sum of the outer products of distances from the mean. Merging means and scatters instead of raw
    sums loses no digits when the mean is large (Chan, Golub and LeVeque, 1979).
    """
    for part in _parts(rows, sums["mean"].device):
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
    for part, own in zip(_parts(rows, device), groups.to(device).split(CHUNK), strict=False):
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


def _parts(rows: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    return [part.to(device).double() for part in rows.split(CHUNK)] if len(rows) else []
