"""A crop of random area and aspect ratio, resized."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from understudy.data.draws import Draw
from understudy.data.transforms._checks import interval, within
from understudy.data.views import Transform, transforms

ATTEMPTS = 10


@transforms.register("random_resized_crop")
class RandomResizedCrop(Transform):
    """Cut out a window of random area and aspect ratio and resize it to a square.

    Bilinear, antialiased. The usual augmentation of ImageNet (Szegedy et al., "Going Deeper with
    Convolutions", CVPR 2015), with torchvision's
    rule: of ten windows drawn the first that fits is taken, else the largest central one of an
        allowed ratio.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height; its logarithm is uniform.
    """

    def __init__(
        self,
        *,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        """Choose the crop."""
        within(self.name, "size", size, 1)
        interval(self.name, "scale", scale, 0)
        interval(self.name, "ratio", ratio, 0)
        self.size = size
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Crop and resize each image; [B, C, H, W] -> [B, C, size, size], type and device stay."""
        height, width = images.shape[2:]
        numbers = zip(
            draw.uniform("area", ATTEMPTS, host=True).tolist(),
            draw.uniform("ratio", ATTEMPTS, host=True).tolist(),
            draw.uniform("place", 2, host=True).tolist(),
            strict=True,
        )
        # Windows differ in size, so each is resized on its own.
        resized = [
            self._resize(image[:, top : top + rows, left : left + columns])
            for image, drawn in zip(images, numbers, strict=True)
            for top, left, rows, columns in [self._window(*drawn, height, width)]
        ]
        return (
            torch.stack(resized)
            if resized
            else images.new_empty(0, images.shape[1], self.size, self.size)
        )

    def _window(
        self, areas: list[float], ratios: list[float], place: list[float], height: int, width: int
    ) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the window."""
        low, high = map(math.log, self.ratio)
        for area, ratio in zip(areas, ratios, strict=True):
            pixels = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + ratio * (high - low))
            rows, columns = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
            if 0 < rows <= height and 0 < columns <= width:
                top = int(place[0] * (height - rows + 1))
                left = int(place[1] * (width - columns + 1))
                return top, left, rows, columns
        rows, columns = height, width
        if width / height < self.ratio[0]:
            rows = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            columns = max(1, round(height * self.ratio[1]))
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def _resize(self, window: torch.Tensor) -> torch.Tensor:
        if window.shape[1:] == (self.size, self.size):
            return window
        # CUDA has no antialiased kernel for uint8.
        wide = window.float() if window.is_cuda else window
        resized = functional.interpolate(
            wide[None], (self.size, self.size), mode="bilinear", antialias=True
        )[0]
        if wide.dtype == window.dtype:
            return resized
        if window.dtype == torch.uint8:
            resized = resized.round_().clamp_(0, 255)
        return resized.to(window.dtype)
