"""Iterative selection of coordinates by what the loss says of their mask."""

from __future__ import annotations

import logging

import torch
from torch import nn

logger = logging.getLogger("understudy")


def round_sizes(size: int, keep: int, drop: float) -> list[int]:
    """Return how many coordinates are left after each round, until there are `keep`.

    Args:
        size: how many there are at first.
        keep: how many are left at last, at least 1.
        drop: share of the present ones that a round drops; at least one is dropped.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least one coordinate has to be kept")
    sizes = []
    while size > keep:
        size = max(keep, size - max(1, int(size * drop)))
        sizes.append(size)
    return sizes or [size]


class Tailoring(nn.Module):
    """Sums |m_j dL/dm_j| over the steps of a round, then drops the coordinates with the least.

    What is dropped stays dropped. When the last round has ended, the mask keeps its values.

    Args:
        mask: m [k] at the start.
        sizes: how many are left after each round.
        until: progress at which the last round ends; rounds are equally long.
    """

    scores: torch.Tensor
    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor, sizes: list[int], until: float) -> None:
        """Start with nothing summed."""
        super().__init__()
        self.sizes, self.until = sizes, until
        self.register_buffer("scores", torch.zeros_like(mask))
        # The mask as the last step left it, which is the m that the next step's gradient belongs to.
        self.register_buffer("mask", mask.detach().clone())
        self._left: int | None = None
        self._progress: float | None = None

    def wanted(self, progress: float) -> int | None:
        """Return how many coordinates are left at most after the step at `progress`; None before the first round."""
        ended = min(len(self.sizes), int(progress / self.until * len(self.sizes) + 1e-9))
        return self.sizes[ended - 1] if ended else None

    def follow(self, mask: nn.Parameter, selected: torch.Tensor, progress: float) -> None:
        """Follow an optimiser's step.

        Args:
            mask: m [k], with its gradient.
            selected: float [k], 1 for what is left and 0 for what was dropped; written in place.
            progress: where the step stands in the stage, in [0, 1].
        """
        if progress == self._progress:
            return  # another part of the same batch
        if self._left is None:  # once, after a start or a checkpoint
            self._left = int(selected.sum())
        self._progress = progress
        if self._left <= self.sizes[-1]:
            mask.copy_(self.mask)
            return
        if mask.grad is not None:
            self.scores.add_((self.mask * mask.grad).abs())
        wanted = self.wanted(progress)
        if wanted is not None and wanted < self._left:
            ranked = self.scores.masked_fill(selected == 0, -1.0).argsort(
                descending=True, stable=True
            )
            selected.zero_().index_fill_(0, ranked[:wanted], 1.0)
            self.scores.zero_()
            logger.info("Tailoring: %d -> %d coordinates", self._left, wanted)
            self._left = wanted
        mask.mul_(selected)
        self.mask.copy_(mask)
