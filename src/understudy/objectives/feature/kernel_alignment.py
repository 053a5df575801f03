"""Centred kernel alignment."""

from __future__ import annotations

from typing import Literal

import torch

from understudy.objectives.card import card
from understudy.objectives.feature.gram import gram_products
from understudy.objectives.feature.preprocessing import geometry_rows
from understudy.objectives.norms import safe_sqrt
from understudy.objectives.shapes import check_choice, divisor, sample_weights

Products = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@card(
    "vectors", invariances=("scale", "rotation"), widths_differ=True, coupled=True, smallest_batch=2
)
def cka(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    kernel: Literal["linear", "rbf"] = "linear",
    bandwidth: float = 1.0,
    debiased: bool = False,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """One minus centred kernel alignment: 1 - HSIC(K_s, K_t) / sqrt(HSIC(K_s, K_s) HSIC(K_t, K_t)).

    Args:
        student: [..., D_s]; every vector is a row, n of them.
        teacher: [..., D_t], the leading dimensions equal; detached.
        kernel: "linear", K = X X^T; or "rbf", K_ij = exp(-|x_i - x_j|^2 / (2 sigma^2)).
        bandwidth: for "rbf", sigma as a multiple of the median distance between different rows. It is part of the
            function and differentiated with it, which keeps the value free of the features' scale.
        debiased: replace the biased HSIC by its unbiased estimate (Song et al.), which does not drift to 1 when the
            rows are fewer than the widths. Needs 4 rows; the value is then in [0, 2].
        weight: weights or mask over the leading dimensions; the unbiased estimate only tells 0 from the rest.

    Returns:
        One number; in [0, 1] when not debiased. Coupled: HSIC is about the rows of a batch, so a split batch gives
        another value, and there is no reduction. Constant features have no kernel to align: the value is 1, without
        a gradient.

    The linear kernel makes no n x n matrix when n is larger than the widths, debiased or not.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019; Nguyen, Raghu and
    Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021, for the debiased form. Deviation:
    their median counts the zero distances of rows to themselves, which shrinks sigma in small batches.

    Raises:
        ValueError: leading dimensions differ, there are too few rows, the weight does not fit, or the kernel is
            unknown.
    """
    check_choice(kernel, ("linear", "rbf"), "kernel")
    if debiased and weight is not None:
        weight = (weight != 0).to(student.dtype)
    needed = 4 if debiased else 2
    ours, theirs = geometry_rows(student, teacher, weight, "unit", needed=needed)
    valid = sample_weights(None if weight is None else weight.flatten(), ours)
    if kernel == "rbf":
        if not bandwidth > 0:
            raise ValueError(f"bandwidth is {bandwidth}; it must be greater than 0")
        # The rows carry the square root of their weight, which distances between them must not.
        scale = divisor(valid).sqrt().unsqueeze(1)
        kernels = [_rbf(rows / scale, valid, bandwidth) for rows in (ours, theirs)]
        own, cross, other = (_unbiased if debiased else _biased)(kernels[0], kernels[1], valid)
    elif debiased:
        own, cross, other = _unbiased_linear(ours, theirs, valid)
    else:
        own, cross, other = gram_products(ours, theirs)
    norm = safe_sqrt(own) * safe_sqrt(other)
    zero = (norm <= 0) | ((valid != 0).sum() < needed)
    aligned = torch.where(zero, torch.zeros_like(cross), cross)
    return 1 - aligned / torch.where(zero, torch.ones_like(norm), norm)


def _unbiased_linear(ours: torch.Tensor, theirs: torch.Tensor, valid: torch.Tensor) -> Products:
    """Return n (n - 3) times the unbiased HSIC for linear kernels of centred rows.

    For them the kernels without their diagonals have the row sums -k, where k are the diagonals, so that every term
    of the estimate is a product of diagonals or of whole kernels.
    """
    count = valid.sum()
    one, two = ours.square().sum(dim=1), theirs.square().sum(dim=1)
    own, cross, other = gram_products(ours, theirs)

    def estimate(product: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        diagonal = (left * right).sum() * count / divisor(count - 2)
        return product - diagonal + left.sum() * right.sum() / divisor((count - 1) * (count - 2))

    return estimate(own, one, one), estimate(cross, one, two), estimate(other, two, two)


def _rbf(rows: torch.Tensor, valid: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Return the kernel matrix [n, n]; the median is over pairs of different valid rows."""
    squares = rows.square().sum(dim=1)
    distance = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * rows @ rows.mT).clamp_min(0)
    counts = (valid != 0).unsqueeze(1) & (valid != 0).unsqueeze(0)
    counts = counts & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    median = torch.where(counts, distance, torch.nan).nanmedian()
    median = torch.where(median > 0, median, torch.ones_like(median))
    return torch.exp(-distance / (2 * bandwidth**2 * median))


def _biased(ours: torch.Tensor, theirs: torch.Tensor, valid: torch.Tensor) -> Products:
    """Return sums of products of kernels whose rows and columns are centred under the weights."""
    share = valid / divisor(valid.sum())
    pairs = valid.unsqueeze(1) * valid.unsqueeze(0)

    def centred(kernel: torch.Tensor) -> torch.Tensor:
        means = kernel @ share
        return kernel - means.unsqueeze(0) - means.unsqueeze(1) + share @ means

    one, two = centred(ours), centred(theirs)
    return (pairs * one * one).sum(), (pairs * one * two).sum(), (pairs * two * two).sum()


def _unbiased(ours: torch.Tensor, theirs: torch.Tensor, valid: torch.Tensor) -> Products:
    """Return n (n - 3) times the unbiased HSIC: sums of products of U-centred kernels (Székely and Rizzo)."""
    count = valid.sum()
    pairs = valid.unsqueeze(1) * valid.unsqueeze(0)
    pairs = pairs * (1 - torch.eye(len(valid), dtype=valid.dtype, device=valid.device))

    def centred(kernel: torch.Tensor) -> torch.Tensor:
        kernel = pairs * kernel
        sums = kernel.sum(dim=1) / divisor(count - 2)
        mean = kernel.sum() / divisor((count - 1) * (count - 2))
        return pairs * (kernel - sums.unsqueeze(0) - sums.unsqueeze(1) + mean)

    one, two = centred(ours), centred(theirs)
    return (one * one).sum(), (one * two).sum(), (two * two).sum()
