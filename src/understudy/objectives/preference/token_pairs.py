"""A preference at every token: what the teacher would write against what the student would."""

from __future__ import annotations

import math

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import log_probabilities, logit_pair
from understudy.objectives.labels import pick
from understudy.objectives.preference.forms import check_form, preference_loss
from understudy.objectives.reduction import reduce


@card("tokens", minimum=math.log(2), invariances=("shift",), masked_classes=True)
def dpkd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    form: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    reference: bool = True,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """`dpo` at every token, y_w being the teacher's likeliest class, y_l the student's, and the teacher the reference.

    h = (log q(y_w) - log q(y_l)) - (log p(y_w) - log p(y_l)), teacher p and student q, is never above 0. Where both
    have the same likeliest class the loss is the constant log 2 and has no gradient.

    Args:
        student: logits [B, T, V] (any leading dimensions).
        teacher: logits [B, T, V]; detached.
        form: "sigmoid", "ipo" or "hinge", see `dpo`.
        beta: how much a nat counts, greater than 0.
        label_smoothing: probability that a preference is the wrong way round, in [0, 0.5); for "sigmoid" only.
        reference: subtract the teacher's own log-ratio; without it h is the student's alone.
        weight: mask or weights over tokens [B, T]; whatever stands at tokens of weight 0 counts nothing.
        reduction: "mean" over valid tokens of all sequences, "sum" or "none" ([B, T]).

    Classes that both mask with -inf count nothing. Of equal logits the first counts as the likeliest.

    Source: Li et al., "Direct Preference Knowledge Distillation for Large Language Models", 2024, token by token as in
    its code, which computes log-probabilities in bfloat16.

    Raises:
        ValueError: shapes differ, a keyword is out of its range, or the weight does not fit.
    """
    check_form(form, beta, label_smoothing)
    student, teacher = logit_pair(student, teacher, weight)
    log_q, log_p = log_probabilities(student, teacher, 1.0)
    preferred, rejected = teacher.argmax(dim=-1), student.argmax(dim=-1)
    gap = pick(log_q, preferred) - pick(log_q, rejected)
    if reference:
        gap = gap - (pick(log_p, preferred) - pick(log_p, rejected))
    return reduce(preference_loss(gap, form, beta, label_smoothing), weight, reduction)
