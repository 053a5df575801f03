"""Which samples make up the batch of a step: a pure function of the seed and the step."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import torch

from understudy import seeding
from understudy.data.source import Split
from understudy.errors import DataError, UnderstudyError

KEPT_PASSES = 4


class Order(Protocol):
    """Which samples make up a batch, by number."""

    population: torch.Tensor

    @property
    def smallest_batch(self) -> int:
        """Return the number of samples in the smallest batch."""

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the samples of a batch: int64 [B], positions in the split, and the pass each of them belongs to."""


class SampleOrder:
    """The order of training samples.

    Pass p over the population shows every sample once, in a permutation that depends on the seed
    and p only. Batches
    are cut from the passes in one of two ways:

    - `steps_per_epoch=None`: an epoch is a pass. What does not fill a batch at its end is dropped,
      or makes a smaller batch with `drop_last=False`. A population smaller than a batch makes one
      batch of its own size.
    - `steps_per_epoch=n`: passes follow each other without a gap, every batch is full, and an epoch
      is n batches wherever the passes end. A batch may hold the end of one pass and the start of
      the next.

    `over` chooses between them for a stage.

    Args:
        population: int64 [N], positions of the samples in their split.
        batch_size: samples in a batch, over all ranks.
        seed: what the permutations are drawn from.
        steps_per_epoch: None for epochs that are passes, else how many full batches an epoch has.
        drop_last: with epochs that are passes, leave out what does not fill a batch.

    Attributes:
        population: int64 [N], positions of the samples in their split.
        batch_size: samples in a full batch, at most N when an epoch is a pass.
        steps_per_epoch: batches in an epoch.
    """

    def __init__(
        self,
        population: torch.Tensor,
        *,
        batch_size: int,
        seed: int,
        steps_per_epoch: int | None = None,
        drop_last: bool = True,
    ) -> None:
        """Check the numbers; nothing is drawn before it is asked for."""
        if len(population) == 0:
            raise DataError("There are no samples to train on.")
        if batch_size < 1:
            raise UnderstudyError(f"batch_size must be at least 1, not {batch_size}.")
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise UnderstudyError(f"steps_per_epoch must be at least 1, not {steps_per_epoch}.")
        self.population = population
        self._seed = seed
        self._continuous = steps_per_epoch is not None
        count = len(population)
        if steps_per_epoch is not None:
            self.batch_size = batch_size
            self.steps_per_epoch = steps_per_epoch
        else:
            self.batch_size = min(batch_size, count)
            full, rest = divmod(count, self.batch_size)
            self.steps_per_epoch = full if drop_last or rest == 0 else full + 1
        self._passes: OrderedDict[int, torch.Tensor] = OrderedDict()

    @classmethod
    def over(
        cls,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        labelled_only: bool = False,
        drop_last: bool = True,
        population: torch.Tensor | None = None,
    ) -> SampleOrder:
        """Return the order of a stage over `split`.

        Args:
            split: the training samples.
            batch_size: samples of one optimiser step, over all ranks.
            seed: the run's seed.
            labelled_only: draw only samples that have a label, for as many steps of the same size
                as the whole split would give. Without unlabelled samples it changes nothing.
            drop_last: leave out what does not fill a batch at the end of a pass over the whole
                split.
            population: int64 [N], draw only these positions, for as many steps of the same size as
                the whole split would give; None for all.
        """
        everything = cls(
            torch.arange(len(split)), batch_size=batch_size, seed=seed, drop_last=drop_last
        )
        chosen = everything.population if population is None else population
        if labelled_only:
            chosen = chosen[torch.isin(chosen, split.labelled)]
        if len(chosen) == len(split):
            return everything
        if len(chosen) == 0:
            raise DataError(
                "No training sample has a label, and this stage learns from labels only."
            )
        return cls(
            chosen,
            batch_size=everything.batch_size,
            seed=seed,
            steps_per_epoch=everything.steps_per_epoch,
        )

    @property
    def smallest_batch(self) -> int:
        """Return the number of samples in the smallest batch."""
        if self._continuous:
            return self.batch_size
        return min(
            self.batch_size,
            len(self.population) - (self.steps_per_epoch - 1) * self.batch_size,
        )

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the samples of a step.

        Args:
            step: number of the step, counted from 0 over all epochs.

        Returns:
            int64 [B], positions in the split, and int64 [B], the pass that each of them belongs to.
        """
        if step < 0:
            raise UnderstudyError(f"There is no step {step}.")
        count = self.population.numel()
        if self._continuous:
            first = step * self.batch_size
            last = first + self.batch_size
        else:
            epoch, within = divmod(step, self.steps_per_epoch)
            first = epoch * count + within * self.batch_size
            last = min(first + self.batch_size, (epoch + 1) * count)
        samples, passes = [], []
        while first < last:
            number, place = divmod(first, count)
            size = min(last - first, count - place)
            samples.append(self._pass(number)[place : place + size])
            passes.append(torch.full((size,), number))
            first += size
        if len(samples) == 1:
            return samples[0], passes[0]
        return torch.cat(samples), torch.cat(passes)

    def _pass(self, number: int) -> torch.Tensor:
        """Return the samples in the order of a pass, int64 [N]."""
        if number in self._passes:
            self._passes.move_to_end(number)
        else:
            generator = seeding.stream(self._seed, "order", number)
            permutation = torch.randperm(len(self.population), generator=generator)
            self._passes[number] = self.population[permutation]
            if len(self._passes) > KEPT_PASSES:
                self._passes.popitem(last=False)
        return self._passes[number]


class InOrder(SampleOrder):
    """Every sample of a split once, by position, in one view: for what looks at the samples without learning.

    Args:
        count: samples of the split.
        batch_size: samples in a batch; the last one may hold fewer.
        view: number of the view that all of them are shown in.
    """

    def __init__(self, count: int, *, batch_size: int, view: int) -> None:
        """Keep the numbers."""
        super().__init__(torch.arange(count), batch_size=batch_size, seed=0, drop_last=False)
        self._view = view

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return positions int64 [B] and the view of each, int64 [B], of batch `step`."""
        positions = self.population[step * self.batch_size : (step + 1) * self.batch_size]
        return positions, torch.full_like(positions, self._view)
