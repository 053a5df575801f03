"""Objectives that compare logits one by one: squared error, and a two-way distribution for every logit."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.divergence import fit, logit_pair, soften, square
from understudy.objectives.reduction import in_float, reduce, same_shape


@card("logits", masked_classes=True, temperature_power=0)
def logit_mse(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    centred: bool = False,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Mean squared error between logits: mean over classes of (s / T - t / T)^2.

    Args:
        student: logits [..., C].
        teacher: logits [..., C]; detached.
        temperature: T > 0, a number or a tensor that broadcasts over the leading dimensions [...]. There is no
            factor T^2: with it, T would have no effect at all.
        centred: subtract from the differences their mean over the classes first, so that a shift of a row's logits
            costs nothing, as it changes no probability.
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over valid elements, "sum" or "none" ([...]).

    A class that the teacher masks with -inf does not count, in the mean over classes neither.

    Source: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, equation 1 (half the sum over
    classes: C / 2 times this); the mean over all elements is Distiller's.

    Raises:
        ValueError: shapes differ, or T is not positive.
    """
    student, teacher = logit_pair(student, teacher, weight)
    possible = teacher > -torch.inf
    count = possible.sum(dim=-1, keepdim=True).clamp_min(1)
    gap = torch.where(possible, student, 0.0) - torch.where(possible, teacher, 0.0)
    if centred:
        gap = torch.where(possible, gap - gap.sum(dim=-1, keepdim=True) / count, 0.0)
    loss = (soften(gap, temperature).square() / count).sum(dim=-1)
    return reduce(loss, weight, reduction)


@card("logits", temperature_power=2)
def binary_kd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Distillation of yes-or-no logits, in nats: T^2 * KL(b(t / T) || b(s / T)) of each.

    b(z) is the distribution (sigmoid(z), sigmoid(-z)).

    Args:
        student: logits of any shape [...], each of its own question.
        teacher: logits [...]; detached.
        temperature: T > 0.
        weight: weights or mask over the elements [...] (a dimension may have length 1).
        reduction: "mean" over valid elements, "sum" or "none" ([...]).

    A pair of logits (0, z) under `kd` gives the same number.

    Source: Hinton, Vinyals and Dean, 2015, section 2, for two classes.

    Raises:
        ValueError: shapes differ, or T is not positive.
    """
    same_shape(student, teacher)
    return reduce(_two_way(student, teacher, temperature, weight), weight, reduction)


@card("logits", temperature_power=2)
def multi_label_kd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Distillation of independent labels: the mean over labels of `binary_kd`, in nats.

    Args:
        student: logits [B, C], one for each label.
        teacher: logits [B, C]; detached.
        temperature: T > 0.
        weight: weights or mask over samples [B], or over samples and labels [B, C] where some labels are unknown.
        reduction: "mean" over valid samples (over valid labels of all samples, where the weight says so for labels),
            "sum" or "none" (the weight's shape; [B] without).

    Source: Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023, whose one-versus-all loss sums over labels,
    at T = 1: C times this. With the mean the size does not depend on the number of labels, nor on how many of them
    are known.

    Raises:
        ValueError: shapes differ, or T is not positive.
    """
    same_shape(student, teacher)
    if weight is not None and weight.dim() == student.dim():
        return reduce(_two_way(student, teacher, temperature, weight), weight, reduction)
    rows = None if weight is None else fit(weight, student.shape[:-1]).unsqueeze(-1)
    return reduce(_two_way(student, teacher, temperature, rows).mean(dim=-1), weight, reduction)


def _two_way(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, weight: torch.Tensor | None
) -> torch.Tensor:
    """Return T^2 KL of Bernoulli distributions, element by element."""
    student, teacher = in_float(student), in_float(teacher).detach()
    if weight is not None:
        invalid = fit(weight, student.shape) == 0
        student, teacher = student.masked_fill(invalid, 0.0), teacher.masked_fill(invalid, 0.0)
    student, teacher = soften(student, temperature), soften(teacher, temperature)
    loss = torch.zeros_like(student)
    for sign in (1, -1):
        log_student, log_teacher = F.logsigmoid(sign * student), F.logsigmoid(sign * teacher)
        possible = log_teacher > -torch.inf
        gap = torch.where(possible, log_teacher, 0.0) - torch.where(possible, log_student, 0.0)
        loss = loss + log_teacher.exp() * gap
    return square(temperature, student) * loss
