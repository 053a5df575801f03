"""Orthogonal Procrustes distance with the exact gradient of the nuclear norm."""

from __future__ import annotations

from typing import Any, cast

import torch

from understudy.objectives.card import card
from understudy.objectives.feature.preprocessing import Preprocessing, geometry_rows
from understudy.objectives.norms import safe_sqrt


@card(
    "vectors", invariances=("scale", "rotation"), widths_differ=True, coupled=True, smallest_batch=2
)
def procrustes(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    preprocessing: Preprocessing = "unit",
    squared: bool = True,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared Procrustes distance of teacher rows A and student rows B: min_Q |A - B Q|_F^2.

    Equation: |A|_F^2 + |B|_F^2 - 2 |A^T B|_*.

    Args:
        student: [..., D_s]; every vector is a row, n of them.
        teacher: [..., D_t], the leading dimensions equal; detached.
        preprocessing: "unit" (rows centred, then the matrix divided by its Frobenius norm), "centred" or "raw".
        squared: False for the distance instead of its square; at a distance of 0 its gradient is set to 0.
        weight: weights or mask over the leading dimensions. Padding tokens must be masked, or they dominate.

    Returns:
        One number; in [0, 2] with "unit". Coupled: Q fits all rows of a batch at once, so a split batch gives
        another value, and there is no reduction. n should exceed D_s well, or the student can match every batch
        exactly.

    Q has orthonormal columns (rows, if the student is narrower); |.|_* is the sum of the singular values. Zero
    exactly when `feature_gram` is zero.

    With A^T B = U S V^T over the non-zero singular values, the gradient is 2 (B - A U V^T), also where singular
    values repeat or vanish: the singular vectors themselves are never differentiated. The decomposition is of A^T B
    or, with fewer rows than columns, of an n x n matrix with the same singular values. There is no second
    derivative.

    Source: Bhattarai et al., "Knowledge distillation through geometry-aware representational alignment", 2025.
    Whether theirs is squared is not known; the square is smooth where the two agree.

    Raises:
        ValueError: leading dimensions differ, a single row is to be centred, or the weight does not fit.
    """
    ours, theirs = geometry_rows(student, teacher, weight, preprocessing)
    distance = cast(torch.Tensor, _SquaredDistance.apply(ours, theirs))
    if squared:
        return distance
    # What the decomposition leaves of a distance of 0 is some eps of the lengths, and has no direction.
    lengths = (ours.square().sum() + theirs.square().sum()).detach()
    noise = (64 * torch.finfo(distance.dtype).eps) ** 2 * lengths
    return safe_sqrt(torch.where(distance <= noise, torch.zeros_like(distance), distance))


class _SquaredDistance(torch.autograd.Function):
    """min_Q |A - B Q|_F^2 for B [n, D_s] and A [n, D_t]; differentiable in B once."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Build the distance on its residual, so that rounding cannot make a small one negative."""
        fitted, nuclear = _fit(student, teacher)
        residual = student - fitted
        ctx.save_for_backward(residual)
        left = _squared_norm(residual)
        lengths = _squared_norm(student) + _squared_norm(teacher)
        # What of the teacher lies outside the student's reach, |A - A U U^T|_F^2, where that is more than rounding.
        missed = lengths - 2 * nuclear - left
        noise = 16 * torch.finfo(missed.dtype).eps * lengths
        return left + torch.where(missed <= noise, torch.zeros_like(missed), missed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient with respect to the student."""
        (residual,) = ctx.saved_tensors
        return 2 * gradient * residual, None


def _squared_norm(matrix: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(matrix)
    return norm.square()


def _fit(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A U V^T, the teacher turned into the student's space, and the nuclear norm of A^T B."""
    rows, narrower = student.shape[0], min(student.shape[1], teacher.shape[1])
    if rows < narrower:
        # A^T = Q_t R_t and B^T = Q_s R_s, so A^T B = Q_t (R_t R_s^T) Q_s^T, and the middle is n x n.
        basis, ours = torch.linalg.qr(student.mT)
        theirs = torch.linalg.qr(teacher.mT, mode="r").R
        polar, nuclear = _polar_factor(theirs @ ours.mT)
        return (theirs.mT @ polar) @ basis.mT, nuclear
    polar, nuclear = _polar_factor(teacher.mT @ student)
    return teacher @ polar, nuclear


def _polar_factor(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return U V^T over the singular values that are more than rounding, and the sum of all of them."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    threshold = values[:1] * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    return (left * (values > threshold).to(matrix.dtype)) @ right, values.sum()
