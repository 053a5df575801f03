"""Speed and size of the store of teacher outputs, beside memory itself and a cache of one file per sample.

    python benchmarks/store.py [--samples 200000] [--rounds 5] [--batch 256]

Stores with made contents are written to a temporary folder (TMPDIR) and read back shuffled, in batches:

- `read`: `Store.lookup`, which gives tensors on the CPU, ids unpacked.
- `gather`: the same rows out of one array in memory, by `numpy.take`. This is the bound of reading at random.
- `copy`: the same bytes in their order, by memcpy. This is the bound of memory.
- `check`: every file read and its checksum compared.
- `files`: one `torch.save` file per sample, read with `weights_only=True`, as caches of dictionaries do.

Rounds are interleaved and medians shown. The store was just written, so it is in the page cache: a disk that has to be
read first is as slow as it is.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from understudy.teachers.store import Key, Store
from understudy.teachers.store.codecs import Dense, Sparse, record_bytes
from understudy.teachers.store.files import open_files
from understudy.teachers.store.manifest import LOGITS, TRAIN, Manifest, Part, shards_of
from understudy.teachers.store.writer import Writer

FILES = 2000
"""Samples in the cache of one file each; more would only take longer."""
FACTS = {"name": "made", "parameters": 0, "classes": None, "width": 0, "flops": None}
CASES: dict[str, Dense | Sparse] = {
    "1000 logits, float32": Dense((1000,), "float32"),
    "1000 logits, float16": Dense((1000,), "float16"),
    "16 of 1000, float16": Sparse(1000, 16, "float16", (1.0, 4.0)),
    "16 of 1000, int8": Sparse(1000, 16, "int8", (1.0, 4.0)),
    "768 features, float32": Dense((768,), "float32"),
    "768 features, int8": Dense((768,), "int8"),
}


def write(place: Path, codec: Dense | Sparse, samples: int, made: np.ndarray) -> float:
    """Write a store of `samples` records and return the seconds; encoding is not counted."""
    shards = tuple(shards_of(TRAIN, list(range(samples)), max(4096, samples // 64)))
    key = Key("none", {}, "none", {})
    writer = Writer(
        open_files(place), Manifest(key, FACTS, {}, {TRAIN: Part(1, {LOGITS: codec}, shards)})
    )
    writer.begin()
    begin = time.perf_counter()
    for shard in shards:
        own = np.arange(shard.first, shard.last + 1)
        writer.write(shard, own, {LOGITS: made[own]}, {})
    writer.complete()
    return time.perf_counter() - begin


def made_rows(codec: Dense | Sparse, count: int) -> np.ndarray:
    """Return `count` encoded records of random contents, which repeat."""
    width = codec.classes if isinstance(codec, Sparse) else codec.shape[0]
    few = torch.randn(min(count, 4096), width, generator=torch.Generator().manual_seed(0)) * 3
    rows = codec.encode(few)[0]
    return np.tile(rows, (-(-count // len(rows)),) + (1,) * len(codec.row_shape))[:count]


def seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def one_file_per_sample(folder: Path, width: int) -> tuple[int, float, float]:
    """Return bytes on disk, seconds to write and seconds to read, each per sample."""
    folder.mkdir()
    contents = [{"logits": torch.randn(width), "view": 0} for _ in range(FILES)]
    paths = [folder / f"{number}.pt" for number in range(FILES)]
    written = seconds(
        lambda: [torch.save(each, path) for each, path in zip(contents, paths, strict=True)]
    )
    read = seconds(lambda: [torch.load(path, weights_only=True) for path in paths])
    return sum(path.stat().st_size for path in paths) // FILES, written / FILES, read / FILES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(given.samples, generator=generator)
    batches = [(ids, torch.zeros_like(ids)) for ids in order.split(given.batch)]
    print(f"{given.samples} samples, batches of {given.batch}, {torch.get_num_threads()} threads")
    print(
        f"{'contents':<24}{'bytes':>7}{'write MB/s':>12}{'read rows/s':>13}{'read MB/s':>11}"
        f"{'gather MB/s':>13}{'copy MB/s':>11}{'check MB/s':>12}"
    )
    with tempfile.TemporaryDirectory() as name:
        for number, (title, codec) in enumerate(CASES.items()):
            made = made_rows(codec, given.samples)
            place = Path(name) / str(number)
            size = record_bytes(codec) * given.samples / 1e6
            written = write(place, codec, given.samples, made)
            store = Store(place)
            target = np.empty_like(made)
            measured: dict[str, list[float]] = {"read": [], "gather": [], "copy": [], "check": []}
            actions: dict[str, Callable[[], object]] = {
                "read": lambda s=store: [s.lookup(*pair) for pair in batches],
                "gather": lambda m=made: [np.take(m, ids.numpy(), axis=0) for ids, _ in batches],
                "copy": lambda m=made, t=target: np.copyto(t, m),
                "check": store.check_files,
            }
            for _ in range(given.rounds):
                for each, action in actions.items():
                    measured[each].append(seconds(action))
            median = {each: statistics.median(found) for each, found in measured.items()}
            print(
                f"{title:<24}{record_bytes(codec):>7}{size / written:>12.0f}"
                f"{given.samples / median['read']:>13.0f}{size / median['read']:>11.0f}"
                f"{size / median['gather']:>13.0f}{size / median['copy']:>11.0f}{size / median['check']:>12.0f}"
            )
            store.close()
        for width in (1000, 16):
            size, write_seconds, read_seconds = one_file_per_sample(Path(name) / f"f{width}", width)
            print(
                f"one file per sample, {width} float32: {size} bytes, write {1e6 * write_seconds:.0f} us, "
                f"read {1e6 * read_seconds:.0f} us ({1 / read_seconds:.0f} rows/s)"
            )


if __name__ == "__main__":
    main()
