"""Documents that are too short or too long."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from understudy.data.curation import Filter, filters
from understudy.errors import DataError


@filters.register("length")
class Length(Filter):
    """Keeps documents of a length in characters.

    Args:
        least: the fewest characters.
        most: the most characters; None for no limit.
    """

    def __init__(self, least: int = 1, most: int | None = None) -> None:
        """Check the numbers."""
        if least < 0 or (most is not None and most < max(1, least)):
            raise DataError(f"least is {least} and most {most}; no document is so long.")
        self.least, self.most = least, most

    def keep(self, documents: Sequence[str]) -> torch.Tensor:
        """Return bool [N], true for documents within the limits."""
        most = float("inf") if self.most is None else self.most
        kept = [self.least <= len(document) <= most for document in documents]
        return torch.tensor(kept, dtype=torch.bool)
