"""Sorted class ids in few bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from understudy.errors import StoreError


def packed_bytes(count: int, classes: int) -> int:
    """Return how many bytes `pack` needs for `count` of `classes` ids."""
    low = _low_bits(count, classes)
    return -(-(count + ((classes - 1) >> low) + count * low) // 8)


def pack(ids: np.ndarray, classes: int) -> np.ndarray:
    """Pack ascending ids [B, k], each in [0, classes), into uint8 [B, `packed_bytes(k, classes)`].

    The code is that of Elias (J. ACM 1974) and Fano (1971): the lower bits of each id as they are, the upper ones as
    gaps in unary, about log2(classes / k) + 2 bits for each id whatever the ids are, so that every row has the
    same length and can be found without an index.
    """
    rows, count = ids.shape
    low = _low_bits(count, classes)
    upper = count + ((classes - 1) >> low)
    bits = np.zeros((rows, upper + count * low), dtype=np.uint8)
    places = (ids >> low) + np.arange(count)
    np.put_along_axis(bits, places, 1, axis=1)
    if low:
        lower = (ids[:, :, None] >> np.arange(low)) & 1
        bits[:, upper:] = lower.reshape(rows, count * low)
    return np.packbits(bits, axis=1)


def unpack(packed: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Return the ids [B, count] that `pack` packed: int32, or int64 where classes are more than 2^31.

    Raises:
        StoreError: the bytes are no such ids.
    """
    rows = len(packed)
    low = _low_bits(count, classes)
    upper = count + ((classes - 1) >> low)
    bits = np.unpackbits(packed, axis=1, count=upper + count * low)
    # In the flat array the bits of a row begin at a multiple of `upper`, and each row has `count` ones. Numpy finds
    # them ten times as fast among booleans as among numbers.
    found = np.flatnonzero(np.ascontiguousarray(bits[:, :upper]).view(bool))
    if len(found) != rows * count:
        raise _damaged(count)
    places = found.reshape(rows, count)
    places -= np.arange(0, rows * upper, upper)[:, None]
    if (places[:, :1] < 0).any() or (places[:, -1:] >= upper).any():
        raise _damaged(count)
    ids: np.ndarray[Any, Any] = places.astype(np.int32 if classes <= 2**31 else np.int64)
    ids -= np.arange(count, dtype=ids.dtype)
    # Bit after bit, from the highest: there are few, and all rows are shifted at once.
    for lower in np.moveaxis(bits[:, upper:].reshape(rows, count, low), 2, 0)[::-1]:
        np.left_shift(ids, 1, out=ids)
        np.bitwise_or(ids, lower, out=ids)
    return ids


def _damaged(count: int) -> StoreError:
    return StoreError(f"Packed class ids are damaged: a row does not hold {count} of them.")


def _low_bits(count: int, classes: int) -> int:
    """Return how many bits of an id are kept as they are: the lower log2 of the mean gap."""
    return max(0, (classes // count).bit_length() - 1)
