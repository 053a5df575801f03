"""Relational knowledge distillation: distances between samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.relation.pairs import (
    batch_rows,
    centred_exactly,
    exact_type,
    mean_over_pairs,
    pair_weights,
    squared_distances,
)
from understudy.objectives.shapes import divisor


@card(
    "vectors", invariances=("scale", "rotation"), widths_differ=True, coupled=True, smallest_batch=2
)
def rkd_distance(
    student: torch.Tensor, teacher: torch.Tensor, *, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Smooth L1 between all pairwise distances, each model's divided by their mean.

    Equation: mean_ij huber(d_ij / mean(d) - d'_ij / mean(d')), d_ij = |s_i - s_j|_2, huber(x) = x^2 / 2 up to |x| =
    1 and |x| - 1/2 beyond.

    Args:
        student: [B, ...], flattened per sample.
        teacher: [B, ...]; detached. Widths may differ.
        weight: weights or mask [B]; a pair's weight is the product of its samples'.

    Returns:
        One number, averaged over all B^2 pairs (a sample with itself contributes 0). Coupled: it is about pairs
        within the batch, so a split batch gives another value, and there is no reduction.

    mean(d) runs over distances greater than 0; coinciding samples have distance 0 and gradient 0. The published
    weight is 1 (25 in the benchmarks on CIFAR-100), with 2 (50) for `rkd_angle`.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, section 3.2. Deviation: the inner products
    that the distances come from are in float64 (float32 where a device has no other). The authors' code takes them
    in the features' type and clamps at 1e-12, which gives near duplicates gradients that are wrong by orders of
    magnitude.

    Raises:
        ValueError: batch sizes differ, the batch has one sample, or the weight is not one number per sample.
    """
    ours, theirs, share = batch_rows(
        student, teacher, weight, needed=2, why="distances between samples need"
    )
    exact = share.to(exact_type(share))
    loss = F.smooth_l1_loss(_relative(ours, exact), _relative(theirs, exact), reduction="none")
    return mean_over_pairs(loss, exact).to(ours.dtype)


def _relative(rows: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return distances [B, B] divided by the mean of those that are not zero."""
    rows = centred_exactly(rows)
    squared, apart = squared_distances(rows @ rows.mT)
    distances = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
    pairs = pair_weights(share) * apart
    mean = (pairs * distances).sum() / divisor(pairs.sum())
    return distances / torch.where(mean > 0, mean, torch.ones_like(mean))
