"""Lengths whose gradient is finite: the direction of nothing is nothing, and so is its gradient."""

from __future__ import annotations

import math

import torch


def safe_sqrt(value: torch.Tensor) -> torch.Tensor:
    """Return the square root, with value and gradient 0 where the value is 0 or a rounding error below it.

    Not-a-number stays not-a-number, so that a broken input is still noticed.
    """
    zero = value <= 0
    root = torch.where(zero, torch.ones_like(value), value).sqrt()
    return torch.where(zero, torch.zeros_like(value), root)


def length(vectors: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    """Return the p-norm over the last dimension; its gradient at 0 is 0.

    Args:
        vectors: [..., D].
        power: p, at least 1 and finite.

    Raises:
        ValueError: p is below 1 or not finite.
    """
    check_power(power)
    if power == 1:
        return vectors.abs().sum(dim=-1)
    if power == 2:
        return safe_sqrt(vectors.square().sum(dim=-1))
    # Powers of the largest element's share can neither overflow nor all vanish.
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    zero = largest <= 0
    largest = torch.where(zero, torch.ones_like(largest), largest)
    total = ((vectors / largest).abs() ** power).sum(dim=-1, keepdim=True)
    root = torch.where(zero, torch.ones_like(total), total) ** (1 / power)
    return torch.where(zero, torch.zeros_like(root), root * largest).squeeze(-1)


def unit(vectors: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    """Divide vectors [..., D] by their p-norm; a zero vector stays zero and gets no gradient."""
    norm = length(vectors, power).unsqueeze(-1)
    zero = norm <= 0
    return torch.where(zero, torch.zeros_like(vectors), vectors) / torch.where(
        zero, torch.ones_like(norm), norm
    )


def floor_at_zero(value: torch.Tensor) -> torch.Tensor:
    """Lift what rounding put below 0, without touching the gradient.

    For quantities that cannot be negative but are computed as a difference of large terms.
    """
    return value + (value.clamp_min(0) - value).detach()


def check_power(power: float) -> None:
    """Refuse a power that does not make a norm."""
    if not (math.isfinite(power) and power >= 1):
        raise ValueError(f"the power of a norm is {power}; it must be a number of at least 1")
