"""MiniLLM: a policy gradient whose reward is the teacher's log-ratio, and what keeps it stable."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import blank_invalid, fit, log_mixture
from understudy.objectives.reduction import in_float, reduce, same_shape
from understudy.objectives.sequence.kullback_leibler import reverse_kl
from understudy.objectives.sequence.policy import clipped_policy
from understudy.objectives.sequence.sampled import log_ratio, token_log_probabilities
from understudy.objectives.shapes import check_choice, divisor

# What TRL counts for a token of padding, in place of 0.
_PADDING = 1e-4


def returns_to_go(
    rewards: torch.Tensor,
    *,
    gamma: float = 0.95,
    length: str = "tokens",
    own: bool = True,
    weight: torch.Tensor | None = None,
    official: bool = False,
) -> torch.Tensor:
    """Return what follows from each token's choice: sum over i >= t of gamma^(i - t) * r_i, divided by a length.

    Args:
        rewards: of each token [..., T], such as `log_ratio`; detached.
        gamma: discount in [0, 1]; 0 leaves each token its own reward.
        length: what the sum is divided by, since the first tokens of a long response have the most ahead of them:
            "tokens", the number of tokens from t on (MiniLLM); "discounted", the sum over them of gamma^(i - t) (TRL),
            which makes it a weighted mean; "none".
        own: begin with the token's own reward, as the authors' code does. False begins with the next one's, as the
            paper does where the own one is computed exactly (`exact` of `minillm`), so that it is not counted twice.
        weight: mask over tokens [..., T]; rewards at 0 count nothing, whatever stands there, and the result there is 0.
        official: the authors' arithmetic: rewards at padding are taken as they are (in their codes they are 0). TRL's
            too: a token of padding counts 1e-4 in a "discounted" length, and without a length the sum is that of
            gamma^i * r_i, i counted from the response's beginning, so that late tokens get next to nothing.

    Source: Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, section 2.2 (length
    normalisation), and its code.

    Raises:
        ValueError: the weight does not fit, or a keyword is out of its range.
    """
    check_choice(length, ("tokens", "discounted", "none"), "length")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; it must lie between 0 and 1")
    rewards = in_float(rewards).detach()
    real = _real(rewards, weight)
    kept = torch.ones_like(real) if official else real
    if not own:
        rewards, kept = (_next(each) for each in (torch.where(kept, rewards, 0.0), kept))
        real = _next(real)
    returns = _discounted_sums(torch.where(kept, rewards, 0.0), gamma)
    if length == "none":
        if official:
            place = torch.arange(rewards.shape[-1], device=rewards.device, dtype=rewards.dtype)
            returns = returns * gamma**place
        return torch.where(kept, returns, 0.0)
    count = real.to(rewards.dtype)
    if length == "discounted":
        count = _discounted_sums(count.clamp_min(_PADDING) if official else count, gamma)
    else:
        count = _discounted_sums(count, 1.0)
    return torch.where(kept, returns / divisor(count), 0.0)


def whitened(
    values: torch.Tensor, weight: torch.Tensor | None = None, *, official: bool = False
) -> torch.Tensor:
    """Return values with mean 0 and variance 1 over all valid tokens of the batch, without a gradient.

    Args:
        values: [..., T].
        weight: mask over tokens [..., T]; 0 there.
        official: MiniLLM's arithmetic: mean and variance run over padding too, where its values are 0, which changes
            what a batch learns with the length of its longest response. The weight is not read.

    The variance divides by n - 1, and 1e-8 is added to it. A single token, or equal ones, have zeros.

    Source: the code of MiniLLM (`whiten`).

    Raises:
        ValueError: the weight does not fit.
    """
    values = in_float(values).detach()
    kept = _real(values, None if official else weight)
    count = kept.sum()
    mean = torch.where(kept, values, 0.0).sum() / count.clamp_min(1)
    centred = torch.where(kept, values - mean, 0.0)
    variance = centred.square().sum() / (count - 1).clamp_min(1)
    return centred * torch.rsqrt(variance + 1e-8)


def minillm_advantages(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    gamma: float = 0.95,
    length: str = "tokens",
    own: bool = True,
    scale: float = 0.5,
    limit: float | None = 100.0,
    whiten: bool = True,
    weight: torch.Tensor | None = None,
    official: bool = False,
) -> torch.Tensor:
    """Return the advantages of MiniLLM: whitened returns of the rewards (log p(y) - log q(y)) / scale.

    Args:
        student: log-probabilities of the drawn tokens [..., T] under the student that the step began with; detached.
        teacher: log-probabilities of the same tokens, the same shape; detached.
        gamma: discount, see `returns_to_go`.
        length: "tokens", "discounted" or "none", see `returns_to_go`.
        own: whether a token's return begins with its own reward, see `returns_to_go`.
        scale: what rewards are divided by, greater than 0. After whitening it only decides what `limit` means.
        limit: largest reward of a token either way, after scaling; None for no limit.
        whiten: bring them to mean 0 and variance 1 over the batch, see `whitened`.
        weight: mask over tokens [..., T]; 0 there.
        official: the authors' arithmetic, see `returns_to_go` and `whitened`.

    With gamma = 0, length "discounted", scale 1 and no limit and whitening, these are the log-ratios, which TRL adds to
    the advantages of a reward.

    Source: Gu et al., "MiniLLM", ICLR 2024, and its code.

    Raises:
        ValueError: shapes differ, or a keyword is out of its range.
    """
    if not scale > 0 or (limit is not None and not limit > 0):
        raise ValueError(f"scale is {scale} and limit {limit}; both must be greater than 0")
    rewards = log_ratio(student.detach(), teacher, weight=weight) / scale
    if limit is not None:
        rewards = rewards.clamp(-limit, limit)
    returns = returns_to_go(
        rewards, gamma=gamma, length=length, own=own, weight=weight, official=official
    )
    return whitened(returns, weight, official=official) if whiten else returns


def teacher_mixed_importance(
    student: torch.Tensor,
    teacher: torch.Tensor,
    rollout: torch.Tensor | None = None,
    *,
    share: float = 0.2,
) -> torch.Tensor:
    """Return w = q(y) / ((1 - share) * q_r(y) + share * p(y)) of each token, for responses drawn from a mixture.

    Drawing some tokens from the teacher keeps the student from texts that only fool the teacher; this weight makes up
    for it. It is that of the token alone, not of all before it, which has a bias and much less variance. At most 1 / (1
    - share) where the drawing student is the student.

    Args:
        student: log-probabilities of the drawn tokens [..., T], in nats; detached.
        teacher: of the same tokens under the teacher; detached.
        rollout: of the same tokens under the student's part of the mixture; None where that is the student as it is.
        share: the teacher's share of the mixture, in [0, 1).

    Source: Gu et al., "MiniLLM", ICLR 2024, section 2.2 (teacher-mixed sampling).

    Raises:
        ValueError: shapes differ, or the share is out of its range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; it must be at least 0 and below 1")
    rollout = student if rollout is None else rollout
    same_shape(student, teacher, "log-probabilities")
    same_shape(student, rollout, "log-probabilities")
    q, p, drawn = (in_float(each).detach() for each in (student, teacher, rollout))
    return (q - log_mixture(p, drawn, share)).exp()


@card(
    "tokens",
    needs=("tokens: classes B T", "advantages: real B T", "old: real B T"),
    minimum=None,
    invariances=("shift",),
    masked_classes=True,
)
def minillm(
    student: torch.Tensor,
    teacher: torch.Tensor,
    tokens: torch.Tensor,
    advantages: torch.Tensor,
    *,
    old: torch.Tensor | None = None,
    importance: torch.Tensor | None = None,
    exact: float = 1.0,
    clip: float = 0.2,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """`clipped_policy` of the drawn tokens plus `exact` times `reverse_kl` of each token's whole distribution, in nats.

    The second is the first step of the return, which can be computed instead of drawn; it takes most of the variance
    away.

    Args:
        student: logits [B, T, V], aligned with the tokens: those at a position are what predicts its token.
        teacher: logits [B, T, V]; detached.
        tokens: int64 [B, T], drawn from the student, or from its mixture with the teacher.
        advantages: [B, T], see `minillm_advantages`; detached.
        old: log-probabilities under the student that the advantages were computed with [B, T]; None where that is the
            student as it is.
        importance: weights [B, T] of tokens that were drawn from a mixture, see `teacher_mixed_importance`; detached.
        exact: weight of the divergence, at least 0.
        clip: largest distance of a ratio from 1 that still pays, in (0, 1).
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all responses, "sum" or "none" ([B, T]).

    The authors add the cross-entropy of the student on pre-training text, with weight 1: `cross_entropy` of another
    batch. Their logits are divided by the temperature of sampling first.

    Source: Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, equation 6 and algorithm
    1, and its code.

    Raises:
        ValueError: shapes do not fit, or a number is out of its range.
    """
    if not exact >= 0:
        raise ValueError(f"exact is {exact}; it must be at least 0")
    same_shape(student, teacher)
    rows = student.shape[:-1]
    for what, values in (
        ("tokens", tokens),
        ("advantages", advantages),
        ("old log-probabilities", old),
        ("importance weights", importance),
    ):
        if values is not None and values.shape != rows:
            raise ValueError(
                f"student logits have shape {tuple(student.shape)} and {what} {tuple(values.shape)}; "
                "they must be [B, T, V] and [B, T]"
            )
    real = None if weight is None else fit(weight, tokens.shape) != 0
    if real is not None:
        tokens = tokens.masked_fill(~real, 0)
    student = blank_invalid(student, real)
    loss = clipped_policy(
        token_log_probabilities(student, tokens),
        advantages,
        old=old,
        importance=importance,
        clip=clip,
        weight=real,
        reduction="none",
    )
    if exact > 0:
        # Weights come in once, below; here they only keep out what stands at padding.
        loss = loss + exact * reverse_kl(student, teacher, weight=real, reduction="none")
    return reduce(loss, weight, reduction)


def _discounted_sums(values: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return sum over i >= t of gamma^(i - t) * v_i for each t, in log2(T) steps that double what is summed."""
    reach, total = 1, values.shape[-1]
    while reach < total and gamma > 0:
        later = torch.nn.functional.pad(values[..., reach:], (0, reach))
        values = values + gamma**reach * later
        reach *= 2
    return values


def _next(values: torch.Tensor) -> torch.Tensor:
    """Return each token's successor [..., T]; 0 for the last."""
    return torch.nn.functional.pad(values[..., 1:], (0, 1))


def _real(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return which tokens count [..., T]."""
    if weight is None:
        return torch.ones_like(values, dtype=torch.bool)
    return fit(weight, values.shape) != 0
