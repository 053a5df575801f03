"""RandAugment."""

from __future__ import annotations

import torch

from understudy.data.draws import Draw
from understudy.data.placement import place
from understudy.data.transforms import _geometry, _levels
from understudy.data.transforms._checks import colours, within
from understudy.data.transforms._grouping import by_choice
from understudy.data.views import Transform, transforms

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS = (
    *GEOMETRIC,
    *("identity", "brightness", "saturation", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)


@transforms.register("rand_augment")
class RandAugment(Transform):
    """Apply to each image some operations chosen at random, all at one magnitude.

    Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
    NeurIPS 2020. The operations and what a magnitude means are those of torchvision's
    `RandAugment`: shear up to 0.3, translation up to 150/331 of the side, rotation up to 30
    degrees, colour factors 1 +- 0.9, posterize down to 4 bits, solarize down to threshold 0;
    nearest neighbour, black outside; signs are random. Images are taken as 8-bit ones: float images
    are rounded to 256 levels and given back as floats.

    Args:
        operations: how many operations each image gets.
        magnitude: strength, from 0 to bins - 1.
        bins: how many strengths there are.
    """

    def __init__(self, *, operations: int = 2, magnitude: int = 9, bins: int = 31) -> None:
        """Choose the strength."""
        within(self.name, "operations", operations, 0)
        within(self.name, "bins", bins, 2)
        within(self.name, "magnitude", magnitude, 0, bins - 1)
        self.operations = operations
        self.magnitude = magnitude
        self.bins = bins

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Augment each image; shape, type and device stay."""
        colours(self.name, images.shape[1])
        levels = _levels.to_levels(images)
        choices = draw.integers("operation", len(OPERATIONS), self.operations, host=True)
        signs = draw.integers("sign", 2, self.operations, host=True)
        for choice, sign in zip(choices.unbind(1), signs.unbind(1), strict=True):
            levels = self._round(levels, choice, sign)
        return _levels.from_levels(levels, images.dtype)

    def _round(
        self, levels: torch.Tensor, choice: torch.Tensor, negative: torch.Tensor
    ) -> torch.Tensor:
        strength = self.magnitude / (self.bins - 1)
        factor = place(1 + 0.9 * strength * (1 - 2 * negative.float()), levels.device)
        matrix = place(2 * choice + negative, levels.device)
        height, width = levels.shape[2:]

        def apply(group: int, images: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
            if group == 0:
                tables = _geometry.origins(
                    _matrices(strength, height, width), height, width, images.device
                )
                return _geometry.take(images, matrix[members], *tables)
            match OPERATIONS[group + len(GEOMETRIC) - 1]:
                case "brightness":
                    return _levels.brightness(images, factor[members])
                case "saturation":
                    return _levels.saturation(images, factor[members])
                case "contrast":
                    return _levels.contrast(images, factor[members])
                case "sharpness":
                    return _levels.sharpness(images, factor[members])
                case "posterize":
                    return _levels.posterize(images, round(8 - 4 * strength))
                case "solarize":
                    return _levels.solarize(images, 255 * (1 - strength))
                case "autocontrast":
                    return _levels.autocontrast(images)
                case "equalize":
                    return _levels.equalize(images)
                case _:
                    return images

        # All geometric operations are look-ups, so they make one group, the first.
        return by_choice(levels, (choice - len(GEOMETRIC) + 1).clamp_(min=0), apply)


def _matrices(strength: float, height: int, width: int) -> tuple[_geometry.Matrix, ...]:
    """Return the matrices of the geometric operations, each with positive and negative sign."""
    across, down = (int(150 / 331 * strength * side) for side in (width, height))
    shear, turn = 0.3 * strength, 30 * strength
    return (
        *(_geometry.shear_x(shear), _geometry.shear_x(-shear)),
        *(_geometry.shear_y(shear), _geometry.shear_y(-shear)),
        *(_geometry.translate(across, 0), _geometry.translate(-across, 0)),
        *(_geometry.translate(0, down), _geometry.translate(0, -down)),
        *(_geometry.rotate(turn, height, width), _geometry.rotate(-turn, height, width)),
    )
