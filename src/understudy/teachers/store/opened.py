"""Sparse records as memory holds them: ids unpacked, parts where tensors can be laid over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from understudy.teachers.store.packing import unpack

AT_ONCE = 2**16
"""Ids that are unpacked at once: in between they need ten times their place, and fit into a processor's cache."""
_TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
}
_Part = tuple[str, np.dtype[Any], tuple[int, ...]]


class Opened:
    """The form of opened records.

    To unpack the ids of a batch takes ten times as long as to find it in memory. So a column that is held in memory is
    opened once; a batch is then one look-up of bytes, and goes to a device in one piece.

    Args:
        record: the type of a stored record, with its ids packed in the part "ids".
        k: how many ids.
        classes: of how many classes they are.
        bf16: parts that hold the bits of bfloat16 numbers.
    """

    def __init__(self, record: np.dtype[Any], k: int, classes: int, bf16: Sequence[str]) -> None:
        """Lay the parts out, those of longer numbers first, so that each begins at a multiple of its number's size."""
        self._k, self._classes = k, classes
        ids = "u1" if classes <= 2**8 else "<i2" if classes <= 2**15 else "<i4"
        parts: list[_Part] = [
            (name, *(record[name].subdtype or (record[name], ())))
            for name in record.names or ()
            if name != "ids"
        ]
        parts.append(("ids", np.dtype(ids), (k,)))
        parts.sort(key=lambda part: -part[1].itemsize)
        self._record = np.dtype(parts, align=True)
        self._names = [name for name, _, _ in parts]
        self._kinds = [
            torch.bfloat16 if name in bf16 else _TORCH[number.name] for name, number, _ in parts
        ]
        sizes = [self._record[name].itemsize for name in self._names]
        # The last piece only fills up the record.
        self._sizes = [*sizes, self._record.itemsize - sum(sizes)]

    def open(self, rows: np.ndarray) -> np.ndarray:
        """Return stored records as opened ones: uint8 [B, bytes].

        Raises:
            StoreError: packed ids are damaged.
        """
        found = np.zeros(len(rows), dtype=self._record)
        for name in self._names:
            if name != "ids":
                found[name] = rows[name]
        step = max(1, AT_ONCE // self._k)
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            found["ids"][part] = unpack(rows["ids"][part].copy(), self._k, self._classes)
        return found.view(np.uint8).reshape(len(found), -1)

    def parts(self, records: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parts of opened records (uint8 [B, bytes], on any device), each [B, numbers]: views, no copies."""
        pieces = records.split_with_sizes(self._sizes, dim=1)[:-1]
        found = zip(self._names, pieces, self._kinds, strict=True)
        return {name: piece.view(kind) for name, piece, kind in found}
