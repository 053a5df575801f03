"""Linear discriminant analysis from the moments of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from understudy.errors import DataError
from understudy.teachers.features import Features
from understudy.teachers.principal import signs
from understudy.teachers.statistics import ClassMoments

WITHIN_TOLERANCE = 1e-4
"""Singular values of the standardised rows below this one are taken for 0, as scikit-learn does by default."""


@dataclass(frozen=True)
class Discriminants:
    """The directions in which classes differ most, measured by the spread within them.

    Attributes:
        mean: float64 [D], the mean of all rows.
        directions: float64 [D, n], most telling first; rows are projected as (x - mean) @ directions.
    """

    mean: torch.Tensor
    directions: torch.Tensor

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Project rows [N, D] to float64 [N, n]."""
        return (rows.double() - self.mean) @ self.directions

    def project(self, features: Features) -> np.ndarray[Any, Any]:
        """Project all rows of features on disk, part by part, to float32 [N, n]."""
        parts = [self(part).float().numpy() for part in features.chunks()]
        return np.concatenate(parts)


def discriminants(moments: ClassMoments, count: int, *, provisional: bool = False) -> Discriminants:
    """Return linear discriminants.

    They are those of scikit-learn's `LinearDiscriminantAnalysis(solver="svd")` but for signs, which are fixed (see
    `principal`). They are computed from C means and one D x D scatter instead of all rows. The divisor of the scatter
    is N; earlier versions of scikit-learn had N - C, a common factor of all directions.

    Args:
        moments: of the classes, with covariance "pooled" or "each".
        count: how many directions n, at most min(C - 1, D) with the C classes that have rows.
        provisional: whether to give directions that mean nothing instead of refusing.

    Raises:
        DataError: `count` is more than there can be or, for collinear or equal class means, than there are.
    """
    counts, means = moments.count.double(), moments.mean
    width = means.shape[1]
    present = counts > 0
    total, classes = float(counts.sum()), int(present.sum())
    most = min(classes - 1, width)
    if not 1 <= count <= (width if provisional else most):
        raise DataError(
            f"{count} linear discriminants of '{moments.reading.tap}' were asked for; with {classes} classes that have "
            f"samples and {width} dimensions there are at most {most}."
        )
    if total <= classes and not provisional:
        raise DataError(
            f"Linear discriminants of '{moments.reading.tap}' need more rows ({total:.0f}) than classes ({classes})."
        )
    mean = (counts[:, None] * means).sum(dim=0) / max(total, 1.0)
    if provisional:
        return Discriminants(mean, torch.eye(width, count, dtype=torch.float64))
    within = moments.covariance
    if moments.spread == "each":
        within = (counts[:, None, None] * within).sum(dim=0) / total
    spread = within.diagonal().sqrt()
    spread = torch.where(spread > 0, spread, 1.0)
    # Rows in units of the spread within classes: whitened ...
    standard = within / torch.outer(spread, spread)
    values, vectors = torch.linalg.eigh(standard)
    kept = values > WITHIN_TOLERANCE**2
    whitening = vectors[:, kept] / spread[:, None] / values[kept].sqrt()
    # ... and then the directions in which the class means differ.
    weights = (counts / (classes - 1)).sqrt()
    between = weights[:, None] * (means - mean) @ whitening
    _, strengths, directions = torch.linalg.svd(between[present], full_matrices=False)
    rank = int((strengths > WITHIN_TOLERANCE * strengths[0]).sum()) if len(strengths) else 0
    if count > rank:
        raise DataError(
            f"{count} linear discriminants of '{moments.reading.tap}' were asked for, but the class means differ in "
            f"{rank} directions only. Ask for at most {rank}."
        )
    found = whitening @ directions[:count].T
    return Discriminants(mean, found * signs(found))
