"""Documents that are nearly what was there before."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from understudy.data.curation import Filter, filters
from understudy.errors import DataError

_PRIME = np.uint64((1 << 31) - 1)
"""Hashes are below 2^31, so that no product overflows, and products are far above it, so that their order is mixed."""
_BANDS, _ROWS = 32, 4
"""Documents of which one band of hashes is equal are compared: at a similarity of 0.8 all but 1 pair in 10^7."""


@filters.register("near_duplicates")
class NearDuplicates(Filter):
    """Keeps the first of documents that share most of their word sequences.

    Candidates are found by MinHash (Broder, "On the resemblance and containment of documents", 1997) and then compared
    exactly, so that nothing is left out by chance; of pairs with a similarity below 0.6 some are not found. Documents
    with fewer words than a sequence are kept.

    Args:
        similarity: the share of word sequences, of all that either has, from which two documents are near duplicates.
        words: how many words in a row are compared.
    """

    def __init__(self, similarity: float = 0.8, words: int = 5) -> None:
        """Check the numbers."""
        if not 0 < similarity <= 1:
            raise DataError(f"similarity is {similarity}; it must be above 0 and at most 1.")
        if words < 1:
            raise DataError(f"words is {words}; it must be at least 1.")
        self.similarity, self.words = similarity, words

    def keep(self, documents: Sequence[str]) -> torch.Tensor:
        """Return bool [N], false for what is nearly a document before it that is kept."""
        draw = np.random.default_rng(0)
        factors = draw.integers(1, 2**31, _BANDS * _ROWS, dtype=np.uint64)
        shifts = draw.integers(0, 2**31, _BANDS * _ROWS, dtype=np.uint64)
        buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
        shingles: dict[int, frozenset[int]] = {}
        kept = []
        for number, document in enumerate(documents):
            own = self._shingles(document)
            near = False
            if own:
                hashes = np.fromiter(own, dtype=np.uint64, count=len(own))
                least = ((hashes[:, None] * factors + shifts) % _PRIME).min(axis=0)
                keys = [
                    (band, least[band * _ROWS : (band + 1) * _ROWS].tobytes())
                    for band in range(_BANDS)
                ]
                candidates = {other for key in keys for other in buckets.get(key, ())}
                near = any(self._alike(own, shingles[other]) for other in candidates)
                if not near:
                    shingles[number] = own
                    for key in keys:
                        buckets[key].append(number)
            kept.append(not near)
        return torch.tensor(kept, dtype=torch.bool)

    def _alike(self, own: frozenset[int], other: frozenset[int]) -> bool:
        shared = len(own & other)
        return shared >= self.similarity * (len(own) + len(other) - shared)

    def _shingles(self, document: str) -> frozenset[int]:
        """Return the hashes, below 2^31, of all sequences of words."""
        words = document.casefold().split()
        sequences = {
            " ".join(words[begin : begin + self.words])
            for begin in range(len(words) - self.words + 1)
        }
        return frozenset(
            int.from_bytes(
                hashlib.blake2b(each.encode("utf-8", "surrogatepass"), digest_size=4).digest(),
                "big",
            )
            >> 1
            for each in sequences
        )
