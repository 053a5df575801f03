"""The supervised loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.divergence import blank_invalid
from understudy.objectives.labels import labelled_weight, one_class
from understudy.objectives.reduction import in_float, reduce


@card("logits", needs=("labels",), teacher=False, minimum=None, invariances=("shift",))
def cross_entropy(
    student: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    all_labelled: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy with hard or soft labels, in nats; samples without a label do not count.

    Args:
        student: logits [B, C].
        labels: int64 [B] with -1 for "no label", or float [B, C] whose rows sum to 1 (to 0 for "no label").
        label_smoothing: share of the probability mass spread evenly over the classes, in [0, 1).
        all_labelled: whether every sample is known to have a label, so that none has to be looked for. A label that is
            missing nevertheless is out of range for PyTorch, which raises an error.
        weight: sample weights [B].
        reduction: "mean" over labelled samples (sum of w * l over sum of w), "sum" or "none" ([B]).

    Source: the negative log-likelihood; label smoothing by Szegedy et al., "Rethinking the Inception Architecture for
    Computer Vision", CVPR 2016, section 7.

    Raises:
        ValueError: shapes do not fit.
    """
    expected = student.shape if labels.is_floating_point() else student.shape[:1]
    if student.dim() != 2 or labels.shape != expected:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)} and labels {tuple(labels.shape)}; "
            "the logits must be [B, C] and the labels [B], or [B, C] when they are shares"
        )
    student = in_float(student)
    plain = weight is None and reduction == "mean" and not label_smoothing
    if plain and not labels.is_floating_point():
        return _mean_of_classes(student, labels, all_labelled)
    target = labels
    if not all_labelled:
        target, valid = one_class(student, labels)
        weight = labelled_weight(valid, weight)
    student = blank_invalid(student, weight)
    if labels.is_floating_point():
        target = labels.to(student.dtype)
    loss = F.cross_entropy(student, target, label_smoothing=label_smoothing, reduction="none")
    return reduce(loss, weight, reduction)


def _mean_of_classes(
    student: torch.Tensor, labels: torch.Tensor, all_labelled: bool
) -> torch.Tensor:
    """Return the mean over labelled samples by PyTorch's own reduction: one pass less, forward and backward."""
    if all_labelled:
        return F.cross_entropy(student, labels)
    valid = labels != -1
    student = student.masked_fill(~valid.unsqueeze(-1), 0.0)
    total = F.cross_entropy(student, labels, ignore_index=-1, reduction="sum")
    return total / valid.sum().clamp_min(1)
