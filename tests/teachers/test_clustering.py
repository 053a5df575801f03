"""k-means is deterministic, has no empty cluster, and looks at every row."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy.errors import DataError, UnderstudyError
from understudy.teachers import clustering
from understudy.teachers.clustering import (
    Clusters,
    assign,
    class_kmeans,
    group_means,
    kmeans,
    score_table,
)

GOLDEN = Path(__file__).parent.parent / "golden"
needs_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="faiss is not installed"
)
BACKENDS = ["sklearn", pytest.param("faiss", marks=needs_faiss)]


def heaps(count: int = 400, heaps: int = 5, width: int = 3) -> np.ndarray:
    generator = np.random.default_rng(0)
    middles = 20 * generator.normal(size=(heaps, width))
    rows = middles[np.arange(count) % heaps] + generator.normal(size=(count, width))
    return rows.astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_heaps_are_found_and_the_seed_decides(backend: str) -> None:
    rows = heaps()
    first = kmeans(rows, 5, seed=3, backend=backend)
    again = kmeans(rows, 5, seed=3, backend=backend)
    assert torch.equal(first.centres, again.centres) and torch.equal(first.assigned, again.assigned)
    many, other = (kmeans(rows, 40, seed=seed, backend=backend) for seed in (3, 4))
    assert not torch.equal(many.centres, other.centres)
    if backend == "sklearn":  # which begins with centres far from each other
        for number in range(5):
            assert len(first.assigned[number::5].unique()) == 1, "a heap was divided"
    for found in (first, many):
        assert found.counts.min() >= 1 and found.counts.sum() == len(rows)
        means = group_means(rows, found.assigned, len(found.centres))
        torch.testing.assert_close(found.centres, means, atol=0, rtol=0)


def test_mini_batches_serve_many_rows_and_are_deterministic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clustering, "MINI_BATCH_FROM", 0)
    rows = heaps(600)
    first, again = (kmeans(rows, 30, seed=1, backend="sklearn") for _ in range(2))
    assert torch.equal(first.centres, again.centres) and first.counts.min() >= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_cluster_stays_empty(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = heaps(60)

    def collapsed(rows: np.ndarray, count: int, *_: int) -> torch.Tensor:
        return torch.zeros(count, rows.shape[1]).double()

    monkeypatch.setattr(clustering, f"_{backend}", collapsed)
    found = kmeans(rows, 6, backend=backend)
    assert found.counts.min() >= 1 and found.counts.sum() == 60
    means = group_means(rows, found.assigned, 6)
    torch.testing.assert_close(found.centres, means, atol=0, rtol=0)
    spread = np.square(rows - rows.mean(axis=0)).sum()
    left = (torch.from_numpy(rows) - found.centres[found.assigned]).square().sum()
    assert float(left) < 0.4 * float(spread)


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_few_or_equal_rows_are_refused(backend: str) -> None:
    with pytest.raises(DataError, match=r"k-means of the features .* 9 centres.*only 4 rows"):
        kmeans(heaps(4), 9, backend=backend)
    same = np.repeat(heaps(3), 10, axis=0)
    assert kmeans(same, 3, backend=backend).counts.tolist() == [10, 10, 10]
    with pytest.raises(DataError, match="too much the same"):
        kmeans(same, 4, backend=backend)
    with pytest.raises(DataError, match=r"class 'high'.*2 centres.*only 1 rows"):
        labels = torch.tensor([0, 0, 1, 1, 2, -1])
        class_kmeans(heaps(6), labels, 2, classes=("low", "middle", "high"), backend=backend)


def test_classes_are_clustered_for_themselves() -> None:
    rows = heaps(90)
    labels = torch.arange(90) % 3
    labels[80:] = -1
    found = class_kmeans(rows, labels, 4, classes=("a", "b", "c"), backend="sklearn")
    assert found.centres.shape == (12, 3) and found.counts.sum() == 80
    assert found.assigned[80:].eq(-1).all()
    assert torch.equal(found.assigned[:80] // 4, labels[:80])
    alone = kmeans(rows[(labels == 1).numpy()], 4, iterations=100, backend="sklearn")
    assert torch.equal(found.centres[4:8], alone.centres)


def test_the_nearest_centre_is_found_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, centres = heaps(101), torch.from_numpy(heaps(7, 7)).double()
    expected = torch.cdist(torch.from_numpy(rows).double(), centres).argmin(dim=1)
    assert torch.equal(assign(rows, centres), expected)
    monkeypatch.setattr(clustering, "_CHUNK", 20)
    assert torch.equal(assign(rows, centres), expected)


def test_the_score_table_counts_every_row() -> None:
    case = np.load(GOLDEN / "kd_layer" / "score_table_tail_quirk.npz")
    rows = case["features_x100"] / 100
    assigned = torch.from_numpy(case["assigned_subclass"]).long()
    prototypes = torch.from_numpy(case["prototypes"])
    counts = torch.bincount(assigned)
    table = score_table(rows, Clusters(prototypes, assigned, counts))
    torch.testing.assert_close(table.sum(dim=1), torch.ones(6).double(), atol=1e-12, rtol=0)
    # The published numbers leave the last 7 rows out and count them as nearest to 0.
    tail = len(rows) // 10_000 * 10_000
    nearest = assign(rows, prototypes)
    nearest[tail:] = 0
    quirk = torch.bincount(assigned * 6 + nearest, minlength=36).view(6, 6) / counts[:, None]
    np.testing.assert_allclose(quirk, case["scores"], atol=1e-7)
    assert not np.allclose(table, case["scores"], atol=1e-7)
    left_out = assigned.clone()
    left_out[100:] = -1
    part = score_table(rows, Clusters(prototypes, left_out, counts))
    expected = torch.bincount(assigned[:100] * 6 + assign(rows, prototypes)[:100], minlength=36)
    np.testing.assert_allclose(
        part * torch.bincount(assigned[:100], minlength=6)[:, None], expected.view(6, 6)
    )


def test_a_provisional_clustering_has_the_shapes_of_the_real_one() -> None:
    found = kmeans(heaps(8), 4096, provisional=True)
    assert found.centres.shape == (4096, 3) and found.counts.shape == (4096,)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 2])
    found = class_kmeans(heaps(8), labels, 3, classes=("a", "b", "c"), provisional=True)
    assert found.centres.shape == (9, 3) and found.centres.isfinite().all()
    table = score_table(heaps(8), found)
    assert table.shape == (9, 9) and table.sum(dim=1).allclose(torch.ones(9).double())


def test_a_missing_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnderstudyError, match=r"understudy\[fitting\]"):
        kmeans(heaps(), 2, backend="faiss")
    assert clustering.resolve("auto") == "sklearn"
    with pytest.raises(UnderstudyError, match="Did you mean 'faiss'"):
        clustering.resolve("fais")  # type: ignore[arg-type]
