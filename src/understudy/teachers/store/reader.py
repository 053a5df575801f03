"""Reading a store: any rows in any order, at the speed of memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from understudy.data.loader import EVALUATION_VIEW
from understudy.errors import StoreError
from understudy.models.outputs import Outputs, TokenOutputs, TopK
from understudy.objectives.vocabulary.head import Head
from understudy.teachers.store.codecs import Dense
from understudy.teachers.store.files import Files, file_checksum, open_files
from understudy.teachers.store.key import Key
from understudy.teachers.store.manifest import (
    HIDDEN,
    LOGITS,
    TRAIN,
    Column,
    Manifest,
    read_manifest,
    tap_column,
)
from understudy.teachers.store.ragged import COUNTS, RaggedRows
from understudy.teachers.store.rows import Rows
from understudy.teachers.store.stored_head import HEAD, read_head
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
            name: (RaggedRows if part.ragged else Rows)(self.files, self.manifest, name, sizes)
            for name, part in self.manifest.parts.items()
        }
        for name, (size, _) in self.manifest.extra.items():
            if sizes.get(name) != size:
                raise self._damaged_extra(name, f"it has {sizes.get(name, 'no')} bytes, not {size}")
        self._heads: dict[torch.device, Head] = {}

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
    def ids(self) -> torch.Tensor:
        """The ids of the training samples that it holds, ascending: int64 [N]."""
        return torch.from_numpy(self._parts[TRAIN].ids.copy())

    @cached_property
    def answers(self) -> str:
        """The column of what the teacher said: logits, or the last hidden states of a language model."""
        return HIDDEN if HIDDEN in self.manifest.parts[TRAIN].columns else LOGITS

    @property
    def codec(self) -> Column:
        """How it holds what the teacher said."""
        return self.manifest.parts[TRAIN].columns[self.answers]

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
        if share[0] == 0:
            for name, (_, expected) in self.manifest.extra.items():
                if file_checksum(self.files.local(name)) != expected:
                    raise self._damaged_extra(name, "its checksum differs")
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
        self, ids: torch.Tensor, views: torch.Tensor, taps: Collection[str] = ()
    ) -> dict[str, torch.Tensor]:
        """Return what is stored for samples, as tensors on the CPU that `outputs` understands.

        Of documents that is a row for every predicted token, document by document, and `COUNTS`.

        Args:
            ids: int64 [B] on the CPU.
            views: int64 [B] on the CPU, view numbers from 0.
            taps: which features to read beside the logits.

        Raises:
            StoreError: an id, a view or a tap is not there; names it.
        """
        columns = [self.answers, *map(tap_column, taps)] if taps else (self.answers,)
        return self._parts[TRAIN].lookup(ids, views, columns)

    def first(self, tap: str, count: int) -> torch.Tensor:
        """Return a tap's features in the first views of a few samples."""
        places = np.arange(min(count, self.samples)) * self.views
        found = self._parts[TRAIN].restored(tap_column(tap), places)
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
        parts.pop(COUNTS.partition("/")[0], None)
        for column, given in parts.items():
            restored = self._parts[TRAIN].codec(column).restore(given)
            if column == self.answers:
                logits = restored
            else:
                assert isinstance(restored, torch.Tensor)
                features[column.removeprefix(tap_column(""))] = restored
        if isinstance(logits, TopK):
            return SparseOutputs(self.place, logits, features)
        if self.answers == HIDDEN:
            assert logits is not None
            return TokenOutputs(hidden=logits, head=self.head(logits.device), features=features)
        return Outputs(logits=logits, features=features)

    def evaluation(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 logits [N, C] of samples as they are, without transforms.

        Raises:
            StoreError: they are not there.
        """
        return self.as_they_are(ids, [LOGITS])[LOGITS]

    def as_they_are(self, ids: torch.Tensor, columns: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return columns of samples as they are, without transforms; of documents also `COUNTS`.

        Args:
            ids: int64 [B] on the CPU.
            columns: which. One that is not kept for evaluation is left out.

        Raises:
            StoreError: the samples are not there.
        """
        for name, rows in self._parts.items():
            if name == TRAIN or not rows.holds(ids.numpy()):
                continue
            found: dict[str, torch.Tensor] = {}
            views = np.full(len(ids), EVALUATION_VIEW)
            if isinstance(rows, RaggedRows):
                found[COUNTS] = torch.from_numpy(rows.counts(ids.numpy(), views))
            places = rows.rows(ids.numpy(), views)
            for column in columns:
                if column in self.manifest.parts[name].columns:
                    restored = rows.restored(column, places)
                    assert isinstance(restored, torch.Tensor)
                    found[column] = restored
            return found
        raise StoreError(
            f"The store {self.place} does not hold the teacher's answers for the {len(ids)} samples of this split "
            "(the first is sample "
            f"{int(ids[0])}). Splits that were cut in another way need a store of their own."
        )

    def head(self, device: torch.device) -> Head:
        """Return the teacher's head on a device, read once; there is one where hidden states are kept."""
        if device not in self._heads:
            facts = self.manifest.teacher["head"]
            self._heads[device] = read_head(self.files.local(HEAD), facts, device)
        return self._heads[device]

    def _damaged_extra(self, name: str, reason: str) -> StoreError:
        return StoreError(
            f"{name} of the store {self.place} is damaged: {reason}. `understudy label RECIPE --repair` makes it again."
        )

    def close(self) -> None:
        """Delete what was fetched."""
        self._heads.clear()
        self._parts.clear()
        self.files.close()


class SparseOutputs(Outputs):
    """What a store of top-k logits gives: asking it for all logits is an error."""

    def __init__(self, place: str, top_k: TopK, features: dict[str, torch.Tensor]) -> None:
        """Keep the top k."""
        self._place = place
        self.features, self.top_k = features, top_k
        self.hidden = self.head = None

    @property
    def logits(self) -> torch.Tensor:  # type: ignore[override]
        """All logits, which are not there.

        Raises:
            StoreError: always.
        """
        assert self.top_k is not None
        raise StoreError(
            f"all {self.top_k.classes} logits of the teacher are asked for, but the store {self._place} holds the "
            f"{self.top_k.values.shape[1]} largest and a tail. `kd` works with these, and `token_kd` for language "
            "models; for other methods label again without top_k."
        )
