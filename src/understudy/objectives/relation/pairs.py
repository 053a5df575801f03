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
    """Return (sum_i w_i)^2 / sum_i w_i^2: B without weights, and unchanged when all of them are scaled."""
    return share.sum().square() / divisor(share.square().sum())


def mean_over_pairs(values: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return sum_ij w_i w_j v_ij / (sum_i w_i)^2; 0 when no sample is valid."""
    return (pair_weights(share) * values).sum() / divisor(share.sum().square())


def exact_type(rows: torch.Tensor) -> torch.dtype:
    """Return float64, or float32 where a device has no other.

    Distances come from inner products, of which those of close samples are small differences.
    """
    return torch.float32 if rows.device.type == "mps" else torch.float64


def centred_exactly(rows: torch.Tensor) -> torch.Tensor:
    """Return rows [B, D] in the exact type less their mean, which takes most of the rounding out of differences."""
    rows = rows.to(exact_type(rows))
    return rows - rows.mean(dim=0)


def squared_distances(products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared distances from inner products [B, B], and which of them are more than rounding."""
    squares = products.diagonal()
    sums = squares.unsqueeze(1) + squares.unsqueeze(0)
    squared = sums - 2 * products
    apart = squared.detach() > 64 * torch.finfo(products.dtype).eps * sums.detach()
    itself = torch.eye(len(products), dtype=torch.bool, device=products.device)
    return squared, apart & ~itself
