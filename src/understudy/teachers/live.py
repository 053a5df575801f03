"""A teacher that is a model, run as the student trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.models.language_head import LanguageHead
from understudy.models.outputs import Outputs
from understudy.models.stopping import StoppedOutputs
from understudy.models.taps import Stop
from understudy.tasks import Task
from understudy.teachers.elsewhere import brought, sent


class LiveTeacher:
    """Runs a model for its targets: in evaluation mode, without gradient, never changed.

    Without gradient, not in inference mode: what a model computes in its first forward and keeps, such as position
    tables that a library shares between models, would be of no use to the student's gradient afterwards, and nothing
    is gained (measured: no difference for ResNet20 on 64 images, 2 per cent for a tiny network on 2).

    Args:
        module: the model. Its parameters and buffers stay bit-identical; its training flags are given back by `close`.
        role: under which name batches hold its inputs.
        task: what a batch means.
        taps: what methods asked for.
        copied: taps whose tensors the model changes afterwards (see `probe_taps`).
        precision: makes the context that the model runs in (autocast or nothing).
        compile: whether to run the model through `torch.compile`.
        stop: where the pass ends when nobody reads the logits (see `find_stop`); None for the end of the model.
        device: where the model lies, when that is not where batches do; None otherwise.
        original: the model that `module` is a copy of, where it is one. It runs in evaluation mode as long, for methods
            that look into it.
        head: the output head of the same language model where batches lie, for a model that lies elsewhere.

    Attributes:
        tapped: the model with its taps.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        role: str,
        task: Task,
        taps: Iterable[str],
        copied: Iterable[str],
        precision: Callable[[], AbstractContextManager[object]],
        compile: bool = False,
        stop: Stop | None = None,
        device: torch.device | None = None,
        original: nn.Module | None = None,
        head: LanguageHead | None = None,
    ) -> None:
        """Set the taps and put the model into evaluation mode."""
        self.module, self.role, self.stop = module, role, stop
        self.device, self._head = device, head
        self._task, self.precision = task, precision
        models = [module] if original is None else [module, original]
        self._flags = {part: part.training for model in models for part in model.modules()}
        for model in models:
            model.eval()
        self.tapped = task.tapped(module, taps, copied, stop)
        self._run = torch.compile(self.tapped) if compile else self.tapped

    def targets(self, batch: Batch) -> Outputs:
        """Return the teacher's logits, unless it stops before them, and tapped features for the batch."""
        home = batch.index.device
        if self.device is not None:
            given = self.received(batch.inputs[self.role])
            batch = dataclasses.replace(batch, inputs={self.role: given})
        with torch.no_grad(), self.precision(), _current(self.device):
            outputs = self._task.forward_tapped(self._run, batch, self.role)
        if self.device is not None:
            outputs = brought(outputs, home, self._head)
        if self.stop is None:
            return outputs
        return StoppedOutputs("teacher", "reads_logits", self.stop, outputs.features)

    def received(self, inputs: Any) -> Any:
        """Return what a batch holds for the model where the model lies."""
        return inputs if self.device is None else sent(inputs, self.device)

    def close(self) -> None:
        """Remove the taps and give the training flags back."""
        self.tapped.close()
        for part, training in self._flags.items():
            part.training = training


def _current(device: torch.device | None) -> AbstractContextManager[object]:
    """Return the context in which a CUDA device is the current one, as kernels from outside of PyTorch expect."""
    if device is None or device.type != "cuda":
        return nullcontext()
    return torch.cuda.device(device)
