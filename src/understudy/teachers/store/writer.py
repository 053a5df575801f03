"""Writing shards, each whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from understudy.errors import StoreError
from understudy.teachers.store.deviation import Deviation
from understudy.teachers.store.files import (
    Files,
    LocalFiles,
    array_bytes,
    checksum,
    file_checksum,
    writing,
)
from understudy.teachers.store.ids import stored_ids
from understudy.teachers.store.manifest import (
    MANIFEST,
    Finished,
    Manifest,
    Shard,
    file_of,
    finished_file,
    read_manifest,
    write_finished,
    write_manifest,
)


class Writer:
    """Fills a store.

    A shard's arrays are written first and its JSON companion last; one without a companion does not count. The
    manifest is written before the first shard and again, complete, after the last.

    Args:
        files: where to.
        manifest: what is to be held.
    """

    def __init__(self, files: Files, manifest: Manifest) -> None:
        """Write nothing yet."""
        self.files, self.manifest = files, manifest

    def begin(self) -> None:
        """Write the manifest, or go on with a store of the same.

        Raises:
            StoreError: the store that is there is another one; names the difference. Or it cannot be written.
        """
        if self.files.size(MANIFEST) is None:
            with self._writing(MANIFEST):
                write_manifest(self.files, self.manifest)
            return
        if isinstance(self.files, LocalFiles):
            self.files.sweep()
        there = read_manifest(self.files)
        different = there.differences(self.manifest)
        if different:
            raise StoreError(
                f"The store {self.files.place} was begun with something else. Choose another path or delete it.\n  "
                + "\n  ".join(different)
            )
        self.manifest = there

    def write_extra(self, name: str, data: bytes) -> None:
        """Write a file that belongs to the store as a whole, unless it is there as it should be.

        Raises:
            StoreError: it could not be written.
        """
        size, expected = self.manifest.extra[name]
        if self.files.size(name) == size and checksum(self.files.read(name)) == expected:
            return
        with self._writing(name):
            self.files.write(name, data)

    def missing(self) -> list[Shard]:
        """Return the shards that are not finished, or whose files are gone or have another size."""
        sound, there = [], self.files.sizes()
        for shard in self.manifest.shards:
            finished = self.manifest.finished.get(shard.name)
            if finished is not None and all(
                there.get(name) == size for name, (size, _) in finished.files.items()
            ):
                sound.append(shard.name)
        return [shard for shard in self.manifest.shards if shard.name not in sound]

    def forget(self, shards: Sequence[Shard]) -> None:
        """Take shards out of what is finished, so that they are written again."""
        if not shards:
            return
        names = {shard.name for shard in shards}
        kept = {name: each for name, each in self.manifest.finished.items() if name not in names}
        was_complete = self.manifest.complete
        self.manifest = replace(self.manifest, finished=kept, complete=False)
        for shard in shards:
            self.files.delete(finished_file(shard))
        if was_complete:
            write_manifest(self.files, replace(self.manifest, finished={}))

    def write(
        self,
        shard: Shard,
        ids: np.ndarray,
        columns: Mapping[str, np.ndarray],
        deviations: Mapping[str, Deviation],
    ) -> None:
        """Write a shard.

        Args:
            shard: which.
            ids: int64 [samples], ascending.
            columns: column -> records [samples * views, ...]; the views of a sample follow one another.
            deviations: column -> how far the records are from what the teacher gave.

        Raises:
            StoreError: it could not be written, as on a full disk; what was finished before is untouched.
        """
        written = {}
        with self._writing(f"Shard {shard.name}"):
            for name, array in {"ids": stored_ids(ids), **columns}.items():
                data = array_bytes(array)
                self.files.write(file_of(shard, name), data)
                written[file_of(shard, name)] = (len(data), checksum(data))
            write_finished(self.files, shard, Finished(written, dict(deviations)))

    def complete(self) -> Manifest:
        """Write the manifest with every shard's checksums.

        Raises:
            StoreError: a shard is missing, or the manifest cannot be written.
        """
        found = read_manifest(self.files)
        left = [shard.name for shard in found.shards if shard.name not in found.finished]
        if left:
            raise StoreError(
                f"{len(left)} of {len(found.shards)} shards of the store {self.files.place} are not there, the first "
                f"of them {left[0]}."
            )
        ordered = {shard.name: found.finished[shard.name] for shard in found.shards}
        self.manifest = replace(found, finished=ordered, complete=True)
        with self._writing(MANIFEST):
            write_manifest(self.files, self.manifest)
        return self.manifest

    def _writing(self, what: str):  # type: ignore[no-untyped-def]
        done = len(self.manifest.finished)
        return writing(
            self.files,
            what,
            f"What was finished stays ({done} of {len(self.manifest.shards)} shards when this began): make room and "
            "give the same command again.",
        )


def damaged(files: Files, manifest: Manifest, shards: Sequence[Shard]) -> list[tuple[Shard, str]]:
    """Read shards from beginning to end and return those that are not what was written, with the reason."""
    found = []
    for shard in shards:
        for name, (size, expected) in manifest.finished[shard.name].files.items():
            try:
                if files.size(name) != size:
                    raise OSError(f"{name} has {files.size(name)} bytes instead of {size}")
                if file_checksum(files.local(name)) != expected:
                    raise OSError(f"the checksum of {name} differs")
            except OSError as error:
                found.append((shard, str(error)))
                break
    return found
