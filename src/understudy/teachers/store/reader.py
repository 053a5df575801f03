"""Reading a store: any rows in any order, at the speed of memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from understudy.data.loader import EVALUATION_VIEW
from understudy.errors import StoreError, suggestion
from understudy.models.outputs import Outputs, TopK
from understudy.teachers.store.codecs import Dense, Sparse, record_bytes
from understudy.teachers.store.files import Files, mapped, open_files
from understudy.teachers.store.key import Key
from understudy.teachers.store.manifest import (
    LOGITS,
    TRAIN,
    Manifest,
    Shard,
    file_of,
    read_manifest,
    tap_column,
)
from understudy.teachers.store.writer import damaged

RESIDENT_BYTES = 256 * 2**20
"""A column of up to this size is read into one array, in which rows are found in a third of the time."""
CHECKING_THREADS = 4
"""Shards that are read at the same time when checksums are compared."""


class Store:
    """A finished store, open for reading.

    Args:
        place: a path, or a URL that fsspec knows.

    Raises:
        StoreError: there is none, it is damaged, or it is not finished.

    Attributes:
        manifest: what it holds.
    """

    def __init__(self, place: str | Path) -> None:
        """Read the manifest and look at the sizes of all files."""
        self.files: Files = open_files(place)
        self.manifest: Manifest = read_manifest(self.files)
        if not self.manifest.complete:
            shards = self.manifest.shards
            raise StoreError(
                f"The store {self.place} is not finished: {len(self.manifest.finished)} of {len(shards)} shards are "
                "there. Go on with `understudy label RECIPE`."
            )
        sizes = self.files.sizes()
        self._parts = {
            name: _Rows(self.files, self.manifest, name, sizes) for name in self.manifest.parts
        }

    @property
    def place(self) -> str:
        """Where it lies."""
        return self.files.place

    @property
    def key(self) -> Key:
        """What its contents depend on."""
        return self.manifest.key

    @property
    def views(self) -> int:
        """How many views of a training sample it holds."""
        return self.manifest.parts[TRAIN].views or 1

    @property
    def samples(self) -> int:
        """How many training samples it holds."""
        return self.manifest.parts[TRAIN].samples

    @property
    def logits(self) -> Dense | Sparse:
        """How it holds logits."""
        return self.manifest.parts[TRAIN].columns[LOGITS]

    @property
    def taps(self) -> dict[str, tuple[int, ...]]:
        """The taps whose features it holds, with the shape of one sample."""
        prefix = tap_column("")
        return {
            name.removeprefix(prefix): codec.shape
            for name, codec in self.manifest.parts[TRAIN].columns.items()
            if name.startswith(prefix) and isinstance(codec, Dense)
        }

    def check_key(self, wanted: Key) -> None:
        """Refuse a store that was filled for something else.

        Raises:
            StoreError: names every difference.
        """
        different = self.key.differences(wanted)
        if different:
            raise StoreError(
                f"The store {self.place} does not match this run, so what it holds is not what the teacher would say:"
                "\n  " + "\n  ".join(different)
            )

    def check_files(self, share: tuple[int, int] = (0, 1)) -> None:
        """Read every file once and compare its checksum.

        Args:
            share: (rank, number of ranks): each looks at its own shards.

        Raises:
            StoreError: names the damaged shards.
        """
        mine = self.manifest.shards[share[0] :: share[1]]
        with ThreadPoolExecutor(CHECKING_THREADS) as threads:
            results = threads.map(lambda shard: damaged(self.files, self.manifest, [shard]), mine)
            found = [each for result in results for each in result]
        if found:
            named = "\n  ".join(f"{shard.name}: {reason}" for shard, reason in found)
            raise StoreError(
                f"The store {self.place} has {len(found)} damaged shards. `understudy label RECIPE --repair` makes "
                f"them again.\n  {named}"
            )

    def check_holds(self, ids: torch.Tensor) -> None:
        """Refuse training samples that are not there.

        Raises:
            StoreError: names the first of them.
        """
        self._parts[TRAIN].positions(ids.numpy())

    def lookup(
        self, ids: torch.Tensor, views: torch.Tensor, taps: Iterable[str] = ()
    ) -> dict[str, torch.Tensor]:
        """Return what is stored for samples, as tensors on the CPU that `outputs` understands.

        Args:
            ids: int64 [B] on the CPU.
            views: int64 [B] on the CPU, view numbers from 0.
            taps: which features to read beside the logits.

        Raises:
            StoreError: an id, a view or a tap is not there; names it.
        """
        rows = self._parts[TRAIN]
        places = rows.rows(ids.numpy(), views.numpy())
        found: dict[str, torch.Tensor] = {}
        for column in [LOGITS, *map(tap_column, taps)]:
            parts = rows.codec(column).columns(rows.gather(column, places))
            found |= {f"{column}/{name}": tensor for name, tensor in parts.items()}
        return found

    def outputs(self, found: Mapping[str, torch.Tensor]) -> Outputs:
        """Return the teacher's outputs from what `lookup` gave, on whatever device it is now."""
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in found.items():
            column, _, part = name.rpartition("/")
            parts.setdefault(column, {})[part] = tensor
        features: dict[str, torch.Tensor] = {}
        logits: torch.Tensor | TopK | None = None
        for column, given in parts.items():
            restored = self._parts[TRAIN].codec(column).restore(given)
            if column == LOGITS:
                logits = restored
            else:
                assert isinstance(restored, torch.Tensor)
                features[column.removeprefix(tap_column(""))] = restored
        if isinstance(logits, TopK):
            return SparseOutputs(self.place, logits, features)
        return Outputs(logits=logits, features=features)

    def evaluation(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 logits [N, C] of samples as they are, without transforms.

        Raises:
            StoreError: they are not there.
        """
        for name, rows in self._parts.items():
            if name != TRAIN and rows.holds(ids.numpy()):
                places = rows.rows(ids.numpy(), np.full(len(ids), EVALUATION_VIEW))
                codec = rows.codec(LOGITS)
                restored = codec.restore(codec.columns(rows.gather(LOGITS, places)))
                assert isinstance(restored, torch.Tensor)
                return restored
        raise StoreError(
            f"The store {self.place} does not hold the teacher's answers for the {len(ids)} samples of this split "
            "(the first is sample "
            f"{int(ids[0])}). Splits that were cut in another way need a store of their own."
        )

    def close(self) -> None:
        """Delete what was fetched."""
        self._parts.clear()
        self.files.close()


class SparseOutputs(Outputs):
    """What a store of top-k logits gives: asking it for all logits is an error."""

    def __init__(self, place: str, top_k: TopK, features: dict[str, torch.Tensor]) -> None:
        """Keep the top k."""
        self._place = place
        self.features, self.top_k = features, top_k

    @property
    def logits(self) -> torch.Tensor:  # type: ignore[override]
        """All logits, which are not there.

        Raises:
            StoreError: always.
        """
        assert self.top_k is not None
        raise StoreError(
            f"all {self.top_k.classes} logits of the teacher are asked for, but the store {self._place} holds the "
            f"{self.top_k.values.shape[1]} largest and a tail. `kd` works with these; for other methods label again "
            "without top_k."
        )


class _Rows:
    """The rows of one part over its shards."""

    def __init__(
        self, files: Files, manifest: Manifest, name: str, sizes: Mapping[str, int]
    ) -> None:
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
        counts = [shard.samples * (self._part.views or 1) for shard in self._part.shards]
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._arrays: dict[str, list[np.ndarray]] = {}

    def codec(self, column: str) -> Dense | Sparse:
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
            found = ids - self._dense_from
            wrong = (found < 0) | (found >= len(self.ids))
        else:
            found = np.searchsorted(self.ids, ids)
            wrong = self.ids[np.minimum(found, len(self.ids) - 1)] != ids
        if wrong.any():
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
        wrong = (views < 0) | (views >= count)
        if wrong.any():
            raise StoreError(
                f"The store {self._place} does not hold view {int(views[wrong][0])} of sample "
                f"{int(ids[wrong][0])}; it has views 0 to {count - 1}."
            )
        rows: np.ndarray = positions * count + views
        return rows

    def gather(self, column: str, rows: np.ndarray) -> np.ndarray:
        """Return rows of a column in the order asked for."""
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
            size = record_bytes(self.codec(column)) * self._part.rows
            arrays = [self._load(shard, column) for shard in self._part.shards]
            if len(arrays) > 1 and size <= RESIDENT_BYTES:
                arrays = [np.concatenate(arrays)]
            self._arrays[column] = arrays
        return self._arrays[column]

    def _load(self, shard: Shard, column: str) -> np.ndarray[Any, Any]:
        return mapped(self._files.local(file_of(shard, column)))
