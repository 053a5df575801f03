"""Speed of reading a language model's store, document by document, beside memory itself.

    python benchmarks/token_store.py [--documents 400] [--rounds 5] [--batch 16] [--width 1024]

A store with made contents (documents of 1 to 511 predicted tokens) is written to a temporary folder (TMPDIR) and read
back in shuffled batches of documents:

- `read`: `Store.lookup`, which gives the rows of all tokens as tensors on the CPU, ids unpacked.
- `gather`: the same rows out of one array in memory, by `numpy.take`.

Rounds are interleaved, medians shown. The store was just written, so it is in the page cache.
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
from understudy.teachers.store.manifest import HIDDEN, LOGITS, OFFSETS, TRAIN, Manifest, Part
from understudy.teachers.store.ragged import concatenated, offsets_of, ragged_shards
from understudy.teachers.store.writer import Writer

VOCABULARY = 32_000
FACTS = {"name": "made", "parameters": 0, "classes": None, "width": VOCABULARY, "flops": None}


def write(place: Path, codec: Dense | Sparse, counts: np.ndarray, made: np.ndarray) -> None:
    """Write a store of documents with so many rows each."""
    ids, column = np.arange(len(counts)), LOGITS if isinstance(codec, Sparse) else HIDDEN
    shards = tuple(ragged_shards(TRAIN, ids, counts, 65_536, None))
    part, offsets = Part(1, {column: codec}, shards), offsets_of(counts)
    writer = Writer(
        open_files(place), Manifest(Key("none", {}, "none", {}), FACTS, {}, {TRAIN: part})
    )
    writer.begin()
    for shard in shards:
        own = slice(shard.first, shard.last + 1)
        rows = made[offsets[shard.first] : offsets[shard.last + 1]]
        columns = {column: rows, OFFSETS: offsets_of(counts[own])}
        writer.write(shard, ids[own], columns, {})
    writer.complete()


def seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 512, (given.documents,), generator=generator).numpy()
    begins, tokens = np.cumsum(counts) - counts, int(counts.sum())
    batches = torch.randperm(given.documents, generator=generator).split(given.batch)
    places = [concatenated(begins[ids.numpy()], counts[ids.numpy()]) for ids in batches]
    cases: dict[str, Dense | Sparse] = {
        f"{given.width} hidden, {dtype}": Dense((given.width,), dtype)
        for dtype in ("float32", "bf16", "int8")
    }
    cases[f"64 of {VOCABULARY}, float16"] = Sparse(VOCABULARY, 64, "float16", (1.0,))
    print(
        f"{given.documents} documents, {tokens} tokens, batches of {given.batch} documents, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'contents':<24}{'bytes':>7}{'tokens/s':>12}{'MB/s':>9}{'read / gather':>15}")
    with tempfile.TemporaryDirectory() as name:
        for number, (title, codec) in enumerate(cases.items()):
            width = VOCABULARY if isinstance(codec, Sparse) else given.width
            few = torch.randn(512, width, generator=generator) * 3
            records = codec.encode(few)[0]
            made = np.take(records, np.arange(tokens) % len(records), axis=0)
            write(Path(name) / str(number), codec, counts, made)
            store = Store(Path(name) / str(number))
            read, gathered = [], []
            for _ in range(given.rounds):
                read.append(
                    seconds(lambda s=store: [s.lookup(i, torch.zeros_like(i)) for i in batches])
                )
                gathered.append(
                    seconds(lambda m=made: [np.take(m, rows, axis=0) for rows in places])
                )
            rate = tokens / statistics.median(read)
            share = statistics.median(g / r for g, r in zip(gathered, read, strict=True))
            size = record_bytes(codec)
            print(f"{title:<24}{size:>7}{rate:>12.0f}{rate * size / 1e6:>9.0f}{share:>15.2f}")
            store.close()


if __name__ == "__main__":
    main()
