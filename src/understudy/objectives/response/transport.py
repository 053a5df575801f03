"""SinKD: optimal transport between the outputs of a batch."""

from __future__ import annotations

import torch

from understudy.objectives.card import card
from understudy.objectives.divergence import logit_pair, soften
from understudy.objectives.norms import check_power, length
from understudy.objectives.reduction import reduce, same_shape
from understudy.objectives.shapes import divisor, sample_weights

# Stands for the logarithm of a mass of 0 where -inf would make differences of infinities.
_NOTHING = -1e30


@card("logits", minimum=None, invariances=("shift",), coupled=True, temperature_power=0)
def sinkhorn(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 2.0,
    regularisation: float = 0.1,
    iterations: int = 20,
    power: float = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cost <P, D> of moving the students' outputs of a batch onto the teachers' under the entropic plan P.

    D[i, j] = |softmax(s_i / T) - softmax(t_j / T)|_p; P is exp(-D / regularisation) after `iterations` rounds of
    scaling every row and then every column to its sample's weight. The gradient goes through cost and plan.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; detached.
        temperature: T > 0; the authors' 2.
        regularisation: weight of the plan's entropy, > 0.
        iterations: rounds of scaling, at least 1.
        power: p of the norm, at least 1; with 1 a cost is between 0 and 2.
        weight: weights or mask [B]: the masses that are moved.
        reduction: "mean" (cost per unit of mass), "sum", as in the authors' code, or "none" (what each student
            sample pays [B]).

    Permuting the teacher's rows changes nothing: the loss does not know which sample is which and must stand beside
    one that does. At student = teacher it is a little above 0 and has a gradient, because the plan spreads. Coupled:
    a split batch gives another value. Time and memory grow with B^2 (C + iterations).

    Source: Cui et al., "Sinkhorn Distance Minimization for Knowledge Distillation", LREC-COLING 2024. The authors'
    code sums over the batch and multiplies by 0.001 (then by 0.8), so that the weight depends on the batch size; it
    scales exp(-D / regularisation) itself, which underflows for a small regularisation, where this works on
    logarithms. Their T0 script applies the softmax over positions instead of the vocabulary: flatten tokens to [B *
    T, V] and mask.

    Raises:
        ValueError: shapes differ or are not [B, C], the weight does not fit, or a number is out of its range.
    """
    _check(student, teacher, power)
    if not regularisation > 0:
        raise ValueError(f"regularisation is {regularisation}; it must be greater than 0")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1")
    student, teacher = logit_pair(student, teacher, weight)
    mass = sample_weights(weight, student)
    ours, theirs = soften(student, temperature), soften(teacher, temperature)
    cost = torch.cdist(ours.softmax(dim=1), theirs.softmax(dim=1), p=power)
    kernel = -cost / regularisation
    log_mass = torch.where(mass > 0, divisor(mass).log(), _NOTHING)
    rows, columns = torch.zeros_like(log_mass), torch.zeros_like(log_mass)
    for _ in range(iterations):
        rows = log_mass - (kernel + columns).logsumexp(dim=1)
        columns = log_mass - (kernel + rows.unsqueeze(1)).logsumexp(dim=0)
    plan = (kernel + rows.unsqueeze(1) + columns).exp()
    paid = (plan * cost).sum(dim=1)
    if reduction == "mean":
        return paid.sum() / divisor(mass.sum())
    return reduce(paid, None, reduction)


@card("logits", invariances=("shift",), temperature_power=0)
def sinkhorn_per_sample(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 1.0,
    power: float = 1.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """`sinkhorn` for each sample alone: |softmax(s / T) - softmax(t / T)|_p.

    A transport between one output and one other has nothing to choose, so only the cost is left.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; detached.
        temperature: T > 0; the authors' 1.
        power: p of the norm, at least 1.
        weight: weights or mask [B].
        reduction: "mean" over valid samples, "sum" or "none" ([B]).

    Source: the sample-wise variant in the code of Cui et al., 2024, which sums over the batch and multiplies by
    0.001.

    Raises:
        ValueError: shapes differ or are not [B, C], the weight does not fit, or a number is out of its range.
    """
    _check(student, teacher, power)
    student, teacher = logit_pair(student, teacher, weight)
    gap = soften(student, temperature).softmax(dim=1) - soften(teacher, temperature).softmax(dim=1)
    return reduce(length(gap, power), weight, reduction)


def _check(student: torch.Tensor, teacher: torch.Tensor, power: float) -> None:
    same_shape(student, teacher)
    if student.dim() != 2:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)} and teacher logits {tuple(teacher.shape)}; "
            "both must be [B, C]; flatten tokens first"
        )
    check_power(power)
