"""Objectives that treat the labelled class apart from the others: DKD, NKD, OFA and weighted soft labels."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import (
    cross_entropy_between,
    kullback_leibler,
    log_probabilities,
    logit_pair,
    soften,
    square,
)
from understudy.objectives.labels import (
    check_others,
    labelled_weight,
    one_class,
    pick,
    without_class,
)
from understudy.objectives.reduction import reduce


@card(
    "logits",
    needs=("labels",),
    invariances=("shift",),
    masked_classes=True,
    smallest_classes=2,
    temperature_power=2,
)
def dkd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float | torch.Tensor = 4.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Decoupled distillation: T^2 * (alpha * TCKD + beta * NCKD), in nats.

    TCKD is KL(b(t / T) || b(s / T)) of the two-way distributions b = (p_y, 1 - p_y) of label y against the rest, NCKD
    is KL(softmax(t' / T) || softmax(s' / T)) over the other classes alone. `kd` is alpha = 1 and beta = 1 - p_y of
    the teacher.

    Args:
        student: logits [..., C], C at least 2.
        teacher: logits [..., C]; detached.
        labels: classes [...] with -1 for "no label", or soft labels [..., C], of which only the largest counts.
        alpha: weight of the labelled class.
        beta: weight of the others.
        temperature: T > 0, a number or a tensor that broadcasts over the leading dimensions [...].
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over labelled valid elements, "sum" or "none" ([...]).

    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022; alpha and beta are the authors' for CIFAR-100.
    Their code subtracts 1000 from the labelled logit to take it out, which fails when logits are far apart, and
    takes logarithms of probabilities; here the class is removed, and all is in log space.

    Raises:
        ValueError: shapes do not fit, there is one class only, or T is not positive.
    """
    check_others(student)
    classes, valid = one_class(student, labels)
    weight = labelled_weight(valid, weight)
    student, teacher = logit_pair(student, teacher, weight)
    student, teacher = soften(student, temperature), soften(teacher, temperature)
    target = kullback_leibler(_two_way(teacher, classes), _two_way(student, classes))
    rest_student, _ = without_class(student, classes)
    rest_teacher, any_left = without_class(teacher, classes)
    others = kullback_leibler(rest_teacher.log_softmax(dim=-1), rest_student.log_softmax(dim=-1))
    loss = alpha * target + beta * torch.where(any_left, others, 0.0)
    return reduce(square(temperature, student) * loss, weight, reduction)


def _two_way(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return (log p_y, log(1 - p_y)) [..., 2]; the sum over the others keeps the digits of a small 1 - p_y."""
    log_probability = logits.log_softmax(dim=-1)
    rest, any_left = without_class(log_probability, classes)
    log_rest = torch.where(any_left, rest.logsumexp(dim=-1), -torch.inf)
    return torch.stack([pick(log_probability, classes), log_rest], dim=-1)


@card(
    "logits",
    needs=("labels",),
    minimum=None,
    invariances=("shift",),
    masked_classes=True,
    smallest_classes=2,
)
def nkd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    gamma: float = 1.5,
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Normalised distillation: -p_y(t) log p_y(s) - gamma * T^2 * sum softmax(t' / T) log softmax(s' / T), in nats.

    The first term is at temperature 1; in the second the logits t' and s' lack the labelled class, so that what is
    left sums to 1 on both sides. Add the cross-entropy with the labels: it is not a part of this.

    Args:
        student: logits [..., C], C at least 2.
        teacher: logits [..., C]; detached.
        labels: classes [...] with -1 for "no label", or soft labels [..., C], of which only the largest counts:
            under mixup the second class is learnt as one of the others.
        gamma: weight of the other classes. With T^2 it makes gamma * T^2, so lower it when T rises.
        temperature: T > 0, a number or a tensor that broadcasts over the leading dimensions [...].
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over labelled valid elements, "sum" or "none" ([...]).

    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023; defaults are the
    authors' for ImageNet. Their code lets gradients reach teacher logits, and returns 0 for a single class; here the
    teacher is detached, and one class is refused.

    Raises:
        ValueError: shapes do not fit, there is one class only, or T is not positive.
    """
    check_others(student)
    classes, valid = one_class(student, labels)
    weight = labelled_weight(valid, weight)
    student, teacher = logit_pair(student, teacher, weight)
    log_student = pick(student.log_softmax(dim=-1), classes)
    log_teacher = pick(teacher.log_softmax(dim=-1), classes)
    target = -log_teacher.exp() * torch.where(log_teacher > -torch.inf, log_student, 0.0)
    rest_student, _ = without_class(student, classes)
    rest_teacher, any_left = without_class(teacher, classes)
    rest = log_probabilities(rest_student, rest_teacher, temperature)
    others = torch.where(any_left, cross_entropy_between(rest[1], rest[0]), 0.0)
    loss = target + gamma * square(temperature, student) * others
    return reduce(loss, weight, reduction)


@card(
    "logits",
    needs=("labels",),
    minimum=None,
    invariances=("shift",),
    masked_classes=True,
    temperature_power=0,
)
def ofa(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    gamma: float = 1.0,
    temperature: float | torch.Tensor = 1.0,
    power_others: bool = True,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy with an enhanced target, -sum_c w_c log p_c(s), in nats; no T^2.

    With p = softmax(t / T), the labelled class has w = (1 + p)^gamma - 1 and any other class w = p^gamma: for gamma
    above 1 the label gains where the teacher is sure of it. At gamma = 1 and T = 1 the gradient is that of `kd`.

    Args:
        student: logits [..., C], of the student's head or of one of its exits.
        teacher: logits [..., C]; detached.
        labels: classes [...] with -1 for "no label", or soft labels [..., C], of which only the largest counts.
        gamma: exponent, greater than 0; the paper has 1 to 1.5.
        temperature: T > 0, a number or a tensor that broadcasts over the leading dimensions [...].
        power_others: False leaves the other classes at w = p, as the paper's equation seems to.
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over labelled valid elements, "sum" or "none" ([...]).

    Source: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    NeurIPS 2023, as in the authors' code, which takes the logarithm of the softmax and so returns inf or NaN where a
    float32 probability vanishes.

    Raises:
        ValueError: shapes do not fit, or gamma or T is not positive.
    """
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}; it must be greater than 0")
    classes, valid = one_class(student, labels)
    weight = labelled_weight(valid, weight)
    student, teacher = logit_pair(student, teacher, weight)
    log_student, log_teacher = log_probabilities(student, teacher, temperature)
    others = (gamma * log_teacher if power_others else log_teacher).exp()
    labelled = torch.expm1(gamma * torch.log1p(pick(log_teacher, classes).exp()))
    target = others.scatter(-1, classes.unsqueeze(-1), labelled.unsqueeze(-1))
    possible = log_teacher > -torch.inf
    loss = -(target * torch.where(possible, log_student, 0.0)).sum(dim=-1)
    return reduce(loss, weight, reduction)


@card(
    "logits",
    needs=("labels",),
    minimum=None,
    invariances=("shift",),
    masked_classes=True,
    held_constant=True,
)
def weighted_soft_labels(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 2.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Soft cross-entropy, less of it where the student already beats the teacher on the label, in nats.

    T^2 * (1 - exp(-L_s / L_t)) * (-sum softmax(t / T) log softmax(s / T)), where L_s and L_t are the cross-entropies
    of student and teacher with the label at temperature 1; the factor in front gets no gradient.

    Args:
        student: logits [..., C].
        teacher: logits [..., C]; detached.
        labels: classes [...] with -1 for "no label", or soft labels [..., C], of which only the largest counts.
        temperature: T > 0, a number or a tensor that broadcasts over the leading dimensions [...].
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over labelled valid elements (sum of w * l over sum of w; the factor above is a part of l),
            "sum" or "none" ([...]).

    Source: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
    ICLR 2021. The authors add 2.5 times this, at T = 2, to the cross-entropy with the labels, and 1e-7 to L_t, as
    here.

    Raises:
        ValueError: shapes do not fit, or T is not positive.
    """
    classes, valid = one_class(student, labels)
    weight = labelled_weight(valid, weight)
    student, teacher = logit_pair(student, teacher, weight)
    ours = -pick(student.detach().log_softmax(dim=-1), classes)
    theirs = -pick(teacher.log_softmax(dim=-1), classes)
    behind = -torch.expm1(-ours / (theirs + 1e-7))
    log_student, log_teacher = log_probabilities(student, teacher, temperature)
    loss = behind * cross_entropy_between(log_teacher, log_student)
    return reduce(square(temperature, student) * loss, weight, reduction)
