"""Distillation between models whose vocabularies differ: universal logit distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.divergence import blank_invalid, soften
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
    q, p = (
        soften(logits, temperature).softmax(dim=-1).sort(dim=-1, descending=True).values
        for logits in (student, teacher)
    )
    size = max(q.shape[-1], p.shape[-1])
    q, p = (F.pad(each, (0, size - each.shape[-1])) for each in (q, p))
    return reduce((q - p).abs().sum(dim=-1), weight, reduction)
