"""Mirroring left and right."""

from __future__ import annotations

import torch

from understudy.data.draws import Draw
from understudy.data.transforms._checks import within
from understudy.data.views import Transform, transforms


@transforms.register("horizontal_flip")
class HorizontalFlip(Transform):
    """Mirror an image left to right with a given probability.

    Args:
        probability: share of images that are mirrored.
    """

    def __init__(self, *, probability: float = 0.5) -> None:
        """Choose the probability."""
        within(self.name, "probability", probability, 0, 1)
        self.probability = probability

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Mirror some images; shape, type and device stay."""
        columns = torch.arange(images.shape[3], device=images.device)
        mirrored = draw.chance("flip", self.probability)[:, None]
        place = torch.where(mirrored, columns.flip(0), columns)
        return images.gather(3, place[:, None, None, :].expand_as(images))
