"""Documents that say the same again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from understudy.data.curation import Filter, filters
from understudy.errors import DataError


@filters.register("repetition")
class Repetition(Filter):
    """Leaves out documents in which sequences of words come again and again.

    Similar in kind to the rules of Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training
    Gopher", 2021, appendix A; the share is of words and the limit is ours.

    Args:
        most: the largest share of words that may lie in a sequence that the document has twice or more.
        words: how many words in a row are compared.
    """

    def __init__(self, most: float = 0.3, words: int = 5) -> None:
        """Check the numbers."""
        if not 0 <= most <= 1:
            raise DataError(f"most is {most}; a share lies between 0 and 1.")
        if words < 1:
            raise DataError(f"words is {words}; it must be at least 1.")
        self.most, self.words = most, words

    def keep(self, documents: Sequence[str]) -> torch.Tensor:
        """Return bool [N], false for documents that repeat themselves."""
        return torch.tensor(
            [self._repeated(document) <= self.most for document in documents], dtype=torch.bool
        )

    def _repeated(self, document: str) -> float:
        words = document.casefold().split()
        sequences = [
            tuple(words[begin : begin + self.words]) for begin in range(len(words) - self.words + 1)
        ]
        counts = Counter(sequences)
        inside: set[int] = set()
        for begin, sequence in enumerate(sequences):
            if counts[sequence] > 1:
                inside.update(range(begin, begin + self.words))
        return len(inside) / len(words) if words else 0.0
