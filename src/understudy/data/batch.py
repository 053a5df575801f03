"""The batch: what the loop hands to models and methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

UNLABELLED = -1
"""The label of a sample that has none."""


@dataclass(slots=True)
class Batch:
    """One batch, the same samples and the same view for every model.

    Attributes:
        inputs: role ("student", "teacher", or a teacher's name) -> what that model's forward takes: a tensor
            or a mapping of keywords. Each model has its own preprocessing or tokenizer.
        labels: int64 [B] class indices with -1 for "no label", or float [B, C] soft labels (after
            mixing) whose rows sum to 1, or to 0 for "no label"; None when nothing in the data is labelled.
        index: int64 [B], stable sample ids.
        view: int64 [B], which seeded view of the sample this is.
        weight: float [B] sample weights, or None for all ones.
        mask: bool [B, ...] valid elements for models with elements (tokens, pixels), or None.
        complete: labels that are known to have no gap. Where they are the batch's `labels`, nobody has to look for
            one; a copy of the batch with other labels knows nothing of them.
    """

    inputs: Mapping[str, Any]
    labels: torch.Tensor | None
    index: torch.Tensor
    view: torch.Tensor
    weight: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    complete: torch.Tensor | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.index)

    @property
    def all_labelled(self) -> bool:
        """Whether every sample is known to have a label; False means that `labels` has to be looked at."""
        return self.complete is not None and self.labels is self.complete

    @property
    def labelled(self) -> torch.Tensor:
        """Return float [B]: 1 where the sample has a label (times its weight), else 0."""
        if self.labels is None:
            present = torch.zeros(len(self), device=self.index.device)
        elif self.labels.is_floating_point():
            present = (self.labels.sum(dim=1) > 0.5).float()
        else:
            present = (self.labels != UNLABELLED).float()
        return present if self.weight is None else present * self.weight
