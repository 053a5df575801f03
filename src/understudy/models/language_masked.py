"""Documents to the rows of a model that finds tokens again which were taken out of a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch

from understudy import seeding
from understudy.errors import ModelError, unknown_name
from understudy.models.language_documents import (
    CUT,
    CUT_PROMPT,
    CUT_RESPONSE,
    SKIPPED,
    SPLIT,
    Long,
    said,
)
from understudy.models.language_documents import LONG as _LONG
from understudy.models.language_rows import Packing, Placed, placed, separating_keywords
from understudy.models.language_text import WithTokenizer
from understudy.models.text_preprocess import texts_of
from understudy.models.tokenizer import language_fingerprint
from understudy.models.tokens import Rows, Tokens, TokenSequence, packed, padded

PACKINGS: tuple[Packing, ...] = ("padded", "mask", "bias")
_MULTIPLE = 8
_MASKED, _REPLACED = 0.8, 0.9
_EVALUATION_VIEW = -1


class MaskedPreprocess(WithTokenizer):
    """Lays documents into rows and takes tokens out, as BERT does (Devlin et al. 2019, section 3.1).

    Of the tokens that are no special ones, a share is predicted: 80 % of these are read as the mask token, 10 % as a
    random one, 10 % as they are. Which, depends on (seed, document, view) alone. In evaluation it is always the same.
    Of a pair only the second text is predicted.

    Args:
        tokenizer: a `transformers` tokenizer with a mask token.
        max_length: most tokens of a row, with the special ones.
        share: the part of the tokens that is predicted; at least one of each document.
        seed: of the draws. Models that see the same documents with the same seed are asked for the same tokens.
        long: what happens to longer documents: "split", "cut" or "refuse".
        dynamic: rows are as long as the longest one of the batch needs; otherwise always `max_length`.
        token_types: whether the model is told which of two texts a token belongs to.
        packing: "padded" (or False): a row for every sequence. Otherwise several share a row, told apart by a mask of
            bools ("mask") or of numbers that are added to the model's scores ("bias"). What a model can take is found
            when it is built.
        first_position: the position of a sequence's first token, where several share a row.
    """

    draws = True

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        share: float = 0.15,
        seed: int = 0,
        long: Long = "split",
        dynamic: bool = True,
        token_types: bool = False,
        packing: Packing | Literal[False] = "padded",
        first_position: int = 0,
    ) -> None:
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise ModelError("The tokenizer has no mask token, or no padding token; set both.")
        if not 0 < share < 1:
            raise ModelError(f"'share' is {share}; it is a part of the tokens, between 0 and 1.")
        if long not in _LONG:
            raise unknown_name("way with long documents (`long`)", str(long), _LONG)
        if packing is not False and packing not in PACKINGS:
            raise unknown_name("packing", str(packing), PACKINGS)
        self.tokenizer, self.max_length = tokenizer, max_length
        self.packing: Packing = packing or "padded"
        self.first_position = first_position
        self.share, self.seed = float(share), int(seed)
        self.long, self.dynamic, self.token_types = long, dynamic, token_types
        self.counts: Counter[str] = Counter()
        self._fingerprint = language_fingerprint(tokenizer)
        self._special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
        every = torch.arange(len(tokenizer))
        self._ordinary = every[~torch.isin(every, self._special)]
        self._frame = _frame(tokenizer, ["a"])
        self._pair_frame = _frame(tokenizer, ["a"], ["a"])
        least = sum(map(len, self._pair_frame)) + 2
        if max_length < least:
            raise ModelError(f"'max_length' is {max_length}; it must be at least {least}.")

    def __call__(
        self,
        raw: Any,
        device: torch.device,
        ids: torch.Tensor | None = None,
        views: torch.Tensor | None = None,
    ) -> Tokens:
        """Return the rows of a batch of documents.

        Args:
            raw: strings, or pairs of strings.
            device: where the tensors go.
            ids: int64 [B], the ids of the documents; by default their numbers in the batch.
            views: int64 [B], which view of each is drawn; by default that of evaluation, -1.
        """
        return self.lay_out(self.sequences_of(raw), len(raw), device, ids, views)

    def sequences_of(self, raw: Any) -> list[TokenSequence]:
        """Return the sequences of a batch as they are read before anything is taken out; an empty document has none.

        Raises:
            ModelError: they are no texts, or too long where that is refused.
        """
        first, second = texts_of(raw)
        self.counts["documents"] += len(first)
        encoded = self._encode(first)
        if second is None:
            return [each for number, ids in enumerate(encoded) for each in self._text(number, ids)]
        pairs = zip(encoded, self._encode(second), strict=True)
        return [each for number, pair in enumerate(pairs) for each in self._pair(number, *pair)]

    def lay_out(
        self,
        sequences: Sequence[TokenSequence],
        documents: int,
        device: torch.device,
        ids: torch.Tensor | None = None,
        views: torch.Tensor | None = None,
    ) -> Tokens:
        """Return the rows of sequences that come from so many documents; `ids` and `views` as for a call."""
        multiple = _MULTIPLE if self.dynamic else self.max_length
        lay = padded if self.packing == "padded" else packed
        lengths = [len(sequence) for sequence in sequences]
        empty = Rows((), (), (1, min(multiple, self.max_length)))
        rows = lay(lengths, self.max_length, multiple) if lengths else empty
        return self.in_rows(sequences, rows, documents, device, ids, views, packing=self.packing)

    def in_rows(
        self,
        sequences: Sequence[TokenSequence],
        rows: Rows,
        documents: int,
        device: torch.device,
        ids: torch.Tensor | None = None,
        views: torch.Tensor | None = None,
        *,
        packing: Packing,
    ) -> Tokens:
        """Return sequences in given rows.

        Args:
            sequences: what lies in the rows.
            rows: where.
            documents: number of documents B.
            device: where the tensors go.
            ids: as for a call.
            views: as for a call.
            packing: how sequences in one row are kept apart.
        """
        laid = placed(sequences, rows)
        text = ~torch.isin(laid.ids, self._special)
        ids = torch.arange(documents) if ids is None else ids.cpu()
        views = torch.full_like(ids, _EVALUATION_VIEW) if views is None else views.cpu()
        chosen, read = self._drawn(laid, text, ids, views)
        elements, mask = laid.elements(text, documents)
        keywords = {"input_ids": laid.grid(read, self.tokenizer.pad_token_id)}
        if packing == "padded":
            keywords["attention_mask"] = laid.grid(torch.ones_like(laid.ids), 0)
        else:
            keywords |= separating_keywords(
                laid, packing, device, causal=False, first_position=self.first_position
            )
        if self.token_types:
            starts = torch.tensor([sequence.start for sequence in laid.sequences])
            own = starts[laid.sequence] if len(laid.ids) else laid.ids
            keywords["token_type_ids"] = laid.grid(((own > 0) & (laid.within >= own)).long(), 0)
        parts = (laid.cell[chosen], laid.ids[chosen], laid.document[chosen], elements, mask)
        places, labels, owners, elements, mask = (
            each.to(device, non_blocking=True) for each in parts
        )
        return Tokens(
            {name: each.to(device, non_blocking=True) for name, each in keywords.items()},
            places,
            labels,
            owners,
            elements,
            mask,
            laid.shape,
            laid.sequences,
            self,
        )

    def notes(self) -> list[str]:
        """Say which documents were cut, split or left out so far, and how many."""
        return said(self.counts)

    def config(self) -> dict[str, Any]:
        """Return what rebuilds it, as JSON values; for the tokenizer stands a hash of its content."""
        return {
            "type": "masked_lm",
            "tokenizer": self._fingerprint,
            "max_length": self.max_length,
            "share": self.share,
            "seed": self.seed,
            "long": self.long,
            "dynamic": self.dynamic,
            "token_types": self.token_types,
            "packing": self.packing,
            "first_position": self.first_position,
        }

    def _drawn(
        self, laid: Placed, text: torch.Tensor, ids: torch.Tensor, views: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return bool [N], what is predicted, and int64 [N], what is read."""
        if not len(laid.ids):
            return text, laid.ids
        starts = torch.tensor([sequence.start for sequence in laid.sequences])
        able = text & (laid.within >= starts[laid.sequence])
        lengths = torch.bincount(laid.document, minlength=len(ids))
        number = torch.arange(len(laid.ids)) - (lengths.cumsum(0) - lengths)[laid.document]

        def draw(purpose: str) -> torch.Tensor:
            drawn = seeding.uniform(
                self.seed, ids, views, f"masked_lm/{purpose}", int(lengths.max())
            )
            return drawn[laid.document, number]

        choice = draw("choice").masked_fill_(~able, 2.0)
        smallest = torch.full((len(ids),), 2.0)
        smallest.scatter_reduce_(0, laid.document, choice, "amin")
        # A document in which nothing falls below the share gives its first candidate.
        least = torch.maximum(smallest, torch.tensor(self.share))
        chosen = able & (choice <= least[laid.document]) & (choice < 1.5)
        kind = draw("kind")
        other = (draw("token") * len(self._ordinary)).long().clamp_(max=len(self._ordinary) - 1)
        read = torch.where(chosen & (kind < _MASKED), self.tokenizer.mask_token_id, laid.ids)
        replaced = chosen & (kind >= _MASKED) & (kind < _REPLACED)
        return chosen, torch.where(replaced, self._ordinary[other], read)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _text(self, number: int, ids: list[int]) -> list[TokenSequence]:
        before, after = self._frame
        size = self.max_length - len(before) - len(after)
        if not ids:
            self.counts[SKIPPED] += 1
            return []
        windows = [ids[begin : begin + size] for begin in range(0, len(ids), size)]
        if len(windows) > 1:
            self._refuse_long(number, len(ids) + len(before) + len(after))
            self.counts[SPLIT if self.long == "split" else CUT] += 1
            windows = windows if self.long == "split" else windows[:1]
        return [TokenSequence(torch.tensor(before + part + after), number) for part in windows]

    def _pair(self, number: int, first: list[int], second: list[int]) -> list[TokenSequence]:
        before, between, after = self._pair_frame
        if not second:
            self.counts[SKIPPED] += 1
            return []
        room = self.max_length - len(before) - len(between) - len(after)
        if len(first) + len(second) > room:
            self._refuse_long(number, len(first) + len(second) + self.max_length - room)
            if len(second) > room:
                self.counts[CUT_RESPONSE] += 1
                second = second[:room]
            left = room - len(second)
            if len(first) > left:
                self.counts[CUT_PROMPT] += 1
                first = first[len(first) - left :]
        start = len(before) + len(first) + len(between)
        ids = torch.tensor(before + first + between + second + after)
        return [TokenSequence(ids, number, start)]

    def _refuse_long(self, number: int, length: int) -> None:
        if self.long == "refuse":
            raise ModelError(
                f"Document {number} of the batch has {length} tokens, a row of the model holds {self.max_length}. "
                "Give a larger `max_length`, or `long: split` or `long: cut`."
            )


def _frame(tokenizer: Any, *texts: list[str]) -> list[list[int]]:
    """Return the special tokens that a tokenizer writes before, between and after so many texts."""
    encoded = tokenizer(*texts, return_special_tokens_mask=True)
    runs: list[list[int]] = [[]]
    outside = True
    for token, special in zip(
        encoded["input_ids"][0], encoded["special_tokens_mask"][0], strict=True
    ):
        if special:
            runs[-1].append(token)
        elif outside:
            runs.append([])
        outside = bool(special)
    if len(runs) != len(texts) + 1:
        raise ModelError(
            "The tokenizer writes nothing between two texts, so their border could not be found; set its separator."
        )
    return runs
