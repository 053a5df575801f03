"""Parts of which every sample has a number of rows of its own, as documents have of predicted tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch

from understudy.teachers.store.manifest import OFFSETS, Shard
from understudy.teachers.store.rows import Rows, named

COUNTS = "tokens/counts"
"""What a look-up calls the number of predicted tokens of each document: int64 [B]."""


class RaggedRows(Rows):
    """The rows of one part, found by sample and view through the offsets of its shards.

    The offsets of a shard are int64 [samples * views + 1]: where the rows of each (sample, view) begin in the shard's
    arrays, and at last where they end.
    """

    @cached_property
    def _spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows of every (sample, view) begin over all shards, and how many there are: int64 [pairs] each."""
        begins, counts = [], []
        for shard, start in zip(self._part.shards, self._starts, strict=True):
            offsets = self._load(shard, OFFSETS)
            begins.append(offsets[:-1] + start)
            counts.append(np.diff(offsets))
        return np.concatenate(begins), np.concatenate(counts)

    def counts(self, ids: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Return how many rows each (id, view) pair has: int64 [B]."""
        found: np.ndarray = self._spans[1][super().rows(ids, views)]
        return found

    def rows(self, ids: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Return the rows of (id, view) pairs, those of the first, then those of the second, and so on."""
        pairs = super().rows(ids, views)
        begins, counts = self._spans[0][pairs], self._spans[1][pairs]
        return concatenated(begins, counts)

    def lookup(
        self, ids: torch.Tensor, views: torch.Tensor, columns: Iterable[str]
    ) -> dict[str, torch.Tensor]:
        """Return columns of documents as `Rows.lookup` does, a row for every predicted token, and `COUNTS`."""
        found = {COUNTS: torch.from_numpy(self.counts(ids.numpy(), views.numpy()))}
        return found | self.read(columns, torch.from_numpy(self.rows(ids.numpy(), views.numpy())))

    def read(self, columns: Iterable[str], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return rows (int64 [B]) of columns in the order asked for."""
        found: dict[str, torch.Tensor] = {}
        for column in columns:
            records = self._gathered(column, rows.numpy())
            found |= named(column, self.codec(column).columns(records))
        return found

    def _shards(self, column: str) -> list[np.ndarray]:
        """Return a column's shards, memory-mapped; or, where it fits into memory, one opened array."""
        if column not in self._arrays and self._fits(column):
            opened = map(self.codec(column).opened, super()._shards(column))
            self._arrays[column] = [np.concatenate(list(opened))]
        return super()._shards(column)

    def _gathered(self, column: str, rows: np.ndarray) -> np.ndarray:
        """Return rows of a column; those of a document lie side by side: one copy."""
        arrays = self._shards(column)
        # A column that was read into memory is one array over all shards.
        starts, ends = (self._starts, self._ends) if len(arrays) > 1 else ([0], self._ends[-1:])
        found = np.empty((len(rows), *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for place, stop in itertools.pairwise(cuts):
            while place < stop:
                row = int(rows[place])
                shard = int(np.searchsorted(ends, row, side="right"))
                own = row - int(starts[shard])
                count = min(stop - place, int(ends[shard]) - row)
                found[place : place + count] = arrays[shard][own : own + count]
                place += count
        return found


def concatenated(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return begins[0], begins[0] + 1, ... (counts[0] numbers), begins[1], ...: int64 [sum of counts]."""
    before = np.cumsum(counts) - counts
    found: np.ndarray = np.repeat(begins - before, counts) + np.arange(int(counts.sum()))
    return found


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Return the offsets of (sample, view) pairs with so many rows each: int64 [pairs + 1]."""
    return np.concatenate([np.zeros(1, dtype="<i8"), np.cumsum(counts, dtype="<i8")])


def ragged_shards(
    part: str, ids: np.ndarray, counts: np.ndarray, rows: int, samples: int | None
) -> Iterator[Shard]:
    """Cut sorted ids into shards.

    Args:
        part: the part's name.
        ids: int64 [N], ascending.
        counts: int64 [N], rows of each sample over all its views.
        rows: most rows of a shard; a sample with more has a shard of its own.
        samples: so many samples in each instead; None for as many as `rows` allows.
    """
    ends = np.cumsum(counts)
    start = 0
    while start < len(ids):
        before = int(ends[start - 1]) if start else 0
        if samples is None:
            stop = max(start + 1, int(np.searchsorted(ends, before + rows, side="right")))
        else:
            stop = min(start + samples, len(ids))
        yield Shard(
            part, int(ids[start]), int(ids[stop - 1]), stop - start, int(ends[stop - 1]) - before
        )
        start = stop
