"""What two models with different tokenizers say about the same piece of text: where their tokens end together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from understudy.objectives.divergence import soften
from understudy.objectives.reduction import in_float
from understudy.objectives.shapes import check_choice


class Answers(NamedTuple):
    """The answers of a batch, each from its first token on.

    Attributes:
        logits: [B, L, V], those that predict each token (or those at it).
        tokens: int64 [B, L]; 0 where there is none.
        mask: bool [B, L], where there is a token.
    """

    logits: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor


class Spans(NamedTuple):
    """What a model says about spans of several tokens each.

    Attributes:
        logits: [B, G, V], at the one position of each span whose distribution stands for it.
        rest: log-probability of the span's other tokens [B, G], at most 0, in nats.
        mask: bool [B, G], which spans there are.
    """

    logits: torch.Tensor
    rest: torch.Tensor
    mask: torch.Tensor


def aligned_answers(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    length: int | None = None,
    predicting: bool = True,
    ignored: int = -100,
) -> Answers:
    """Return the answers of a batch, moved to the left, so that two models' answers stand beside each other.

    Args:
        logits: [B, T, V], of all positions.
        labels: int64 [B, T], the tokens themselves (not shifted), `ignored` outside of the answer, which is in one
            piece.
        length: how many tokens of each answer are taken, such as the smaller T of two models; None for T.
        predicting: take the logits one position before each token, which predict it. False takes those at the token, as
            TRL's universal logit distillation does; they predict the next one.
        ignored: the label of what is no answer.

    A first token at position 0, which nothing predicts, is not in the mask.

    Source: the definition; Boizard et al., 2024, for the pairing of first tokens.

    Raises:
        ValueError: shapes do not fit, or the length is not positive.
    """
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; "
            "they must be [B, T, V] and [B, T]"
        )
    total = labels.shape[1]
    length = total if length is None else length
    if length < 1:
        raise ValueError(f"length is {length}; it must be at least 1")
    real = labels != ignored
    first = real.int().argmax(dim=1, keepdim=True)
    offsets = torch.arange(length, device=labels.device)
    places = first + offsets
    mask = offsets < real.sum(dim=1, keepdim=True)
    tokens = labels.gather(1, places.clamp(max=total - 1)).masked_fill(~mask, 0)
    if predicting:
        places = places - 1
        mask = mask & (places >= 0)
    places = places.clamp(0, total - 1)
    taken = logits.gather(1, places.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
    return Answers(taken, tokens, mask)


def common_spans(student: Sequence[int], teacher: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the number of the span that each token of two tokenizations of one text belongs to, from 0 on.

    A span goes from one place at which tokens of both end to the next. Tokens behind the last such place have -1.

    Args:
        student: where each of the student's tokens ends in the text, in bytes (or characters), never decreasing. Tokens
            without text, such as the end of the sequence, end where the one before does.
        teacher: the same of the teacher's tokens.

    Source: Patino et al., "Unlocking On-Policy Distillation for Any Model Family" (GOLD), 2025, whose code also pairs
    what is left behind the last common place.

    Raises:
        ValueError: an end is before the one before it.
    """
    for ends, who in ((student, "student"), (teacher, "teacher")):
        for place in range(1, len(ends)):
            if ends[place] < ends[place - 1]:
                raise ValueError(
                    f"the {who}'s token {place} ends at {ends[place]}, before token {place - 1}, which ends at "
                    f"{ends[place - 1]}"
                )
    ours, theirs = [-1] * len(student), [-1] * len(teacher)
    here = there = begun = begun_there = span = 0
    while here < len(student) and there < len(teacher):
        gap = student[here] - teacher[there]
        here += gap <= 0
        there += gap >= 0
        if gap == 0:
            ours[begun:here] = [span] * (here - begun)
            theirs[begun_there:there] = [span] * (there - begun_there)
            begun, begun_there, span = here, there, span + 1
    return ours, theirs


def spans(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    groups: torch.Tensor,
    *,
    count: int,
    merge: str = "observed",
    temperature: float | torch.Tensor = 1.0,
) -> Spans:
    """Return what stands for each span: one position's logits, and the log-probability of its other tokens.

    A distribution over whole spans cannot be had, since there is no telling what would follow another token. "observed"
    takes the distribution of a span's first token, times the probabilities of those that did follow; "bayesian" that of
    its last token, times the probabilities of those before. Both give the span itself its true probability and do not
    sum to 1 otherwise.

    Args:
        logits: [B, T, V], aligned with the tokens: those at a position are what predicts its token.
        tokens: int64 [B, T]; any class where there is none.
        groups: int64 [B, T], the span of each token, see `common_spans`; -1 for none.
        count: G, how many spans there are at most.
        merge: "observed" or "bayesian".
        temperature: T > 0 of the probabilities; that of the loss.

    Source: Patino et al., "Unlocking On-Policy Distillation for Any Model Family" (GOLD), 2025, whose code keeps single
    probabilities above 1e-8.

    Raises:
        ValueError: shapes do not fit, or there is no such way of merging.
    """
    check_choice(merge, ("observed", "bayesian"), "merge")
    if logits.dim() != 3 or not tokens.shape == groups.shape == logits.shape[:2]:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, tokens {tuple(tokens.shape)} and groups {tuple(groups.shape)}; "
            "they must be [B, T, V], [B, T] and [B, T]"
        )
    inside = groups >= 0
    log_p = F.log_softmax(soften(in_float(logits), temperature), dim=-1)
    own = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    edge = torch.full_like(groups[:, :1], -1)
    if merge == "observed":
        neighbour = torch.cat([edge, groups[:, :-1]], dim=1)
    else:
        neighbour = torch.cat([groups[:, 1:], edge], dim=1)
    stands = inside & (groups != neighbour)
    target = groups.clamp_min(0)
    empty = torch.zeros(groups.shape[0], count, dtype=own.dtype, device=own.device)
    others = torch.where(inside & ~stands, own, 0.0)
    rest = empty.scatter_add(1, target, others)
    places = torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
    zeros = torch.zeros_like(empty, dtype=torch.int64)
    place = zeros.scatter_add(1, target, torch.where(stands, places, 0))
    mask = zeros.scatter_add(1, target, stands.long()) > 0
    taken = logits.gather(1, place.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
    return Spans(taken, rest, mask)
