"""Documents that are mostly no words."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from understudy.data.curation import Filter, filters
from understudy.errors import DataError


@filters.register("letters")
class Letters(Filter):
    """Keeps documents of which enough characters are letters; spaces are not counted.

    Args:
        least: the smallest share of letters, of whatever script.
    """

    def __init__(self, least: float = 0.6) -> None:
        """Check the number."""
        if not 0 <= least <= 1:
            raise DataError(f"least is {least}; a share lies between 0 and 1.")
        self.least = least

    def keep(self, documents: Sequence[str]) -> torch.Tensor:
        """Return bool [N], true for documents with letters enough."""
        kept = []
        for document in documents:
            text = "".join(document.split())
            kept.append(bool(text) and sum(map(str.isalpha, text)) >= self.least * len(text))
        return torch.tensor(kept, dtype=torch.bool)
