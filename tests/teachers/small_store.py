"""Stores with made contents, written without a teacher."""

from __future__ import annotations

from typing import Any

import torch

from understudy.teachers.store.codecs import Dense, Sparse
from understudy.teachers.store.files import open_files
from understudy.teachers.store.key import Key
from understudy.teachers.store.manifest import LOGITS, TRAIN, Manifest, Part, Shard, shards_of
from understudy.teachers.store.writer import Writer

CLASSES, VIEWS = 6, 3
IDS = torch.tensor([3, 4, 10, 11, 12, 40, 41, 1 << 40])
TEST_IDS = torch.tensor([5, 6, 7])
KEY = Key("weights", {"name": "image", "mean": [0.5]}, "samples", {"seed": 1, "count": VIEWS})
FACTS: dict[str, Any] = {
    "name": "made",
    "parameters": 12,
    "weights": "random",
    "classes": None,
    "width": CLASSES,
    "flops": None,
    "samples": "made",
}


def logits(ids: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Return the made logits of samples and views."""
    return torch.sin(ids[:, None] * 1.7 + views[:, None] * 0.9 + torch.arange(CLASSES) * 0.4) * 3


def features(ids: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Return the made features [B, 2, 3]."""
    return torch.cos(logits(ids, views)).view(-1, 2, 3)


def manifest(
    codec: Dense | Sparse | None = None, *, samples: int = 3, key: Key = KEY, taps: bool = True
) -> Manifest:
    """Return the plan of a store with `samples` samples in a shard."""
    columns: dict[str, Dense | Sparse] = {LOGITS: codec or Dense((CLASSES,), "float32")}
    if taps:
        columns["tap:layer/2@input"] = Dense((2, 3), "float32")
    parts = {
        TRAIN: Part(VIEWS, columns, tuple(shards_of(TRAIN, IDS.tolist(), samples))),
        "test": Part(
            None,
            {LOGITS: Dense((CLASSES,), "float32")},
            tuple(shards_of("test", TEST_IDS.tolist(), 8)),
        ),
    }
    return Manifest(key, FACTS, {"precision": "float32", "batch_size": 4}, parts)


def write_shard(writer: Writer, shard: Shard) -> None:
    """Write one shard's made contents."""
    part = writer.manifest.parts[shard.part]
    everything = IDS if shard.part == TRAIN else TEST_IDS
    ids = everything[(everything >= shard.first) & (everything <= shard.last)]
    rows = ids.repeat_interleave(part.views or 1)
    views = torch.arange(part.views or 1).repeat(len(ids))
    made = {LOGITS: logits(rows, views), "tap:layer/2@input": features(rows, views)}
    encoded = {name: codec.encode(made[name]) for name, codec in part.columns.items()}
    writer.write(
        shard,
        ids.numpy(),
        {name: rows for name, (rows, _) in encoded.items()},
        {name: deviation for name, (_, deviation) in encoded.items()},
    )


def write_store(place: Any, codec: Dense | Sparse | None = None, **keywords: Any) -> Manifest:
    """Write a whole store."""
    writer = Writer(open_files(place), manifest(codec, **keywords))
    writer.begin()
    for shard in writer.missing():
        write_shard(writer, shard)
    return writer.complete()
