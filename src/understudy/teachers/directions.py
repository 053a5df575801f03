"""Directions that do not come from a variance: those that a linear map does not see, and random ones."""

from __future__ import annotations

import torch


def null_basis(weight: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis of the null space of a float32 matrix [C, D], float64 [D, D - rank] on the CPU."""
    matrix = weight.detach().double().cpu()
    rows: torch.Tensor
    _, values, rows = torch.linalg.svd(matrix, full_matrices=True)
    # What lies below the rounding of float32 is nothing.
    floor = values.max() * max(matrix.shape) * torch.finfo(torch.float32).eps
    return rows[int((values > floor).sum()) :].T.contiguous()


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Return a random matrix with orthonormal columns, evenly distributed, float64 [rows, columns]."""
    drawn = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    directions: torch.Tensor
    directions, upper = torch.linalg.qr(drawn)
    turned: torch.Tensor = directions * upper.diagonal().sign()
    return turned
