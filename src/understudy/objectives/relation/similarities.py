"""Objectives on the matrix of similarities between the samples of a batch."""

from __future__ import annotations

import math
from typing import Literal

import torch

from understudy.objectives.card import card
from understudy.objectives.norms import length, safe_sqrt, unit
from understudy.objectives.relation.pairs import batch_rows, effective_count, mean_over_pairs
from understudy.objectives.shapes import check_choice, divisor


@card(
    "vectors", invariances=("scale", "sample scale", "rotation"), widths_differ=True, coupled=True
)
def pkt(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    eps: float = 1e-7,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Probabilistic knowledge transfer: mean_ij p_ij log((p_ij + eps) / (q_ij + eps)), in nats.

    p (teacher) and q (student) are the similarities (1 + cos(x_i, x_j)) / 2 with rows normalised to sum 1, a
    sample's similarity to itself included.

    Args:
        student: [B, ...], flattened per sample.
        teacher: [B, ...]; detached. Widths may differ.
        eps: added to the probabilities, and to the lengths that vectors are divided by.
        weight: weights or mask [B]; a sample of weight 0 is neither a row nor a column.

    Returns:
        One number, averaged over all B^2 pairs: the mean divergence of a row divided by B. Coupled: it is about
        pairs within the batch, so a split batch gives another value, and there is no reduction. The published
        weight 30000 (benchmarks on CIFAR-100) goes with it.

    A zero vector has cosine 0 with all others and gets no gradient (authors' code: NaN).

    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    with the cosine kernel, and the authors' code.

    Raises:
        ValueError: batch sizes differ, or the weight is not one number per sample.
    """
    ours, theirs, share = batch_rows(student, teacher, weight)
    q, p = _neighbours(ours, share, eps), _neighbours(theirs, share, eps)
    return _mean_over_rows((p * ((p + eps) / (q + eps)).log()).sum(dim=1), share)


def _mean_over_rows(rows: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return the mean over samples of a sum over the others, divided by how many they are: 1 / B^2 without weights."""
    mean = (share * rows).sum() / divisor(share.sum())
    return mean / divisor(effective_count(share))


def _neighbours(rows: torch.Tensor, share: torch.Tensor, eps: float) -> torch.Tensor:
    norm = length(rows).unsqueeze(1)
    zero = norm <= 0
    directions = torch.where(zero, torch.zeros_like(rows), rows) / torch.where(
        zero, torch.ones_like(norm), norm + eps
    )
    similarity = share * (1 + directions @ directions.mT) / 2
    return similarity / divisor(similarity.sum(dim=1, keepdim=True))


@card("vectors", invariances=("scale", "rotation"), widths_differ=True, coupled=True)
def similarity_preserving(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    official: bool = False,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """|N(X_s X_s^T) - N(X_t X_t^T)|_F^2 / B^2, where N divides every row by its L2 norm.

    Args:
        student: [B, ...], flattened per sample.
        teacher: [B, ...]; detached. Widths may differ.
        official: True for torchdistill's value: rows divided by their L1 norm, as its call `normalize(G, 1)` means
            p = 1.
        weight: weights or mask [B]; a pair's weight is the product of its samples'.

    Returns:
        One number, averaged over all B^2 pairs. Coupled: it is about pairs within the batch, so a split batch gives
        another value, and there is no reduction. The published weight is 3000.

    The row of a zero sample stays zero and gives no gradient.

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.

    Raises:
        ValueError: batch sizes differ, or the weight is not one number per sample.
    """
    ours, theirs, share = batch_rows(student, teacher, weight)
    difference = _similarity(ours, share, official) - _similarity(theirs, share, official)
    return _mean_over_rows(difference.square().sum(dim=1), share)


def _similarity(rows: torch.Tensor, share: torch.Tensor, official: bool) -> torch.Tensor:
    # A common factor changes nothing after the rows are normalised, and squares of large inner products could overflow.
    largest = rows.detach().abs().amax()
    rows = rows / torch.where(largest > 0, largest, torch.ones_like(largest))
    return unit(share * (rows @ rows.mT), 1.0 if official else 2.0)


@card(
    "vectors", invariances=("scale", "sample scale", "rotation"), widths_differ=True, coupled=True
)
def correlation_congruence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    kernel: Literal["gaussian", "bilinear"] = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
    official: bool = False,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared distance of correlation matrices, |C_s - C_t|_F^2 / B^2.

    "bilinear": C_ij = x_i.x_j. "gaussian": the Taylor series of exp(-gamma |x_i - x_j|^2) for unit vectors,
    C_ij = exp(-2 gamma) sum_{p=0..P} (2 gamma)^p / p! (x_i.x_j)^p.

    Args:
        student: [B, ...], flattened per sample.
        teacher: [B, ...]; detached. Widths may differ.
        kernel: "gaussian" or "bilinear".
        gamma: width of the Gaussian kernel.
        order: P, where its series ends.
        official: True for torchdistill's value: the norm is not squared, and the Gaussian series is taken of
            vectors as they are.
        weight: weights or mask [B]; a pair's weight is the product of its samples'.

    Returns:
        One number, averaged over all B^2 pairs (with `official`, the norm divided by B^2). Coupled: it is about
        pairs within the batch, so a split batch gives another value, and there is no reduction.

    Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, with the square of its
    equation for the loss. The vectors are scaled to length 1 before the Gaussian series, which is one of a Gaussian
    only then.

    Raises:
        ValueError: batch sizes differ, the weight is not one number per sample, or the kernel is unknown or its
            order negative.
    """
    check_choice(kernel, ("gaussian", "bilinear"), "kernel")
    if order < 0:
        raise ValueError(f"order is {order}; it must be 0 or more")
    ours, theirs, share = batch_rows(student, teacher, weight)
    if kernel == "gaussian" and not official:
        ours, theirs = unit(ours), unit(theirs)
    correlations = [rows @ rows.mT for rows in (ours, theirs)]
    if kernel == "gaussian":
        correlations = [_series(products, gamma, order) for products in correlations]
    squares = (correlations[0] - correlations[1]).square()
    mean = mean_over_pairs(squares, share)
    return safe_sqrt(mean) / divisor(effective_count(share)) if official else mean


def _series(products: torch.Tensor, gamma: float, order: int) -> torch.Tensor:
    value = torch.full_like(products, (2 * gamma) ** order / math.factorial(order))
    for power in range(order - 1, -1, -1):
        value = value * products + (2 * gamma) ** power / math.factorial(power)
    return math.exp(-2 * gamma) * value
