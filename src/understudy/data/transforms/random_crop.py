"""A random crop of the padded image."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from understudy.data.draws import Draw
from understudy.data.transforms._checks import within
from understudy.data.views import Transform, transforms
from understudy.errors import DataError, UnderstudyError


@transforms.register("random_crop")
class RandomCrop(Transform):
    """Pad every side, then cut out a window at a random place; all places are equally likely.

    The usual augmentation of CIFAR (He et al., "Deep Residual Learning for Image Recognition", CVPR
    2016, section 4.2).

    Args:
        padding: pixels added on each side.
        mode: what they hold: zeros, or the image mirrored at its edge.
        size: side of the window in pixels; None for the image's own height and width.
    """

    def __init__(
        self,
        *,
        padding: int = 4,
        mode: Literal["zeros", "reflect"] = "zeros",
        size: int | None = None,
    ) -> None:
        """Choose the crop."""
        within(self.name, "padding", padding, 0)
        if mode not in ("zeros", "reflect"):
            raise UnderstudyError(f"{self.name}: mode must be 'zeros' or 'reflect', not '{mode}'.")
        if size is not None:
            within(self.name, "size", size, 1)
        self.padding = padding
        self.mode: Literal["zeros", "reflect"] = mode
        self.size = size

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Crop each image; type and device stay."""
        batch, channels, height, width = images.shape
        rows, columns = (height, width) if self.size is None else (self.size, self.size)
        padded = self._pad(images)
        free = (padded.shape[2] - rows + 1, padded.shape[3] - columns + 1)
        if min(free) < 1:
            raise DataError(
                f"{self.name}: a window of {rows} x {columns} does not fit into an image "
                f"of {height} x {width} with {self.padding} pixels of padding."
            )
        top = draw.integers("top", free[0]) + torch.arange(rows, device=images.device)
        left = draw.integers("left", free[1]) + torch.arange(columns, device=images.device)
        # One gather over flattened pixels is about as fast as copying windows one by one on a CPU,
        # works on any device, and never waits for the host.
        pixels = (top * padded.shape[3])[:, :, None] + left[:, None, :]
        pixels = pixels.view(batch, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, pixels).view(batch, channels, rows, columns)

    def _pad(self, images: torch.Tensor) -> torch.Tensor:
        if self.padding == 0:
            return images
        if self.mode == "zeros":
            return functional.pad(images, (self.padding,) * 4)
        for dim in (2, 3):  # torch has no reflection padding for uint8
            length = images.shape[dim]
            if self.padding >= length:
                raise DataError(
                    f"{self.name}: cannot mirror {self.padding} pixels of an image with {length}; "
                    f"the padding can be {length - 1} at most."
                )
            place = torch.arange(-self.padding, length + self.padding, device=images.device).abs()
            images = images.index_select(dim, torch.minimum(place, 2 * (length - 1) - place))
        return images
