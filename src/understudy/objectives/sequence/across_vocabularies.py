"""Distillation between models whose vocabularies differ: universal logit distillation and GOLD."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.divergence import (
    blank_invalid,
    fit,
    kullback_leibler,
    log_mixture,
    soften,
)
from understudy.objectives.reduction import in_float, reduce
from understudy.objectives.shapes import check_same_but


@card(
    "tokens", invariances=("shift",), widths_differ=True, masked_classes=True, temperature_power=0
)
def uld(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Sum over ranks of |q_(v) - p_(v)| for each token: probabilities sorted from the largest, teacher p and student q.

    The smaller vocabulary is filled up with zeros. It compares how sure the two are and not of what, so it needs no map
    between vocabularies, and the labels' loss beside it. Between 0 and 2, without a unit.

    Args:
        student: logits [B, T, V] (any leading dimensions).
        teacher: logits [B, T, V'], the position t being what the student's position t is to be compared with (the first
            min(T, T') tokens of both answers); detached.
        temperature: T > 0, a number or a tensor that broadcasts over [B, T].
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Source: Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    2024. Their code takes the mean of each sequence first.

    Raises:
        ValueError: leading dimensions differ, T is not positive, or the weight does not fit.
    """
    check_same_but(student, teacher, -1, "logits")
    student = blank_invalid(in_float(student), weight)
    teacher = blank_invalid(in_float(teacher).detach(), weight)
    q, p = (soften(logits, temperature).softmax(dim=-1) for logits in (student, teacher))
    return reduce(_sorted_distance(q, p), weight, reduction)


@card(
    "tokens",
    needs=("shared: classes 3 2",),
    minimum=None,  # 0 where the shared classes have equal probabilities, which depends on what is shared
    invariances=("shift",),
    widths_differ=True,
    temperature_power=0,
)
def gold(
    student: torch.Tensor,
    teacher: torch.Tensor,
    shared: torch.Tensor,
    *,
    student_rest: torch.Tensor | None = None,
    teacher_rest: torch.Tensor | None = None,
    beta: float = 0.5,
    matched: float | None = None,
    unmatched: float | None = None,
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """`jensen_shannon` on the classes that both vocabularies have, and `uld` on the others, of each token or span.

    Args:
        student: logits [B, T, V] (any leading dimensions), of tokens or of `spans`.
        teacher: logits [B, T, V'] of the same tokens or spans; detached.
        shared: int64 [M, 2], pairs of the student's and the teacher's class of one token, each class once. With none of
            them this is `uld` on spans.
        student_rest: log-probability of the other tokens of each span [B, T], see `spans`; None for single tokens.
        teacher_rest: the same of the teacher; detached.
        beta: the teacher's share in the mixture, in (0, 1).
        matched: weight of the first part; None for M / V', the share of the teacher's vocabulary.
        unmatched: weight of the second part; None for 1 - M / V'.
        temperature: T > 0, a number or a tensor that broadcasts over [B, T]. There is no factor T^2.
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Neither part is of whole distributions: what is compared are probabilities as they are, not scaled up to 1. The
    first part is not negative all the same, since the mixture has the mixture of the two masses.

    Source: Patino et al., "Unlocking On-Policy Distillation for Any Model Family" (GOLD), 2025, and its code in TRL,
    which keeps probabilities above 1e-8, leaves the second part out where one of the two vocabularies is shared
    completely, and takes the mean of each sequence first.

    Raises:
        ValueError: shapes do not fit, or a number is out of its range.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}; it must lie between 0 and 1")
    check_same_but(student, teacher, -1, "logits")
    if shared.dim() != 2 or shared.shape[1] != 2:
        raise ValueError(f"shared has shape {tuple(shared.shape)}; it must be [M, 2]")
    log_q = _log_measure(student, student_rest, temperature, weight)
    log_p = _log_measure(teacher, teacher_rest, temperature, weight).detach()
    here, there = shared.unbind(dim=1)
    log_m = log_mixture(log_p[..., there], log_q[..., here], beta)
    alike = beta * kullback_leibler(log_p[..., there], log_m)
    alike = alike + (1 - beta) * kullback_leibler(log_q[..., here], log_m)
    others = _sorted_distance(
        log_q.index_fill(-1, here, -torch.inf).exp(), log_p.index_fill(-1, there, -torch.inf).exp()
    )
    share = len(shared) / teacher.shape[-1]
    first = share if matched is None else matched
    second = 1 - share if unmatched is None else unmatched
    return reduce(first * alike + second * others, weight, reduction)


def _log_measure(
    logits: torch.Tensor,
    rest: torch.Tensor | None,
    temperature: float | torch.Tensor,
    weight: torch.Tensor | None,
) -> torch.Tensor:
    """Return log-probabilities [..., V], each row plus the log-probability of what else belongs to it."""
    log_p = F.log_softmax(soften(blank_invalid(in_float(logits), weight), temperature), dim=-1)
    if rest is None:
        return log_p
    if rest.shape != logits.shape[:-1]:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and the rest {tuple(rest.shape)}; "
            "there must be one number per row of logits"
        )
    rest = in_float(rest).to(log_p.dtype)
    if weight is not None:
        rest = rest.masked_fill(fit(weight, rest.shape) == 0, 0.0)
    return log_p + rest.unsqueeze(-1)


def _sorted_distance(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return the sum over ranks [...] of |q_(v) - p_(v)|, the smaller vocabulary filled up with zeros."""
    q, p = (each.sort(dim=-1, descending=True).values for each in (q, p))
    size = max(q.shape[-1], p.shape[-1])
    q, p = (F.pad(each, (0, size - each.shape[-1])) for each in (q, p))
    return (q - p).abs().sum(dim=-1)
