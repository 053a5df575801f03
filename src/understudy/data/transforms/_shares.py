"""The arithmetic of mixing two images."""

from __future__ import annotations

import numpy as np
import torch

from understudy.data.draws import Draw
from understudy.data.placement import place
from understudy.data.transforms._boxes import inside


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


def average(images: torch.Tensor, partners: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return share * images + (1 - share) * partners as float32 in [0, 1].

    Args:
        images: uint8 or float [B, C, H, W].
        partners: the same.
        share: float32, anything that broadcasts with the images.
    """
    mixed = (images * share).add_(partners * (1 - share))
    return mixed.div_(255) if images.dtype == torch.uint8 else mixed.float()


def rectangles(
    share: torch.Tensor, draw: Draw, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a rectangle of 1 - share of the area for each sample.

    Args:
        share: float32 [B] on the CPU.
        draw: where the rectangle's middle is drawn from.
        height: height of the images in pixels.
        width: width of the images in pixels.

    Returns:
        bool [B, 1, H, W], which pixels are in it, and float32 [B], the share of the area that is
        really outside, both on the images' device.
    """
    side = np.sqrt(1 - share.numpy().astype(np.float64))
    middle = draw.uniform("middle", 2, host=True).numpy().astype(np.float64)
    edges = []
    for length, where in ((height, middle[:, 0]), (width, middle[:, 1])):
        extent = np.floor(length * side)
        first = np.floor(where * length) - np.floor(extent / 2)
        edges += [first.clip(0, length), (first + extent).clip(0, length)]
    top, bottom, left, right = edges
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    boxes = place(torch.from_numpy(np.stack(edges, 1)).to(torch.int64), draw.device)
    return inside(boxes, height, width), place(
        torch.from_numpy(kept.astype(np.float32)), draw.device
    )
