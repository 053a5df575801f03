"""What is written is found again by id and view; what is missing, damaged or unfinished is named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_store import (
    CLASSES,
    IDS,
    TEST_IDS,
    VIEWS,
    features,
    logits,
    manifest,
    write_shard,
    write_store,
)

from understudy.errors import StoreError
from understudy.teachers.store import Store
from understudy.teachers.store.codecs import Dense, Sparse
from understudy.teachers.store.files import open_files
from understudy.teachers.store.manifest import MANIFEST
from understudy.teachers.store.writer import Writer, damaged

TAP = "layer/2@input"


@pytest.fixture(params=["path", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty place: a path, and URLs of two kinds."""
    if request.param == "memory":
        import fsspec

        yield f"memory://{tmp_path.name}/store"
        fsspec.filesystem("memory").store.clear()
    else:
        yield ("file://" if request.param == "file" else "") + str(tmp_path / "deep" / "store")


@pytest.mark.parametrize("samples", [1, 3, 100])
@pytest.mark.parametrize("resident", [0, 1 << 20])
def test_any_rows_in_any_order(
    place: str, samples: int, resident: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.teachers.store.rows.RESIDENT_BYTES", resident)
    write_store(place, samples=samples)
    store = Store(place)
    assert (store.samples, store.views, store.taps) == (len(IDS), VIEWS, {TAP: (2, 3)})
    order = torch.randperm(len(IDS) * VIEWS)
    ids, views = IDS[order // VIEWS], order % VIEWS
    found = store.outputs(store.lookup(ids, views, [TAP]))
    assert found.logits is not None and torch.equal(found.logits, logits(ids, views))
    assert torch.equal(found.features[TAP], features(ids, views))
    assert store.outputs(store.lookup(ids, views)).features == {}
    assert len(store.lookup(ids[:0], views[:0])["logits/values"]) == 0
    turned = TEST_IDS.flip(0)
    assert torch.equal(store.evaluation(turned), logits(turned, torch.zeros(3, dtype=torch.int64)))
    store.check_files()
    store.check_holds(IDS.flip(0))
    store.close()


def test_ids_without_gaps_are_found_without_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("small_store.IDS", torch.arange(100, 108))
    write_store(tmp_path)
    store = Store(tmp_path)
    monkeypatch.setattr(np, "searchsorted", None)
    ids = torch.tensor([107, 100])
    assert store._parts["train"].positions(ids.numpy()).tolist() == [7, 0]
    for wrong in (99, 108, -1):
        with pytest.raises(StoreError, match=f"does not hold sample {wrong} "):
            store.check_holds(torch.tensor([100, wrong]))


@pytest.mark.parametrize("first", [0, 100])
@pytest.mark.parametrize("resident", [0, 1 << 20])
@pytest.mark.parametrize("samples", [3, 100])
def test_one_view_of_ids_without_gaps_is_found_or_named(
    first: int, resident: int, samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.teachers.store.rows.RESIDENT_BYTES", resident)
    monkeypatch.setattr("small_store.VIEWS", 1)
    monkeypatch.setattr("small_store.IDS", torch.arange(first, first + 8))
    write_store(tmp_path, Sparse(CLASSES, 3, "float16", (1.0,)), samples=samples)
    store = Store(tmp_path)
    ids = first + torch.randperm(8)
    zero = torch.zeros_like(ids)
    found = store.outputs(store.lookup(ids, zero, [TAP]))
    assert torch.equal(found.features[TAP], features(ids, zero))
    assert found.top_k is not None
    assert torch.equal(found.top_k.indices, logits(ids, zero).topk(3).indices.sort(1).values)
    for wrong in (first - 1, first + 8, -1 - first, -(2**63), 2**63 - 1):
        given = torch.tensor([first, wrong, first + 1])
        with pytest.raises(StoreError, match=f"does not hold sample {wrong} .nor 0 others of 3"):
            store.lookup(given, zero[:3])
    for wrong in (1, -1):
        with pytest.raises(StoreError, match=f"does not hold view {wrong} of sample {first + 1};"):
            store.lookup(torch.tensor([first, first + 1]), torch.tensor([0, wrong]))
    with pytest.raises(StoreError, match="does not hold 'layer/3@input'"):
        store.lookup(ids, zero, ["layer/3@input"])


def test_an_id_or_a_view_that_is_missing_is_named(tmp_path: Path) -> None:
    write_store(tmp_path)
    store = Store(tmp_path)
    zero = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(
        StoreError, match=r"does not hold sample 9 \(nor 0 others of 2\).*8 samples"
    ):
        store.lookup(torch.tensor([3, 9]), zero)
    with pytest.raises(StoreError, match="does not hold view 3 of sample 4; it has views 0 to 2"):
        store.lookup(torch.tensor([3, 4]), torch.tensor([2, 3]))
    with pytest.raises(StoreError, match="view -1 of sample 3"):
        store.lookup(torch.tensor([3, 4]), zero - 1)
    with pytest.raises(
        StoreError, match="does not hold 'layer/3@input'.*Did you mean 'layer/2@input'"
    ):
        store.lookup(IDS[:2], zero, ["layer/3@input"])
    with pytest.raises(StoreError, match="answers for the 2 samples of this split .*sample 5"):
        store.evaluation(torch.tensor([5, 8]))


def test_top_k_is_read_and_all_logits_are_refused_with_a_sentence(tmp_path: Path) -> None:
    write_store(tmp_path, Sparse(CLASSES, 2, "float32", (1.0, 2.0)))
    store = Store(tmp_path)
    views = torch.zeros(len(IDS), dtype=torch.int64)
    found = store.outputs(store.lookup(IDS, views))
    assert found.top_k is not None
    assert torch.equal(found.top_k.indices, logits(IDS, views).topk(2).indices.sort(1).values)
    with pytest.raises(StoreError, match="all 6 logits.*holds the 2 largest and a tail"):
        _ = found.logits


def test_a_store_is_plain_arrays_and_json(tmp_path: Path) -> None:
    write_store(tmp_path, Sparse(CLASSES, 2, "int8", (1.0,)))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert MANIFEST in names and "train-3-10.logits.npy" in names
    assert "train-3-10.tap-layer-2@input.npy" in names
    for name in names:
        if name.endswith(".npy"):
            assert not np.load(tmp_path / name, mmap_mode="r", allow_pickle=False).dtype.hasobject
        else:
            assert json.loads((tmp_path / name).read_text())["sha256"]


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_store(tmp_path)
    path = tmp_path / "train-11-40.logits.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    store = Store(tmp_path)
    with pytest.raises(
        StoreError, match=r"1 damaged shards.*--repair(.|\n)*train-11-40: the checksum"
    ):
        store.check_files()
    others = [shard for shard in store.manifest.shards if shard.first != 11]
    assert damaged(store.files, store.manifest, others) == []
    path.write_bytes(data[:-10])
    with pytest.raises(StoreError, match="Shard train-11-40 .* is damaged: .*bytes instead of"):
        Store(tmp_path)
    path.unlink()
    with pytest.raises(StoreError, match="Shard train-11-40 .* is damaged: .*no bytes instead of"):
        Store(tmp_path)


def test_each_rank_checks_its_share(tmp_path: Path) -> None:
    write_store(tmp_path)
    path = tmp_path / "train-3-10.logits.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    store = Store(tmp_path)
    store.check_files((1, 2))
    with pytest.raises(StoreError, match="train-3-10"):
        store.check_files((0, 2))


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    for changed in (text.replace('"weights"', '"other"', 1), text[:-20], "[]", ""):
        (tmp_path / MANIFEST).write_text(changed)
        with pytest.raises(StoreError, match="manifest.json of the store .* is damaged"):
            Store(tmp_path)
    (tmp_path / MANIFEST).write_text(text.replace('"version": 3', '"version": 5'))
    with pytest.raises(StoreError, match="format understudy-store 5; this version .* 1, 2, 3, 4"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="There is no store in .*understudy label"):
        Store(tmp_path / "nowhere")


def test_an_unfinished_store_is_not_read_and_can_be_gone_on_with(place: str) -> None:
    writer = Writer(open_files(place), manifest())
    writer.begin()
    first, second, *rest = writer.missing()
    write_shard(writer, first)
    with pytest.raises(StoreError, match="not finished: 1 of 4 shards"):
        Store(place)
    with pytest.raises(
        StoreError, match="3 of 4 shards .* are not there, the first of them train-11-40"
    ):
        writer.complete()
    again = Writer(open_files(place), manifest())
    again.begin()
    assert again.missing() == [second, *rest]
    # A companion that was damaged does not count.
    again.files.write(f"{first.name}.json", b"{}")
    third = Writer(open_files(place), manifest())
    third.begin()
    assert third.missing() == [first, second, *rest]
    for shard in third.missing():
        write_shard(third, shard)
    third.complete()
    assert Store(place).samples == len(IDS)


def test_another_plan_does_not_go_on_with_a_store(tmp_path: Path) -> None:
    write_store(tmp_path)
    wanted = manifest(Dense((CLASSES,), "float16"), samples=4)
    with pytest.raises(StoreError, match="begun with something else") as error:
        Writer(open_files(tmp_path), wanted).begin()
    assert "part 'train': columns" in str(error.value) and "float16" in str(error.value)
    assert "shards" in str(error.value)


def test_a_full_disk_is_said_and_what_was_finished_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(open_files(tmp_path), manifest())
    writer.begin()
    first, second, *_ = writer.missing()
    write_shard(writer, first)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="Shard train-11-40 .*No space left.*same command again"):
        write_shard(writer, second)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = Writer(open_files(tmp_path), manifest())
    again.begin()
    assert second in again.missing() and first not in again.missing()


def test_what_a_killed_process_was_writing_is_swept_away(tmp_path: Path) -> None:
    writer = Writer(open_files(tmp_path), manifest())
    writer.begin()
    (tmp_path / "train-3-10.logits.npy.77.partial").write_bytes(b"half")
    Writer(open_files(tmp_path), manifest()).begin()
    assert not list(tmp_path.glob("*.partial"))


def test_a_url_that_nobody_knows_is_refused() -> None:
    with pytest.raises(StoreError, match="nosuch://x' cannot be opened"):
        Store("nosuch://x")


def test_remote_files_are_fetched_once_and_given_back(tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}/fetched"
    write_store(place)
    store = Store(place)
    store.lookup(IDS[:2], torch.zeros(2, dtype=torch.int64))
    folder = store.files._fetched  # type: ignore[attr-defined]
    assert folder is not None and any(folder.iterdir())
    store.close()
    assert not folder.exists()
