"""Rows of samples that have different numbers of them; a head beside hidden states; the scores of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_store import KEY, write_store
from torch import nn

from understudy.errors import StoreError
from understudy.objectives import Head
from understudy.objectives.vocabulary.head import LowRank
from understudy.teachers.store import Store
from understudy.teachers.store.codecs import Dense
from understudy.teachers.store.files import checksum, open_files
from understudy.teachers.store.manifest import (
    HIDDEN,
    OFFSETS,
    SCORES,
    TRAIN,
    Manifest,
    Part,
    read_manifest,
)
from understudy.teachers.store.ragged import COUNTS, concatenated, offsets_of, ragged_shards
from understudy.teachers.store.stored_head import HEAD, head_bytes, head_facts, read_head
from understudy.teachers.store.token_scores import TokenScores
from understudy.teachers.store.writer import Writer

IDS = np.array([2, 3, 7, 8, 20])
COUNTED = np.array([[3, 2], [0, 0], [1, 4], [5, 5], [2, 0]])
"""Rows of each document in two views."""
WIDTH = 4


def rows_of(document: int, view: int, count: int) -> torch.Tensor:
    """Return the made hidden states of a document's view."""
    numbers = torch.arange(count)[:, None] * 10 + torch.arange(WIDTH)
    return numbers + 100.0 * document + 1000.0 * view


def write(place: Path, rows: int = 6) -> Head:
    """Write a store of hidden states."""
    head = Head(torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0)), vocabulary=7)
    shards = tuple(ragged_shards(TRAIN, IDS, COUNTED.sum(axis=1), rows, None))
    part = Part(2, {HIDDEN: Dense((WIDTH,), "float32")}, shards)
    data = head_bytes(head)
    facts = {"head": head_facts(head)}
    manifest = Manifest(KEY, facts, {}, {TRAIN: part}, extra={HEAD: (len(data), checksum(data))})
    writer = Writer(open_files(place), manifest)
    writer.begin()
    writer.write_extra(HEAD, data)
    for shard in shards:
        own = np.flatnonzero((shard.first <= IDS) & (shard.last >= IDS))
        made = [rows_of(int(IDS[n]), v, int(COUNTED[n, v])) for n in own for v in (0, 1)]
        records, deviation = part.columns[HIDDEN].encode(torch.cat(made))
        columns = {HIDDEN: records, OFFSETS: offsets_of(COUNTED[own].flatten())}
        writer.write(shard, IDS[own], columns, {HIDDEN: deviation})
    writer.complete()
    return head


def test_rows_of_any_documents_in_any_order(tmp_path: Path) -> None:
    head = write(tmp_path)
    store = Store(tmp_path)
    assert len(store.manifest.shards) == 4 and store.manifest.parts[TRAIN].rows == COUNTED.sum()
    ids, views = torch.tensor([8, 2, 3, 20, 7, 2, 20]), torch.tensor([1, 0, 1, 1, 1, 1, 0])
    found = store.lookup(ids, views)
    expected = []
    for number, (document, view) in enumerate(zip(ids.tolist(), views.tolist(), strict=True)):
        count = int(COUNTED[int((document == IDS).argmax()), view])
        assert int(found[COUNTS][number]) == count
        expected.append(rows_of(document, view, count))
    outputs = store.outputs(found)
    assert outputs.hidden is not None and torch.equal(outputs.hidden, torch.cat(expected))
    assert outputs.head is not None and outputs.head.size == 7
    assert outputs.logits is not None
    assert torch.equal(outputs.logits, head.logits(torch.cat(expected)))
    with pytest.raises(StoreError, match="does not hold view 2 of sample 3"):
        store.lookup(torch.tensor([2, 3]), torch.tensor([0, 2]))


def test_documents_without_tokens_have_no_rows(tmp_path: Path) -> None:
    write(tmp_path)
    store = Store(tmp_path)
    found = store.lookup(torch.tensor([3]), torch.tensor([0]))
    assert found[COUNTS].tolist() == [0] and found["hidden/values"].shape == (0, WIDTH)


def test_the_format_of_ragged_stores_has_its_own_number(tmp_path: Path) -> None:
    write(tmp_path / "ragged")
    write_store(tmp_path / "plain")
    ragged, plain = (read_manifest(open_files(tmp_path / name)) for name in ("ragged", "plain"))
    assert (ragged.json()["version"], plain.json()["version"]) == (4, 3)
    assert "extra" not in plain.json() and not plain.ragged
    assert all(len(shard) == 3 for shard in plain.json()["parts"][TRAIN]["shards"])
    assert ragged.bytes == sum(
        path.stat().st_size - (0 if path.suffix == ".safetensors" else 128)
        for path in (tmp_path / "ragged").iterdir()
        if path.suffix != ".json"
    )


def test_shards_hold_as_many_rows_as_may_be() -> None:
    counts = np.array([3, 3, 9, 0, 0, 1, 5])
    ids = np.arange(7) * 2
    cut = [(shard.samples, shard.rows) for shard in ragged_shards("train", ids, counts, 6, None)]
    assert cut == [(2, 6), (1, 9), (4, 6)]
    cut = [(shard.samples, shard.rows) for shard in ragged_shards("train", ids, counts, 6, 3)]
    assert cut == [(3, 15), (3, 1), (1, 5)]
    found = concatenated(np.array([10, 50, 4]), np.array([2, 0, 3]))
    assert found.tolist() == [10, 11, 4, 5, 6]


def test_a_head_is_what_it_was_and_its_file_always_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(12, WIDTH)  # a tied weight, padded beyond the vocabulary
    low_rank = LowRank(torch.randn(2, WIDTH), torch.randn(12, 2), 0.5)
    head = Head(embedding.weight, torch.randn(12), 0.7, 3.0, low_rank, vocabulary=10)
    data = head_bytes(head)
    assert data == head_bytes(head)
    (tmp_path / HEAD).write_bytes(data)
    back = read_head(tmp_path / HEAD, head_facts(head), torch.device("cpu"))
    hidden = torch.randn(5, WIDTH)
    assert torch.equal(back.logits(hidden), head.logits(hidden))
    assert back.size == 10 and len(back.weight) == 10


def test_scores_are_exact() -> None:
    codec = TokenScores()
    values = torch.tensor([[250_000, 3, 1.1, 0.25], [0, 249_999, 17.3, 1.0]]).float().double()
    rows, deviation = codec.encode(values)
    assert deviation.maximum == 0 and rows.dtype.itemsize == 16
    assert torch.equal(codec.restore(codec.columns(rows)), values)
    part = Part(None, {SCORES: codec}, tuple(ragged_shards("test", IDS, IDS, 9, None)))
    manifest = Manifest(KEY, {}, {}, {"test": part})
    assert manifest.json()["parts"]["test"]["columns"][SCORES] == codec.config()
