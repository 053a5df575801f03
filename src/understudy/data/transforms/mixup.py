"""MixUp."""

from __future__ import annotations

import torch

from understudy.data.draws import Draw
from understudy.data.placement import place
from understudy.data.transforms._checks import within
from understudy.data.transforms._shares import average, shares
from understudy.data.views import Mixing, transforms


@transforms.register("mixup")
class Mixup(Mixing):
    """Average each image with its partner, and the labels alike.

    share * own + (1 - share) * partner: Zhang et al., "mixup: Beyond Empirical Risk Minimization",
    ICLR 2018, equation 1. The share is drawn from Beta(alpha, alpha) for each sample, the partner
    from the whole split.

    Args:
        alpha: parameter of the Beta distribution; 1 makes every share equally likely, small
            values make most shares close to 0 or 1.
        probability: share of samples that are mixed.
    """

    def __init__(self, *, alpha: float = 0.2, probability: float = 1.0) -> None:
        """Choose the strength."""
        within(self.name, "alpha", alpha, 1e-3)
        within(self.name, "probability", probability, 0, 1)
        self.alpha = alpha
        self.probability = probability

    def mix(
        self, images: torch.Tensor, partners: torch.Tensor, draw: Draw
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix; returns float32 images in [0, 1] and the shares."""
        share = place(shares(draw, self.alpha, self.probability), images.device)
        return average(images, partners, share[:, None, None, None]), share
