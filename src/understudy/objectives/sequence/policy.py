"""Group-relative policy optimisation, and its union with distillation: GRPO and KDRL."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import fit
from understudy.objectives.reduction import in_float, reduce, same_shape
from understudy.objectives.sequence.sampled import estimate, log_ratio
from understudy.objectives.shapes import check_choice

# A ratio of policies is at most e^30: exp stays finite, and nothing that far off is of use.
_LARGEST_LOG_RATIO = 30.0


def group_advantages(rewards: torch.Tensor, *, deviation: str = "population") -> torch.Tensor:
    """Return (r - mean r) / std r over the responses to each prompt; 0 where all of a group are equal.

    Args:
        rewards: [..., G], the responses to one prompt in the last dimension.
        deviation: "population" divides by G under the root, "sample" by G - 1; the advantages differ by
            sqrt(G / (G - 1)).

    Source: Shao et al., "DeepSeekMath", 2024 (GRPO).

    Raises:
        ValueError: there is no group, or no such deviation.
    """
    check_choice(deviation, ("population", "sample"), "deviation")
    if rewards.dim() == 0 or rewards.shape[-1] == 0:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)}; they must be [..., G], G >= 1"
        )
    rewards = in_float(rewards).detach()
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    # Equal rewards may leave a deviation of rounding only, which must not be blown up to advantages of 1.
    equal = rewards.amax(dim=-1, keepdim=True) == rewards.amin(dim=-1, keepdim=True)
    count = max(rewards.shape[-1] - (deviation == "sample"), 1)
    spread = (centred.square().sum(dim=-1, keepdim=True) / count).sqrt()
    return torch.where(equal, 0.0, centred / torch.where(equal, 1.0, spread))


def reward_guided_mask(correct: torch.Tensor, level: str = "response") -> torch.Tensor:
    """Return which responses are distilled: 1.0 or 0.0, the shape of `correct`.

    Args:
        correct: [..., G], true (or not 0) for right responses. Correctness, not a shaped reward.
        level: "response" distils wrong responses only, "group" those of prompts without any right response, "none" all.

    Source: Xu et al., "KDRL", 2025, section 3.4.

    Raises:
        ValueError: there is no such level.
    """
    check_choice(level, ("none", "response", "group"), "level")
    right = correct != 0
    if level == "none":
        right = torch.zeros_like(right)
    elif level == "group":
        right = right.any(dim=-1, keepdim=True).expand_as(right)
    return (~right).float()


def annealed_coefficient(step: int, *, start: float, decrement: float, floor: float) -> float:
    """Return max(start - decrement * step, floor), the weight of distillation after `step` steps of the optimiser.

    The paper goes from 5e-3 to 1e-3 by 5e-5 a step.

    Source: Xu et al., "KDRL", 2025 (KDRL-Annealing).

    Raises:
        ValueError: the step or the decrement is negative, or the floor is above the start.
    """
    if step < 0 or decrement < 0:
        raise ValueError(f"step is {step} and decrement {decrement}; neither may be negative")
    if floor > start:
        raise ValueError(f"floor is {floor} and start {start}; the floor must not be above it")
    return max(start - decrement * step, floor)


def distilled_advantages(
    student: torch.Tensor,
    teacher: torch.Tensor,
    advantages: torch.Tensor,
    *,
    beta: float,
    distilled: torch.Tensor | None = None,
    limit: float | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return A + beta * R per token, the divergence in the reward instead of in the loss; nothing carries a gradient.

    R = log p(y) - log q(y), teacher p and student q. While the policy is the one that drew the tokens, this has the
    gradient of `kdrl` with "k2"; once ratios are clipped the two differ.

    Args:
        student: log-probabilities of the drawn tokens [..., T].
        teacher: log-probabilities of the same tokens, the same shape.
        advantages: [...] per response or [..., T] per token.
        beta: weight of the divergence.
        distilled: mask or weights of the divergence, shaped as advantages may be; None for all ones.
        limit: largest |R|, see `log_ratio`.
        weight: mask over tokens [..., T]; R is 0 where it is 0.

    Source: Xu et al., "KDRL", 2025, as later work restates it.

    Raises:
        ValueError: shapes do not fit.
    """
    ratio = log_ratio(student.detach(), teacher, limit=limit, weight=weight)
    share = 1.0 if distilled is None else _per_token(distilled, ratio, "distilled")
    return _per_token(advantages, ratio, "advantages") + beta * share * ratio


@card("vectors", needs=("advantages: real B C", "old: real B C"), teacher=False, minimum=None)
def clipped_policy(
    student: torch.Tensor,
    advantages: torch.Tensor,
    *,
    old: torch.Tensor | None = None,
    clip: float = 0.2,
    importance: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """-min(rho * A, clip(rho, 1 - clip, 1 + clip) * A) of each token, rho = exp(student - old).

    Args:
        student: log-probabilities of the drawn tokens [..., T], in nats.
        advantages: [...] per response or [..., T] per token, see `group_advantages`; detached.
        old: log-probabilities under the policy that drew the tokens [..., T], detached; None where that is the student
            as it is, so that rho = 1 and the gradient is -A times that of `student`.
        clip: largest distance of a ratio from 1 that still pays, in (0, 1).
        importance: what each token's ratio is multiplied by before it is clipped [..., T], where tokens were drawn from
            another distribution; detached. See `teacher_mixed_importance`.
        weight: mask or weights over tokens [..., T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all responses (so long ones count more), "sum" or "none" ([..., T]).

    A ratio above e^30 counts as e^30.

    Source: Shao et al., "DeepSeekMath", 2024 (GRPO), with the mean over all tokens and without a reference policy, as
    in Xu et al., "KDRL", 2025.

    Raises:
        ValueError: shapes do not fit, or clip is out of its range.
    """
    loss = _policy_terms(student, advantages, old, clip, weight, importance)
    return reduce(loss, weight, reduction)


@card("vectors", needs=("advantages: real B C", "old: real B C"), minimum=None)
def kdrl(
    student: torch.Tensor,
    teacher: torch.Tensor,
    advantages: torch.Tensor,
    *,
    beta: float = 2e-3,
    old: torch.Tensor | None = None,
    distilled: torch.Tensor | None = None,
    estimator: str = "k2",
    limit: float | None = None,
    clip: float = 0.2,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """`clipped_policy` + beta * distilled * `sampled_kl` of each token: reward and teacher in one loss.

    Args:
        student: log-probabilities of the drawn tokens [..., T], in nats.
        teacher: log-probabilities of the same tokens, the same shape; detached.
        advantages: [...] per response or [..., T] per token, see `group_advantages`; detached.
        beta: weight of the divergence, at least 0. What is right depends on the length of responses: about 1e-3 for
            long chains of thought, 0.2 for short answers. With 0 the teacher is not read.
        old: log-probabilities under the policy that drew the tokens, detached; None where that is the student as it is.
        distilled: mask or weights of the divergence, shaped as advantages may be, see `reward_guided_mask`; tokens
            without it stay in the mean, so that beta keeps its meaning. None for all ones.
        estimator: "k1", "k2" or "k3", see `sampled_kl`. The divergence is not clipped.
        limit: largest |R|, see `log_ratio`.
        clip: largest distance of a ratio from 1 that still pays, in (0, 1).
        weight: mask or weights over tokens [..., T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all responses, "sum" or "none" ([..., T]).

    The divergence is that of the drawn tokens, which is all that a teacher has to give. Where it gives more, add beta
    times `reverse_kl` of whole distributions, or `top_k_divergence`, to `clipped_policy`: the same expected gradient,
    with less noise.

    Source: Xu et al., "KDRL: Post-Training Reasoning LLMs via Unified Knowledge Distillation and Reinforcement
    Learning", 2025, equation 8. Dividing a masked divergence by all tokens is our choice.

    Raises:
        ValueError: shapes do not fit, or a number is out of its range.
    """
    if not beta >= 0:
        raise ValueError(f"beta is {beta}; it must be at least 0")
    same_shape(student, teacher, "log-probabilities")
    loss = _policy_terms(student, advantages, old, clip, weight)
    if beta > 0:
        seen = weight
        if distilled is not None:
            # Not only a factor: what the teacher rules out (R = -inf) must not turn 0 * inf into NaN.
            distilled = _per_token(distilled, loss, "distilled")
            seen = distilled if weight is None else distilled * fit(weight, loss.shape)
        divergence = estimate(log_ratio(student, teacher, limit=limit, weight=seen), estimator)
        loss = loss + beta * (divergence if distilled is None else distilled * divergence)
    return reduce(loss, weight, reduction)


def _policy_terms(
    student: torch.Tensor,
    advantages: torch.Tensor,
    old: torch.Tensor | None,
    clip: float,
    weight: torch.Tensor | None,
    importance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return -min(rho * A, clip(rho) * A) [..., T]; 0 where the weight is 0."""
    if not 0 < clip < 1:
        raise ValueError(f"clip is {clip}; it must lie between 0 and 1")
    student = in_float(student)
    if old is None:
        old = student
    elif old.shape != student.shape:
        raise ValueError(
            f"student log-probabilities have shape {tuple(student.shape)} and old ones {tuple(old.shape)}; "
            "they must be equal"
        )
    gap = student - in_float(old).detach()
    gains = _per_token(advantages, student, "advantages")
    drawn = None if importance is None else _per_token(importance, student, "importance weights")
    if weight is not None:
        nothing = fit(weight, student.shape) == 0
        gap, gains = gap.masked_fill(nothing, 0.0), gains.masked_fill(nothing, 0.0)
        drawn = None if drawn is None else drawn.masked_fill(nothing, 0.0)
    ratio = gap.clamp(max=_LARGEST_LOG_RATIO).exp()
    if drawn is not None:
        ratio = ratio * drawn
    return -torch.minimum(ratio * gains, ratio.clamp(1 - clip, 1 + clip) * gains)


def _per_token(values: torch.Tensor, like: torch.Tensor, what: str) -> torch.Tensor:
    """Return numbers of responses [...] or tokens [..., T] for every token, detached, in the type of `like`."""
    if values.shape == like.shape:
        return values.detach().to(like.dtype)
    if values.shape == like.shape[:-1]:
        return values.detach().to(like.dtype).unsqueeze(-1).expand_as(like)
    raise ValueError(
        f"{what} have shape {tuple(values.shape)} and the log-probabilities {tuple(like.shape)}; "
        f"{what} must have one number per response, {tuple(like.shape[:-1])}, or one per token"
    )
