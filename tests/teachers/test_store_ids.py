"""Ids of samples come back from few bytes; stores of older versions, with ids of 8 bytes, are still read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_store import CLASSES, IDS, VIEWS, logits, write_store

from understudy.errors import StoreError
from understudy.teachers.store import Store
from understudy.teachers.store.codecs import Sparse
from understudy.teachers.store.ids import ids_bytes, loaded_ids, stored_ids
from understudy.teachers.store.manifest import file_of


@given(
    st.sets(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 100), min_size=1, max_size=40).map(
        sorted
    )
)
def test_ids_come_back(values: list[int]) -> None:
    ids = np.array(values, dtype=np.int64)
    stored = stored_ids(ids)
    assert stored.nbytes == ids_bytes(values[0], values[-1], len(values))
    found = loaded_ids(stored, values[0], values[-1], len(values))
    assert found.dtype == np.int64 and (found == ids).all()
    assert (loaded_ids(ids, values[0], values[-1], len(values)) == ids).all()


def test_ids_take_two_bits_without_gaps_and_few_with_them() -> None:
    assert ids_bytes(7, 4102, 4096) == 1024
    # One of ten is left out, as for validation.
    kept = np.delete(np.arange(5000), np.arange(0, 5000, 10))
    assert stored_ids(kept).nbytes <= 1.1 * 2 * len(kept) / 8
    hashed = np.sort(np.random.default_rng(0).integers(0, 2**40, 1000))
    assert stored_ids(hashed).nbytes < 4.5 * len(hashed)


def test_damaged_ids_are_refused() -> None:
    with pytest.raises(StoreError, match="damaged"):
        loaded_ids(np.zeros(3, dtype=np.uint8), 5, 14, 10)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_store_of_an_older_version_is_read(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    write_store(new, Sparse(CLASSES, 3, dtype, (1.0, 2.0)))
    with monkeypatch.context() as older:
        older.setattr("understudy.teachers.store.writer.stored_ids", lambda ids: ids)
        older.setattr("understudy.teachers.store.manifest.VERSION", 1)
        given = Sparse(CLASSES, 3, dtype, (1.0, 2.0), scale="float32")
        config = {key: value for key, value in given.config().items() if key != "scale"}
        older.setattr(Sparse, "config", lambda self: config)
        write_store(old, given)
    stores = [Store(new), Store(old)]
    shard = stores[1].manifest.shards[0]
    assert np.load(old / file_of(shard, "ids")).dtype == np.int64
    assert '"version": 1' in (old / "manifest.json").read_text()
    order = torch.randperm(len(IDS) * VIEWS)
    ids, views = IDS[order // VIEWS], order % VIEWS
    one, other = (store.outputs(store.lookup(ids, views)).top_k for store in stores)
    assert one is not None and other is not None
    assert torch.equal(one.indices, other.indices) and torch.equal(one.entropy, other.entropy)
    exact = logits(ids, views)
    exact = (exact - exact.amax(1, keepdim=True)).gather(1, other.indices)
    tolerance = {"float16": 5e-3, "int8": 2e-2}[dtype]
    for found in (one, other):
        torch.testing.assert_close(found.values, exact, rtol=0, atol=tolerance)
    for store in stores:
        store.check_files()
        assert torch.equal(store.ids, IDS)
