"""A pass of teachers over a split: every sample once, in order of position, without gradient, leaving no trace."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from understudy.data.batch import Batch
from understudy.data.loader import Encoder, EvaluationLoader, TrainingLoader
from understudy.data.order import InOrder
from understudy.data.source import Split
from understudy.data.views import Views
from understudy.models.model import Model
from understudy.models.outputs import Outputs, call
from understudy.models.taps import probe_taps, unchanged
from understudy.tasks import Task
from understudy.teachers.live import LiveTeacher
from understudy.teachers.readings import LOGITS, Reading, only

logger = logging.getLogger("understudy")
PROGRESS_SECONDS = 10.0
"""Seconds between two lines in the log on how far a pass has come."""


@dataclass(frozen=True)
class Pass:
    """One pass of teachers over a split.

    Attributes:
        split: the samples, in order of position.
        teachers: teacher name -> model.
        classes: number of classes.
        task: what a batch means.
        device: where models run.
        batch_size: samples in a batch; the last one may hold fewer.
        workers: as for the loaders.
        views: the pipeline of transforms; None for samples as they are.
        view: which view of each sample, with `views`.
    """

    split: Split
    teachers: Mapping[str, Model]
    classes: int
    task: Task
    device: torch.device
    batch_size: int
    workers: int | Literal["auto"] = 0
    views: Views | None = None
    view: int = 0

    def batches(self, start: int = 0, roles: Sequence[str] | None = None) -> Iterator[Batch]:
        """Iterate from position `start`, a multiple of the batch size, to the end; nothing is left out.

        Args:
            start: position of the first sample.
            roles: whose inputs are made; None for all teachers.
        """
        encoders: dict[str, Encoder] = {
            role: self.teachers[role].preprocess
            for role in (self.teachers if roles is None else roles)
        }
        count = len(self.split)
        if start >= count:
            return
        if self.views is None:
            rest = self.split.subset(torch.arange(start, count)) if start else self.split
            with contextlib.closing(
                EvaluationLoader(
                    rest,
                    encoders,
                    batch_size=self.batch_size,
                    device=self.device,
                    workers=self.workers,
                )
            ) as plain:
                yield from plain
            return
        order = InOrder(count, batch_size=self.batch_size, view=self.view)
        with contextlib.closing(
            TrainingLoader(
                self.split,
                order,
                self.views,
                encoders,
                device=self.device,
                classes=self.classes,
                workers=self.workers,
            )
        ) as loader:
            for (batch,) in loader.steps(start // order.batch_size, order.steps_per_epoch):
                yield batch

    @contextlib.contextmanager
    def running(
        self, readings: Sequence[Reading]
    ) -> Iterator[Callable[[Batch], dict[str, Outputs]]]:
        """Set the taps of some readings, and give a function from a batch to each teacher's outputs.

        Teachers run in evaluation mode, without gradient and in float32. Afterwards no hook is left, and parameters,
        buffers, training flags and torch's random state are what they were.
        """
        with contextlib.ExitStack() as stack:
            live = {}
            for role, taps in wanted_taps(readings, self.teachers).items():
                module = self.teachers[role].module
                stack.enter_context(unchanged(module))
                copied = self._copied(role, taps)
                live[role] = LiveTeacher(
                    module,
                    role=role,
                    task=self.task,
                    taps=taps,
                    copied=copied,
                    precision=contextlib.nullcontext,
                )
                stack.callback(live[role].close)
            yield lambda batch: {role: teacher.targets(batch) for role, teacher in live.items()}

    def _copied(self, role: str, taps: Sequence[str]) -> set[str]:
        """Return the taps whose tensors the model changes afterwards."""
        if not taps:
            return set()
        first = self.split.subset(torch.arange(min(2, len(self.split))))
        encoders: dict[str, Encoder] = {role: self.teachers[role].preprocess}
        loader = EvaluationLoader(first, encoders, batch_size=2, device=self.device, workers=0)
        inputs = next(iter(loader)).inputs[role]
        module = self.teachers[role].module
        _, copied = probe_taps(module, taps, lambda tapped: call(tapped, inputs), training=False)
        return copied


def wanted_taps(readings: Sequence[Reading], teachers: Mapping[str, Model]) -> dict[str, list[str]]:
    """Return teacher name -> taps that it has to be read at, for the teachers that are read at all."""
    wanted: dict[str, list[str]] = {}
    for reading in readings:
        taps = wanted.setdefault(only(teachers, reading.teacher), [])
        if reading.tap != LOGITS and reading.tap not in taps:
            taps.append(reading.tap)
    return wanted


class Progress:
    """Says in the log how far a long pass has come.

    Args:
        what: what the pass is for.
        total: samples in the pass.
        start: samples that were done before.
    """

    def __init__(self, what: str, total: int, start: int) -> None:
        """Start the clock."""
        self._what, self._total, self._start = what, total, start
        self._begin = self._last = time.monotonic()

    def show(self, done: int) -> None:
        """Write a line when it is time for one."""
        now = time.monotonic()
        if now - self._last < PROGRESS_SECONDS or done <= self._start:
            return
        self._last = now
        rate = (done - self._start) / (now - self._begin)
        left = (self._total - done) / rate
        logger.info(
            "%s: %s of %s samples, about %s left",
            self._what,
            f"{done:,}",
            f"{self._total:,}",
            f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min",
        )
