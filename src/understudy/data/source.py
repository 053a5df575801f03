"""Sources of data: raw samples with stable ids, labels that may be missing, and named classes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch

from understudy.data.batch import UNLABELLED
from understudy.errors import DataError
from understudy.registry import Registry

Kind = Literal["image", "text", "tensor"]
Raw = torch.Tensor | Sequence[str] | Sequence[tuple[str, str]]


class Samples(Protocol):
    """Raw samples, addressed by position."""

    @property
    def kind(self) -> Kind:
        """What `fetch` gives: images, texts or plain tensors."""

    @property
    def in_memory(self) -> bool:
        """Whether `fetch` costs so little that worker processes would only slow it down."""

    @property
    def identity(self) -> str:
        """A hash that changes when the samples change."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def fetch(self, positions: torch.Tensor) -> Raw:
        """Return the samples at `positions` (int64 [B], on the CPU).

        Images come as uint8 or float [B, C, H, W] (float in [0, 1]), texts as a list of strings or of pairs of strings,
        plain tensors as float [B, ...].
        """


@dataclass(frozen=True)
class Split:
    """A part of a source.

    Attributes:
        samples: the raw samples of the whole source or of this part.
        positions: int64 [N], where this part's samples lie in `samples`.
        labels: int64 [N] class indices, -1 where a sample has no label.
        ids: int64 [N], stable sample ids: unique in the source, independent of order and of other parts.
    """

    samples: Samples
    positions: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor

    def __post_init__(self) -> None:
        """Check that the columns agree."""
        lengths = {len(self.positions), len(self.labels), len(self.ids)}
        if len(lengths) != 1:
            raise DataError(
                f"A split has {len(self.positions)} samples, {len(self.labels)} labels and {len(self.ids)} ids; "
                "they must be as many."
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.ids)

    def fetch(self, indices: torch.Tensor) -> Raw:
        """Return the raw samples at `indices` (int64 [B], positions within this split)."""
        if self._in_place:
            return self.samples.fetch(indices)
        return self.samples.fetch(self.positions.index_select(0, indices))

    @cached_property
    def _in_place(self) -> bool:
        """Whether position i of this part is position i of the samples, so that nothing has to be looked up."""
        return torch.equal(self.positions, torch.arange(len(self.positions)))

    def subset(self, indices: torch.Tensor) -> Split:
        """Return the part at `indices` (int64, within this split), ids kept."""
        return Split(self.samples, self.positions[indices], self.labels[indices], self.ids[indices])

    def with_labels(self, labels: torch.Tensor) -> Split:
        """Return the same samples under other labels (int64 [N], -1 for none)."""
        return dataclasses.replace(self, labels=labels)

    @property
    def labelled(self) -> torch.Tensor:
        """Return int64 indices of the samples that have a label."""
        return torch.nonzero(self.labels != UNLABELLED).flatten()


@dataclass(frozen=True, repr=False)
class Source:
    """A loaded data set.

    Attributes:
        name: what a log calls it.
        kind: "image", "text" or "tensor".
        train: the samples to learn from.
        test: the samples that only the final evaluation sees.
        validation: the samples for selection, None when they are to be carved out of `train`.
        classes: class names in label order.
    """

    name: str
    kind: Kind
    train: Split
    test: Split
    validation: Split | None
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check labels against the classes."""
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise DataError(f"Source '{self.name}' names classes twice: {', '.join(twice)}.")
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            if split is None:
                continue
            if len(split) == 0:
                raise DataError(f"The {part} split of '{self.name}' is empty.")
            wrong = (split.labels < UNLABELLED) | (split.labels >= len(self.classes))
            if wrong.any():
                first = int(torch.nonzero(wrong)[0])
                raise DataError(
                    f"Label {int(split.labels[first])} of sample {int(split.ids[first])} in the {part} split of "
                    f"'{self.name}' is out of range: there are {len(self.classes)} classes, so labels run from 0 to "
                    f"{len(self.classes) - 1} (or {UNLABELLED} for an unlabelled sample)."
                )

    def __repr__(self) -> str:
        """Return a line for logs."""
        validation = len(self.validation) if self.validation else 0
        return (
            f"Source({self.name!r}, {self.kind}, train={len(self.train)}, validation={validation}, "
            f"test={len(self.test)}, classes={len(self.classes)})"
        )

    @property
    def identity(self) -> str:
        """Return a hash over samples, labels, ids and class names."""
        digest = hashlib.blake2b(digest_size=16)
        for split in (self.train, self.validation, self.test):
            if split is not None:
                digest.update(split.samples.identity.encode())
                for column in (split.positions, split.labels, split.ids):
                    digest.update(column.numpy().tobytes())
        digest.update("\n".join(self.classes).encode())
        return digest.hexdigest()


sources: Registry[Callable[..., Source]] = Registry("data source", "understudy.data.sources")
"""Functions that give a `Source`; one file each in `data/sources/`."""
