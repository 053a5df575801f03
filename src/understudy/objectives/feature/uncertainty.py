"""Gaussian likelihoods of the teacher's features under a predicted variance."""

from __future__ import annotations

import math

import torch

from understudy.objectives.card import card
from understudy.objectives.reduction import in_float, reduce, same_shape
from understudy.objectives.shapes import average, blank, pair


@card("maps", needs=("variance: positive C",), minimum=None)
def vid(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    variance: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Variational information distillation: ((t - mu)^2 / variance + log variance) / 2, in nats.

    A sample's value is the mean over its elements.

    Args:
        student: mu, the regressor's prediction of the teacher's features [B, C, ...].
        teacher: the features, the same shape; detached.
        variance: positive, one per channel [C], or anything that broadcasts to the features, such as [1, C, 1, 1].
        weight: weights or mask per sample [B], or over more leading dimensions.
        reduction: "mean" over valid samples (elements), "sum" or "none" (the weight's shape, [B] without one).

    It is the negative log-likelihood without the constant log(2 pi) / 2, so it may be negative.

    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019 (their log sigma is
    half of our log variance); the mean over elements as in the benchmarks.

    Raises:
        ValueError: shapes differ, or the variance does not fit them.
    """
    same_shape(student, teacher, "features")
    student, teacher = pair(student, teacher, weight)
    spread = in_float(variance)
    if spread.dim() == 1 and spread.shape == student.shape[1:2]:
        spread = spread.view(-1, *[1] * (student.dim() - 2))
    try:
        spread = spread.expand_as(student)
    except RuntimeError as error:
        raise ValueError(
            f"variance has shape {tuple(variance.shape)} and the features {tuple(student.shape)}; it must have one "
            "number per channel, or broadcast to the features"
        ) from error
    values = ((student - teacher).square() / spread + spread.log()) / 2
    return average(values, weight, reduction)


@card("vectors", needs=("log_variance: real B C",), minimum=None)
def pad(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    log_variance: torch.Tensor,
    eps: float = 1e-6,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Prime-aware distillation: (t - s)^2 / (eps + e^v) + v, averaged over a sample's elements.

    Args:
        student: embeddings [B, ...], flattened per sample.
        teacher: the same shape; detached.
        log_variance: v, the student's own estimate, one number per element of an embedding.
        eps: floor of the variance; without one, confidence in a perfect match has no bound.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    Samples that the student finds hard get a large variance and count less.

    Source: Zhang et al., "Prime-Aware Adaptive Distillation", ECCV 2020.

    Raises:
        ValueError: shapes differ, or there is not one log variance per element.
    """
    same_shape(student, teacher, "embeddings")
    student, teacher = (side.flatten(1) for side in pair(student, teacher, weight))
    v = in_float(log_variance).flatten(1)
    if v.shape != student.shape:
        raise ValueError(
            f"log_variance has shape {tuple(log_variance.shape)} and the embeddings {tuple(student.shape)}; "
            "it must have one number per element"
        )
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it must not be negative")
    # 1 / (eps + e^v) through its logarithm, since e^v overflows where the quotient is simply 0.
    v = blank(v, weight)
    floor = torch.full_like(v, math.log(eps) if eps > 0 else -math.inf)
    precision = torch.exp(-torch.logaddexp(floor, v))
    values = (teacher - student).square() * precision + v
    return reduce(values.mean(dim=1), weight, reduction)
