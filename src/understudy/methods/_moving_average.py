"""A moving average of what is trained, as a method keeps it: in its checkpoints, and in no gradient and no export."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from understudy.errors import UnderstudyError
from understudy.models.taps import Tapped, unwrap


class MovingAverage(nn.Module):
    """A copy of a module whose weights follow those of the module.

    It draws nothing: dropout and its like are off. Batch norms take the statistics of the batch where those of the
    module do.

    Args:
        source: the module; it is not made a part of this one.
        taps: where its features are read; the copy then returns what `Tapped` does.
        copied: taps that `Tapped` has to copy.
    """

    def __init__(
        self, source: nn.Module, taps: Iterable[str] = (), copied: Iterable[str] = ()
    ) -> None:
        """Copy the module as it is."""
        super().__init__()
        source, names = unwrap(source), tuple(taps)
        self.copy = copy.deepcopy(source).requires_grad_(False)
        # In lists, so that neither is registered, and saved, a second time.
        self._source = [source]
        self._run = [Tapped(self.copy, names, copied) if names else self.copy]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """Run the copy, without a gradient.

        Raises:
            UnderstudyError: the module has other parts than it had when it was copied.
        """
        for ours, theirs in self._parts():
            if isinstance(ours, _BatchNorm):
                theirs.training = ours.training
        return self._run[0](*args)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Keep the share `momentum` of each weight and take the rest from the module; buffers are copied."""
        own: list[torch.Tensor] = list(self.copy.parameters())
        theirs: list[torch.Tensor] = list(self._source[0].parameters())
        torch._foreach_lerp_(own, theirs, 1 - momentum)
        for mine, given in zip(self.copy.buffers(), self._source[0].buffers(), strict=True):
            mine.copy_(given)

    def _parts(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Give the parts of the module and of the copy, pair by pair."""
        source = dict(self._source[0].named_modules())
        found = dict(self.copy.named_modules())
        if source.keys() != found.keys():
            new = sorted(source.keys() ^ found.keys())
            raise UnderstudyError(
                "A method follows the student with a copy that was made before another method changed it at "
                f"'{new[0]}'. List the method that changes the student before it."
            )
        return iter(zip(source.values(), found.values(), strict=True))
