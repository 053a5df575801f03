"""Affine changes by look-up: which pixel each pixel of the result is taken from."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

# Matrices that take a pixel of the result to its origin: (a, b, c, d, e, f) with x' = a x + b y + c
# and y' = d x + e y + f. Coordinates are pixel centres; shears turn about the corner of the image,
# rotations about its middle, as in Pillow's AutoAugment.
Matrix = tuple[float, float, float, float, float, float]


def shear_x(level: float) -> Matrix:
    """Shift each row by `level` times its height in the image."""
    return (1.0, level, 0.0, 0.0, 1.0, 0.0)


def shear_y(level: float) -> Matrix:
    """Shift each column by `level` times its place in the image."""
    return (1.0, 0.0, 0.0, level, 1.0, 0.0)


def translate(right: int, down: int) -> Matrix:
    """Shift by whole pixels."""
    return (1.0, 0.0, -float(right), 0.0, 1.0, -float(down))


def rotate(degrees: float, height: int, width: int) -> Matrix:
    """Turn anti-clockwise about the middle."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle_x, middle_y = width / 2, height / 2
    return (
        cosine,
        -sine,
        middle_x - cosine * middle_x + sine * middle_y,
        sine,
        cosine,
        middle_y - sine * middle_x - cosine * middle_y,
    )


@lru_cache(maxsize=32)
def origins(
    matrices: tuple[Matrix, ...], height: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest origin of each pixel under each of M matrices.

    Returns:
        int64 [M, H * W], places in the flattened image, and uint8 [M, H * W], 0 where the origin is
        outside. Made once for each size and device.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float64) + 0.5
    places, inside = [], []
    for a, b, c, d, e, f in matrices:
        column = np.floor(a * x + b * y + c).astype(np.int64)
        row = np.floor(d * x + e * y + f).astype(np.int64)
        inside.append((column >= 0) & (column < width) & (row >= 0) & (row < height))
        places.append(row.clip(0, height - 1) * width + column.clip(0, width - 1))
    return (
        torch.from_numpy(np.stack(places).reshape(len(matrices), -1)).to(device),
        torch.from_numpy(np.stack(inside).reshape(len(matrices), -1).astype(np.uint8)).to(device),
    )


def take(
    images: torch.Tensor, which: torch.Tensor, places: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """Apply matrix `which` (int64 [B]) to each uint8 image of [B, C, H, W]; outside is 0."""
    index = places[which][:, None, :].expand(-1, images.shape[1], -1)
    taken = images.flatten(2).gather(2, index)
    return taken.mul_(inside[which][:, None, :]).view_as(images)
