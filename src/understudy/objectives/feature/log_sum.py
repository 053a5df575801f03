"""The logarithm of a batch's total error."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.norms import check_power
from understudy.objectives.reduction import in_float, same_shape
from understudy.objectives.shapes import sample_weights


@card("vectors", minimum=None, coupled=True)
def srd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    exponent: float = 4.0,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Feature term of "simple recipe distillation": 2 log(sum over samples and elements of |s - t|^a).

    Args:
        student: projected and batch-normalised features [B, ...].
        teacher: normalised features, the same shape; detached.
        exponent: a, at least 1.
        weight: weights or mask [B], inside the sum.

    Returns:
        One number without a lower bound. Coupled: the logarithm is of the whole batch, so there is no reduction,
        and doubling the batch adds 2 log 2 without changing the gradient's scale.

    The powers are taken of differences relative to the largest one, so that small ones do not vanish and large ones
    do not overflow. At student = teacher (or where every sample is masked) the value is finite, the logarithm of
    the smallest positive number, and the gradient 0; the formula itself gives minus infinity there.

    Source: Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
    with the factor 2 of the authors' code. The method adds KL(softmax(t / T) || softmax(s / T)) without T^2:
    `skd_instance`, or `kd` divided by T^2.

    Raises:
        ValueError: shapes differ, the exponent is below 1, or the weight is not one number per sample.
    """
    check_power(exponent)
    same_shape(student, teacher, "features")
    difference = (in_float(student) - in_float(teacher).detach()).flatten(1)
    share = sample_weights(weight, difference)
    difference = torch.where(
        share.unsqueeze(1) == 0, torch.zeros_like(difference), difference
    ).abs()
    largest = difference.detach().amax()
    tiny = torch.finfo(difference.dtype).tiny
    zero = largest <= tiny
    largest = torch.where(zero, torch.full_like(largest, tiny), largest)
    total = (share * ((difference / largest) ** exponent).sum(dim=1)).sum()
    logarithm = torch.where(zero, torch.ones_like(total), total).log()
    return 2 * (exponent * largest.log() + logarithm)
