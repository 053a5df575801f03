"""Relational knowledge distillation: angles within triples of samples, from Gram matrices."""

from __future__ import annotations

from typing import Any, cast

import torch

from understudy.objectives.card import card
from understudy.objectives.relation.pairs import (
    batch_rows,
    centred_exactly,
    exact_type,
    squared_distances,
)
from understudy.objectives.shapes import divisor


@card(
    "vectors", invariances=("scale", "rotation"), widths_differ=True, coupled=True, smallest_batch=2
)
def rkd_angle(
    student: torch.Tensor, teacher: torch.Tensor, *, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Smooth L1 between the cosines of all angles that two samples make at a third.

    Equation: mean_ijk huber(cos_s(i; j, k) - cos_t(i; j, k)), cos(i; j, k) = <x_j - x_i, x_k - x_i> / (|x_j - x_i|
    |x_k - x_i|).

    Args:
        student: [B, ...], flattened per sample.
        teacher: [B, ...]; detached. Widths may differ.
        weight: weights or mask [B]; a triple's weight is the product of its samples'.

    Returns:
        One number, averaged over all B^3 triples; where two samples of a triple coincide with its vertex the cosine
        is 0. Coupled: it is about triples within the batch, so a split batch gives another value, and there is no
        reduction.

    All cosines follow from the inner products between samples: <x_j - x_i, x_k - x_i> = K_jk - K_ij - K_ik + K_ii.
    Neither the differences [B, B, D] nor the cosines [B, B, B] are stored: a few vertices are handled at a time,
    value and gradient together. The inner products are in float64 (float32 where a device has no other), since
    close samples are small differences of them. There is no second derivative.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, section 3.2.

    Raises:
        ValueError: batch sizes differ, the batch has one sample, or the weight is not one number per sample.
    """
    ours, theirs, share = batch_rows(
        student, teacher, weight, needed=2, why="angles between samples need"
    )
    loss = _AngleLoss.apply(ours, theirs, None if weight is None else share)
    return cast(torch.Tensor, loss)


class _AngleLoss(torch.autograd.Function):
    """`rkd_angle` for rows [B, D_s] and [B, D_t] and weights [B] or None; differentiable in the student once."""

    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, teacher: torch.Tensor, share: torch.Tensor | None
    ) -> torch.Tensor:
        """Walk over the vertices, adding up the loss and its gradient with respect to the inner products."""
        rows, exact = centred_exactly(student), exact_type(student)
        ours, ours_inverse = _inner_products(rows)
        theirs, theirs_inverse = _inner_products(centred_exactly(teacher))
        count = len(rows)
        weights = None if share is None else share.to(exact)
        total = (
            torch.full((), count, dtype=exact, device=rows.device)
            if weights is None
            else divisor(weights.sum())
        )
        # Gradients with respect to inner products between samples and to squared distances from a vertex.
        products, distances = torch.zeros_like(ours), torch.zeros_like(ours)
        loss = torch.zeros((), dtype=exact, device=rows.device)
        step = _vertices_at_once(count, rows.device)
        for start in range(0, count, step):
            vertices = slice(start, start + step)
            cosines = _cosines(ours, ours_inverse, vertices)
            slope = cosines - _cosines(theirs, theirs_inverse, vertices)
            size = slope.abs()
            slope.clamp_(-1, 1)
            # huber(x) = c (|x| - c / 2) with c = min(|x|, 1)
            clipped = slope.abs()
            values = clipped * size.sub_(clipped, alpha=0.5)
            if weights is not None:
                pairs = weights.unsqueeze(1) * weights.unsqueeze(0)
                triples = weights[vertices, None, None] * pairs
                values, slope = values.mul_(triples), slope.mul_(triples)
            loss += values.sum()
            inverse = ours_inverse[vertices]
            distances[vertices] = -inverse.square() * cosines.mul_(slope).sum(dim=2)
            slope.mul_(inverse.unsqueeze(2)).mul_(inverse.unsqueeze(1))
            products += slope.sum(dim=0)
            arms = slope.sum(dim=2)
            products[vertices] -= 2 * arms
            products.diagonal()[vertices] += arms.sum(dim=1)
        products -= 2 * distances
        products.diagonal().add_(distances.sum(dim=0) + distances.sum(dim=1))
        volume = total**3
        gradient = ((products + products.mT) @ rows) / volume
        ctx.save_for_backward(gradient.to(student.dtype))
        return (loss / volume).to(student.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient with respect to the student."""
        (saved,) = ctx.saved_tensors
        return gradient * saved, None, None


def _inner_products(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inner products K and inverse distances, 0 where two rows coincide."""
    products = rows @ rows.mT
    squared, apart = squared_distances(products)
    inverse = torch.where(apart, torch.where(apart, squared, 1.0).rsqrt(), 0.0)
    return products, inverse


def _cosines(products: torch.Tensor, inverse: torch.Tensor, vertices: slice) -> torch.Tensor:
    """Return the cosines at some vertices, [vertices, B, B]."""
    own, near = products[vertices], inverse[vertices]
    vertex = products.diagonal()[vertices].unsqueeze(1)
    cosines = products.unsqueeze(0) - own.unsqueeze(2)
    cosines -= (own - vertex).unsqueeze(1)
    cosines *= near.unsqueeze(2)
    cosines *= near.unsqueeze(1)
    return cosines.clamp_(-1, 1)


def _vertices_at_once(count: int, device: torch.device) -> int:
    """Few enough that what is stored for them stays in a CPU's cache, or small on an accelerator."""
    numbers = 2**17 if device.type == "cpu" else 2**23
    return max(1, min(count, numbers // count**2))
