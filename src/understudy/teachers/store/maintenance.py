"""Stores out of stores: parts put together, and dense ones made smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from understudy.errors import StoreError
from understudy.teachers.store.codecs import Dense, Sparse, as_temperatures
from understudy.teachers.store.deviation import Deviation
from understudy.teachers.store.files import Files, checksum, mapped, open_files, writing
from understudy.teachers.store.manifest import (
    HIDDEN,
    LOGITS,
    OFFSETS,
    TRAIN,
    Column,
    Finished,
    Manifest,
    Part,
    Shard,
    file_of,
    read_ids,
    read_manifest,
    write_finished,
)
from understudy.teachers.store.reader import Store
from understudy.teachers.store.settings import Dtype
from understudy.teachers.store.token_logits import encoded_logits
from understudy.teachers.store.writer import Writer


def merge(into: str | Path, places: Sequence[str | Path]) -> Manifest:
    """Put stores together that hold different shards of one plan, as `label --part` makes them.

    Args:
        into: the store to make, or to go on with.
        places: what to put together; finished or not.

    Returns:
        The manifest; complete when no shard is missing.

    Raises:
        StoreError: they were made for different things, hold a shard in two versions, or one is damaged.
    """
    if not places:
        raise StoreError("There is nothing to merge; name the stores.")
    sources = [(files, read_manifest(files)) for files in map(open_files, places)]
    first = sources[0][1]
    for files, manifest in sources[1:]:
        different = first.differences(manifest)
        if different:
            raise StoreError(
                f"{sources[0][0].place} and {files.place} do not belong together:\n  "
                + "\n  ".join(different)
            )
    writer = Writer(open_files(into), replace(first, finished={}, complete=False))
    writer.begin()
    for shard in writer.missing():
        holding = [
            (files, manifest.finished[shard.name])
            for files, manifest in sources
            if shard.name in manifest.finished
        ]
        if holding:
            _copy(writer.files, shard, holding)
    for name in writer.manifest.extra:
        data = next(
            (files.read(name) for files, _ in sources if files.size(name) is not None), None
        )
        if data is None or checksum(data) != writer.manifest.extra[name][1]:
            raise StoreError(f"{name} of {sources[0][0].place} is missing or damaged.")
        writer.write_extra(name, data)
    manifest = read_manifest(writer.files)
    return writer.complete() if len(manifest.finished) == len(manifest.shards) else manifest


def _copy(into: Files, shard: Shard, holding: Sequence[tuple[Files, Finished]]) -> None:
    (files, finished), *others = holding
    for other, same in others:
        if same.files != finished.files:
            raise StoreError(
                f"Shard {shard.name} is not the same in {files.place} and {other.place}: one teacher gave two answers. "
                "Were they labelled on different machines or with different numbers of threads? Leave one out."
            )
    with writing(into, f"Shard {shard.name}", "Make room and merge again; what is finished stays."):
        for name, (_, expected) in finished.files.items():
            data = files.read(name)
            if checksum(data) != expected:
                raise StoreError(f"Shard {shard.name} of {files.place} is damaged: {name}.")
            into.write(name, data)
        write_finished(into, shard, finished)


def convert(
    place: str | Path,
    into: str | Path,
    *,
    top_k: int | None = None,
    dtype: Dtype | None = None,
    feature_dtype: Dtype | None = None,
    temperatures: Sequence[float] = (),
) -> Manifest:
    """Make a smaller store of one that holds all logits, or a language model's hidden states, without the teacher.

    Args:
        place: the store to read.
        into: the store to make.
        top_k: keep only so many of the largest logits, and a tail; None for all.
        dtype: in what logits or hidden states are kept; None for what they are in (float16 for the largest logits of
            hidden states).
        feature_dtype: in what features are kept; None for what they are in.
        temperatures: for which a tail is kept beside 1.

    What is held for evaluation is copied. The error of the new store is against the old one; that of the old one is
    kept in the manifest under `making`.

    Raises:
        StoreError: the store holds no dense logits, or has fewer than `top_k`.
    """
    store = Store(place)
    store.check_files()
    old = store.manifest.parts[TRAIN]
    answers = store.codec
    if isinstance(answers, Sparse):
        raise StoreError(
            f"The store {store.place} holds only the {answers.k} largest logits; what was left out cannot be had back. "
            "Convert the store with all logits, or label again."
        )
    columns: dict[str, Column] = {}
    for column, codec in old.columns.items():
        assert isinstance(codec, Dense)
        chosen = dtype if column == store.answers else feature_dtype
        columns[column] = Dense(codec.shape, chosen or codec.dtype)
    if top_k is not None:
        assert isinstance(answers, Dense)
        hidden = columns.pop(HIDDEN, None)
        width = answers.shape[0] if hidden is None else int(store.manifest.teacher["width"])
        if not 1 <= top_k <= width:
            raise StoreError(
                f"top_k is {top_k}; the store has {width} logits, so it is from 1 to {width}."
            )
        kept = dtype or ("float16" if hidden is not None else answers.dtype)
        columns[LOGITS] = Sparse(width, top_k, kept, as_temperatures(temperatures))
    before = {
        column: {**codec.config(), "deviation": store.manifest.deviation(TRAIN, column).json()}
        for column, codec in old.columns.items()
    }
    parts = {**store.manifest.parts, TRAIN: replace(old, columns=columns)}
    making = {**store.manifest.making, "converted_from": before}
    manifest = Manifest(
        store.key, store.manifest.teacher, making, parts, extra=store.manifest.extra
    )
    writer = Writer(open_files(into), manifest)
    writer.begin()
    for name in manifest.extra:
        writer.write_extra(name, store.files.read(name))
    for shard in writer.missing():
        ids, rows, deviations = _encoded(store, shard, parts[shard.part])
        writer.write(shard, ids, rows, deviations)
    return writer.complete()


def _encoded(
    store: Store, shard: Shard, part: Part
) -> tuple[np.ndarray, dict[str, np.ndarray], Mapping[str, Deviation]]:
    """Return ids, column -> records and column -> deviation of a shard in the codecs of `part`."""
    before = store.manifest.parts[shard.part].columns
    rows: dict[str, np.ndarray] = {}
    deviations: dict[str, Deviation] = {}
    if part.ragged:
        rows[OFFSETS] = mapped(store.files.local(file_of(shard, OFFSETS)))
    for column, codec in part.columns.items():
        if column not in before:
            states = before[HIDDEN]
            assert isinstance(states, Dense)
            hidden = mapped(store.files.local(file_of(shard, HIDDEN))).copy()
            given = states.restore(states.columns(hidden))
            head = store.head(torch.device("cpu"))
            rows[column], deviations[column] = encoded_logits(codec, given, head)
            continue
        stored = mapped(store.files.local(file_of(shard, column)))
        if codec == before[column]:
            rows[column] = stored
            deviations[column] = store.manifest.finished[shard.name].deviations[column]
            continue
        old = before[column]
        assert isinstance(old, Dense)
        rows[column], deviations[column] = codec.encode(old.restore(old.columns(stored.copy())))
    return read_ids(store.files, shard), rows, deviations
