"""Kullback-Leibler divergences between next-token distributions: forward, reverse, and sums of both."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import (
    kullback_leibler,
    log_probabilities,
    logit_pair,
    square,
)
from understudy.objectives.reduction import reduce
from understudy.objectives.shapes import divisor


@card("tokens", invariances=("shift",), masked_classes=True, temperature_power=2)
def forward_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    epsilon: float = 0.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 * KL(p || q) of each token, in nats, which makes the student cover all modes of the teacher.

    p = softmax(t / T) is the teacher, q = softmax(s / T) the student.

    Args:
        student: logits [B, T, V] (any leading dimensions).
        teacher: logits [B, T, V]; detached.
        temperature: T > 0, a number or a tensor that broadcasts over [B, T].
        epsilon: added to the teacher's probabilities, the divergence being sum((p + epsilon) * (log(p + epsilon) - log
            q)), as some published codes have it (1e-9). It moves the minimum away from the teacher: for comparison
            with their numbers only.
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Classes that both mask with -inf, such as the padding of a vocabulary, count nothing.

    Source: Hinton, Vinyals and Dean, 2015, token by token; `kd` under another name. The codes of DistiLLM, MiniLLM
    and MiniPLM return the cross-entropy (`soft_cross_entropy`) under this name, which has the same gradient and does
    not go to 0.

    Raises:
        ValueError: shapes differ, T is not positive, or the weight does not fit.
    """
    student, teacher = logit_pair(student, teacher, weight)
    log_q, log_p = log_probabilities(student, teacher, temperature)
    if epsilon:
        raised = log_p.exp() + epsilon
        divergence = (raised * (raised.log() - log_q)).sum(dim=-1)
    else:
        divergence = kullback_leibler(log_p, log_q)
    loss = square(temperature, student) * divergence
    return reduce(loss, weight, reduction)


@card("tokens", invariances=("shift",), masked_classes=True, temperature_power=2)
def reverse_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    epsilon: float = 0.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 * KL(q || p) of each token, in nats, which makes the student keep to modes of the teacher.

    p = softmax(t / T) is the teacher, q = softmax(s / T) the student.

    Args:
        student: logits [B, T, V] (any leading dimensions).
        teacher: logits [B, T, V]; detached.
        temperature: T > 0, a number or a tensor that broadcasts over [B, T].
        epsilon: added to the student's probabilities outside of the logarithm, sum((q + epsilon) * (log q - log p)), as
            some published codes have it (1e-9); for comparison with their numbers only.
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Classes that both mask with -inf count nothing; one that only the teacher masks makes the divergence infinite, as
    it is.

    Source: Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, for whole vocabularies;
    T^2 as in `forward_kl`.

    Raises:
        ValueError: shapes differ, T is not positive, or the weight does not fit.
    """
    student, teacher = logit_pair(student, teacher, weight)
    log_q, log_p = log_probabilities(student, teacher, temperature)
    divergence = kullback_leibler(log_q, log_p)
    if epsilon:
        divergence = divergence + epsilon * (log_q - log_p).sum(dim=-1)
    loss = square(temperature, student) * divergence
    return reduce(loss, weight, reduction)


@card("tokens", invariances=("shift",), masked_classes=True, temperature_power=2)
def symmetric_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    reverse: float = 0.5,
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 * [(1 - reverse) * KL(p || q) + reverse * KL(q || p)] of each token, teacher p and student q, in nats.

    Args:
        student: logits [B, T, V] (any leading dimensions).
        teacher: logits [B, T, V]; detached.
        reverse: share of the reverse divergence, in [0, 1]; half of Jeffreys' divergence at 0.5, DistiLLM's baseline
            at 0.9.
        temperature: T > 0, a number or a tensor that broadcasts over [B, T].
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Classes that both mask with -inf count nothing.

    Source: Jeffreys, 1946; as a loss in the code of Ko et al., "DistiLLM", ICML 2024, whose forward part lacks the
    teacher's entropy.

    Raises:
        ValueError: shapes differ, a number is out of its range, or the weight does not fit.
    """
    if not 0 <= reverse <= 1:
        raise ValueError(f"reverse is {reverse}; it must lie between 0 and 1")
    student, teacher = logit_pair(student, teacher, weight)
    log_q, log_p = log_probabilities(student, teacher, temperature)
    # A share of 0 leaves its divergence out, which may be infinite.
    loss = torch.zeros_like(log_q[..., 0])
    if reverse < 1:
        loss = loss + (1 - reverse) * kullback_leibler(log_p, log_q)
    if reverse > 0:
        loss = loss + reverse * kullback_leibler(log_q, log_p)
    return reduce(square(temperature, student) * loss, weight, reduction)


@card(
    "tokens", invariances=("shift",), masked_classes=True, temperature_power=2, held_constant=True
)
def adaptive_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    head: float = 0.5,
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 * [g_h * KL(p || q) + g_t * KL(q || p)] / (g_h + g_t) of each token, teacher p and student q, in nats.

    g_h and g_t are sums of |p - q| over head and tail; the head are the teacher's most probable classes for as long
    as their probabilities sum to at most `head`, and always the first. The shares get no gradient.

    Args:
        student: logits [B, T, V] (any leading dimensions).
        teacher: logits [B, T, V]; detached.
        head: probability of the head, in (0, 1).
        temperature: T > 0, a number or a tensor that broadcasts over [B, T].
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Classes that both mask with -inf count nothing. Where p = q the value is 0 (0 / 0 in the authors' code).

    Source: Wu et al., "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models",
    COLING 2025, with the head as in the code of ABKD.

    Raises:
        ValueError: shapes differ, a number is out of its range, or the weight does not fit.
    """
    if not 0 < head < 1:
        raise ValueError(f"head is {head}; it must lie between 0 and 1")
    student, teacher = logit_pair(student, teacher, weight)
    log_q, log_p = log_probabilities(student, teacher, temperature)
    p, order = log_p.exp().sort(dim=-1, descending=True, stable=True)
    gap = (p - log_q.detach().exp().gather(-1, order)).abs()
    in_head = p.cumsum(dim=-1) <= head
    in_head[..., 0] = True
    share = torch.where(in_head, gap, 0.0).sum(dim=-1) / divisor(gap.sum(dim=-1))
    loss = share * kullback_leibler(log_p, log_q) + (1 - share) * kullback_leibler(log_q, log_p)
    return reduce(square(temperature, student) * loss, weight, reduction)
