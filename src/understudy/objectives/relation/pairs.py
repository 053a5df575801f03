"""What the relations between samples share: a batch as rows, and means over pairs of them."""

from __future__ import annotations

import torch

from understudy.objectives.reduction import in_float
from understudy.objectives.shapes import check_batch, check_samples, divisor, sample_weights

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batch_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    needed: int = 1,
    why: str = "",
    what: str = "features",
) -> Batch:
    """Return student [B, D_s] and teacher [B, D_t] rows, flattened per sample, and the samples' weights [B].

    The teacher is detached. The rows of samples of weight 0 are zero, whatever they held.

    Raises:
        ValueError: batch sizes differ, the batch is smaller than `needed`, or the weight is not one number per
            sample.
    """
    check_batch(student, teacher, what)
    check_samples(student, needed, why)
    student, teacher = in_float(student).flatten(1), in_float(teacher).detach().flatten(1)
    share = sample_weights(weight, student)
    if weight is not None:
        dropped = share.unsqueeze(1) == 0
        student = torch.where(dropped, torch.zeros_like(student), student)
        teacher = torch.where(dropped, torch.zeros_like(teacher), teacher)
    return student, teacher, share


def pair_weights(share: torch.Tensor) -> torch.Tensor:
    """Return w_i w_j, [B, B]."""
    return share.unsqueeze(1) * share.unsqueeze(0)


def effective_count(share: torch.Tensor) -> torch.Tensor:
    """Return (sum_i w_i)^2 / sum_i w_i^2, which is B without weights and does not change when all of them are scaled."""
    return share.sum().square() / divisor(share.square().sum())


def mean_over_pairs(values: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return sum_ij w_i w_j v_ij / (sum_i w_i)^2; 0 when no sample is valid."""
    return (pair_weights(share) * values).sum() / divisor(share.sum().square())
