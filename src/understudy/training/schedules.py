"""Learning-rate schedules: pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from understudy.registry import Registry

schedules: Registry[type[Schedule]] = Registry("schedule")
"""All schedules by name."""


class Schedule(ABC):
    """A factor on the optimiser's learning rate, for each step of a stage."""

    def __init_subclass__(cls, *, name: str) -> None:
        """Enter the class into the registry under `name`."""
        schedules.add(name, cls)

    @abstractmethod
    def factor(self, step: int, total: int, steps_per_epoch: int) -> float:
        """Return the factor for step `step` (from 0) of `total`."""


class Rate:
    """The learning rates of an optimiser, set anew for every step: nothing of it has to be kept in a checkpoint.

    Args:
        optimizer: its rates as they were given are those of factor 1.
        factor: the schedule's factor in a step, counted from 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> None:
        """Remember the rates."""
        self._optimizer, self._factor = optimizer, factor
        self._full = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, step: int) -> None:
        """Give every group its rate for a step."""
        factor = self._factor(step)
        for group, full in zip(self._optimizer.param_groups, self._full, strict=True):
            group["lr"] = full * factor

    def at(self, step: int) -> float:
        """Return the rate of the first group in a step."""
        return self._full[0] * self._factor(step)


def _warm(step: int, warmup_epochs: float, steps_per_epoch: int) -> tuple[float, int]:
    """Return the linear warm-up's factor (1 when it is over) and its length in steps."""
    length = round(warmup_epochs * steps_per_epoch)
    return (min(1.0, (step + 1) / length) if length else 1.0), length


class Constant(Schedule, name="constant"):
    """The same rate throughout, after a linear warm-up."""

    def __init__(self, warmup_epochs: float = 0.0) -> None:
        """Keep the configuration."""
        self.warmup_epochs = warmup_epochs

    def factor(self, step: int, total: int, steps_per_epoch: int) -> float:
        """Return the factor."""
        return _warm(step, self.warmup_epochs, steps_per_epoch)[0]


class Cosine(Schedule, name="cosine"):
    """Half a cosine from 1 to `final`, after a linear warm-up (Loshchilov and Hutter, SGDR, ICLR 2017, no restarts)."""

    def __init__(self, warmup_epochs: float = 0.0, final: float = 0.0) -> None:
        """Keep the configuration."""
        self.warmup_epochs = warmup_epochs
        self.final = final

    def factor(self, step: int, total: int, steps_per_epoch: int) -> float:
        """Return the factor."""
        warm, length = _warm(step, self.warmup_epochs, steps_per_epoch)
        if step < length:
            return warm
        share = (step - length) / max(1, total - length)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share))


class Linear(Schedule, name="linear"):
    """A straight line from 1 to `final`, after a linear warm-up; usual for fine-tuning transformers."""

    def __init__(self, warmup_epochs: float = 0.0, final: float = 0.0) -> None:
        """Keep the configuration."""
        self.warmup_epochs = warmup_epochs
        self.final = final

    def factor(self, step: int, total: int, steps_per_epoch: int) -> float:
        """Return the factor."""
        warm, length = _warm(step, self.warmup_epochs, steps_per_epoch)
        if step < length:
            return warm
        return self.final + (1 - self.final) * (1 - (step - length) / max(1, total - length))


class MultiStep(Schedule, name="step"):
    """Multiply by `gamma` at each of `milestones` (epochs), after a linear warm-up.

    This is the CIFAR-100 protocol of the field.
    """

    def __init__(
        self, milestones: list[float], gamma: float = 0.1, warmup_epochs: float = 0.0
    ) -> None:
        """Keep the configuration."""
        self.milestones = milestones
        self.gamma = gamma
        self.warmup_epochs = warmup_epochs

    def factor(self, step: int, total: int, steps_per_epoch: int) -> float:
        """Return the factor."""
        warm, _ = _warm(step, self.warmup_epochs, steps_per_epoch)
        passed = sum(step >= round(epoch * steps_per_epoch) for epoch in self.milestones)
        return warm * self.gamma**passed


class OneCycle(Schedule, name="one_cycle"):
    """Up by half a cosine to the optimiser's rate, then down (Smith and Topin, "Super-Convergence", 2019).

    Args:
        peak: share of the stage at which the full rate is reached.
        start_division: the first factor is 1 / start_division.
        final_division: the last factor is 1 / (start_division * final_division).
    """

    def __init__(
        self, peak: float = 0.3, start_division: float = 25.0, final_division: float = 1e4
    ) -> None:
        """Keep the configuration."""
        if not 0 < peak < 1:
            raise ValueError(f"peak is {peak}; it must lie between 0 and 1")
        self.peak = peak
        self.start_division = start_division
        self.final_division = final_division

    def factor(self, step: int, total: int, steps_per_epoch: int) -> float:
        """Return the factor."""
        turn = max(1.0, self.peak * total)
        first, last = 1 / self.start_division, 1 / (self.start_division * self.final_division)
        low, share = (
            (first, step / turn)
            if step < turn
            else (last, 1 - (step - turn) / max(1.0, total - turn))
        )
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * share))
