"""Classical distillation and its closest relatives: the teacher's softened probabilities as the target."""

from __future__ import annotations

from typing import Any

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import (
    cross_entropy_between,
    kullback_leibler,
    log_probabilities,
    logit_pair,
    square,
)
from understudy.objectives.norms import safe_sqrt
from understudy.objectives.reduction import reduce


@card("logits", invariances=("shift",), masked_classes=True, temperature_power=2)
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

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2. The factor T^2
    is
    theirs: it keeps the size of the gradient when T changes. It is always applied here, also without labels, where
    torchdistill drops it; and a dense prediction [B, H, W, C] is averaged over valid pixels, where torchdistill
    divides the sum by B alone and counts ignored pixels.

    Raises:
        ValueError: shapes differ, or T is not positive.
    """
    student, teacher = logit_pair(student, teacher, weight)
    rows = student.shape[:-1].numel()
    if weight is None and reduction == "mean" and rows and _closed_form(temperature):
        loss: torch.Tensor = _MeanDivergence.apply(student, teacher, temperature, rows)
        return loss
    log_student, log_teacher = log_probabilities(student, teacher, temperature)
    loss = square(temperature, student) * kullback_leibler(log_teacher, log_student)
    return reduce(loss, weight, reduction)


def _closed_form(temperature: float | torch.Tensor) -> bool:
    """Tell whether `_MeanDivergence` can be used: T is a number, and the gradient is not that of torch.func."""
    return (
        not isinstance(temperature, torch.Tensor)
        and not torch._C._are_functorch_transforms_active()
    )


class _MeanDivergence(torch.autograd.Function):
    """The mean of T^2 * KL(p || q) over rows with its gradient T / rows * (q - p): half the operations of autograd."""

    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, teacher: torch.Tensor, temperature: float, rows: int
    ) -> torch.Tensor:
        log_q, log_p = log_probabilities(student, teacher, temperature)
        p = log_p.exp()
        gap = (log_p - log_q).masked_fill_(log_p.isneginf(), 0.0)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(student, teacher, log_q.exp_().sub_(p))
            ctx.temperature, ctx.rows = temperature, rows
        return gap.mul_(p).sum() * (temperature * temperature / rows)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, teacher, difference = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A second derivative is asked for: the same difference once more, for autograd to follow.
            log_q, log_p = log_probabilities(student, teacher, ctx.temperature)
            difference = log_q.exp() - log_p.exp()
        return difference * (upstream * (ctx.temperature / ctx.rows)), None, None, None


@card("logits", minimum=None, invariances=("shift",), masked_classes=True, temperature_power=2)
def soft_cross_entropy(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 4.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy with the teacher's softened probabilities: -T^2 * sum softmax(t / T) log softmax(s / T), in nats.

    Equals `kd` plus T^2 times the teacher's entropy: the same gradient, but the value does not go to 0. Use `kd` to
    judge by the value how far the student is.

    Args:
        student: logits [..., C].
        teacher: logits [..., C]; detached.
        temperature: T > 0, a number or a tensor that broadcasts over the leading dimensions [...].
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over valid elements, "sum" or "none" ([...]).

    Source: Hinton, Vinyals and Dean, 2015, section 2, whose T^2 is applied. The codes of SinKD ("kd") and of
    Distiller ("ce") leave T^2 out: divide by it to compare.

    Raises:
        ValueError: shapes differ, or T is not positive.
    """
    student, teacher = logit_pair(student, teacher, weight)
    log_student, log_teacher = log_probabilities(student, teacher, temperature)
    loss = square(temperature, student) * cross_entropy_between(log_teacher, log_student)
    return reduce(loss, weight, reduction)


@card("logits", invariances=("shift", "sample scale"), masked_classes=True)
def logit_standardised_kd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 2.0,
    epsilon: float = 1e-7,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """`kd` on standardised logits (z - mean(z)) / (std(z) + epsilon), so that their size need not match.

    Args:
        student: logits [..., C].
        teacher: logits [..., C]; detached.
        temperature: T > 0, a number or a tensor that broadcasts over the leading dimensions [...].
        epsilon: guards against equal logits. A row of equal logits is standardised to zeros; the gradient there is
            of the size of 1 / epsilon, since the direction in which it leaves the point decides everything.
        weight: weights or mask over the leading dimensions [...].
        reduction: "mean" over valid elements, "sum" or "none" ([...]).

    Mean and standard deviation (unbiased) run over the classes that are not masked with -inf. With one class the
    loss is 0.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024; T^2 as in `kd`, always
    applied. The paper's loss is 9 times this at T = 2 (its weight, not a part of the function).

    Raises:
        ValueError: shapes differ, or T is not positive.
    """
    student, teacher = logit_pair(student, teacher, weight)
    log_student, log_teacher = log_probabilities(
        _standardise(student, epsilon), _standardise(teacher, epsilon), temperature
    )
    loss = square(temperature, student) * kullback_leibler(log_teacher, log_student)
    return reduce(loss, weight, reduction)


def _standardise(logits: torch.Tensor, epsilon: float) -> torch.Tensor:
    possible = logits > -torch.inf
    count = possible.sum(dim=-1, keepdim=True)
    finite = torch.where(possible, logits, 0.0)
    centred = torch.where(possible, finite - finite.sum(-1, keepdim=True) / count, 0.0)
    deviation = safe_sqrt(centred.square().sum(dim=-1, keepdim=True) / (count - 1).clamp_min(1))
    return torch.where(possible, centred / (deviation + epsilon), -torch.inf)
