"""Divergences of probabilities and their powers: total variation and alpha-beta."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import log_probabilities, logit_pair, square
from understudy.objectives.reduction import reduce


@card("tokens", invariances=("shift",), masked_classes=True, temperature_power=2)
def total_variation(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 * 1/2 * sum |p - q| of each token, teacher p = softmax(t / T), student q = softmax(s / T).

    Args:
        student: logits [B, T, V] (any leading dimensions).
        teacher: logits [B, T, V]; detached.
        temperature: T > 0, a number or a tensor that broadcasts over [B, T]. The factor T^2 is that of the other
            divergences; since this one is not quadratic near its minimum, its gradient grows with T.
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    In [0, 1] times T^2. Classes that both mask with -inf count nothing.

    Source: Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation", ACL 2023, token by
    token.

    Raises:
        ValueError: shapes differ, T is not positive, or the weight does not fit.
    """
    student, teacher = logit_pair(student, teacher, weight)
    log_q, log_p = log_probabilities(student, teacher, temperature)
    loss = 0.5 * (log_p.exp() - log_q.exp()).abs().sum(dim=-1)
    return reduce(square(temperature, student) * loss, weight, reduction)


@card("tokens", invariances=("shift",), masked_classes=True, temperature_power=2)
def alpha_beta(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    official: bool = False,
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 times the alpha-beta divergence of each token, teacher p = softmax(t / T), student q = softmax(s / T).

    With a = alpha, b = beta, all sums over the vocabulary:

    - in general: -1 / (a b) * sum(p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b));
    - b = 0: 1 / a^2 * sum(p^a log(p^a / q^a) - p^a + q^a), and a = 0 the same with roles and exponents swapped;
    - a = -b: 1 / a^2 * sum(log(q^a / p^a) + p^a / q^a - 1);
    - a = b = 0: 1/2 * sum (log p - log q)^2.

    (1, 0) is `forward_kl`, (0, 1) `reverse_kl`, (1, 1) half the squared distance, (1/2, 1/2) twice the sum of (sqrt
    p - sqrt q)^2.

    Args:
        student: logits [B, T, V] (any leading dimensions).
        teacher: logits [B, T, V]; detached.
        alpha: exponent of the teacher. Larger weighs classes by the teacher's probability.
        beta: exponent of the student. Larger weighs classes by the student's. Negative exponents make improbable
            classes
            huge: value and gradient can then overflow.
        official: the authors' code in the limits, which has 1 / a and 1 / b in place of the squares (the same at 1
            only).
        temperature: T > 0, a number or a tensor that broadcasts over [B, T].
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Classes that both mask with -inf count nothing.

    Source: Wang et al., "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
    alpha-beta-Divergence", ICML 2025, whose default is (0.2, 0.7); limits by Cichocki, Cruces and Amari, 2011.

    Raises:
        ValueError: shapes differ, T is not positive, or the weight does not fit.
    """
    student, teacher = logit_pair(student, teacher, weight)
    log_q, log_p = log_probabilities(student, teacher, temperature)
    impossible = (log_p == -torch.inf) & (log_q == -torch.inf)
    log_p, log_q = log_p.masked_fill(impossible, 0.0), log_q.masked_fill(impossible, 0.0)
    terms = _terms(log_p, log_q, alpha, beta, squared=not official)
    loss = terms.masked_fill(impossible, 0.0).sum(dim=-1)
    return reduce(square(temperature, student) * loss, weight, reduction)


def _terms(
    log_p: torch.Tensor, log_q: torch.Tensor, a: float, b: float, squared: bool
) -> torch.Tensor:
    """Return what each class adds to the divergence; `squared` says whether limits divide by the square."""
    if a == 0 and b == 0:
        return 0.5 * (log_p - log_q).square()
    if b == 0:
        return _limit(log_p, log_q, a) / (a * a if squared else a)
    if a == 0:
        return _limit(log_q, log_p, b) / (b * b if squared else b)
    if a + b == 0:
        gap = a * (log_p - log_q)
        return (torch.expm1(gap) - gap) / (a * a if squared else a)
    both = (a * log_p + b * log_q).exp()
    total = a + b
    alone = a / total * (total * log_p).exp() + b / total * (total * log_q).exp()
    return (alone - both) / (a * b)


def _limit(log_p: torch.Tensor, log_q: torch.Tensor, power: float) -> torch.Tensor:
    """Return p^a log(p^a / q^a) - p^a + q^a, where the first part of a class with p = 0 is 0."""
    possible = log_p > -torch.inf
    gap = torch.where(possible, log_p, 0.0) - torch.where(possible, log_q, 0.0)
    p, q = (power * log_p).exp(), (power * log_q).exp()
    return power * p * gap - p + q
