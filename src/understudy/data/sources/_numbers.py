"""Checks on samples that are tensors: what they are, and that their values can be used."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from understudy.data.source import Kind
from understudy.errors import DataError

_BLOCK = 4096
"""Samples that are checked at a time, to keep the memory for it small."""


def single_precision(data: torch.Tensor) -> torch.Tensor:
    """Return floats of any precision as float32, and anything else as it is."""
    return data.float() if data.is_floating_point() else data


def settle_kind(shape: Sequence[int], dtype: torch.dtype, kind: Kind | None, what: str) -> Kind:
    """Return the kind of samples with this shape (without the batch) and type.

    Raises:
        DataError: complex numbers, images that are not [C, H, W] or hold integers other than uint8, tensors said to
            be texts.
    """
    if dtype.is_complex or kind == "text":
        raise DataError(
            f"The inputs in {what} are {dtype} tensors, which cannot serve as {kind or 'inputs'}."
        )
    numbers = dtype == torch.uint8 or dtype.is_floating_point
    if kind == "tensor" or (
        kind is None and not (numbers and len(shape) == 3 and shape[0] in (1, 3))
    ):
        if kind is None and len(shape) == 3 and shape[-1] in (1, 3) and dtype == torch.uint8:
            raise DataError(_channels_last(shape, what))
        return "tensor"
    if len(shape) != 3:
        raise DataError(f"Images in {what} have shape {tuple(shape)}; they must be [C, H, W].")
    if shape[0] not in (1, 3) and shape[-1] in (1, 3):
        raise DataError(_channels_last(shape, what))
    if not numbers:
        raise DataError(f"Images in {what} are {dtype}; they must be uint8, or float in [0, 1].")
    return "image"


def check_values(data: torch.Tensor, kind: Kind, what: str, begin: int = 0) -> None:
    """Refuse NaN, infinity and image values outside [0, 1].

    Args:
        data: samples [N, ...].
        kind: what they are.
        what: what messages call the split.
        begin: the number of the first sample, for messages.
    """
    if not data.is_floating_point():
        return
    for start in range(0, len(data), _BLOCK):
        block = (
            data[start : start + _BLOCK].flatten(1)
            if data.ndim > 1
            else data[start : start + _BLOCK, None]
        )
        if block.shape[1] == 0:
            return
        least, most = block.amin(1), block.amax(1)
        # NaN spreads into both, infinity shows in one.
        broken = ~(least.isfinite() & most.isfinite())
        if broken.any():
            first = int(torch.nonzero(broken)[0])
            raise DataError(
                f"Sample {begin + start + first} of {what} holds NaN or infinity "
                f"({int(broken.sum())} of the {len(block)} samples from {begin + start} on do)."
            )
        outside = (least < 0) | (most > 1)
        if kind == "image" and outside.any():
            first = int(torch.nonzero(outside)[0])
            raise DataError(
                f"Sample {begin + start + first} of {what} is an image with values from {float(least[first]):.4g} to "
                f"{float(most[first]):.4g}; float images must lie in [0, 1] (each model normalises for itself). "
                "Give raw "
                "pixels, or kind='tensor' for values that are to be taken as they are."
            )


def _channels_last(shape: Sequence[int], what: str) -> str:
    return (
        f"Images in {what} have shape {tuple(shape)}, which looks like [H, W, C]; bring the channels to the front "
        "with permute(0, 3, 1, 2), or say kind='tensor'."
    )
