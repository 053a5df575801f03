"""Features as rows of a matrix, ready for a comparison of geometries."""

from __future__ import annotations

from typing import Literal

import torch

from understudy.objectives.reduction import in_float
from understudy.objectives.shapes import check_choice, check_samples, divisor

Preprocessing = Literal["unit", "centred", "raw"]


def geometry_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor | None,
    preprocessing: Preprocessing,
    *,
    needed: int = 2,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return student [n, D_s] and teacher [n, D_t] as preprocessed rows, the teacher detached.

    Args:
        student: [..., D_s].
        teacher: [..., D_t], the leading dimensions equal to the student's.
        weight: weights or mask over the leading dimensions; a row of weight 0 becomes a zero row, which counts
            nothing.
        preprocessing: "centred" subtracts the (weighted) mean row, "unit" then divides by the Frobenius norm, "raw"
            does neither.
        needed: fewest rows, where rows are centred.

    Rows are multiplied by the square root of their weight, so that sums over rows become weighted sums.

    Raises:
        ValueError: leading dimensions differ, the weight does not have them, or there are too few rows.
    """
    check_choice(preprocessing, ("unit", "centred", "raw"), "preprocessing")
    if student.dim() < 2 or student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"student features have shape {tuple(student.shape)} and teacher features {tuple(teacher.shape)}; all but "
            "the last dimension, the width, must be equal, and there must be at least 2 dimensions"
        )
    if weight is not None and weight.shape != student.shape[:-1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and the features {tuple(student.shape)}; "
            f"it must have one number per row, {tuple(student.shape[:-1])}"
        )
    student = in_float(student).flatten(0, -2)
    teacher = in_float(teacher).detach().flatten(0, -2)
    if preprocessing != "raw":
        check_samples(student, needed, "the geometry of centred rows needs")
    shares = None if weight is None else weight.flatten()
    return (
        _preprocess(student, shares, preprocessing),
        _preprocess(teacher, shares, preprocessing),
    )


def _preprocess(
    rows: torch.Tensor, weight: torch.Tensor | None, preprocessing: Preprocessing
) -> torch.Tensor:
    share = None if weight is None else weight.to(rows.dtype).unsqueeze(1)
    if share is not None:
        rows = torch.where(share == 0, torch.zeros_like(rows), rows)
    if preprocessing == "raw":
        return rows if share is None else share.sqrt() * rows
    if share is None:
        centred, before = rows - rows.mean(dim=0), rows
    else:
        mean = (share * rows).sum(dim=0) / divisor(share.sum())
        centred, before = share.sqrt() * (rows - mean), share.sqrt() * rows
    if preprocessing == "centred":
        return centred
    # What centring leaves of equal rows is rounding, which must not be blown up to length 1.
    noise = 16 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(before.detach())
    norm = torch.linalg.vector_norm(centred)
    constant = norm <= noise
    scale = torch.where(constant, 0.0, 1 / torch.where(constant, torch.ones_like(norm), norm))
    return centred * scale
