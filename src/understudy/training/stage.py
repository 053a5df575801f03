"""A stage: one stretch of training with its own methods, optimiser and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from understudy.data.mixture import Mixture
from understudy.data.selection import Select
from understudy.errors import TrainingError
from understudy.methods import Method
from understudy.training.optimizers import Optimizer
from understudy.training.schedules import Cosine, Schedule


def default_optimizer() -> Optimizer:
    """Return SGD as the field trains small image networks."""
    return Optimizer("sgd", lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=False)


@dataclass
class EarlyStopping:
    """Stop when the validation metric has not improved for `patience` epochs, and go back to the best weights.

    Attributes:
        patience: epochs to wait.
        metric: "accuracy" (higher is better) or "nll" (lower is better), on the validation split.
    """

    patience: int = 10
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        """Check the metric."""
        if self.metric not in ("accuracy", "nll"):
            raise TrainingError(
                f"early stopping on '{self.metric}'; it must be 'accuracy' or 'nll'"
            )


@dataclass
class Stage:
    """One stretch of training.

    Attributes:
        methods: what is learned from; losses add up, each with its weight.
        name: what logs call the stage.
        epochs: length in passes over the training split (of the batch size of the run).
        steps: length in optimiser steps; instead of `epochs`.
        optimizer: the optimiser.
        schedule: the learning rate over the stage.
        accumulate: into how many parts a batch is split; the gradient is that of the whole batch.
        clip: largest gradient norm, None for no clipping.
        ema: decay per step of an exponential moving average of the weights, which is then what is
            evaluated and kept; None for none.
        average_from: progress in [0, 1) from which the weights are averaged with equal parts, once
            per epoch (stochastic weight averaging, Izmailov et al., UAI 2018); None for none.
        freeze: module paths of the student that stay as they are.
        early_stopping: when to stop before the end, None for never.
        select: from which part of the training samples it learns; None for all.
        mixture: in which shares it draws from the domains; None for as they come.
    """

    methods: Sequence[Method]
    name: str = "distil"
    epochs: int | None = None
    steps: int | None = None
    optimizer: Optimizer = field(default_factory=default_optimizer)
    schedule: Schedule = field(default_factory=Cosine)
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    average_from: float | None = None
    freeze: Sequence[str] = ()
    early_stopping: EarlyStopping | None = None
    select: Select | None = None
    mixture: Mixture | None = None

    def __post_init__(self) -> None:
        """Check what cannot be right."""
        if (self.epochs is None) == (self.steps is None):
            raise TrainingError(f"Stage '{self.name}' needs either epochs or steps, and not both.")
        if (self.epochs or self.steps or 0) < 1:
            raise TrainingError(
                f"Stage '{self.name}' has no length: epochs or steps must be at least 1."
            )
        if not self.methods:
            raise TrainingError(
                f"Stage '{self.name}' has no methods, so there is nothing to learn from."
            )
        if self.accumulate < 1:
            raise TrainingError(
                f"Stage '{self.name}': accumulate is {self.accumulate}; at least 1."
            )
        if self.ema is not None and self.average_from is not None:
            raise TrainingError(
                f"Stage '{self.name}' has both ema and average_from; choose one average."
            )

    @property
    def active_methods(self) -> list[Method]:
        """The methods but for those whose weight is 0 throughout, which count as left out."""
        return [method for method in self.methods if not method.never_active]
