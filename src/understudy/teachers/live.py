"""A teacher that is a model, run as the student trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.models.outputs import Outputs
from understudy.models.taps import Tapped
from understudy.tasks.classification import Classification


class LiveTeacher:
    """Runs a model for its targets: in evaluation mode, without gradient, never changed.

    Args:
        module: the model. Its parameters and buffers stay bit-identical; its training flags are given back by `close`.
        role: under which name batches hold its inputs.
        task: what a batch means.
        taps: what methods asked for.
        copied: taps whose tensors the model changes afterwards (see `probe_taps`).
        precision: makes the context that the model runs in (autocast or nothing).
        compile: whether to run the model through `torch.compile`.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        role: str,
        task: Classification,
        taps: Iterable[str],
        copied: Iterable[str],
        precision: Callable[[], AbstractContextManager[object]],
        compile: bool = False,
    ) -> None:
        """Set the taps and put the model into evaluation mode."""
        self.role, self._task, self.precision = role, task, precision
        self._flags = {part: part.training for part in module.modules()}
        module.eval()
        self._tapped = Tapped(module, taps, copied)
        self._run = torch.compile(self._tapped) if compile else self._tapped

    def targets(self, batch: Batch) -> Outputs:
        """Return the teacher's logits and tapped features for the batch."""
        with torch.no_grad(), self.precision():
            return self._task.forward_tapped(self._run, batch, self.role)

    def close(self) -> None:
        """Remove the taps and give the training flags back."""
        self._tapped.close()
        for part, training in self._flags.items():
            part.training = training
