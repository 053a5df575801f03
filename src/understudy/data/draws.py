"""What a random transform draws from: numbers that belong to a seed, a sample id and a view."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from understudy import seeding
from understudy.data.placement import place


@dataclass(frozen=True)
class Draw:
    """The random numbers of one transform for one batch.

    A number depends on the run's seed, the sample's id, its view, the transform's place and name,
    and the purpose that it is drawn for; never on the batch, on earlier draws or on any generator.
    Drawing twice for one purpose gives the same numbers twice, so each decision of a transform
    needs a purpose of its own.

    Attributes:
        seed: the run's seed.
        ids: int64 [B] on the CPU, stable sample ids.
        views: int64 [B] on the CPU, view numbers.
        scope: where in the pipeline the transform stands and what it is called.
        device: where the images are, and the numbers go.
    """

    seed: int
    ids: torch.Tensor
    views: torch.Tensor
    scope: str
    device: torch.device

    def __len__(self) -> int:
        """Return the number of samples B."""
        return len(self.ids)

    def uniform(self, purpose: str, count: int = 1, *, host: bool = False) -> torch.Tensor:
        """Draw from [0, 1).

        Args:
            purpose: what the numbers are for.
            count: numbers per sample.
            host: leave them on the CPU, for decisions that Python takes.

        Returns:
            float32 [B, count].
        """
        drawn = seeding.uniform(self.seed, self.ids, self.views, f"{self.scope}.{purpose}", count)
        return drawn if host else place(drawn, self.device)

    def integers(
        self, purpose: str, high: int, count: int = 1, *, host: bool = False
    ) -> torch.Tensor:
        """Draw from 0, 1, ..., high - 1, all equally likely up to a relative bias of high / 2^48.

        Returns:
            int64 [B, count].
        """
        # One float32 holds 24 random bits, too few to reach every sample of a large split.
        coarse, fine = self.uniform(purpose, 2 * count, host=True).double().chunk(2, dim=1)
        drawn = (coarse + fine * 2.0**-24).mul_(high).floor_().to(torch.int64)
        return drawn if host else place(drawn, self.device)

    def chance(self, purpose: str, probability: float, *, host: bool = False) -> torch.Tensor:
        """Draw True with `probability`.

        Returns:
            bool [B].
        """
        return self.uniform(purpose, host=host)[:, 0] < probability
