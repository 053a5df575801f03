"""The number formats of a store: their names, their limits, and tensors as arrays of them and back."""

from __future__ import annotations

import numpy as np
import torch

DTYPES = ("float32", "bf16", "float16", "int8")
"""What numbers can be kept in; int8 is a code of 8 bits with a scale (and an offset) for every vector."""
IN_NUMPY = {"float32": "<f4", "bf16": "<i2", "float16": "<f2"}
"""The type of an array that holds them; bfloat16, which numpy does not know, is there as its bits."""
LARGEST = {"float32": 3.4028235e38, "bf16": 3.3895314e38, "float16": 65504.0}
"""The largest number of each."""


def to_numpy(values: torch.Tensor, dtype: str) -> np.ndarray:
    """Return float32 numbers as an array of a format."""
    if dtype == "float16":
        return values.half().numpy()
    if dtype == "bf16":
        return values.bfloat16().view(torch.int16).numpy()
    return values.numpy()


def to_torch(rows: np.ndarray, dtype: str) -> torch.Tensor:
    """Return an array of a format as a tensor of it."""
    tensor = torch.from_numpy(rows)
    return tensor.view(torch.bfloat16) if dtype == "bf16" else tensor


def bf16_above(values: torch.Tensor) -> torch.Tensor:
    """Return the smallest bfloat16 numbers that are not below given positive ones, as float32."""
    rounded = values.bfloat16()
    lower = rounded.float() < values
    # The bits of the next positive number are those of this one plus 1.
    return (rounded.view(torch.int16) + lower).view(torch.bfloat16).float()
