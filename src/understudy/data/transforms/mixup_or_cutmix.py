"""MixUp or CutMix, chosen for each sample."""

from __future__ import annotations

import torch

from understudy.data.draws import Draw
from understudy.data.placement import place
from understudy.data.transforms._checks import within
from understudy.data.transforms._shares import average, rectangles, shares
from understudy.data.views import Mixing, transforms


@transforms.register("mixup_or_cutmix")
class MixupOrCutmix(Mixing):
    """Mix each sample by MixUp or by CutMix, as a draw decides.

    What timm does with both alphas set and `mode="elem"` (Wightman et al., "ResNet strikes back",
    2021).

    Args:
        mixup_alpha: parameter of MixUp's Beta distribution.
        cutmix_alpha: parameter of CutMix's Beta distribution.
        switch: share of mixed samples that get CutMix.
        probability: share of samples that are mixed at all.
    """

    def __init__(
        self,
        *,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        switch: float = 0.5,
        probability: float = 1.0,
    ) -> None:
        """Choose the strengths."""
        within(self.name, "mixup_alpha", mixup_alpha, 1e-3)
        within(self.name, "cutmix_alpha", cutmix_alpha, 1e-3)
        within(self.name, "switch", switch, 0, 1)
        within(self.name, "probability", probability, 0, 1)
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.switch = switch
        self.probability = probability

    def mix(
        self, images: torch.Tensor, partners: torch.Tensor, draw: Draw
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix; returns float32 images in [0, 1] and the shares."""
        cut = draw.chance("switch", self.switch, host=True)
        share = torch.where(
            cut,
            shares(draw, self.cutmix_alpha, self.probability),
            shares(draw, self.mixup_alpha, self.probability),
        )
        pasted, kept = rectangles(share, draw, *images.shape[2:])
        cut, share = place(cut, images.device), place(share, images.device)
        # Pasting is averaging with shares of 0 and 1. A sample's type may not depend on its draw,
        # so the pasted images become floats like the averaged ones.
        weight = torch.where(cut[:, None, None, None], ~pasted, share[:, None, None, None])
        return average(images, partners, weight), torch.where(cut, kept, share)
