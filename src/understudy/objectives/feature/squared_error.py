"""Squared distances between features of one shape."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.norms import unit
from understudy.objectives.reduction import reduce, same_shape
from understudy.objectives.shapes import average, pair


@card("maps")
def mse(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Mean squared error between features, averaged over a sample's elements.

    Args:
        student: [B, ...], already projected to the teacher's shape.
        teacher: the same shape; detached.
        weight: weights or mask per sample [B], per token [B, T], or over any leading dimensions up to the features'
            shape.
        reduction: "mean" over valid samples (tokens, elements), "sum" or "none" (the weight's shape, [B] without
            one).

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3, which sums the squares and
    halves them; the mean over elements makes the size independent of the map (as in torchdistill's and mdistiller's
    configurations). With a mask [B, T] it is the hidden-state loss of TextBrewer and Distiller.

    Raises:
        ValueError: shapes differ, or the weight does not fit.
    """
    same_shape(student, teacher, "features")
    student, teacher = pair(student, teacher, weight)
    squared = (student - teacher).square()
    if weight is not None and weight.dim() == squared.dim():
        return reduce(squared, weight, reduction)
    return average(squared, weight, reduction)


@card("vectors", invariances=("scale", "sample scale"))
def normalised_mse(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    dim: int = -1,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Squared distance between unit vectors: sum_d (s / |s| - t / |t|)_d^2 = 2 - 2 cos(s, t), in [0, 4].

    Args:
        student: [B, ..., D], already projected to the teacher's shape.
        teacher: the same shape; detached.
        dim: which dimension holds a vector's elements: -1 for vectors and tokens, 1 for maps [B, C, H, W].
        weight: weights or mask over leading dimensions of what is left without `dim`: [B], or [B, T] for tokens.
        reduction: "mean" over valid vectors, "sum" or "none" (the weight's shape, [B] without one).

    A zero vector stays zero: its distance from a unit vector is 1, and it gets no gradient.

    Source: Sun et al., "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019, for the state of
    the first token: `normalised_mse(student[:, 0], teacher[:, 0])`. The squares are summed over the width, not
    averaged, so that the value does not depend on it. Deviation: code in circulation divides by the norm without
    protection and gives NaN for a zero vector.

    Raises:
        ValueError: shapes differ, or the weight does not fit.
    """
    same_shape(student, teacher, "features")
    student, teacher = pair(student.movedim(dim, -1), teacher.movedim(dim, -1), weight)
    return average((unit(student) - unit(teacher)).square().sum(dim=-1), weight, reduction)


@card("maps")
def mgd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Masked generative distillation: the squared error of generated features, summed over a sample's elements.

    Args:
        student: [B, C, H, W], what the generation block made of the student's masked (and projected) features.
        teacher: the same shape; detached.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    Source: Yang et al., "Masked Generative Distillation", ECCV 2022. The sum over elements is theirs, and with it
    their weights (7e-5 for classification, 2e-5 for detection); `mse` of the same tensors is this divided by C H W.
    Masking and the generation block are modules and belong to the method.

    Raises:
        ValueError: shapes differ, or the weight is not one number per sample.
    """
    same_shape(student, teacher, "features")
    student, teacher = pair(student, teacher, weight)
    squared = (student - teacher).square()
    return reduce(squared.flatten(1).sum(dim=1), weight, reduction)
