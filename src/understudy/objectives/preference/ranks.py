"""The order in which a teacher has several things: classes of a token, or responses to a prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.divergence import blank_invalid
from understudy.objectives.labels import pick
from understudy.objectives.reduction import in_float, reduce
from understudy.objectives.shapes import divisor


@card(
    "tokens",
    needs=("teacher_values: real B T 3", "indices: classes B T 3"),
    teacher=False,
    invariances=("shift",),
    smallest_classes=3,
)
def top_k_hinge(
    student: torch.Tensor,
    teacher_values: torch.Tensor,
    indices: torch.Tensor,
    *,
    margin: float | None = None,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Mean over pairs of classes with p_k > p_l of max(0, margin - (q_k - q_l)), teacher p and student q.

    Args:
        student: logits [..., V]; q is their softmax over the whole vocabulary.
        teacher_values: log-probabilities of the teacher's k likeliest classes [..., k], at most 0; -inf for an entry
            that is none. Detached.
        indices: int64 [..., k], which classes they are, each once.
        margin: by how much q_k has to be above q_l; None for p_k - p_l, so that the loss is 0 where q = p.
        weight: mask or weights over tokens [...]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens, "sum" or "none" ([...]). A token without any pair has 0 and is counted.

    Source: the code of DistillKit (`hinge`), which takes the mean over the pairs of all tokens together and asks p_k to
    be above p_l by 1e-8; the two agree where every token has as many pairs.

    Raises:
        ValueError: shapes do not fit, or there are fewer classes than k.
    """
    _check_top_k(student, teacher_values, indices)
    student = blank_invalid(in_float(student), weight)
    values = blank_invalid(in_float(teacher_values).detach().to(student.dtype), weight)
    p = values.clamp(max=0.0).exp()
    q = student.softmax(dim=-1).gather(-1, indices)
    wanted = p.unsqueeze(-1) - p.unsqueeze(-2)
    pairs = (wanted > 0) & (p > 0).unsqueeze(-2)
    wanted = wanted if margin is None else torch.full_like(wanted, margin)
    loss = torch.relu(wanted - (q.unsqueeze(-1) - q.unsqueeze(-2)))
    return reduce(_mean_over_pairs(loss, pairs), weight, reduction)


@card(
    "tokens",
    needs=("teacher_values: real B T 3", "indices: classes B T 3"),
    teacher=False,
    invariances=("shift",),
    smallest_classes=3,
)
def top_k_ranking(
    student: torch.Tensor,
    teacher_values: torch.Tensor,
    indices: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Mean over pairs of classes with t_k > t_l of log(1 + exp(-(s_k - s_l))), teacher logits t and student logits s.

    Only the teacher's order counts. The loss falls for as long as the student's gaps grow, so it needs another one
    beside it.

    Args:
        student: logits [..., V].
        teacher_values: logits or log-probabilities of the teacher's k likeliest classes [..., k]; -inf for an entry
            that is none. Detached.
        indices: int64 [..., k], which classes they are, each once.
        weight: mask or weights over tokens [...]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens, "sum" or "none" ([...]). A token without any pair has 0 and is counted.

    Source: Burges et al., "Learning to Rank using Gradient Descent", ICML 2005; as in the code of DistillKit
    (`logistic_ranking`), which takes the mean over the pairs of all tokens together.

    Raises:
        ValueError: shapes do not fit, or there are fewer classes than k.
    """
    _check_top_k(student, teacher_values, indices)
    student = blank_invalid(in_float(student), weight)
    # Only compared, so without a gradient by itself.
    values = blank_invalid(in_float(teacher_values).to(student.dtype), weight)
    scores = student.gather(-1, indices)
    pairs = (values.unsqueeze(-1) > values.unsqueeze(-2)) & (values > -torch.inf).unsqueeze(-2)
    loss = F.softplus(-(scores.unsqueeze(-1) - scores.unsqueeze(-2)))
    return reduce(_mean_over_pairs(loss, pairs), weight, reduction)


@card("vectors", needs=("rewards: real B C",), teacher=False, minimum=None)
def rrhf(
    student: torch.Tensor,
    rewards: torch.Tensor,
    *,
    likelihood: float = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Sum over pairs of responses with r_i < r_j of max(0, s_i - s_j), minus `likelihood` times the best one's s.

    Args:
        student: mean log-probability of the tokens of N responses to each prompt [B, N], see
            `sequence_log_probabilities` with `mean=True`.
        rewards: [B, N], such as the teacher's log-probabilities, or what it answered when it was asked for a score;
            only their order counts, and -inf leaves a response out. Detached.
        likelihood: weight of the cross-entropy of the best response (the first of equals), at least 0.
        weight: weights or mask over prompts [B]; whatever stands at prompts of weight 0 counts nothing.
        reduction: "mean" over valid prompts, "sum" or "none" ([B]).

    Source: Yuan et al., "RRHF: Rank Responses to Align Language Models with Human Feedback without Tears", NeurIPS
    2023, equations 2 to 4, with the mean over the best response's tokens.

    Raises:
        ValueError: shapes differ, or a number is out of its range.
    """
    if not likelihood >= 0:
        raise ValueError(f"likelihood is {likelihood}; it must be at least 0")
    scores, rewards = _responses(student, rewards, weight)
    better = rewards.unsqueeze(-2) > rewards.unsqueeze(-1)
    better = better & (rewards > -torch.inf).unsqueeze(-1)
    ranks = torch.relu(scores.unsqueeze(-1) - scores.unsqueeze(-2)).masked_fill(~better, 0.0)
    best = pick(scores, rewards.argmax(dim=-1))
    return reduce(ranks.sum(dim=(-1, -2)) - likelihood * best, weight, reduction)


@card("vectors", needs=("rewards: real B C",), teacher=False, minimum=None, invariances=("shift",))
def plackett_luce(
    student: torch.Tensor,
    rewards: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Minus the log-probability of the order: -sum over k of log(exp(s_k) / sum over i >= k of exp(s_i)), in nats.

    The responses (or classes) are sorted by falling reward. With two of them it is -log sigma(s_w - s_l).

    Args:
        student: scores of N responses to each prompt [B, N].
        rewards: [B, N]; only their order counts (of equals the first comes first). Detached.
        weight: weights or mask over prompts [B]; whatever stands at prompts of weight 0 counts nothing.
        reduction: "mean" over valid prompts, "sum" or "none" ([B]).

    Source: Plackett, "The Analysis of Permutations", 1975; for responses Song et al., "Preference Ranking Optimization
    for Human Alignment" (PRO), AAAI 2024, without its temperatures.

    Raises:
        ValueError: shapes differ.
    """
    scores, rewards = _responses(student, rewards, weight)
    order = rewards.argsort(dim=-1, descending=True, stable=True)
    ranked = scores.gather(-1, order)
    ahead = ranked.flip(-1).logcumsumexp(dim=-1).flip(-1)
    return reduce((ahead - ranked).sum(dim=-1), weight, reduction)


def _responses(
    student: torch.Tensor, rewards: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores and rewards [B, N], the latter detached, zeros in prompts of weight 0."""
    if student.shape != rewards.shape or student.dim() < 1:
        raise ValueError(
            f"student scores have shape {tuple(student.shape)} and rewards {tuple(rewards.shape)}; "
            "both must be [B, N]"
        )
    student = in_float(student)
    return blank_invalid(student, weight), blank_invalid(in_float(rewards).detach(), weight)


def _mean_over_pairs(loss: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Return the mean [...] of losses [..., k, k] over those that are pairs; 0 where there is none."""
    total = loss.masked_fill(~pairs, 0.0).sum(dim=(-1, -2))
    return total / divisor(pairs.sum(dim=(-1, -2)).to(loss.dtype))


def _check_top_k(
    student: torch.Tensor, teacher_values: torch.Tensor, indices: torch.Tensor
) -> None:
    """Refuse shapes that do not fit."""
    rows = student.shape[:-1]
    if teacher_values.shape != indices.shape or teacher_values.shape[:-1] != rows:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)}, teacher values {tuple(teacher_values.shape)} and "
            f"indices {tuple(indices.shape)}; they must be [..., V], [..., k] and [..., k]"
        )
    if student.shape[-1] < indices.shape[-1]:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)}, but {indices.shape[-1]} different classes (teacher "
            f"values have shape {tuple(teacher_values.shape)}) need at least {indices.shape[-1]} classes"
        )
