"""Reading a store: any rows in any order, at the speed of memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from understudy.data.loader import EVALUATION_VIEW
from understudy.errors import StoreError
from understudy.models.outputs import Outputs, TopK
from understudy.teachers.store.codecs import Dense, Sparse
from understudy.teachers.store.files import Files, open_files
from understudy.teachers.store.key import Key
from understudy.teachers.store.manifest import (
    LOGITS,
    TRAIN,
    Manifest,
    read_manifest,
    tap_column,
)
from understudy.teachers.store.rows import Rows
from understudy.teachers.store.writer import damaged

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
            name: Rows(self.files, self.manifest, name, sizes) for name in self.manifest.parts
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

    def first(self, tap: str, count: int) -> torch.Tensor:
        """Return a tap's features in the first views of a few samples."""
        rows = self._parts[TRAIN]
        codec = rows.codec(tap_column(tap))
        places = np.arange(min(count, self.samples)) * self.views
        found = codec.restore(codec.columns(rows.gather(tap_column(tap), places)))
        assert isinstance(found, torch.Tensor)
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
