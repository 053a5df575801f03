"""CutMix."""

from __future__ import annotations

import torch

from understudy.data.draws import Draw
from understudy.data.transforms._checks import within
from understudy.data.transforms._shares import rectangles, shares
from understudy.data.views import Mixing, transforms


@transforms.register("cutmix")
class Cutmix(Mixing):
    """Paste a rectangle of the partner into each image; labels are mixed by area.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features", ICCV 2019, equations 1 and 2: a share drawn from Beta(alpha, alpha) sets the
    rectangle's area, its middle is uniform in the image, and what reaches beyond the edge is cut
    off. The label's share is the area that is really kept.

    Args:
        alpha: parameter of the Beta distribution.
        probability: share of samples that are mixed.
    """

    def __init__(self, *, alpha: float = 1.0, probability: float = 1.0) -> None:
        """Choose the strength."""
        within(self.name, "alpha", alpha, 1e-3)
        within(self.name, "probability", probability, 0, 1)
        self.alpha = alpha
        self.probability = probability

    def mix(
        self, images: torch.Tensor, partners: torch.Tensor, draw: Draw
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix; the images keep their type."""
        share = shares(draw, self.alpha, self.probability)
        pasted, kept = rectangles(share, draw, *images.shape[2:])
        return torch.where(pasted, partners, images), kept
