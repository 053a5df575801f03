"""Medians of projections, as binary codes of features need them."""

from __future__ import annotations

import torch

from understudy.errors import UnderstudyError
from understudy.teachers.features import Features

_NUMBERS = 2**26
"""Projections that are in memory at a time."""


def projected_medians(features: Features, directions: torch.Tensor) -> torch.Tensor:
    """Return the median over all rows of their product with each direction.

    For an even number of rows it is the lower of the two in the middle, as `torch.median` gives it.

    Args:
        features: the rows [N, D].
        directions: float [D, M].

    Returns:
        float32 [M].
    """
    rows, width = features.flat().shape
    if directions.dim() != 2 or len(directions) != width:
        raise UnderstudyError(
            f"The directions have shape {tuple(directions.shape)}; the features need [{width}, M]."
        )
    found = []
    for part in directions.float().split(max(1, _NUMBERS // max(1, rows)), dim=1):
        products = torch.cat([chunk.to(part.device) @ part for chunk in features.chunks()])
        found.append(products.median(dim=0).values)
    return torch.cat(found)
