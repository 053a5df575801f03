"""Random changes of brightness, contrast, saturation and hue."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from understudy.data.draws import Draw
from understudy.data.placement import place
from understudy.data.transforms import _levels
from understudy.data.transforms._checks import colours, within
from understudy.data.transforms._grouping import by_choice
from understudy.data.views import Transform, transforms
from understudy.errors import UnderstudyError

CHANGES = ("brightness", "contrast", "saturation", "hue")
ORDERS = torch.tensor(list(itertools.permutations(range(len(CHANGES)))))


@transforms.register("colour_jitter")
class ColourJitter(Transform):
    """Change brightness, contrast, saturation and hue by random amounts, in random order.

    Order and amounts are drawn for each image. A strength s of the first three means a factor
    uniform in [max(0, 1 - s), 1 + s], as in torchvision; of the hue, a turn uniform in [-s, s] of
    the colour circle. Images are taken as 8-bit ones: float images are rounded to 256 levels and
    given back as floats. Changing the hue needs kornia (`pip install understudy[vision]`).

    Args:
        brightness: strength of the change of brightness.
        contrast: strength of the change of contrast.
        saturation: strength of the change of saturation.
        hue: largest turn of the hue, 0.5 at most.
    """

    def __init__(
        self,
        *,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.0,
    ) -> None:
        """Choose the strengths; 0 leaves a property alone."""
        for keyword, strength in (
            ("brightness", brightness),
            ("contrast", contrast),
            ("saturation", saturation),
        ):
            within(self.name, keyword, strength, 0)
        within(self.name, "hue", hue, 0, 0.5)
        if hue > 0:
            _kornia(self.name)
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Change the colours; shape, type and device stay."""
        colours(self.name, images.shape[1])
        levels = _levels.to_levels(images)
        amounts = place(self._amounts(draw), images.device)
        orders = ORDERS[draw.integers("order", len(ORDERS), host=True)[:, 0]]

        def apply(change: int, group: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
            name, amount = CHANGES[change], amounts[members, change]
            if getattr(self, name) == 0:
                return group
            if name == "hue":
                return self._turn(group, amount)
            return {
                "brightness": _levels.brightness,
                "contrast": _levels.contrast,
                "saturation": _levels.saturation,
            }[name](group, amount)

        for choice in orders.unbind(1):
            levels = by_choice(levels, choice, apply)
        return _levels.from_levels(levels, images.dtype)

    def _amounts(self, draw: Draw) -> torch.Tensor:
        """Return float32 [B, 4]: three factors and an angle in radians."""
        columns = []
        for name in CHANGES:
            drawn = draw.uniform(name, host=True)[:, 0]
            strength = getattr(self, name)
            low, high = (
                (-2 * math.pi * strength, 2 * math.pi * strength)
                if name == "hue"
                else (max(0.0, 1 - strength), 1 + strength)
            )
            columns.append((drawn.double() * (high - low)).add_(low).float())
        return torch.stack(columns, 1)

    def _turn(self, levels: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
        if levels.shape[1] == 1:
            return levels
        turned = _kornia(self.name).adjust_hue(_levels.from_levels(levels, torch.float32), angle)
        return _levels.to_levels(turned)


def _kornia(transform: str) -> Any:
    try:
        import kornia.enhance
    except ImportError as error:
        raise UnderstudyError(
            f"{transform}: changing the hue needs kornia. Install it by: "
            "pip install understudy[vision]"
        ) from error
    return kornia.enhance
