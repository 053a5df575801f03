"""Objectives on features before a ReLU: which side of zero matters more than the value."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.reduction import reduce, same_shape
from understudy.objectives.shapes import pair


@card("maps", minimum=None)
def activation_boundaries(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    margin: float = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Squared hinge: the sum of (s + m)^2 where t <= 0 and s > -m, and of (s - m)^2 where t > 0 and s <= m.

    Args:
        student: features before the ReLU [B, ...], through the connector.
        teacher: features before the ReLU, the same shape; detached. 0 counts as inactive.
        margin: m, how far beyond the boundary the student is pushed.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]); a sample's elements are summed.

    Zero when the student is beyond the margin on the teacher's side everywhere, not at student = teacher.

    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    AAAI 2019.

    Raises:
        ValueError: shapes differ.
    """
    same_shape(student, teacher, "features")
    student, teacher = pair(student, teacher, weight)
    missing = torch.where(teacher > 0, margin - student, margin + student).clamp_min(0)
    return reduce(missing.square().flatten(1).sum(dim=1), weight, reduction)


@card("maps")
def ofd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    margin: float | torch.Tensor = 0.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Partial L2 distance of the feature overhaul: sum of (s - t')^2 unless s <= t' <= 0, with t' = max(t, m).

    Args:
        student: features before the ReLU [B, C, ...], through the connector.
        teacher: features before the ReLU, the same shape; detached.
        margin: m, at most 0: a number, or one per channel [C] (the mean of the teacher's negative responses).
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]); a sample's elements are summed.

    Where the teacher is inactive, the student only has to be at least as inactive.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019. The authors' division by 1000
    (and by powers of 2 for earlier layers) is the method's weight.

    Raises:
        ValueError: shapes differ, or the margin is not one number per channel.
    """
    same_shape(student, teacher, "features")
    student, teacher = pair(student, teacher, weight)
    if isinstance(margin, torch.Tensor):
        if margin.shape != teacher.shape[1:2]:
            raise ValueError(
                f"margin has shape {tuple(margin.shape)} and the features {tuple(teacher.shape)}; "
                f"it must have one number per channel, {tuple(teacher.shape[1:2])}"
            )
        level = margin.detach().to(teacher.dtype).view(-1, *[1] * (teacher.dim() - 2))
        target = torch.maximum(teacher, level)
    else:
        target = teacher.clamp_min(margin)
    free = (student <= target) & (target <= 0)
    squared = torch.where(free, torch.zeros_like(student), student - target).square()
    return reduce(squared.flatten(1).sum(dim=1), weight, reduction)
