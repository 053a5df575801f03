"""What every task says: what a batch means to a model, and what good answers are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.models.outputs import Outputs
from understudy.models.taps import Stop, Tapped

Name = Literal["classification", "causal_lm", "masked_lm", "seq2seq"]
"""What a recipe calls a task."""


@dataclass(frozen=True)
class Measure:
    """The measure by which models of a task are compared first.

    Attributes:
        name: its key among the metrics.
        better: whether a greater or a smaller value is the better one.
    """

    name: str
    better: Literal["higher", "lower"]

    def improves(self, value: float, on: float) -> bool:
        """Tell whether `value` is better than `on`."""
        return value > on if self.better == "higher" else value < on


class Task(ABC):
    """What a batch means."""

    name: ClassVar[Name]
    measure: ClassVar[Measure]
    labels_itself: ClassVar[bool] = False
    """Whether what is to be predicted lies in the samples, so that none lacks a label."""
    latency_sizes: ClassVar[tuple[int, ...]] = (1, 64)
    """Samples in the batches that latency is measured with."""

    def tapped(
        self,
        module: nn.Module,
        taps: Iterable[str] = (),
        copied: Iterable[str] = (),
        stop: Stop | None = None,
    ) -> Tapped:
        """Return a model that gives what `forward_tapped` reads, together with some taps.

        Args:
            module: the model.
            taps: see `Tapped`.
            copied: see `Tapped`.
            stop: where the pass ends, where nobody reads the outputs; None for where the task says.
        """
        return Tapped(module, taps, copied, stop)

    def forward(self, module: nn.Module, batch: Batch, role: str) -> Outputs:
        """Run the model of `role` on the batch."""
        tapped = self.tapped(module)
        try:
            return self.forward_tapped(tapped, batch, role)
        finally:
            tapped.close()

    @abstractmethod
    def forward_tapped(
        self, tapped: Callable[..., tuple[Any, dict[str, torch.Tensor]]], batch: Batch, role: str
    ) -> Outputs:
        """Run what `tapped` returned (or a compiled one) on the batch; one that stops early gives no logits."""

    @abstractmethod
    def labels(self, batch: Batch) -> torch.Tensor | None:
        """Return what the rows of the student's logits should be: class indices [N], or rows that sum to 1 [N, C]."""

    @abstractmethod
    def supervised_loss(
        self, outputs: Outputs, batch: Batch, *, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Return the cross-entropy with the labels, mean over what is labelled, in nats."""
