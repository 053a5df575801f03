"""Operations on 8-bit images, batched, each sample for itself.

They follow Pillow, which AutoAugment and RandAugment were defined on. Sums over an image are sums
of integers, and no operation fuses a multiplication with an addition, so that a sample's result
cannot depend on the batch around it. Images are uint8 [B, C, H, W] with C = 1 or 3; factors are
float32 [B], 1 for "leave it".
"""

from __future__ import annotations

import torch


def to_levels(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images; float ones in [0, 1] are rounded to 256 levels."""
    if images.dtype == torch.uint8:
        return images
    return images.float().mul(255).round_().clamp_(0, 255).to(torch.uint8)


def from_levels(levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return 8-bit images as `dtype`: uint8 as they are, or float in [0, 1]."""
    return levels if dtype == torch.uint8 else levels.to(torch.float32).div_(255).to(dtype)


def grey(levels: torch.Tensor) -> torch.Tensor:
    """Return the luma (ITU-R BT.601, rounded) as float32 [B, 1, H, W] of whole numbers."""
    if levels.shape[1] == 1:
        return levels.float()
    red, green, blue = levels.unbind(1)
    luma = (red * 0.299).add_(green * 0.587).add_(blue * 0.114)
    return luma.add_(0.5).floor_().unsqueeze(1)


def blend(levels: torch.Tensor, plain: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return plain + factor (levels - plain), clipped to the 256 levels and rounded down."""
    moved = torch.sub(levels, plain).mul_(_column(factor)).add_(plain)
    return moved.clamp_(0, 255).to(torch.uint8)


def brightness(levels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with black."""
    return levels.mul(_column(factor)).clamp_(0, 255).to(torch.uint8)


def saturation(levels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the grey image; grey images stay as they are."""
    return levels if levels.shape[1] == 1 else blend(levels, grey(levels), factor)


def contrast(levels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the image's mean grey level."""
    total = grey(levels).to(torch.int64).sum((1, 2, 3))
    pixels = levels.shape[2] * levels.shape[3]
    mean = (2 * total + pixels).div_(2 * pixels, rounding_mode="floor")
    return blend(levels, _column(mean.float()), factor)


def sharpness(levels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the image smoothed by [1 1 1; 1 5 1; 1 1 1] / 13; the outermost pixels stay."""
    if min(levels.shape[2:]) < 3:
        return levels
    wide = levels.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    centre = wide[:, :, 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + centre * 4
    out = levels.clone()
    out[:, :, 1:-1, 1:-1] = blend(centre, total.float().div_(13).round_(), factor)
    return out


def posterize(levels: torch.Tensor, bits: int) -> torch.Tensor:
    """Keep the `bits` most significant bits."""
    return levels & (0xFF << (8 - bits) & 0xFF)


def solarize(levels: torch.Tensor, threshold: float) -> torch.Tensor:
    """Invert the levels that are at or above `threshold`."""
    return torch.where(levels < threshold, levels, 255 - levels)


def autocontrast(levels: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to the full range; a channel of one level stays."""
    low = levels.amin((2, 3), keepdim=True)
    span = (levels.amax((2, 3), keepdim=True) - low).float()
    scale = torch.where(span > 0, 255 / span, 1.0)
    low = torch.where(span > 0, low, 0)
    # Exact quotients have fractions of at least 1/255, so this turns rounding down into exact
    # rounding down.
    return (levels - low).mul(scale).add_(1e-3).clamp_(0, 255).to(torch.uint8)


def equalize(levels: torch.Tensor) -> torch.Tensor:
    """Make each channel's histogram flat, as Pillow's ImageOps.equalize does."""
    batch, channels, height, width = levels.shape
    flat = levels.reshape(batch * channels, -1)
    index = flat.long()
    one = torch.ones((), dtype=torch.int32, device=levels.device).expand_as(index)
    counts = torch.zeros(len(flat), 256, dtype=torch.int32, device=levels.device)
    counts.scatter_add_(1, index, one)
    brightest = counts.gather(1, flat.amax(1, keepdim=True).long())
    step = (height * width - brightest).div_(255, rounding_mode="floor")
    below = counts.cumsum(1) - counts
    table = (below + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    identity = torch.arange(256, dtype=torch.uint8, device=levels.device)
    table = torch.where(step == 0, identity, table.to(torch.uint8))
    return table.gather(1, index).view_as(levels)


def _column(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)
