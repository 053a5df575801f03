"""Inner products of Gram matrices over examples, through whichever matrices are smaller."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.feature.preprocessing import Preprocessing, geometry_rows
from understudy.objectives.norms import floor_at_zero, safe_sqrt


def gram_products(
    student: torch.Tensor, teacher: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return <K_s, K_s>, <K_s, K_t> and <K_t, K_t> for K = X X^T, without K when there are more rows than columns.

    Args:
        student: [..., n, D_s].
        teacher: [..., n, D_t].

    <X X^T, Y Y^T> = |X^T Y|_F^2: with n rows the left side costs n^2 (D_s + D_t) and n^2 memory, the right side
    n (D_s^2 + D_s D_t + D_t^2) and the square of the widths.
    """
    if student.shape[-2] <= max(student.shape[-1], teacher.shape[-1]):
        ours, theirs = student @ student.mT, teacher @ teacher.mT
        return _product(ours, ours), _product(ours, theirs), _product(theirs, theirs)
    return (
        _squared_norm(student.mT @ student),
        _squared_norm(student.mT @ teacher),
        _squared_norm(teacher.mT @ teacher),
    )


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one * other).sum(dim=(-2, -1))


def _squared_norm(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.square().sum(dim=(-2, -1))


@card(
    "vectors", invariances=("scale", "rotation"), widths_differ=True, coupled=True, smallest_batch=2
)
def feature_gram(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    preprocessing: Preprocessing = "unit",
    squared: bool = True,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Feature-Gram distance |A A^T - B B^T|_F^2 of preprocessed teacher rows A and student rows B.

    Args:
        student: [..., D_s]; every vector is a row, n of them.
        teacher: [..., D_t], the leading dimensions equal; detached.
        preprocessing: "unit" (rows centred, then the matrix divided by its Frobenius norm), "centred" or "raw".
        squared: False for the distance instead of its square; at a distance of 0 its gradient is set to 0.
        weight: weights or mask over the leading dimensions. Padding tokens must be masked, or they dominate.

    Returns:
        One number; in [0, 2] with "unit". Coupled: it compares inner products between the rows of a batch, so a
        split batch gives another value, and there is no reduction. n should exceed D_s well, or the student can
        match every batch exactly.

    The value is |A^T A|_F^2 + |B^T B|_F^2 - 2 |A^T B|_F^2, so no n x n matrix is made when n is larger than the
    widths.

    Source: Bhattarai et al., "Knowledge distillation through geometry-aware representational alignment", 2025.
    Whether theirs is squared is not known; the square is smooth where the two agree.

    Raises:
        ValueError: leading dimensions differ, a single row is to be centred, or the weight does not fit.
    """
    ours, theirs = geometry_rows(student, teacher, weight, preprocessing)
    own, cross, other = gram_products(ours, theirs)
    distance = floor_at_zero(own + other - 2 * cross)
    if squared:
        return distance
    # A difference within the rounding of its terms has no direction.
    noise = 16 * torch.finfo(distance.dtype).eps * (own + other).detach()
    return safe_sqrt(torch.where(distance <= noise, torch.zeros_like(distance), distance))
