"""The supervised loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.reduction import in_float, reduce


@card("logits", needs=("labels",), teacher=False, minimum=None, invariances=("shift",))
def cross_entropy(
    student: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy with hard or soft labels, in nats; samples without a label do not count.

    Args:
        student: logits [B, C].
        labels: int64 [B] with -1 for "no label", or float [B, C] whose rows sum to 1 (to 0 for "no label").
        label_smoothing: share of the probability mass spread evenly over the classes, in [0, 1).
        weight: sample weights [B].
        reduction: "mean" over labelled samples (sum of w * l over sum of w), "sum" or "none" ([B]).

    Raises:
        ValueError: shapes do not fit.
    """
    expected = student.shape if labels.is_floating_point() else student.shape[:1]
    if labels.shape != expected:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)} and labels {tuple(labels.shape)}; "
            f"labels must have shape {tuple(expected)}"
        )
    student = in_float(student)
    if labels.is_floating_point():
        valid = (labels.sum(dim=1) > 0.5).to(student.dtype)
        target = labels.to(student.dtype)
        loss = F.cross_entropy(student, target, label_smoothing=label_smoothing, reduction="none")
    else:
        valid = (labels >= 0).to(student.dtype)
        loss = F.cross_entropy(
            student, labels.clamp_min(0), label_smoothing=label_smoothing, reduction="none"
        )
    valid = valid if weight is None else valid * weight.to(student.dtype)
    return reduce(loss, valid, reduction)
