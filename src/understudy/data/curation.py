"""Curation: training documents that are left out before anything learns from them, and how many."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from understudy.data.source import Source, Split
from understudy.errors import DataError
from understudy.registry import Registry


class Filter(ABC):
    """Says which documents of a corpus are kept. The same documents always give the same answer."""

    @abstractmethod
    def keep(self, documents: Sequence[str]) -> torch.Tensor:
        """Return bool [N], true for the documents that are kept."""


filters: Registry[Callable[..., Filter]] = Registry("filter", "understudy.data.filters")
"""All filters by name; one file each in `data/filters/`."""


@dataclass(frozen=True)
class Dropped:
    """What a filter left out.

    Attributes:
        name: the filter's class, in words a recipe uses where it has a name there.
        count: how many documents.
        of: of how many that the filters before it had left.
    """

    name: str
    count: int
    of: int

    def __str__(self) -> str:
        """Return a line for logs and plans."""
        return f"{self.name}: {self.count:,} of {self.of:,} documents left out"


def curated(source: Source, chosen: Sequence[Filter]) -> tuple[Source, list[Dropped]]:
    """Return a source whose training documents went through filters, one after the other, and what each left out.

    Validation and test documents stay: what is measured must not depend on a filter.

    Raises:
        DataError: the source holds no texts, or nothing is left; names the filter.
    """
    if not chosen:
        return source, []
    if source.kind != "text":
        raise DataError(
            f"Filters are for texts, and '{source.name}' holds {source.kind}s. Leave data.filters out."
        )
    kept, dropped = torch.arange(len(source.train)), []
    documents = _documents(source.train)
    for each in chosen:
        keep = each.keep(documents)
        name = name_of(each)
        dropped.append(Dropped(name, len(documents) - int(keep.sum()), len(documents)))
        kept = kept[keep]
        documents = [text for text, good in zip(documents, keep.tolist(), strict=True) if good]
        if not documents:
            raise DataError(
                f"The filter {name} leaves none of the {dropped[-1].of} documents of '{source.name}'. Loosen it."
            )
    return dataclasses.replace(source, train=source.train.subset(kept)), dropped


def name_of(chosen: Filter) -> str:
    """Return what a recipe calls a filter; the class's name where it has none."""
    found = (name for name, member in filters if member is type(chosen))
    return next(found, type(chosen).__name__)


def _documents(split: Split) -> list[str]:
    """Return texts; of a pair the prompt and the response, a line each."""
    raw = split.fetch(torch.arange(len(split)))
    return [each if isinstance(each, str) else "\n".join(each) for each in raw]
