"""Pairs of texts to the rows of an encoder and a decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from understudy.errors import ModelError
from understudy.models.language_documents import CUT_PROMPT, CUT_RESPONSE, SKIPPED, Long, said
from understudy.models.language_rows import Placed, placed
from understudy.models.language_text import WithTokenizer
from understudy.models.text_preprocess import texts_of
from understudy.models.tokenizer import language_fingerprint
from understudy.models.tokens import Rows, Tokens, TokenSequence, padded

_MULTIPLE = 8
_WAYS = ("cut", "refuse")


class PairPreprocess(WithTokenizer):
    """Lays pairs (prompt, response) into rows: the encoder reads the prompt, the decoder predicts the response.

    Both are encoded as the tokenizer does, the response with an end token behind it. The decoder reads the start token
    and then the response, each token predicting the next.

    Args:
        tokenizer: a `transformers` tokenizer with an end token and a padding token.
        max_length: most tokens of a prompt, and of a response.
        start_token: id of the token that the decoder begins with.
        long: what happens to longer texts: "cut" on their right, or "refuse".
        dynamic: rows are as long as the longest one of the batch needs; otherwise always `max_length`.
    """

    draws = False

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        start_token: int,
        long: Long = "cut",
        dynamic: bool = True,
    ) -> None:
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise ModelError("The tokenizer has no end token, or no padding token; set both.")
        if max_length < 2:
            raise ModelError(f"'max_length' is {max_length}; it must be at least 2.")
        if long not in _WAYS:
            raise ModelError(f"`long` is {long!r}; pairs are cut or refused, not split.")
        self.tokenizer, self.max_length, self.start_token = tokenizer, max_length, start_token
        self.long, self.dynamic = long, dynamic
        self.counts: Counter[str] = Counter()
        self._fingerprint = language_fingerprint(tokenizer)
        self._end = tokenizer.eos_token_id

    def __call__(self, raw: Any, device: torch.device) -> Tokens:
        """Return the rows of a batch of pairs (prompt, response)."""
        return self.lay_out(self.sequences_of(raw), len(raw), device)

    def sequences_of(self, raw: Any) -> list[TokenSequence]:
        """Return a sequence for each pair with a response: the prompt as the encoder reads it, then the response.

        Raises:
            ModelError: they are no pairs, or too long where that is refused.
        """
        first, second = texts_of(raw)
        if second is None:
            raise ModelError(
                "An encoder and a decoder need pairs of a prompt and a response; these are single texts."
            )
        self.counts["documents"] += len(first)
        found = []
        encoded = zip(self._encode(first), self._encode(second), strict=True)
        for number, (prompt, response) in enumerate(encoded):
            if not second[number] or not prompt:
                self.counts[SKIPPED] += 1
                continue
            answer = response if response[-1:] == [self._end] else [*response, self._end]
            prompt = self._fitted(number, prompt, CUT_PROMPT)
            answer = self._fitted(number, answer, CUT_RESPONSE)
            found.append(TokenSequence(torch.tensor(prompt + answer), number, len(prompt)))
        return found

    def lay_out(
        self, sequences: Sequence[TokenSequence], documents: int, device: torch.device
    ) -> Tokens:
        """Return the rows of sequences that come from so many documents, one for each."""
        asked = self._placed([replace(each, ids=each.prompt, start=0) for each in sequences])
        answered = self._placed([replace(each, ids=each.response, start=0) for each in sequences])
        ahead = answered.ids.roll(1)
        ahead[answered.within == 0] = self.start_token
        elements, mask = answered.elements(torch.ones_like(ahead, dtype=torch.bool), documents)
        padding = self.tokenizer.pad_token_id
        keywords = {
            "input_ids": asked.grid(asked.ids, padding),
            "attention_mask": asked.grid(torch.ones_like(asked.ids), 0),
            "decoder_input_ids": answered.grid(ahead, padding),
        }
        parts = (answered.cell, answered.ids, answered.document, elements, mask)
        places, labels, owners, elements, mask = (
            each.to(device, non_blocking=True) for each in parts
        )
        ordered = sorted(sequences, key=lambda sequence: sequence.document)
        return Tokens(
            {name: each.to(device, non_blocking=True) for name, each in keywords.items()},
            places,
            labels,
            owners,
            elements,
            mask,
            answered.shape,
            tuple(ordered),
            self,
        )

    def notes(self) -> list[str]:
        """Say which documents were cut or left out so far, and how many."""
        return said(self.counts)

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values; for the tokenizer stands a hash of its content."""
        return {
            "type": "seq2seq",
            "tokenizer": self._fingerprint,
            "max_length": self.max_length,
            "start_token": self.start_token,
            "long": self.long,
            "dynamic": self.dynamic,
        }

    def _placed(self, sequences: Sequence[TokenSequence]) -> Placed:
        multiple = _MULTIPLE if self.dynamic else self.max_length
        lengths = [len(sequence) for sequence in sequences]
        empty = Rows((), (), (1, min(multiple, self.max_length)))
        rows = padded(lengths, self.max_length, multiple) if lengths else empty
        return placed(sequences, rows)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(list(texts), return_attention_mask=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _fitted(self, number: int, ids: list[int], what: str) -> list[int]:
        """Cut what is too long on its right, but keep a special token that ends it."""
        if len(ids) <= self.max_length:
            return ids
        if self.long == "refuse":
            raise ModelError(
                f"Document {number} of the batch has a text of {len(ids)} tokens, a row of the model holds "
                f"{self.max_length}. Give a larger `max_length`, or `long: cut`."
            )
        self.counts[what] += 1
        if what == CUT_PROMPT and ids[-1] == self._end:
            return [*ids[: self.max_length - 1], self._end]
        # A response that was cut does not end there, so no end is learnt.
        return ids[: self.max_length]
