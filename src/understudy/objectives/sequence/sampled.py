"""Divergences estimated from the one token that was drawn at each position, as on-policy distillation sees them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.divergence import fit
from understudy.objectives.reduction import in_float, reduce, same_shape
from understudy.objectives.shapes import check_choice

# exp stays in float32 below this, with room for a factor of 1e8; above, k3 goes on along its tangent.
_LARGEST_RATIO = 70.0


def token_log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return log softmax(logits) of the given tokens, in float32 or better, in nats.

    Args:
        logits: [..., V], aligned with the tokens: those at a position are what predicts its token.
        tokens: int64 [...], from 0 to V - 1.

    Source: the definition.

    Raises:
        ValueError: the leading dimensions differ.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and tokens {tuple(tokens.shape)}; "
            "they must be equal but for the last dimension of the logits"
        )
    return F.log_softmax(in_float(logits), dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def log_ratio(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    limit: float | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return R = log p(y) - log q(y) of each drawn token, teacher p (detached) and student q, in nats.

    Args:
        student: log-probabilities of the drawn tokens [B, T] (any shape).
        teacher: log-probabilities of the same tokens, the same shape.
        limit: largest |R|. Beyond it the teacher's number is moved towards the student's, so that the student still
            gets a gradient there; None for no limit, when R is -inf where the teacher rules a token out.
        weight: mask or weights [B, T]; R is 0 where it is 0, whatever stands there.

    Source: Schulman, "Approximating KL divergence", 2020; the limit is ours.

    Raises:
        ValueError: shapes differ, the limit is not positive, or the weight does not fit.
    """
    same_shape(student, teacher, "log-probabilities")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit is {limit}; it must be greater than 0, or None")
    student, teacher = in_float(student), in_float(teacher).detach()
    if weight is not None:
        nothing = fit(weight, student.shape) == 0
        student, teacher = student.masked_fill(nothing, 0.0), teacher.masked_fill(nothing, 0.0)
    if limit is not None:
        here = student.detach()
        teacher = here + (teacher - here).clamp(-limit, limit)
    return teacher - student


def estimate(ratio: torch.Tensor, estimator: str) -> torch.Tensor:
    """Return k1 = -R, k2 = R^2 / 2 or k3 = exp(R) - R - 1 of log-ratios R.

    Raises:
        ValueError: there is no such estimator.
    """
    check_choice(estimator, ("k1", "k2", "k3"), "estimator")
    if estimator == "k1":
        return -ratio
    if estimator == "k2":
        return ratio.square() / 2
    bounded = ratio.clamp(max=_LARGEST_RATIO)
    beyond = ratio - bounded
    # expm1 keeps the digits near R = 0, where exp(R) - 1 - R is of the size of R^2.
    return (bounded.expm1() - bounded) + beyond * bounded.detach().expm1()


@card("vectors")
def sampled_kl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    estimator: str = "k2",
    limit: float | None = None,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Estimate of KL(q || p) from tokens that the student drew, teacher p and student q, in nats.

    With R = log p(y) - log q(y) of the drawn token y:

    - "k2", R^2 / 2: its expected gradient is exactly that of KL(q || p). Its value is not the divergence.
    - "k3", exp(R) - R - 1: its expected value is KL(q || p), its expected gradient that of the forward KL(p || q). It
      is large where the teacher likes a token that the student hardly ever draws.
    - "k1", -R: its expected value is KL(q || p), its expected gradient is 0. Right for logging, and in a reward
      (`distilled_advantages`); of no use as a loss.

    Args:
        student: log-probabilities of the drawn tokens [B, T] (any shape), see `token_log_probabilities`. The tokens
            have to be drawn from this very distribution: temperature 1, no top-p, or the same on both sides.
        teacher: log-probabilities of the same tokens, the same shape; detached.
        estimator: "k1", "k2" or "k3".
        limit: largest |R|, see `log_ratio`; without one the value is infinite where the teacher rules a token out.
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    k3 goes on along its tangent from R = 70, so that it stays finite in float32.

    Source: Schulman, "Approximating KL divergence", 2020; as a loss in Xu et al., "KDRL: Post-Training Reasoning LLMs
    via Unified Knowledge Distillation and Reinforcement Learning", 2025, which takes k2.

    Raises:
        ValueError: shapes differ, a keyword is out of its range, or the weight does not fit.
    """
    ratio = log_ratio(student, teacher, limit=limit, weight=weight)
    return reduce(estimate(ratio, estimator), weight, reduction)
