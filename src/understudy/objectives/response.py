"""Objectives on logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.reduction import in_float, reduce, same_shape


@card("logits", invariances=("shift",), masked_classes=True)
def kd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 4.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Classical distillation: T^2 * KL(softmax(t / T) || softmax(s / T)), in nats.

    Args:
        student: logits [..., C].
        teacher: logits [..., C]; detached.
        temperature: T > 0, a number or a tensor that broadcasts over the leading dimensions [...].
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over valid elements (for [B, C] what PyTorch calls `batchmean`), "sum" or "none" ([...]).

    A class that the teacher masks with -inf has probability 0 and contributes nothing, provided that the student
    masks it as well or gives it a finite logit.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. The factor T^2 is
    theirs: it keeps the size of the gradient when T changes. It is always applied here, also without labels, where
    torchdistill drops it.

    Raises:
        ValueError: shapes differ, or T is not positive.
    """
    same_shape(student, teacher)
    student, teacher = in_float(student), in_float(teacher).detach()
    if isinstance(temperature, torch.Tensor):
        scale = temperature.to(student.dtype)
        student, teacher = student / scale.unsqueeze(-1), teacher / scale.unsqueeze(-1)
        factor: float | torch.Tensor = scale * scale
    else:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        student, teacher = student / temperature, teacher / temperature
        factor = temperature * temperature
    return reduce(factor * _kl(student, teacher), weight, reduction)


def _kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return KL(softmax(teacher) || softmax(student)) over the last dimension; classes at -inf in the teacher count 0."""
    log_student, log_teacher = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    possible = log_teacher > -torch.inf
    difference = torch.where(possible, log_teacher, 0.0) - torch.where(possible, log_student, 0.0)
    return (log_teacher.exp() * difference).sum(dim=-1)


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
