"""Divergences from a mixture of teacher and student: skewed Kullback-Leibler and Jensen-Shannon."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import (
    kullback_leibler,
    log_mixture,
    log_probabilities,
    logit_pair,
    square,
)
from understudy.objectives.reduction import reduce


@card("tokens", invariances=("shift",), masked_classes=True, temperature_power=2)
def skewed_forward_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    skew: float = 0.1,
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 * KL(p || skew * p + (1 - skew) * q) of each token, teacher p and student q, in nats.

    Args:
        student: logits [B, T, V] (any leading dimensions).
        teacher: logits [B, T, V]; detached.
        skew: the teacher's share of the mixture, in [0, 1); 0 is `forward_kl`. The value is at most -log(skew) * T^2
            and the derivative with respect to q at most (1 - skew) / skew * T^2, so that no token can dominate.
        temperature: T > 0, a number or a tensor that broadcasts over [B, T].
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Classes that both mask with -inf count nothing.

    Source: Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024, equation 3;
    their code lacks the teacher's entropy, which changes the value and not the gradient.

    Raises:
        ValueError: shapes differ, a number is out of its range, or the weight does not fit.
    """
    _check_skew(skew)
    student, teacher = logit_pair(student, teacher, weight)
    log_q, log_p = log_probabilities(student, teacher, temperature)
    loss = kullback_leibler(log_p, log_mixture(log_p, log_q, skew))
    return reduce(square(temperature, student) * loss, weight, reduction)


@card("tokens", invariances=("shift",), masked_classes=True, temperature_power=2)
def skewed_reverse_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    skew: float = 0.1,
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 * KL(q || (1 - skew) * p + skew * q) of each token, teacher p and student q, in nats.

    Args:
        student: logits [B, T, V] (any leading dimensions).
        teacher: logits [B, T, V]; detached.
        skew: the student's share of the mixture, in [0, 1); 0 is `reverse_kl`.
        temperature: T > 0, a number or a tensor that broadcasts over [B, T].
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Classes that both mask with -inf count nothing; with a skew above 0 the value stays finite where only the teacher
    masks.

    Source: Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024.

    Raises:
        ValueError: shapes differ, a number is out of its range, or the weight does not fit.
    """
    _check_skew(skew)
    student, teacher = logit_pair(student, teacher, weight)
    log_q, log_p = log_probabilities(student, teacher, temperature)
    loss = kullback_leibler(log_q, log_mixture(log_q, log_p, skew))
    return reduce(square(temperature, student) * loss, weight, reduction)


def _check_skew(skew: float) -> None:
    if not 0 <= skew < 1:
        raise ValueError(f"skew is {skew}; it must be at least 0 and below 1")


@card("tokens", invariances=("shift",), masked_classes=True, temperature_power=2)
def jensen_shannon(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    beta: float = 0.5,
    normalised: bool = False,
    crossed: bool = False,
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 * [beta * KL(p || m) + (1 - beta) * KL(q || m)], m = beta * p + (1 - beta) * q, of each token, in nats.

    Args:
        student: logits [B, T, V] (any leading dimensions), q = softmax(s / T).
        teacher: logits [B, T, V], p = softmax(t / T); detached.
        beta: the teacher's share of the mixture, in [0, 1]. At the ends, where the formula gives 0, it is replaced
            by the limit of its ratio to beta * (1 - beta): exactly `forward_kl` at 0 and `reverse_kl` at 1.
        normalised: divide by beta * (1 - beta), which makes the value continuous at the ends and keeps the size of
            the gradient when beta changes. Without it the value jumps there (as in TRL) and is at most log 2 times
            T^2.
        crossed: mix with the shares swapped, m = (1 - beta) * p + beta * q, and no exception at the ends. This is TRL
            before March 2025, and codes that descend from it; the same at 0.5. Not a divergence of the paper.
        temperature: T > 0, a number or a tensor that broadcasts over [B, T].
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Classes that both mask with -inf count nothing.

    Source: Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", ICLR
    2024 (GKD). TRL applies no T^2, and before March 2025 its mixture had the shares swapped; DistiLLM's lambda is 1
    - beta.

    Raises:
        ValueError: shapes differ, a number is out of its range, or the weight does not fit.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}; it must lie between 0 and 1")
    if crossed and normalised:
        raise ValueError("a crossed mixture has no limits at the ends; leave out normalised=True")
    student, teacher = logit_pair(student, teacher, weight)
    log_q, log_p = log_probabilities(student, teacher, temperature)
    if beta == 0 and not crossed:
        loss = kullback_leibler(log_p, log_q)
    elif beta == 1 and not crossed:
        loss = kullback_leibler(log_q, log_p)
    else:
        log_m = log_mixture(log_p, log_q, 1 - beta if crossed else beta)
        loss = beta * kullback_leibler(log_p, log_m) + (1 - beta) * kullback_leibler(log_q, log_m)
        loss = loss / (beta * (1 - beta)) if normalised else loss
    return reduce(square(temperature, student) * loss, weight, reduction)
