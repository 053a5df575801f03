"""How far a pass came: written now and then, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from understudy.teachers.accumulating import Statistic
from understudy.teachers.artefacts import Artefacts, Key, flush

logger = logging.getLogger("understudy")
SNAPSHOT_SECONDS = 30.0
"""Seconds between two snapshots of a pass, at least."""
MOST_SHARE = 20
"""The time between two snapshots is at least so many times that of writing one."""


class Snapshots:
    """The snapshots of the statistics that share a pass.

    Args:
        artefacts: where they lie.
        keys: the statistics' keys.
        statistics: the statistics.
        batch_size: the pass's; a pass goes on in batches of the same size only, so that it ends with the same bits.
    """

    def __init__(
        self,
        artefacts: Artefacts,
        keys: Sequence[Key],
        statistics: Sequence[Statistic],
        batch_size: int,
    ) -> None:
        """Remember the place."""
        self._folders = [artefacts.partial(key) for key in keys]
        self._statistics = statistics
        self._batch_size = batch_size
        group = Key("pass", {"of": [key.name for key in keys]})
        self._path = artefacts.folder / f"{group.name}.safetensors"
        self._last, self._cost = time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether it is time for one: half a minute after the last, later where writing one takes long."""
        return time.monotonic() - self._last >= max(SNAPSHOT_SECONDS, MOST_SHARE * self._cost)

    def save(self, position: int) -> None:
        """Write how far the pass came: `position` samples."""
        begun = time.monotonic()
        tensors = {
            f"{number}/{name}": value.contiguous()
            for number, statistic in enumerate(self._statistics)
            for name, value in statistic.state().items()
        }
        facts = {
            "position": str(position),
            "batch_size": str(self._batch_size),
            "checksum": _checksum(tensors),
        }
        partial = self._path.with_suffix(".partial")
        # One file, so that position and sums change together.
        save_file(tensors, partial, metadata=facts)
        flush(partial)
        os.replace(partial, self._path)
        self._last = time.monotonic()
        self._cost = self._last - begun

    def load(self) -> int:
        """Bring the statistics to where the pass stood and return its position; 0 when there is no sound snapshot."""
        if not self._path.exists():
            return 0
        try:
            with safe_open(self._path, framework="pt") as file:
                facts = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if int(facts["batch_size"]) != self._batch_size:
                return 0
            if _checksum(tensors) != facts["checksum"]:
                raise ValueError("its checksum differs")
            for number, statistic in enumerate(self._statistics):
                start = f"{number}/"
                own = {
                    name.removeprefix(start): value
                    for name, value in tensors.items()
                    if name.startswith(start)
                }
                statistic.load(own, self._folders[number])
            return int(facts["position"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning(
                "The snapshot %s is damaged (%s); the pass begins again.", self._path, error
            )
            return 0

    def clear(self) -> None:
        """Delete them."""
        self._path.unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
