"""Objectives that compare one feature vector at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from understudy.objectives.card import card
from understudy.objectives.norms import unit
from understudy.objectives.reduction import same_shape
from understudy.objectives.shapes import average, pair


@card("vectors", invariances=("scale", "sample scale"))
def cosine(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    dim: int = -1,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """One minus the cosine between the two vectors, in [0, 2].

    Args:
        student: [B, ..., D], already projected to the teacher's shape.
        teacher: the same shape; detached.
        dim: which dimension holds a vector's elements: -1 for vectors and tokens, 1 for maps [B, C, H, W].
        weight: weights or mask over leading dimensions of what is left without `dim`: [B], or [B, T] for tokens.
        reduction: "mean" over valid vectors, "sum" or "none" (the weight's shape, [B] without one).

    The cosine with a zero vector is 0, so its loss is 1, and it gets no gradient.

    Source: Sanh et al., "DistilBERT", 2019; TextBrewer and Distiller, "cos".

    Raises:
        ValueError: shapes differ, or the weight does not fit.
    """
    same_shape(student, teacher, "features")
    student, teacher = pair(student.movedim(dim, -1), teacher.movedim(dim, -1), weight)
    ours, theirs = unit(student), unit(teacher)
    # 1 - s.t as (|s - t|^2 + 2 - |s|^2 - |t|^2) / 2: exactly 0 for equal vectors, where 1 - s.t leaves a rounding error
    # of either sign. A unit vector's length is 1 by construction, a zero vector's is 0.
    missing = (ours == 0).all(dim=-1).to(ours.dtype) + (theirs == 0).all(dim=-1).to(ours.dtype)
    return average(((ours - theirs).square().sum(dim=-1) + missing) / 2, weight, reduction)


@card("sequences", minimum=None)
def feature_cross_entropy(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy between softmaxes over the width: -sum_d softmax(t)_d log softmax(s)_d, in nats.

    Args:
        student: [B, ..., D], already projected to the teacher's shape.
        teacher: the same shape; detached.
        weight: weights or mask over leading dimensions without the width: [B], or [B, T] for tokens.
        reduction: "mean" over valid vectors, "sum" or "none" (the weight's shape, [B] without one).

    It is smallest at student = teacher (up to a shift), where it is the teacher's entropy and not 0.

    Source: He et al., "Distiller", 2021 (TextBrewer's "hidden_ce").

    Raises:
        ValueError: shapes differ, or the weight does not fit.
    """
    same_shape(student, teacher, "features")
    student, teacher = pair(student, teacher, weight)
    values = -(teacher.softmax(dim=-1) * F.log_softmax(student, dim=-1)).sum(dim=-1)
    return average(values, weight, reduction)
