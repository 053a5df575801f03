"""Correlations of feature maps: over the channels of a position, and over the samples of a batch."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.norms import unit
from understudy.objectives.reduction import in_float, same_shape
from understudy.objectives.shapes import (
    average,
    check_same_but,
    check_samples,
    divisor,
    pair,
    sample_weights,
)


@card("maps", invariances=("shift", "scale", "sample scale"))
def channel_correlation(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    official: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """One minus the correlation, over channels, of student and teacher at each position; averaged over positions.

    Args:
        student: [B, C, H, W] (or [B, C, ...]), already projected to the teacher's shape.
        teacher: the same shape; detached.
        official: True for torchdistill's value, the correlation itself: a loss that is smallest where the two
            disagree.
        weight: weights or mask per sample [B], or per position [B, H, W].
        reduction: "mean" over valid samples (positions), "sum" or "none" (the weight's shape, [B] without one).

    A position whose channels are all equal has correlation 0 and gets no gradient.

    Source: the channel term (iota) of Huang et al., "DIST+: Knowledge Distillation From a Stronger Adaptive
    Teacher", TPAMI 2025. Deviation: the sign, and no 1e-8 in the denominator.

    Raises:
        ValueError: shapes differ, or the weight does not fit.
    """
    same_shape(student, teacher, "feature maps")
    student, teacher = pair(student.movedim(1, -1), teacher.movedim(1, -1), weight)
    ours, theirs = (
        unit(features - features.mean(dim=-1, keepdim=True)) for features in (student, teacher)
    )
    correlation = (ours * theirs).sum(dim=-1)
    return average(correlation if official else 1 - correlation, weight, reduction)


@card("maps", invariances=("scale",), widths_differ=True, coupled=True, smallest_batch=2)
def spatial_correlation(
    student: torch.Tensor, teacher: torch.Tensor, *, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """One minus the correlation, over the samples of the batch, of channel sums at each position (their mean).

    Args:
        student: [B, C_s, H, W] (or [B, C_s, ...]).
        teacher: [B, C_t, H, W]; detached.
        weight: weights or mask [B].

    Returns:
        One number. Coupled: it correlates over the batch, so a split batch gives another value, and there is no
        reduction.

    A position that is the same in all samples has correlation 0 and gets no gradient.

    Source: the spatial term (kappa) of Huang et al., "DIST+: Knowledge Distillation From a Stronger Adaptive
    Teacher", TPAMI 2025.

    Raises:
        ValueError: batch or spatial sizes differ, the batch has one sample, or the weight is not one number per
            sample.
    """
    check_same_but(student, teacher, 1, "feature maps")
    check_samples(student, 2, "a correlation over the batch needs")
    share = sample_weights(weight, in_float(student))
    sides = []
    for features in (in_float(student), in_float(teacher).detach()):
        sums = features.sum(dim=1).flatten(1)
        sums = torch.where(share.unsqueeze(1) == 0, torch.zeros_like(sums), sums)
        centred = sums - (share @ sums) / divisor(share.sum())
        sides.append(unit((share.sqrt().unsqueeze(1) * centred).mT))
    return 1 - (sides[0] * sides[1]).sum(dim=1).mean()
