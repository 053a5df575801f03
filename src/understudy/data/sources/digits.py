"""Handwritten digits that ship inside scikit-learn."""

from __future__ import annotations

from typing import Literal

import torch

from understudy.data.labels import carve, remainders
from understudy.data.samples import TensorSamples
from understudy.data.source import Source, Split, sources
from understudy.errors import DataError


@sources.register("digits")
def digits(
    test: float = 0.3,
    size: int | None = None,
    interpolation: Literal["nearest", "bilinear"] = "nearest",
    label_modulo: int | None = None,
) -> Source:
    """Load scikit-learn's 1797 grey images of 8x8 pixels in ten classes; nothing is downloaded.

    Args:
        test: fraction of the images to test on, in (0, 1). The split is stratified and the same in every run: it does
            not depend on the run's seed.
        size: height and width to scale the images to; None: 8.
        interpolation: how to scale, "nearest" or "bilinear".
        label_modulo: make classes of the digits' remainders, so that 2 asks for "even" or "odd"; None: the digits.

    Images are uint8 [1, size, size]; the original values 0..16 become 0..255. An image's id is its row in
    scikit-learn's table.

    Raises:
        DataError: `test` leaves no training or no test image, `size` is not positive, `label_modulo` is not in
            2 to 10.
    """
    from sklearn.datasets import load_digits

    if not 0 < test < 1:
        raise DataError(
            f"digits: test={test} is no fraction of the images; it must lie between 0 and 1."
        )
    if size is not None and size < 1:
        raise DataError(f"digits: size={size}; it must be at least 1 pixel.")
    table = load_digits()
    images = torch.from_numpy(table.images).float().unsqueeze(1) * (255 / 16)
    if size is not None and size != images.shape[-1]:
        smooth = {"align_corners": False, "antialias": True} if interpolation == "bilinear" else {}
        images = torch.nn.functional.interpolate(
            images, size=(size, size), mode=interpolation, **smooth
        )
    rows = torch.arange(len(images))
    whole = Split(
        TensorSamples(images.round().clamp(0, 255).to(torch.uint8), "image"),
        positions=rows,
        labels=torch.from_numpy(table.target).long(),
        ids=rows.clone(),
    )
    train, held_out = carve(whole, test, seed=0)
    source = Source(
        "digits", "image", train, held_out, None, tuple(str(digit) for digit in range(10))
    )
    return source if label_modulo is None else remainders(source, label_modulo)
