"""The rows of one part of a store, over all its shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from understudy.errors import StoreError, suggestion
from understudy.models.outputs import TopK
from understudy.teachers.store.codecs import record_bytes
from understudy.teachers.store.files import Files, mapped
from understudy.teachers.store.manifest import (
    Column,
    Manifest,
    Shard,
    file_of,
    read_ids,
    tap_column,
)

RESIDENT_BYTES = 512 * 2**20
"""A column of up to this size is read into memory and opened once, after which a batch is one look-up of rows."""


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
        self._resident: dict[str, dict[str, torch.Tensor]] = {}
        self._zeros = torch.zeros(0, dtype=torch.int64)

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
        return np.concatenate([read_ids(self._files, shard) for shard in self._part.shards])

    @cached_property
    def _dense_from(self) -> int | None:
        """The first id when ids follow one another without a gap: then no search is needed."""
        first, last = int(self.ids[0]), int(self.ids[-1])
        return first if last - first + 1 == len(self.ids) else None

    @cached_property
    def _shift(self) -> int | None:
        """The first id, when the row of an id in its only view is what it is beyond that; None otherwise."""
        return self._dense_from if self._part.views == 1 else None

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
        """Return the rows of (id, view) pairs.

        Raises:
            StoreError: an id or a view is not there; names it.
        """
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

    def lookup(
        self, ids: torch.Tensor, views: torch.Tensor, columns: Iterable[str]
    ) -> dict[str, torch.Tensor]:
        """Return columns of samples: "COLUMN/PART" -> tensor on the CPU, the parts being those of the codec.

        Args:
            ids: int64 [B] on the CPU.
            views: int64 [B] on the CPU.
            columns: which.

        Raises:
            StoreError: an id, a view or a column is not there; names it.
        """
        shift = self._shift
        if shift is not None and (torch.equal(views, self._zeros) or self._are_zero(views)):
            # Whoever selects rows looks at each of them: a look here as well would cost a third of a small batch.
            rows = ids - shift if shift else ids
        else:
            rows = torch.from_numpy(self.rows(ids.numpy(), views.numpy()))
        try:
            return self.read(columns, rows)
        except IndexError:
            self.positions(ids.numpy())  # names what is not there
            raise

    def _are_zero(self, views: torch.Tensor) -> bool:
        """Tell whether all views are 0; if so, keep them: to compare the next batch with them is the fastest look."""
        if np.count_nonzero(views.numpy()):
            return False
        self._zeros = torch.zeros_like(views)
        return True

    def read(self, columns: Iterable[str], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return rows (int64 [B]) of columns in the order asked for: "COLUMN/PART" -> tensor on the CPU.

        Raises:
            StoreError: there is no such column.
            IndexError: a row is not there.
        """
        found: dict[str, torch.Tensor] = {}
        for column in columns:
            if column not in self._resident:
                if not self._fits(column):
                    codec = self.codec(column)
                    records = self._gathered(column, rows.numpy())
                    found |= named(column, codec.columns(records))
                    continue
                self._resident[column] = self._opened(column)
            for name, whole in self._resident[column].items():
                found[name] = whole.index_select(0, rows)
        return found

    def restored(self, column: str, rows: np.ndarray) -> torch.Tensor | TopK:
        """Return the numbers in rows (int64 [B]) of a column."""
        found = self.read([column], torch.from_numpy(rows))
        return self.codec(column).restore(
            {name.removeprefix(f"{column}/"): tensor for name, tensor in found.items()}
        )

    def _fits(self, column: str) -> bool:
        """Tell whether a column is held in memory."""
        return record_bytes(self.codec(column)) * self._part.rows <= RESIDENT_BYTES

    def _opened(self, column: str) -> dict[str, torch.Tensor]:
        """Read a column into memory; see `Codec.opened`."""
        codec = self.codec(column)
        opened = [codec.opened(array) for array in self._shards(column)]
        return named(column, codec.columns(np.concatenate(opened)))

    def _shards(self, column: str) -> list[np.ndarray]:
        """Return a column's shards, memory-mapped."""
        if column not in self._arrays:
            self._arrays[column] = [self._load(shard, column) for shard in self._part.shards]
        return self._arrays[column]

    def _gathered(self, column: str, rows: np.ndarray) -> np.ndarray:
        """Return rows of a column out of its shards, in the order asked for."""
        if np.count_nonzero(_outside(rows, self._part.rows)):
            raise IndexError(f"a row is not from 0 to {self._part.rows - 1}")
        arrays = self._shards(column)
        if len(arrays) == 1 or not len(rows):
            return arrays[0].take(rows, axis=0)
        shards = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(shards, kind="stable")
        shards, local = shards[order], (rows - self._starts[shards])[order]
        bounds = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]
        sorted_rows = np.empty((len(rows), *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        for begin, end in itertools.pairwise(bounds):
            part = arrays[shards[begin]]
            # Every row is there; "clip" only spares numpy a buffer.
            part.take(local[begin:end], axis=0, out=sorted_rows[begin:end], mode="clip")
        found = np.empty_like(sorted_rows)
        found[order] = sorted_rows
        return found

    def _load(self, shard: Shard, column: str) -> np.ndarray[Any, Any]:
        return mapped(self._files.local(file_of(shard, column)))


def named(column: str, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a column by the names that a look-up has for them."""
    return {f"{column}/{part}": tensor for part, tensor in parts.items()}


def _outside(numbers: np.ndarray, end: int) -> np.ndarray:
    """Return where int64 numbers are not from 0 to `end` - 1: as unsigned ones those below 0 are very large."""
    return numbers.view(np.uint64) >= end
