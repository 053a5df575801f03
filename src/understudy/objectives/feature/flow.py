"""Flow of solution procedure: how one layer's features turn into another's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.norms import length
from understudy.objectives.reduction import reduce
from understudy.objectives.shapes import pair


@card("maps", needs=("student_later: real B C 4 4", "teacher_later: real B C 4 4"))
def fsp(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    student_later: torch.Tensor,
    teacher_later: torch.Tensor,
    official: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """|G_s - G_t|_F^2 per sample, G = F_1 F_2^T / (H W) of a map F_1 [C_1, H W] and a later one F_2 [C_2, H W].

    Args:
        student: the earlier map of the student [B, C_1, H, W].
        teacher: the earlier map of the teacher [B, C_1, H', W']; detached.
        student_later: the later map of the student [B, C_2, ., .].
        teacher_later: the later map of the teacher [B, C_2, ., .]; detached.
        official: True for torchdistill's value: the sum over the columns of G (one per channel of the later map) of
            |G_s - G_t|_2.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    Within a model, the larger of the two maps is max-pooled to the size of the smaller. Student and teacher may
    differ in their spatial sizes, not in their channels.

    Source: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017, with the squared norm that the paper has.

    Raises:
        ValueError: batch sizes or channels of student and teacher differ, or a tensor is not a map.
    """
    sides = ((student, teacher, "earlier"), (student_later, teacher_later, "later"))
    for ours, theirs, place in sides:
        if ours.dim() != 4 or theirs.dim() != 4 or ours.shape[:2] != theirs.shape[:2]:
            raise ValueError(
                f"the student's {place} map has shape {tuple(ours.shape)} and the teacher's "
                f"{tuple(theirs.shape)}; both must be [B, C, H, W] with equal B and C"
            )
    if student.shape[0] != student_later.shape[0]:
        raise ValueError(
            f"the student's earlier map has shape {tuple(student.shape)} and its later one "
            f"{tuple(student_later.shape)}; their batches must be equal"
        )
    earlier, earlier_target = pair(student, teacher, weight)
    later, later_target = pair(student_later, teacher_later, weight)
    difference = _flow(earlier, later) - _flow(earlier_target, later_target)
    if official:
        return reduce(length(difference.mT).sum(dim=1), weight, reduction)
    return reduce(difference.square().sum(dim=(1, 2)), weight, reduction)


def _flow(earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """Return G [B, C_1, C_2]."""
    size = (min(earlier.shape[2], later.shape[2]), min(earlier.shape[3], later.shape[3]))
    earlier, later = (
        F.adaptive_max_pool2d(features, size) if features.shape[2:] != size else features
        for features in (earlier, later)
    )
    return earlier.flatten(2) @ later.flatten(2).mT / (size[0] * size[1])
