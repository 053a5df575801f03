"""Objectives on features."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.reduction import in_float, reduce, same_shape


@card("maps")
def mse(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Mean squared error between features, averaged over a sample's elements.

    Args:
        student: [B, ...], already projected to the teacher's shape.
        teacher: the same shape; detached.
        weight: weights or mask per sample [B], or per element (the features' shape).
        reduction: "mean" over valid samples (elements), "sum" or "none" ([B], or per element for element weights).

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3, which sums the squares and halves them; the mean
    over elements makes the size independent of the map (as in torchdistill's and mdistiller's configurations).

    Raises:
        ValueError: shapes differ.
    """
    same_shape(student, teacher, "features")
    squared = (in_float(student) - in_float(teacher).detach()).square()
    if weight is not None and weight.dim() == squared.dim() > 1:
        return reduce(squared, weight, reduction)
    return reduce(squared.flatten(1).mean(dim=1), weight, reduction)
