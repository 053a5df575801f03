"""k-means, over all rows and class by class, and the table of who is nearest to whom."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from understudy.data.batch import UNLABELLED
from understudy.errors import DataError, UnderstudyError, unknown_name

Array = np.ndarray[Any, Any]
Backend = Literal["auto", "faiss", "sklearn"]

MINI_BATCH_FROM = 2**28
"""Distances (rows times centres) from which scikit-learn goes through mini-batches."""
SPREAD_UP_TO = 256
"""Centres that scikit-learn starts far from each other (k-means++); more start from rows at random, as faiss does."""
SAME = 1e-10
"""Rows nearer to each other than this share of their mean square length are the same row but for rounding."""
_CHUNK = 2**22
_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Clusters:
    """Rows in clusters.

    Attributes:
        centres: float64 [K, D], the mean of each cluster's rows.
        assigned: int64 [N], the cluster of each row; -1 for a row that has none, as one without a label.
        counts: int64 [K], how many rows each cluster has; at least 1.
    """

    centres: torch.Tensor
    assigned: torch.Tensor
    counts: torch.Tensor


def resolve(backend: Backend) -> str:
    """Return what k-means runs on: "auto" takes faiss where it is installed, else scikit-learn.

    Raises:
        UnderstudyError: faiss is asked for and not installed.
    """
    if backend not in ("auto", "faiss", "sklearn"):
        raise unknown_name("k-means backend", backend, ("auto", "faiss", "sklearn"))
    installed = importlib.util.find_spec("faiss") is not None
    if backend == "faiss" and not installed:
        raise UnderstudyError(
            "faiss is not installed. Install the extra: pip install 'understudy[fitting]', or use backend 'sklearn'."
        )
    return "faiss" if installed and backend != "sklearn" else "sklearn"


def kmeans(
    rows: Array,
    count: int,
    *,
    iterations: int = 20,
    seed: int = 0,
    backend: Backend = "auto",
    what: str = "the features",
    provisional: bool = False,
) -> Clusters:
    """Cluster rows by squared Euclidean distance (Lloyd's iterations; mini-batches for very many rows and centres).

    The same rows and seed give the same clusters. No cluster is empty: one that would be takes over the row that is
    farthest from its own centre.

    Args:
        rows: float [N, D], such as `Features.flat()`.
        count: number of clusters K.
        iterations: at most so many.
        seed: what the first centres are drawn from.
        backend: see `resolve`.
        what: what the rows are, for errors.
        provisional: whether to give K clusters of rows taken again and again instead of refusing too few.

    Raises:
        DataError: there are fewer rows, or fewer different ones, than centres.
    """
    if count < 1:
        raise UnderstudyError(f"k-means needs at least 1 centre, not {count}.")
    if len(rows) < count:
        if provisional:
            return _repeated(rows, count)
        raise DataError(
            f"k-means of {what} was asked for {count} centres, but there are only {len(rows)} rows. "
            "Ask for fewer, or give more samples."
        )
    run = _faiss if resolve(backend) == "faiss" else _sklearn
    centres = run(rows, count, iterations, seed % _LARGEST_SEED)
    before, filled = None, False
    for _ in range(max(1, iterations)):
        assigned, distances = _nearest(rows, centres)
        filled |= _fill(assigned, distances, count, rows, what, provisional)
        # Where a cluster had been empty, the others have to find their places again.
        if not filled or (before is not None and torch.equal(assigned, before)):
            break
        before, centres = assigned, group_means(rows, assigned, count)
    counts = torch.bincount(assigned, minlength=count)
    return Clusters(group_means(rows, assigned, count), assigned, counts)


def class_kmeans(
    rows: Array,
    labels: torch.Tensor,
    per_class: int,
    *,
    classes: Sequence[str],
    iterations: int = 100,
    seed: int = 0,
    backend: Backend = "auto",
    provisional: bool = False,
) -> Clusters:
    """Cluster the rows of each class for themselves.

    Args:
        rows: float [N, D].
        labels: int64 [N], -1 for a row without a label, which is left out.
        per_class: clusters of each class S.
        classes: class names.
        iterations: see `kmeans`.
        seed: see `kmeans`.
        backend: see `kmeans`.
        provisional: see `kmeans`.

    Returns:
        C * S clusters; cluster j of class c is number c * S + j.

    Raises:
        DataError: a class, which is named, has fewer different rows than clusters.
    """
    assigned = torch.full((len(rows),), UNLABELLED)
    centres, counts = [], []
    for number, name in enumerate(classes):
        own = torch.nonzero(labels == number).flatten()
        found = kmeans(
            rows[own.numpy()],
            per_class,
            iterations=iterations,
            seed=seed,
            backend=backend,
            what=f"class '{name}'",
            provisional=provisional,
        )
        assigned[own] = found.assigned + number * per_class
        centres.append(found.centres)
        counts.append(found.counts)
    return Clusters(torch.cat(centres), assigned, torch.cat(counts))


def assign(rows: Array, centres: torch.Tensor) -> torch.Tensor:
    """Return the nearest centre of each row by squared Euclidean distance, int64 [N].

    Args:
        rows: float [N, D].
        centres: float [K, D].
    """
    return _nearest(rows, centres)[0]


def score_table(rows: Array, clusters: Clusters) -> torch.Tensor:
    """Return how often a cluster's rows are nearest to each centre.

    Args:
        rows: float [N, D].
        clusters: clusters of these rows.

    Returns:
        float64 [K, K]: entry (a, b) is the share of the rows in cluster a whose nearest centre of all is b. Rows sum
        to 1.
    """
    kept = torch.nonzero(clusters.assigned != UNLABELLED).flatten()
    size = len(clusters.centres)
    nearest = assign(rows, clusters.centres)[kept]
    pairs = torch.bincount(clusters.assigned[kept] * size + nearest, minlength=size * size)
    table = pairs.view(size, size).double()
    total = table.sum(dim=1, keepdim=True)
    # Without rows, which only a provisional table has, a cluster is nearest to itself.
    return torch.where(total > 0, table / total.clamp_min(1.0), torch.eye(size).double())


def group_means(rows: Array, assigned: torch.Tensor, count: int) -> torch.Tensor:
    """Return the mean of each group's rows, float64 [K, D]; 0 for an empty one.

    Args:
        rows: float [N, D].
        assigned: int64 [N], each row's group; -1 for none.
        count: number of groups K.
    """
    sums = torch.zeros(count, rows.shape[1], dtype=torch.float64)
    for start, part in _chunks(rows, 1):
        own = assigned[start : start + len(part)]
        kept = own != UNLABELLED
        sums.index_add_(0, own[kept], part[kept])
    counts = torch.bincount(assigned[assigned != UNLABELLED], minlength=count)
    return sums / counts.clamp_min(1).unsqueeze(1)


def _nearest(rows: Array, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's nearest centre, int64 [N], and its squared distance, float64 [N]."""
    centres = centres.double()
    lengths = centres.square().sum(dim=1)
    found, distances = [], []
    for _, part in _chunks(rows, len(centres)):
        own = (lengths - 2 * part @ centres.T).argmin(dim=1)
        found.append(own)
        distances.append((part - centres[own]).square().sum(dim=1))
    return torch.cat(found), torch.cat(distances)


def _fill(
    assigned: torch.Tensor,
    distances: torch.Tensor,
    count: int,
    rows: Array,
    what: str,
    provisional: bool,
) -> bool:
    """Give every empty cluster the row that is farthest from its own centre, in place; tell whether there were any."""
    counts = torch.bincount(assigned, minlength=count)
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if not empty:
        return False
    size = sum(float(part.square().sum()) for _, part in _chunks(rows, 1)) / len(rows)
    for number in empty:
        # A cluster of one row is not emptied in turn.
        free = torch.where(counts[assigned] > 1, distances, -1.0)
        far = int(free.argmax())
        if float(free[far]) <= SAME * size and not provisional:
            raise DataError(
                f"k-means of {what} was asked for {count} centres, but its {len(rows)} rows are too much the same: "
                f"a cluster stays empty. Ask for at most {count - len(empty)}."
            )
        counts[assigned[far]] -= 1
        assigned[far], distances[far], counts[number] = number, 0.0, 1
    return True


def _sklearn(rows: Array, count: int, iterations: int, seed: int) -> torch.Tensor:
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    init = "k-means++" if count <= SPREAD_UP_TO else "random"
    # Several threads would add up in the order in which they finish.
    with threadpool_limits(1, user_api="openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if len(rows) * count < MINI_BATCH_FROM:
            model = KMeans(count, init=init, n_init=1, max_iter=iterations, random_state=seed)
        else:
            model = MiniBatchKMeans(
                count,
                init=init,
                n_init=1,
                max_iter=iterations,
                batch_size=max(4096, 4 * count),
                random_state=seed,
            )
        model.fit(np.ascontiguousarray(rows, dtype=np.promote_types(rows.dtype, np.float32)))
    return torch.from_numpy(np.asarray(model.cluster_centers_, dtype=np.float64))


def _faiss(rows: Array, count: int, iterations: int, seed: int) -> torch.Tensor:
    import faiss

    data = np.ascontiguousarray(rows, dtype=np.float32)
    model = faiss.Kmeans(
        data.shape[1],
        count,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(data),
    )
    model.train(data)
    return torch.from_numpy(np.asarray(model.centroids, dtype=np.float64))


def _repeated(rows: Array, count: int) -> Clusters:
    """Return clusters of too few rows: row i is in cluster i, the others take rows again."""
    values = torch.from_numpy(np.array(rows, dtype=np.float64))
    if not len(values):
        values = torch.zeros(1, rows.shape[1], dtype=torch.float64)
    centres = values[torch.arange(count) % len(values)]
    return Clusters(centres, torch.arange(len(rows)), torch.ones(count, dtype=torch.int64))


def _chunks(rows: Array, width: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Return (position, float64 rows) in parts that are small also when they become `width` wide."""
    size = max(1, _CHUNK // max(width, rows.shape[1]))
    for start in range(0, len(rows), size):
        yield start, torch.from_numpy(np.array(rows[start : start + size], dtype=np.float64))
