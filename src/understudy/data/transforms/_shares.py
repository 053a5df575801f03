"""The arithmetic of mixing two images."""

from __future__ import annotations

import numpy as np
import torch

from understudy.data.draws import Draw
from understudy.data.placement import place
from understudy.data.transforms._boxes import inside
from understudy.data.transforms._levels import from_levels


def shares(draw: Draw, alpha: float, probability: float) -> torch.Tensor:
    """Draw each sample's own share from Beta(alpha, alpha); 1 for samples that are not to be mixed.

    Returns:
        float32 [B] on the CPU.
    """
    from scipy.special import betaincinv

    uniform = draw.uniform("share", host=True)[:, 0].numpy().astype(np.float64)
    share = uniform if alpha == 1 else betaincinv(alpha, alpha, uniform)
    mixed = draw.chance("mix", probability, host=True).numpy()
    return torch.from_numpy(np.where(mixed, share, 1.0).astype(np.float32))


def average(
    images: torch.Tensor, partners: torch.Tensor, share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return share * images + (1 - share) * partners, float32 in [0, 1], and the shares there."""
    share = place(share, images.device)
    own, other = (
        from_levels(side, torch.float32) if side.dtype == torch.uint8 else side.float()
        for side in (images, partners)
    )
    column = share[:, None, None, None]
    return (own * column).add_(other * (1 - column)), share


def paste(
    images: torch.Tensor, partners: torch.Tensor, share: torch.Tensor, draw: Draw
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a rectangle of 1 - share of the area of each partner into its image.

    Returns:
        The images in their own type, and float32 [B]: the share of the area that is really kept.
    """
    height, width = images.shape[2:]
    side = np.sqrt(1 - share.numpy().astype(np.float64))
    middle = draw.uniform("middle", 2, host=True).numpy().astype(np.float64)
    edges = []
    for length, where in ((height, middle[:, 0]), (width, middle[:, 1])):
        extent = np.floor(length * side)
        first = np.floor(where * length) - np.floor(extent / 2)
        edges += [first.clip(0, length), (first + extent).clip(0, length)]
    top, bottom, left, right = edges
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    boxes = place(torch.from_numpy(np.stack(edges, 1)).to(torch.int64), images.device)
    mixed = torch.where(inside(boxes, height, width), partners, images)
    return mixed, place(torch.from_numpy(kept.astype(np.float32)), images.device)
