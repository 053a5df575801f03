"""Inter-channel correlation."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.norms import unit
from understudy.objectives.reduction import reduce
from understudy.objectives.shapes import pair


@card("maps", invariances=("scale", "sample scale"))
def ickd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    official: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Inter-channel correlation: |N(F_s F_s^T) - N(F_t F_t^T)|_F^2 / C per sample, F [C, H W], N(.) with unit rows.

    Args:
        student: [B, C, H, W] (or [B, C, ...]), already projected to the teacher's channels.
        teacher: [B, C, H', W']; detached. Positions may differ.
        official: True for the authors' value, which is divided by the batch size a second time. Needs reduction
            "mean".
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    A dead channel (all zeros) has a zero row and gets no gradient.

    Source: Liu et al., "Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge Distillation", ICCV
    2021, and the authors' code. Deviation: one division by B, so that the value does not fall with the batch size.
    A weight tuned for their value at batch size B is to be divided by B here.

    Raises:
        ValueError: batch sizes or channels differ, or `official` is combined with another reduction.
    """
    if student.dim() < 3 or teacher.dim() < 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student feature maps have shape {tuple(student.shape)} and teacher feature maps {tuple(teacher.shape)}; "
            "both must be [B, C, positions ...] with equal B and C"
        )
    student, teacher = pair(student, teacher, weight)
    difference = _correlation(student) - _correlation(teacher)
    values = difference.square().sum(dim=(1, 2)) / student.shape[1]
    if not official:
        return reduce(values, weight, reduction)
    if reduction != "mean":
        raise ValueError(f"reduction is '{reduction}'; with official=True it must be 'mean'")
    return reduce(values, weight, reduction) / student.shape[0]


def _correlation(features: torch.Tensor) -> torch.Tensor:
    flat = features.flatten(2)
    # A common factor changes nothing after the rows are normalised, and squares of large inner products could overflow.
    largest = flat.detach().abs().amax(dim=(1, 2), keepdim=True)
    flat = flat / torch.where(largest > 0, largest, torch.ones_like(largest))
    return unit(flat @ flat.mT)
