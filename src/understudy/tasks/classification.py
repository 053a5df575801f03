"""Classification of images, texts or tensors into named classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from understudy import objectives
from understudy.data.batch import Batch
from understudy.errors import TrainingError
from understudy.models.outputs import Outputs, call, logits_of
from understudy.tasks.task import Measure, Task


class Classification(Task):
    """What a batch means when every sample belongs to one class."""

    name = "classification"
    measure = Measure("accuracy", "higher")

    def forward(self, module: nn.Module, batch: Batch, role: str) -> Outputs:
        """Run the model of `role` on the batch."""
        return Outputs(logits=logits_of(call(module, batch.inputs[role])))

    def forward_tapped(
        self, tapped: Callable[..., tuple[Any, dict[str, torch.Tensor]]], batch: Batch, role: str
    ) -> Outputs:
        """Run a `Tapped` model (or a compiled one) on the batch; one that stops before its end gives no logits."""
        raw, features = call(tapped, batch.inputs[role])
        return Outputs(logits=None if raw is None else logits_of(raw), features=features)

    def labels(self, batch: Batch) -> torch.Tensor | None:
        """Return the batch's labels."""
        return batch.labels

    def supervised_loss(
        self, outputs: Outputs, batch: Batch, *, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Return the cross-entropy with the labels, mean over the labelled samples, in nats."""
        if batch.labels is None or outputs.logits is None:
            raise TrainingError("The supervised loss needs labels, and this batch has none.")
        return objectives.cross_entropy(
            outputs.logits,
            batch.labels,
            label_smoothing=label_smoothing,
            all_labelled=batch.all_labelled,
            weight=batch.weight,
        )
