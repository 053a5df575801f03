"""Rectangles inside images, one for each."""

from __future__ import annotations

import torch


def inside(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return bool [B, 1, height, width]: which pixels lie in the sample's box.

    Args:
        boxes: int64 [B, 4], top, bottom, left and right; bottom and right are the first outside.
        height: height of the images in pixels.
        width: width of the images in pixels.
    """
    row = torch.arange(height, device=boxes.device)
    column = torch.arange(width, device=boxes.device)
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows = (row >= top) & (row < bottom)
    columns = (column >= left) & (column < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
