"""Hierarchical context loss: one comparison per size of neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.reduction import reduce, same_shape
from understudy.objectives.shapes import pair


@card("maps")
def review(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    levels: Sequence[int] = (4, 2, 1),
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Hierarchical context loss of ReviewKD: (MSE + sum_j 2^-j MSE of maps pooled to k_j x k_j) / (1 + sum_j 2^-j).

    Args:
        student: the fused map of a stage [B, C, H, W].
        teacher: the same shape; detached.
        levels: sizes k to which the maps are averaged; those not below H are left out, and j counts only those that
            are used.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    One term of the method; it adds one for every reviewed stage.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, with the weights of the authors'
    code.

    Raises:
        ValueError: shapes differ, or they are no maps.
    """
    same_shape(student, teacher, "feature maps")
    if student.dim() != 4:
        raise ValueError(
            f"student and teacher feature maps have shape {tuple(student.shape)}; it must be [B, C, H, W]"
        )
    # Pooling is linear, so the difference is pooled once instead of both maps.
    student, teacher = pair(student, teacher, weight)
    difference = student - teacher
    share = total = 1.0
    loss = _mean_square(difference)
    for level in levels:
        if level >= student.shape[2]:
            continue
        share /= 2
        total += share
        loss = loss + share * _mean_square(F.adaptive_avg_pool2d(difference, (level, level)))
    return reduce(loss / total, weight, reduction)


def _mean_square(difference: torch.Tensor) -> torch.Tensor:
    # Through the norm, which keeps no tensor of squares.
    flat = difference.flatten(1)
    norm: torch.Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norm.square() / flat.shape[1]
