"""Averaged weights: exponential moving average and stochastic weight averaging, both torch's own."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from understudy.training.stage import Stage


class Averaging:
    """The averaged copy of a student in a stage that asks for one.

    Args:
        stage: says which average: `ema` (every step) or `average_from` (every epoch from that progress on).
        module: the student.
    """

    def __init__(self, stage: Stage, module: nn.Module) -> None:
        """Copy the student when an average is asked for."""
        self._from = stage.average_from
        self._module = module
        self.copy: AveragedModel | None = None
        if stage.ema is not None:
            self.copy = AveragedModel(
                module, multi_avg_fn=get_ema_multi_avg_fn(stage.ema), use_buffers=True
            )
        elif stage.average_from is not None:
            self.copy = AveragedModel(module, use_buffers=True)

    def after_step(self) -> None:
        """Take the step's weights into the moving average."""
        if self.copy is not None and self._from is None:
            self._take()

    def after_epoch(self, progress: float) -> None:
        """Take the epoch's weights into the equal average."""
        if self.copy is not None and self._from is not None and progress >= self._from:
            self._take()

    def _take(self) -> None:
        """Average the weights; buffers that a module names in `unaveraged`, such as a selection, are copied."""
        assert self.copy is not None
        self.copy.update_parameters(self._module)
        for own, other in zip(self._module.modules(), self.copy.module.modules(), strict=True):
            for name in getattr(own, "unaveraged", ()):
                if name in own._buffers:
                    other.get_buffer(name).copy_(own.get_buffer(name))

    @property
    def evaluated(self) -> nn.Module:
        """The weights that count: the average once there is one, else the student's own."""
        if self.copy is not None and int(self.copy.n_averaged) > 0:
            inner = self.copy.module
            assert isinstance(inner, nn.Module)
            return inner
        return self._module

    def finish(self) -> None:
        """Put the averaged weights into the student."""
        source = self.evaluated
        if source is not self._module:
            with torch.no_grad():
                self._module.load_state_dict(source.state_dict())

    def state(self) -> dict[str, torch.Tensor] | None:
        """Return the average's state for a checkpoint."""
        return None if self.copy is None else self.copy.state_dict()

    def load(self, state: dict[str, torch.Tensor] | None) -> None:
        """Take a checkpoint's state over."""
        if self.copy is not None and state is not None:
            self.copy.load_state_dict(state)
