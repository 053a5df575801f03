"""The sample ids of a shard, as they lie on the disk."""

from __future__ import annotations

import numpy as np

from understudy.teachers.store.packing import pack, packed_bytes, unpack

_LARGEST_SPAN = 2**62
"""Ids that are further apart are kept as they are: their differences could be beyond int64."""


def stored_ids(ids: np.ndarray) -> np.ndarray:
    """Return ascending ids (int64 [N], N > 0) as they are written: packed, uint8 [bytes], or as they are.

    Packed ids take 2 bits where none is left out between the first and the last, and about 2 + log2(g) where g is the
    mean gap.
    """
    first, last = int(ids[0]), int(ids[-1])
    if not _packed(first, last):
        return ids
    packed: np.ndarray = pack((ids - first)[None], last - first + 1)[0]
    return packed


def loaded_ids(stored: np.ndarray, first: int, last: int, count: int) -> np.ndarray:
    """Return the ids int64 [count] that `stored_ids` made; those of older stores are int64 already.

    Args:
        stored: what was written.
        first: the smallest id.
        last: the largest id.
        count: how many there are.

    Raises:
        StoreError: the bytes are no such ids.
    """
    if stored.dtype != np.uint8:
        return stored
    found: np.ndarray = unpack(stored[None], count, last - first + 1)[0] + np.int64(first)
    return found


def ids_bytes(first: int, last: int, count: int) -> int:
    """Return the bytes of the ids of a shard, without the head of their file."""
    return packed_bytes(count, last - first + 1) if _packed(first, last) else 8 * count


def _packed(first: int, last: int) -> bool:
    return last - first < _LARGEST_SPAN
