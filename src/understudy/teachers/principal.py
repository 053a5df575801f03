"""Principal directions of a covariance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from understudy.errors import DataError

TOLERANCE = 1e-12
"""Variances below this share of the largest mean square of a coordinate are the rounding of float32: they become 0."""
TIE = 1e-6


@dataclass(frozen=True)
class Principal:
    """The directions of largest variance.

    Attributes:
        mean: float64 [D], what is taken off first.
        basis: float64 [D, K], orthonormal columns, largest variance first.
        variances: float64 [K], descending; 0 beyond the rank.
        rank: how many directions have any variance.
        total: the variance of all directions together.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    variances: torch.Tensor
    rank: int
    total: float

    @property
    def explained(self) -> float:
        """The share of the variance that the directions hold, in [0, 1]."""
        return float(self.variances.sum()) / self.total if self.total else 0.0


def principal(
    mean: torch.Tensor,
    covariance: torch.Tensor,
    rows: int,
    count: int | None = None,
    *,
    what: str = "the features",
    provisional: bool = False,
) -> Principal:
    """Return the directions of largest variance.

    Signs are fixed: a direction's largest component is positive, the first of those that are about as large. Within
    equal variances the directions may still be rotated.

    Args:
        mean: float64 [D].
        covariance: float64 [D, D], symmetric.
        rows: from how many rows the covariance is.
        count: how many directions K; None for all that have any variance.
        what: what the features are, for errors.
        provisional: whether to give directions without variance instead of refusing when there are too few rows.

    Raises:
        DataError: `count` is more than the rank (at most D, and at most one less than the rows); or nothing varies.
    """
    width = len(mean)
    values, vectors = torch.linalg.eigh(covariance.double())
    values, vectors = values.flip(0), vectors.flip(1)
    power = float((covariance.diagonal() + mean.square()).max()) if width else 0.0
    values = torch.where(values > TOLERANCE * power, values, 0.0)
    rank = int((values > 0).sum())
    if count is not None and not 1 <= count <= width:
        raise DataError(
            f"{count} principal directions of {what} were asked for; it has {width} dimensions."
        )
    if rows == 0 and not provisional:
        raise DataError(f"There are no rows of {what}, so it has no principal direction.")
    if rank == 0 and not provisional:
        raise DataError(f"All {rows} rows of {what} are equal, so it has no principal direction.")
    if count is not None and count > rank and not provisional:
        raise DataError(
            f"{count} principal directions of {what} were asked for, but its {rows} rows in {width} dimensions have "
            f"only {rank} with any variance. Ask for at most {rank}, or give more samples."
        )
    kept = rank if count is None else count
    basis = vectors[:, :kept]
    return Principal(mean, basis * signs(basis), values[:kept], rank, float(values.sum()))


def signs(basis: torch.Tensor) -> torch.Tensor:
    """Return +-1 for each column [K]: the sign of its first component that is as large as any, up to rounding."""
    size = basis.abs()
    first = (size >= size.amax(dim=0, keepdim=True) * (1 - TIE)).to(torch.uint8).argmax(dim=0)
    return basis.gather(0, first.unsqueeze(0)).sign()
