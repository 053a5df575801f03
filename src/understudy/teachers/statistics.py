"""Statistics of a teacher's features: moments, moments of classes, means of responses."""

from __future__ import annotations

from typing import Any, Literal

import torch

from understudy.data.batch import UNLABELLED
from understudy.errors import DataError, UnderstudyError
from understudy.teachers.accumulating import Accumulated, merge, merge_groups, parts
from understudy.teachers.principal import Principal, principal
from understudy.teachers.readings import LOGITS, Reading, Seen

By = Literal["labels", "teacher"]
Spread = Literal["each", "pooled", "none"]


class Moments(Accumulated):
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


class ClassMoments(Accumulated):
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


class ResponseMeans(Accumulated):
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
        for part in parts(rows, sums["mean"].device):
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
