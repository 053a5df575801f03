"""Random erasing."""

from __future__ import annotations

import math

import torch

from understudy.data.draws import Draw
from understudy.data.placement import place
from understudy.data.transforms._boxes import inside
from understudy.data.transforms._checks import interval, within
from understudy.data.views import Transform, transforms

ATTEMPTS = 10


@transforms.register("random_erasing")
class RandomErasing(Transform):
    """Paint a random rectangle of an image over in one grey level.

    Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, algorithm 1: of ten rectangles
    drawn the first that fits into the image is taken, else the image stays. It works before
    normalisation, so a `value` of 0 is black.

    Args:
        probability: share of images that are changed.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest height / width; its logarithm is uniform.
        value: what is painted, from 0 (black) to 1 (white).
    """

    def __init__(
        self,
        *,
        probability: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: float = 0.0,
    ) -> None:
        """Choose the rectangle."""
        within(self.name, "probability", probability, 0, 1)
        interval(self.name, "scale", scale, 0)
        interval(self.name, "ratio", ratio, 0)
        within(self.name, "value", value, 0, 1)
        self.probability = probability
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.value = value

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Erase; shape, type and device stay."""
        height, width = images.shape[2:]
        numbers = zip(
            draw.chance("erase", self.probability, host=True).tolist(),
            draw.uniform("area", ATTEMPTS, host=True).tolist(),
            draw.uniform("ratio", ATTEMPTS, host=True).tolist(),
            draw.uniform("place", 2, host=True).tolist(),
            strict=True,
        )
        boxes = [
            self._box(areas, ratios, where, height, width) if erase else (0, 0, 0, 0)
            for erase, areas, ratios, where in numbers
        ]
        box = place(torch.tensor(boxes, dtype=torch.int64).view(-1, 4), images.device)
        value = round(self.value * 255) if images.dtype == torch.uint8 else self.value
        return images.masked_fill(inside(box, height, width), value)

    def _box(
        self, areas: list[float], ratios: list[float], where: list[float], height: int, width: int
    ) -> tuple[int, int, int, int]:
        """Return top, bottom, left and right of the rectangle."""
        low, high = map(math.log, self.ratio)
        for area, ratio in zip(areas, ratios, strict=True):
            pixels = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + ratio * (high - low))
            rows, columns = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if rows < height and columns < width:
                top = int(where[0] * (height - rows + 1))
                left = int(where[1] * (width - columns + 1))
                return top, top + rows, left, left + columns
        return 0, 0, 0, 0
