"""Metrics of the steps: kept on the device, read every `log_every` steps."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from understudy.errors import TrainingError
from understudy.training.distribution import World


class _Row(NamedTuple):
    step: int
    names: tuple[str, ...]
    values: tuple[torch.Tensor, ...]
    ids: list[torch.Tensor]


class Recorder:
    """Collects the terms of each step and writes their means.

    Nothing is read from the device between two flushes. A term that is not finite is found at the
    next flush, which also names the step and
    the samples; the loop flushes before it writes a checkpoint, so that no checkpoint holds what such a step made.

    Args:
        write: writes one line of metrics.
        every: steps between two lines.
        last_checkpoint: returns a sentence on the last good checkpoint.
        world: this process among its peers; a term is a mean over all of them.
    """

    def __init__(
        self,
        write: Callable[..., None],
        every: int,
        last_checkpoint: Callable[[], str],
        world: World,
    ) -> None:
        """Start with an empty window."""
        self._world = world
        self._write, self._every, self._last_checkpoint = write, every, last_checkpoint
        self._window: list[_Row] = []
        self._begin = time.perf_counter()

    def add(
        self,
        step: int,
        terms: Mapping[str, torch.Tensor],
        norm: torch.Tensor | None,
        index: list[torch.Tensor],
    ) -> None:
        """Keep one step's terms, its gradient norm (None without clipping) and the sample ids of its parts."""
        names = (*terms, "gradient norm") if norm is not None else tuple(terms)
        values = (*terms.values(), norm.detach()) if norm is not None else tuple(terms.values())
        self._window.append(_Row(step, names, values, index))

    def due(self, step: int) -> bool:
        """Tell whether a line is to be written after `step` steps."""
        return step % self._every == 0

    def flush(self, **place: object) -> None:
        """Read the window, check it and write one line at `place` (epoch, step, progress, lr).

        Raises:
            TrainingError: a term was not finite.
        """
        if not self._window:
            return
        values = torch.stack([value for row in self._window for value in row.values])
        flat = (self._world.sum(values) / self._world.size).tolist()
        found: dict[str, list[float]] = defaultdict(list)
        samples, position = 0, 0
        for row in self._window:
            for name in row.names:
                if not math.isfinite(flat[position]):
                    self._refuse(row, name, flat[position])
                found[name].append(flat[position])
                position += 1
            samples += sum(len(part) for part in row.ids)
        mean = {name: math.fsum(values) / len(values) for name, values in found.items()}
        norm = mean.pop("gradient norm", None)
        loss = mean.pop("loss", None)
        rate = samples * self._world.size / max(1e-9, time.perf_counter() - self._begin)
        self._write(**place, terms=mean, loss=loss, gradient_norm=norm, samples_per_second=rate)
        self._window.clear()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time since the last line, such as that of an evaluation."""
        self._begin = time.perf_counter()

    def _refuse(self, row: _Row, name: str, value: float) -> None:
        ids = torch.cat(row.ids).tolist()
        shown = ", ".join(map(str, ids[:16])) + (
            f", ... ({len(ids)} in all)" if len(ids) > 16 else ""
        )
        what = name if name in ("loss", "gradient norm") else f"term '{name}'"
        raise TrainingError(
            f"The loss is not finite: {what} was {value} at step {row.step}, on the samples with ids {shown}. "
            f"{self._last_checkpoint()} A lower learning rate, `clip` or precision float32 usually helps; "
            "in the first steps, look at the data and the teacher."
        )
