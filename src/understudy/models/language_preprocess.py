"""Documents to the rows of a model that predicts each token from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from understudy.errors import ModelError, unknown_name
from understudy.models.language_documents import LONG, Documents, Long
from understudy.models.language_rows import Packing, causal_tokens
from understudy.models.language_text import WithTokenizer
from understudy.models.tokenizer import language_fingerprint
from understudy.models.tokens import Rows, Tokens, TokenSequence, packed, padded

PACKINGS: tuple[Packing, ...] = ("padded", "positions", "mask", "bias")
_MULTIPLE = 8


class CausalPreprocess(WithTokenizer):
    """Lays documents into rows for a causal language model.

    Args:
        tokenizer: a `transformers` tokenizer with an end token.
        max_length: most tokens of a row.
        packing: "padded" (or False): a row for every sequence. The others put several into a row; the model tells
            them apart by positions that begin again ("positions"), or is given a mask of bools ("mask") or of numbers
            that are added to its scores ("bias"). What a model can take is found when it is built.
        long: what happens to documents that are longer than a row: "split", "cut" or "refuse".
        chat_template: whether pairs of a prompt and a response go through the tokenizer's chat template.
        dynamic: rows are as long as the longest one of the batch needs; otherwise always `max_length`.
        attention_mask: whether the model takes a mask of the tokens in padded rows.
    """

    draws = False

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        packing: Packing | bool = "padded",
        long: Long = "split",
        chat_template: bool = False,
        dynamic: bool = True,
        attention_mask: bool = True,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "The tokenizer has no end token, so a model could not learn where a text ends. Set its `eos_token`."
            )
        if max_length < 2:
            raise ModelError(
                f"'max_length' is {max_length}; a row needs 2 tokens at least, one to predict the other from."
            )
        if long not in LONG:
            raise unknown_name("way with long documents (`long`)", str(long), LONG)
        if chat_template and not tokenizer.chat_template:
            raise ModelError(
                "`chat_template` is set, but the tokenizer has no chat template. Give a tokenizer that has one."
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.packing: Packing = _packing(packing)
        self.long, self.chat_template = long, chat_template
        self.dynamic, self.attention_mask = dynamic, attention_mask
        self._documents = Documents(tokenizer, max_length, long, chat_template)
        self._fingerprint = language_fingerprint(tokenizer, chat_template)
        # What stands in empty cells is never read, so the end token will do where there is no padding token.
        unpadded = tokenizer.pad_token_id is None
        self._padding = int(tokenizer.eos_token_id if unpadded else tokenizer.pad_token_id)

    def __call__(self, raw: Any, device: torch.device) -> Tokens:
        """Return the rows of a batch of documents, strings or pairs (prompt, response)."""
        return self.lay_out(self.sequences_of(raw), len(raw), device)

    def sequences_of(self, raw: Any) -> list[TokenSequence]:
        """Return the sequences of a batch of documents on the CPU; an empty document has none.

        Raises:
            ModelError: they are no texts, or too long where that is refused.
        """
        return self._documents(raw)

    def lay_out(
        self, sequences: Sequence[TokenSequence], documents: int, device: torch.device
    ) -> Tokens:
        """Return the rows of sequences that come from so many documents.

        A batch without any sequence is a row of padding, in which nothing is predicted.

        Raises:
            ModelError: a sequence is longer than a row.
        """
        multiple = _MULTIPLE if self.dynamic else self.max_length
        lay = padded if self.packing == "padded" else packed
        lengths = [len(sequence) for sequence in sequences]
        empty = Rows((), (), (1, min(multiple, self.max_length)))
        return causal_tokens(
            sequences,
            lay(lengths, self.max_length, multiple) if lengths else empty,
            documents,
            device,
            packing=self.packing,
            padding=self._padding,
            attention_mask=self.attention_mask,
            layout=self,
        )

    def notes(self) -> list[str]:
        """Say which documents were cut, split or left out so far, and how many."""
        return self._documents.notes()

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values; for the tokenizer stands a hash of its content."""
        return {
            "type": "causal_lm",
            "tokenizer": self._fingerprint,
            "max_length": self.max_length,
            "packing": self.packing,
            "long": self.long,
            "chat_template": self.chat_template,
            "dynamic": self.dynamic,
            "attention_mask": self.attention_mask,
        }


def _packing(wanted: Packing | bool) -> Packing:
    if wanted is False:
        return "padded"
    if wanted not in PACKINGS:
        raise ModelError(
            f"'packing' is {wanted!r}, which is decided when a model is built; without one it is one of "
            f"{', '.join(PACKINGS)}."
        )
    assert not isinstance(wanted, bool)
    return wanted
