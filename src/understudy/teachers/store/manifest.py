"""The manifest: what a store holds, how it is cut into shards, and the checksum of every file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from understudy.errors import StoreError
from understudy.teachers.store.codecs import Dense, Sparse, codec_of, record_bytes
from understudy.teachers.store.deviation import Deviation
from understudy.teachers.store.files import Files, checksum, mapped
from understudy.teachers.store.ids import ids_bytes, loaded_ids
from understudy.teachers.store.key import Key, plain
from understudy.teachers.store.token_scores import TokenScores

MANIFEST = "manifest.json"
FORMAT, VERSION, RAGGED_VERSION = "understudy-store", 3, 4
"""Stores of which every sample has one row, and those of language models, with a row for every predicted token."""
OLDER_VERSIONS = (1, 2)
"""The same with ids of 8 bytes, which are still read."""
LOGITS = "logits"
"""The column of logits; that of a tap is called `tap:NAME`."""
HIDDEN = "hidden"
"""The column of a language model's last hidden states."""
SCORES = "scores"
"""The column of what is measured of predicted tokens, in the parts for evaluation."""
OFFSETS = "offsets"
"""The array that says where a sample's rows begin, where samples have different numbers of them."""
TRAIN = "train"
"""The part with the views that students learn from. The others hold samples as they are, for evaluation."""
OFFSET_BYTES = 8

Column = Dense | Sparse | TokenScores
"""How a column is kept."""


def tap_column(tap: str) -> str:
    """Return the name of a tap's column."""
    return f"tap:{tap}"


@dataclass(frozen=True)
class Shard:
    """A range of a part's sorted ids.

    Attributes:
        part: the part's name.
        first: the smallest id.
        last: the largest id.
        samples: how many there are.
        rows: how many rows their views have together, where samples differ in that; None for a row a view.
    """

    part: str
    first: int
    last: int
    samples: int
    rows: int | None = None

    @property
    def name(self) -> str:
        """How its files begin."""
        return f"{self.part}-{self.first}-{self.last}"


@dataclass(frozen=True)
class Part:
    """Samples of which the same is held.

    Attributes:
        views: how many views of each sample; None for the sample as it is.
        columns: column -> its codec.
        shards: ranges of the sorted ids, ascending.
    """

    views: int | None
    columns: Mapping[str, Column]
    shards: tuple[Shard, ...]

    @property
    def ragged(self) -> bool:
        """Whether samples have different numbers of rows."""
        return any(shard.rows is not None for shard in self.shards)

    @property
    def samples(self) -> int:
        """The number of samples."""
        return sum(shard.samples for shard in self.shards)

    @property
    def rows(self) -> int:
        """The number of rows: samples times views, or that of all predicted tokens."""
        return sum(map(self.rows_of, self.shards))

    def rows_of(self, shard: Shard) -> int:
        """Return the number of a shard's rows."""
        return shard.samples * (self.views or 1) if shard.rows is None else shard.rows

    def bytes_of(self, shard: Shard) -> int:
        """Return the bytes of a shard's rows, ids and offsets."""
        found = self.rows_of(shard) * self.row_bytes
        found += ids_bytes(shard.first, shard.last, shard.samples)
        if shard.rows is not None:
            found += (shard.samples * (self.views or 1) + 1) * OFFSET_BYTES
        return found

    @property
    def row_bytes(self) -> int:
        """The bytes of one row over all columns."""
        return sum(record_bytes(codec) for codec in self.columns.values())

    @property
    def bytes(self) -> int:
        """The bytes of all rows, ids and offsets."""
        return sum(map(self.bytes_of, self.shards))


@dataclass(frozen=True)
class Finished:
    """A shard that was written.

    Attributes:
        files: file name -> (bytes, checksum).
        deviations: column -> how far what is stored is from what the teacher gave.
    """

    files: Mapping[str, tuple[int, str]]
    deviations: Mapping[str, Deviation]

    def json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "files": _files_json(self.files),
            "deviations": {name: each.json() for name, each in self.deviations.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Finished:
        """Return it from its JSON values."""
        return cls(
            _files_of(values["files"]),
            {name: Deviation.from_json(each) for name, each in values["deviations"].items()},
        )


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    Attributes:
        key: what the contents depend on.
        teacher: facts about the teacher: name, parameters, weights, classes, flops, stages.
        making: how the contents were made: precision, batch size.
        parts: part -> what it holds.
        finished: shard name -> what was written. Those of a store that is being filled lie beside their shards.
        complete: whether every shard is there.
        extra: file name -> (bytes, checksum) of what belongs to the store as a whole: a language model's head.
    """

    key: Key
    teacher: Mapping[str, Any]
    making: Mapping[str, Any]
    parts: Mapping[str, Part]
    finished: Mapping[str, Finished] = field(default_factory=dict)
    complete: bool = False
    extra: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def ragged(self) -> bool:
        """Whether samples have different numbers of rows, as documents have of tokens."""
        return any(part.ragged for part in self.parts.values())

    @property
    def shards(self) -> list[Shard]:
        """All shards, part after part."""
        return [shard for part in self.parts.values() for shard in part.shards]

    @property
    def bytes(self) -> int:
        """The bytes of everything that is held."""
        extra = sum(size for size, _ in self.extra.values())
        return extra + sum(part.bytes for part in self.parts.values())

    def deviation(self, part: str, column: str) -> Deviation:
        """Return how far a column is from what the teacher gave, over all finished shards."""
        names = [shard.name for shard in self.parts[part].shards]
        found = [self.finished[name].deviations[column] for name in names if name in self.finished]
        return Deviation.sum(found)

    def json(self) -> dict[str, Any]:
        """Return JSON values, checksum included."""
        values = {
            "format": FORMAT,
            "version": RAGGED_VERSION if self.ragged else VERSION,
            "key": self.key.json(),
            "teacher": dict(self.teacher),
            "making": dict(self.making),
            "parts": {name: _part_json(part) for name, part in self.parts.items()},
            "finished": {name: each.json() for name, each in self.finished.items()},
            "complete": self.complete,
        }
        if self.extra:
            values["extra"] = _files_json(self.extra)
        return {**plain(values), "sha256": _checksum(values)}

    def differences(self, wanted: Manifest) -> list[str]:
        """Return a sentence for every way in which a store that is to be gone on with differs from what is asked."""
        found = self.key.differences(wanted.key)
        for what in ("making", "parts"):
            mine, theirs = self.json()[what], wanted.json()[what]
            for name in dict.fromkeys([*mine, *theirs]):
                if mine.get(name) != theirs.get(name):
                    found.append(_unlike(what, name, mine.get(name), theirs.get(name)))
        return found


def file_of(shard: Shard, column: str) -> str:
    """Return the file of a column (or of "ids") of a shard."""
    return f"{shard.name}.{re.sub(r'[^A-Za-z0-9_.@#-]', '-', column)}.npy"


def read_ids(files: Files, shard: Shard) -> np.ndarray:
    """Return the ids of a shard's samples, ascending: int64 [samples]."""
    stored = mapped(files.local(file_of(shard, "ids")))
    return loaded_ids(stored, shard.first, shard.last, shard.samples)


def finished_file(shard: Shard) -> str:
    """Return the file that says that a shard is finished."""
    return f"{shard.name}.json"


def write_manifest(files: Files, manifest: Manifest) -> None:
    """Write the manifest."""
    files.write(MANIFEST, _text(manifest.json()))


def read_manifest(files: Files) -> Manifest:
    """Return the manifest, with what is finished so far.

    Raises:
        StoreError: there is no store, the manifest is damaged, or it is of a later version.
    """
    try:
        values = json.loads(files.read(MANIFEST))
        given = values.pop("sha256")
        known = (*OLDER_VERSIONS, VERSION, RAGGED_VERSION)
        if values["format"] != FORMAT or values["version"] not in known:
            raise StoreError(
                f"The store {files.place} has format {values['format']} {values['version']}; this version of "
                f"understudy reads {FORMAT} {', '.join(map(str, known))}."
            )
        if given != _checksum(values):
            raise ValueError("its checksum differs")
        manifest = Manifest(
            Key.from_json(values["key"]),
            values["teacher"],
            values["making"],
            {name: _part_of(name, part) for name, part in values["parts"].items()},
            {name: Finished.from_json(each) for name, each in values["finished"].items()},
            values["complete"],
            _files_of(values.get("extra", {})),
        )
    except FileNotFoundError as error:
        raise StoreError(
            f"There is no store in {files.place}: it has no {MANIFEST}. `understudy label RECIPE` fills one."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{MANIFEST} of the store {files.place} is damaged: {error}.") from error
    return manifest if manifest.complete else replace(manifest, finished=_finished(files, manifest))


def write_finished(files: Files, shard: Shard, finished: Finished) -> None:
    """Say that a shard is finished; its files must have been written before."""
    values = finished.json()
    files.write(finished_file(shard), _text({**values, "sha256": _checksum(values)}))


def _finished(files: Files, manifest: Manifest) -> dict[str, Finished]:
    """Return what the shards of a store that is being filled say of themselves."""
    there = files.sizes()
    found = {}
    for shard in manifest.shards:
        if finished_file(shard) not in there:
            continue
        try:
            values = json.loads(files.read(finished_file(shard)))
            if values.pop("sha256") == _checksum(values):
                found[shard.name] = Finished.from_json(values)
        except (ValueError, KeyError, TypeError):
            continue  # It is labelled again.
    return found


def _part_json(part: Part) -> dict[str, Any]:
    return {
        "views": part.views,
        "columns": {name: codec.config() for name, codec in part.columns.items()},
        "shards": [
            [shard.first, shard.last, shard.samples, *([] if shard.rows is None else [shard.rows])]
            for shard in part.shards
        ],
    }


def _part_of(name: str, values: Mapping[str, Any]) -> Part:
    return Part(
        values["views"],
        {column: _codec(config) for column, config in values["columns"].items()},
        tuple(Shard(name, *shard) for shard in values["shards"]),
    )


def _codec(config: Mapping[str, Any]) -> Column:
    return TokenScores() if config == TokenScores().config() else codec_of(config)


def _files_json(files: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    return {name: {"bytes": size, "sha256": sha} for name, (size, sha) in files.items()}


def _files_of(values: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    return {name: (each["bytes"], each["sha256"]) for name, each in values.items()}


def _unlike(what: str, name: str, stored: Any, wanted: Any) -> str:
    if what == "making":
        return f"{name}: {stored} in the store, here {wanted}"
    changed = [
        f"{key} {_shown(stored.get(key))} in the store, here {_shown(wanted.get(key))}"
        for key in ("views", "columns", "shards")
        if stored is not None and wanted is not None and stored.get(key) != wanted.get(key)
    ]
    return f"part '{name}': " + ("; ".join(changed) or "it is not in both")


def _shown(value: Any, length: int = 160) -> str:
    text = json.dumps(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _text(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _checksum(values: Mapping[str, Any]) -> str:
    return checksum(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


def shards_of(part: str, ids: list[int], samples: int) -> Iterator[Shard]:
    """Cut sorted ids into shards of at most `samples`."""
    for first in range(0, len(ids), samples):
        piece = ids[first : first + samples]
        yield Shard(part, piece[0], piece[-1], len(piece))
