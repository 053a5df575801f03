"""Channels as distributions over positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.reduction import same_shape
from understudy.objectives.shapes import average, pair


@card("maps", invariances=("shift",))
def cwd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 4.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Channel-wise distillation: T^2 * KL(softmax(t / T) || softmax(s / T)) over the positions of a channel, in nats.

    A sample's value is the mean over its channels.

    Args:
        student: features or logits [B, C, H, W] (or [B, C, ...]), already projected to the teacher's shape.
        teacher: the same shape; detached.
        temperature: T > 0.
        weight: weights or mask per sample [B] or per channel [B, C].
        reduction: "mean" over valid samples (channels), "sum" or "none" (the weight's shape, [B] without one).

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, T = 4 as in the
    authors' code.

    Raises:
        ValueError: shapes differ, there are no positions, or T is not positive.
    """
    same_shape(student, teacher, "feature maps")
    if student.dim() < 3:
        raise ValueError(
            f"student and teacher feature maps have shape {tuple(student.shape)}; it must be [B, C, positions ...]"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")
    student, teacher = pair(student, teacher, weight)
    ours = F.log_softmax(student.flatten(2) / temperature, dim=2)
    theirs = F.log_softmax(teacher.flatten(2) / temperature, dim=2)
    values = (theirs.exp() * (theirs - ours)).sum(dim=2)
    return average(temperature**2 * values, weight, reduction)
