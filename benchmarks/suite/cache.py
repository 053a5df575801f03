"""torchdistill's cache: one file per sample, written while it trains and read by its data set."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.suite.peer import Peer
from benchmarks.suite.task import MEAN, STD, Task
from torch.utils.data import DataLoader, TensorDataset


class Cache:
    """Its `CacheableDataset` over the samples of a task, in a folder.

    Args:
        task: what is trained.
        folder: where the files go.
        samples: how many of the task's samples to take.
    """

    def __init__(self, task: Task, folder: Path, samples: int) -> None:
        """Normalise the images once: its data set would hold them so."""
        wrapper: Any = importlib.import_module("torchdistill.datasets.wrapper")
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        inputs = (task.inputs[:samples] / 255 - mean) / std
        plain = TensorDataset(inputs, task.source.train.labels[:samples])
        self.data = wrapper.CacheableDataset(
            plain, str(folder), idx2subpath_func=wrapper.default_idx2subpath
        )
        self.folder, self.batch = folder, task.batch

    def build(self, peer: Peer) -> None:
        """Write the files: its box does so in a forward pass of samples that have none."""
        for inputs, labels, extra in DataLoader(self.data, self.batch, collate_fn=_collate):
            with torch.no_grad():
                peer.box.forward_process(inputs, labels, extra)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]:
        """Give shuffled batches without end, each sample's file read."""
        while True:
            yield from DataLoader(
                self.data, self.batch, shuffle=True, drop_last=True, collate_fn=_collate
            )

    def run(self, peer: Peer) -> Any:
        """Return what takes a number of steps from the cache."""
        batches = self.batches()

        def run(steps: int) -> None:
            for _ in range(steps):
                peer.total += peer.step(*next(batches))

        return run


def _collate(samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    default: Any = torch.utils.data.default_collate
    inputs, labels, extras = zip(*samples, strict=True)
    paths = [extra["cache_file_path"] for extra in extras]
    found: dict[str, Any] = {"cache_file_path": paths}
    if all("cached_data" in extra for extra in extras):
        found["cached_data"] = default([extra["cached_data"] for extra in extras])
    return default(list(inputs)), default(list(labels)), found


def sizes(folder: Path) -> tuple[int, int]:
    """Return the bytes of all files below a folder, and the bytes of the disk's blocks that they take."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(stat.st_size for stat in found), 512 * sum(stat.st_blocks for stat in found)
