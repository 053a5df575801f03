"""Parts are put together, and dense stores made smaller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_store import (
    CLASSES,
    IDS,
    KEY,
    TEST_IDS,
    VIEWS,
    logits,
    manifest,
    write_shard,
    write_store,
)

from understudy.errors import StoreError
from understudy.teachers.store import Store
from understudy.teachers.store.codecs import Sparse
from understudy.teachers.store.files import open_files
from understudy.teachers.store.maintenance import convert, merge
from understudy.teachers.store.writer import Writer


def write_part(place: Path, number: int, of: int, **keywords: object) -> None:
    writer = Writer(open_files(place), manifest(**keywords))  # type: ignore[arg-type]
    writer.begin()
    for shard in writer.missing()[number::of]:
        write_shard(writer, shard)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parts_make_the_whole(tmp_path: Path) -> None:
    write_store(tmp_path / "whole")
    for number in (0, 1, 2):
        write_part(tmp_path / str(number), number, 3)
    assert not merge(tmp_path / "merged", [tmp_path / "0", tmp_path / "1"]).complete
    with pytest.raises(StoreError, match="not finished"):
        Store(tmp_path / "merged")
    assert merge(tmp_path / "merged", [tmp_path / "2", tmp_path / "1"]).complete
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path / "a", 0, 2)
    write_part(tmp_path / "b", 1, 2, key=replace(KEY, teacher="another"))
    with pytest.raises(StoreError, match="do not belong together(.|\n)*the teacher's weights"):
        merge(tmp_path / "merged", [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(StoreError, match="nothing to merge"):
        merge(tmp_path / "merged", [])


def test_two_answers_to_one_question_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_part(tmp_path / "a", 0, 1)
    monkeypatch.setattr("small_store.logits", lambda ids, views: logits(ids, views) + 1e-6)
    write_part(tmp_path / "b", 0, 1)
    with pytest.raises(StoreError, match="Shard train-3-10 is not the same in"):
        merge(tmp_path / "merged", [tmp_path / "a", tmp_path / "b"])


def test_a_damaged_part_is_not_copied(tmp_path: Path) -> None:
    write_part(tmp_path / "a", 0, 1)
    path = tmp_path / "a" / "train-3-10.logits.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match="Shard train-3-10 .* is damaged"):
        merge(tmp_path / "merged", [tmp_path / "a"])


def test_a_dense_store_becomes_what_labelling_top_k_would_have_made(tmp_path: Path) -> None:
    write_store(tmp_path / "dense")
    write_store(tmp_path / "direct", Sparse(CLASSES, 2, "float16", (1.0, 4.0)))
    made = convert(
        tmp_path / "dense", tmp_path / "small", top_k=2, dtype="float16", temperatures=[4.0]
    )
    direct = contents(tmp_path / "direct")
    for name, data in contents(tmp_path / "small").items():
        assert name == "manifest.json" or data == direct[name], name
    assert made.making["converted_from"]["logits"]["deviation"]["maximum"] == 0
    assert torch.equal(
        Store(tmp_path / "small").evaluation(TEST_IDS),
        Store(tmp_path / "dense").evaluation(TEST_IDS),
    )


def test_a_conversion_goes_on_where_it_stopped(tmp_path: Path) -> None:
    write_store(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "small", dtype="int8")
    before = contents(tmp_path / "small")
    (tmp_path / "small" / "train-11-40.logits.npy").unlink()
    convert(tmp_path / "dense", tmp_path / "small", dtype="int8")
    assert contents(tmp_path / "small") == before
    with pytest.raises(StoreError, match="begun with something else"):
        convert(tmp_path / "dense", tmp_path / "small", dtype="bf16")


def test_each_column_may_have_a_type_of_its_own(tmp_path: Path) -> None:
    write_store(tmp_path / "dense")
    made = convert(tmp_path / "dense", tmp_path / "small", feature_dtype="bf16")
    assert made.deviation("train", "logits").maximum == 0
    assert made.deviation("train", "tap:layer/2@input").maximum > 0
    views = torch.arange(VIEWS).repeat(len(IDS))
    ids = IDS.repeat_interleave(VIEWS)
    found = Store(tmp_path / "small")
    assert torch.equal(found.outputs(found.lookup(ids, views)).logits, logits(ids, views))


def test_what_was_left_out_cannot_be_had_back(tmp_path: Path) -> None:
    write_store(tmp_path / "sparse", Sparse(CLASSES, 3, "float32", (1.0,)))
    with pytest.raises(StoreError, match="only the 3 largest logits"):
        convert(tmp_path / "sparse", tmp_path / "small", top_k=2)
    write_store(tmp_path / "dense")
    with pytest.raises(StoreError, match="top_k is 7; the store has 6 logits"):
        convert(tmp_path / "dense", tmp_path / "small", top_k=7)
