"""The rows of one part of a store, over all its shards."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from understudy.errors import StoreError, suggestion
from understudy.teachers.store.codecs import record_bytes
from understudy.teachers.store.files import Files, mapped
from understudy.teachers.store.manifest import Column, Manifest, Shard, file_of, tap_column

RESIDENT_BYTES = 512 * 2**20
"""A column of up to this size is read into one array and opened once, after which a batch is one look-up in memory."""


class Rows:
    """The rows of one part.

    Args:
        files: the store's files.
        manifest: what they hold.
        name: the part.
        sizes: file -> its bytes.

    Raises:
        StoreError: a file is missing or has another size; names the shard.
    """

    def __init__(
        self, files: Files, manifest: Manifest, name: str, sizes: Mapping[str, int]
    ) -> None:
        """Look at the sizes; nothing is read yet."""
        self._files, self._name = files, name
        self._part = manifest.parts[name]
        self._place = files.place
        for shard in self._part.shards:
            for file, (size, _) in manifest.finished[shard.name].files.items():
                if sizes.get(file) != size:
                    raise StoreError(
                        f"Shard {shard.name} of the store {files.place} is damaged: {file} has "
                        f"{sizes.get(file, 'no')} bytes instead of {size}. `understudy label RECIPE --repair` makes it "
                        "again."
                    )
        counts = np.array([self._part.rows_of(shard) for shard in self._part.shards])
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._arrays: dict[str, list[np.ndarray]] = {}

    def codec(self, column: str) -> Column:
        """Return a column's codec."""
        if column not in self._part.columns:
            names = [name.removeprefix(tap_column("")) for name in self._part.columns]
            wanted = column.removeprefix(tap_column(""))
            raise StoreError(
                f"The store {self._place} does not hold '{wanted}'. {suggestion(wanted, names)} To add it, label "
                f"again with it among the taps."
            )
        return self._part.columns[column]

    @cached_property
    def ids(self) -> np.ndarray:
        """All ids, sorted: int64 [samples]."""
        return np.concatenate([self._load(shard, "ids") for shard in self._part.shards])

    @cached_property
    def _dense_from(self) -> int | None:
        """The first id when ids follow one another without a gap: then no search is needed."""
        first, last = int(self.ids[0]), int(self.ids[-1])
        return first if last - first + 1 == len(self.ids) else None

    def holds(self, ids: np.ndarray) -> bool:
        """Tell whether all of these samples are there."""
        found = np.searchsorted(self.ids, ids)
        return bool((self.ids[np.minimum(found, len(self.ids) - 1)] == ids).all())

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Return where ids stand among the sorted ones."""
        if self._dense_from is not None:
            found = ids - self._dense_from if self._dense_from else ids
            wrong = _outside(found, len(self.ids))
        else:
            found = np.searchsorted(self.ids, ids)
            wrong = self.ids[np.minimum(found, len(self.ids) - 1)] != ids
        if np.count_nonzero(wrong):
            raise StoreError(
                f"The store {self._place} does not hold sample {int(ids[wrong][0])} (nor {int(wrong.sum()) - 1} others "
                f"of {len(ids)}); its part '{self._name}' has {len(self.ids)} samples."
            )
        return found

    def rows(self, ids: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Return the rows of (id, view) pairs."""
        positions = self.positions(ids)
        count = self._part.views
        if count is None:
            return positions
        wrong = _outside(views, count)
        if np.count_nonzero(wrong):
            raise StoreError(
                f"The store {self._place} does not hold view {int(views[wrong][0])} of sample "
                f"{int(ids[wrong][0])}; it has views 0 to {count - 1}."
            )
        return positions if count == 1 else positions * count + views

    def gather(self, column: str, rows: np.ndarray) -> np.ndarray:
        """Return rows of a column in the order asked for, opened where the column is (see `Codec`)."""
        arrays = self._column(column)
        if len(arrays) == 1 or not len(rows):
            return arrays[0].take(rows, axis=0)
        shards = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(shards, kind="stable")
        shards, local = shards[order], (rows - self._starts[shards])[order]
        bounds = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]
        sorted_rows = np.empty((len(rows), *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        for begin, end in itertools.pairwise(bounds):
            part = arrays[shards[begin]]
            # Every row was looked for before; "clip" only spares numpy a buffer.
            part.take(local[begin:end], axis=0, out=sorted_rows[begin:end], mode="clip")
        found = np.empty_like(sorted_rows)
        found[order] = sorted_rows
        return found

    def _column(self, column: str) -> Sequence[np.ndarray]:
        if column not in self._arrays:
            codec = self.codec(column)
            arrays = [self._load(shard, column) for shard in self._part.shards]
            if record_bytes(codec) * self._part.rows <= RESIDENT_BYTES:
                arrays = [codec.opened(array) for array in arrays]
                arrays = arrays if len(arrays) == 1 else [np.concatenate(arrays)]
            self._arrays[column] = arrays
        return self._arrays[column]

    def _load(self, shard: Shard, column: str) -> np.ndarray[Any, Any]:
        return mapped(self._files.local(file_of(shard, column)))


def _outside(numbers: np.ndarray, end: int) -> np.ndarray:
    """Return where int64 numbers are not from 0 to `end` - 1: as unsigned ones those below 0 are very large."""
    return numbers.view(np.uint64) >= end
