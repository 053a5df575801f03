"""What the preprocessings of language models share: a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from understudy.models.configured import Configured


class WithTokenizer(Configured):
    """Base of what encodes documents for a language model.

    Attributes:
        tokenizer: a `transformers` tokenizer.
    """

    tokenizer: Any

    @property
    def vocabulary(self) -> int:
        """The number of tokens that there are."""
        return len(self.tokenizer)

    def decode(self, ids: torch.Tensor | Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text
