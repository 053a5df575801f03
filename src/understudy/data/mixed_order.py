"""The order of training samples that are drawn by domain, in shares that change between intervals of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from understudy import seeding
from understudy.data.mixture import DomainMixture
from understudy.data.order import SampleOrder
from understudy.errors import DataError, UnderstudyError


class MixedOrder:
    """Which samples make up a batch: the domain of each is drawn from a mixture, the sample from the domain in turn.

    A domain's samples come in passes, each in a permutation of its own; one that runs out begins again. What a step
    holds depends on the seed, the step, the mixture, and on how often each domain had been drawn when the mixture
    began; the last two are the order's state.

    Args:
        labels: int64 [N], the domain of each sample of the split.
        population: int64 [M], positions of the samples that are drawn from.
        names: the domains' names, by label; those without a sample in the population are left out.
        batch_size: samples in a batch.
        seed: what domains and permutations are drawn from.

    Attributes:
        population: int64 [M], positions of the samples that are drawn from.
        domains: the names of the domains.
        mixture: the shares that hold; at first those of the population.
        begun: the step in which they began to hold.

    Raises:
        DataError: a sample has no domain.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        population: torch.Tensor,
        *,
        names: Sequence[str],
        batch_size: int,
        seed: int,
    ) -> None:
        """Begin with the natural mixture."""
        own = labels[population]
        without = int((own < 0).sum())
        if without:
            raise DataError(
                f"{without} of {len(own)} training samples have no domain, and a mixture draws by domain. Name the "
                "domain of each, or leave `mixture` out."
            )
        self.population, self._size, self._seed = population, batch_size, seed
        present = [label for label in range(len(names)) if bool((own == label).any())]
        self.domains = tuple(names[label] for label in present)
        self._orders = {
            names[label]: SampleOrder(
                population[own == label], batch_size=1, seed=seeding.derive(seed, "domain", label)
            )
            for label in present
        }
        shares = [len(order.population) / len(own) for order in self._orders.values()]
        self.mixture = DomainMixture(self.domains, tuple(map(math.log, shares)))
        self.begun = 0
        self._before: list[tuple[int, ...]] = [(0,) * len(present)]
        self._newest: tuple[int, list[str]] = (-1, [])

    @property
    def smallest_batch(self) -> int:
        """Return the number of samples in every batch."""
        return self._size

    @property
    def passes(self) -> dict[str, float]:
        """How often each domain has been gone through, up to the last batch that was asked for."""
        return {
            name: drawn / len(self._orders[name].population)
            for name, drawn in zip(self.domains, self._before[-1], strict=True)
        }

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the samples of a step: int64 [B], positions in the split, and the pass of each over its domain.

        Raises:
            UnderstudyError: the step is one before the mixture began to hold.
        """
        number = step - self.begun
        if number < 0:
            raise UnderstudyError(
                f"Step {step} was drawn from another mixture; the one that is known began in step {self.begun}."
            )
        self._count(step)
        drawn = dict(zip(self.domains, self._before[number], strict=True))
        samples, passes = [], []
        for name in self._names(step):
            sample, turn = self._orders[name].batch(drawn[name])
            drawn[name] += 1
            samples.append(sample)
            passes.append(turn)
        return torch.cat(samples), torch.cat(passes)

    def change(self, mixture: DomainMixture, step: int) -> None:
        """Let another mixture hold from a step on.

        Raises:
            DataError: it has other domains.
        """
        if mixture.domains != self.domains:
            raise DataError(
                f"The mixture has the domains {list(mixture.domains)}, and the samples {list(self.domains)}."
            )
        self._count(step)
        self._begin(mixture, step, self._before[step - self.begun])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain values."""
        return {
            "mixture": self.mixture.state(),
            "begun": self.begun,
            "drawn": list(self._before[0]),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        mixture = DomainMixture.from_state(state["mixture"])
        self._begin(mixture, int(state["begun"]), state["drawn"])

    def _begin(self, mixture: DomainMixture, step: int, drawn: Sequence[int]) -> None:
        self.mixture, self.begun = mixture, step
        self._before, self._newest = [tuple(drawn)], (-1, [])

    def _names(self, step: int) -> list[str]:
        """Return the domains of a batch; those of the last one that was asked for are kept."""
        if self._newest[0] != step:
            seed = seeding.derive(self._seed, "mixture", step)
            self._newest = (step, self.mixture.draw(self._size, seed))
        return self._newest[1]

    def _count(self, step: int) -> None:
        """Count how often each domain is drawn before a step of this mixture."""
        while len(self._before) <= step - self.begun:
            names = self._names(self.begun + len(self._before) - 1)
            counts = zip(self.domains, self._before[-1], strict=True)
            self._before.append(tuple(count + names.count(name) for name, count in counts))
