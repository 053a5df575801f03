"""Documents that were there before."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import torch

from understudy.data.curation import Filter, filters


@filters.register("duplicates")
class Duplicates(Filter):
    """Keeps the first of equal documents.

    Args:
        ignore_case: whether capital and small letters, and one or several spaces, count as equal.
    """

    def __init__(self, ignore_case: bool = True) -> None:
        """Keep the setting."""
        self.ignore_case = ignore_case

    def keep(self, documents: Sequence[str]) -> torch.Tensor:
        """Return bool [N], false for what was there before."""
        seen: set[bytes] = set()
        kept = []
        for document in documents:
            text = document
            if self.ignore_case:
                text = " ".join(unicodedata.normalize("NFC", document).casefold().split())
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            kept.append(digest not in seen)
            seen.add(digest)
        return torch.tensor(kept, dtype=torch.bool)
