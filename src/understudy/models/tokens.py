"""Token sequences in a batch: how they lie in rows, which tokens are predicted, and where to find each again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch

from understudy.errors import ModelError


@dataclass(frozen=True)
class TokenSequence:
    """One piece of text as a model reads it.

    Attributes:
        ids: int64 [L], on the CPU.
        document: number of the document in the batch that it comes from. A document that is longer than a model's rows
            is several sequences, in order.
        start: the first token that counts. Those before it are a prompt: read, not learnt. The first token of all has
            nothing before it and is never predicted.
        repeated: how many tokens at the beginning are the last ones of the document's sequence before: a window
            begins with the token that its first prediction is made from, so that no token of a document is lost.
    """

    ids: torch.Tensor
    document: int
    start: int = 0
    repeated: int = 0

    def __len__(self) -> int:
        """Return the number of tokens L."""
        return len(self.ids)

    @property
    def prompt(self) -> torch.Tensor:
        """The tokens before those that count, int64."""
        return self.ids[: self.start]

    @property
    def response(self) -> torch.Tensor:
        """The tokens that count, int64."""
        return self.ids[self.start :]


class Layout(Protocol):
    """What puts sequences into a model's rows: the preprocessing of a language model."""

    @property
    def vocabulary(self) -> int:
        """The number of tokens that there are; a model may have more logits, which mean nothing."""

    def lay_out(
        self, sequences: Sequence[TokenSequence], documents: int, device: torch.device
    ) -> Tokens:
        """Return the rows of sequences that come from so many documents."""


@dataclass(frozen=True, eq=False)
class Tokens(Mapping[str, torch.Tensor]):
    """What a language model's forward takes for a batch of documents, and what is asked of it there.

    As a mapping it holds the keywords of the forward. The order of what is predicted (document by document, token by
    token) does not depend on how sequences lie in rows, so that models with other rows can be compared row by row.

    Attributes:
        keywords: name -> tensor, such as `input_ids` [R, T].
        places: int64 [N], where the N predicted tokens are predicted: r * T + t.
        labels: int64 [N], the tokens that are predicted there.
        owners: int64 [N], the document of each, as its number in the batch.
        elements: int64 [B, L], r * T + t of every token of each document in order, 0 behind its last. A token that
            two windows hold stands there once, where it predicts.
        mask: bool [B, L], which of `elements` are a token whose hidden state counts: one that predicts a token that
            counts, or, where a model reads in both directions, every token of the text.
        grid: (R, T), the rows that outputs and hidden states have.
        sequences: what lies in the rows, on the CPU.
        layout: what laid it out.
    """

    keywords: Mapping[str, torch.Tensor]
    places: torch.Tensor
    labels: torch.Tensor
    owners: torch.Tensor
    elements: torch.Tensor
    mask: torch.Tensor
    grid: tuple[int, int]
    sequences: tuple[TokenSequence, ...]
    layout: Layout = field(repr=False)

    def __getitem__(self, key: str) -> torch.Tensor:
        """Return a keyword of the model's forward."""
        return self.keywords[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keywords of the model's forward."""
        return iter(self.keywords)

    def __len__(self) -> int:
        """Return the number of keywords."""
        return len(self.keywords)

    @property
    def documents(self) -> int:
        """The number of documents B."""
        return len(self.elements)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.places.device

    @cached_property
    def read(self) -> int:
        """How many tokens the model reads, without padding."""
        return sum(map(len, self.sequences))

    def predicting(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what stands at the places that predict a token: [N, ...] of [R, T, ...].

        Raises:
            ModelError: the rows are not those of this batch.
        """
        if tuple(rows.shape[:2]) != self.grid:
            raise ModelError(
                f"For token rows of shape {self.grid} the model gave {tuple(rows.shape)}; the first two dimensions "
                "must be the same."
            )
        return rows.flatten(0, 1).index_select(0, self.places)

    def by_document(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [B, L, ...] of [R, T, ...]: each document's tokens in order, and anything behind its last.

        What has other rows than the tokens, such as an encoder's states, is returned as it is.
        """
        if rows.dim() < 3 or tuple(rows.shape[:2]) != self.grid:
            return rows
        flat = rows.flatten(0, 1).index_select(0, self.elements.flatten())
        found: torch.Tensor = flat.unflatten(0, self.elements.shape)
        return found

    def relaid(self, sequences: Sequence[TokenSequence]) -> Tokens:
        """Return other sequences for the same documents, such as what a model wrote, in the same layout."""
        return self.layout.lay_out(sequences, self.documents, self.device)

    def with_keywords(self, **keywords: torch.Tensor) -> Tokens:
        """Return a copy with some keywords of the forward replaced."""
        return replace(self, keywords={**self.keywords, **keywords})


@dataclass(frozen=True)
class Rows:
    """Where sequences lie in rows of tokens.

    Attributes:
        row: the row of each sequence.
        offset: where in the row it begins.
        shape: (R, T).
    """

    row: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, int]


def packed(lengths: Sequence[int], capacity: int, multiple: int = 8) -> Rows:
    """Put sequences one behind the other into as few rows as first-fit decreasing finds.

    Args:
        lengths: tokens of each sequence.
        capacity: most tokens of a row.
        multiple: the rows' length is rounded up to a multiple of this, within the capacity.

    Raises:
        ModelError: a sequence is longer than a row.
    """
    _check_lengths(lengths, capacity)
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    used: list[int] = []
    row, offset = [0] * len(lengths), [0] * len(lengths)
    for number in order:
        length = lengths[number]
        place = next((r for r, taken in enumerate(used) if taken + length <= capacity), len(used))
        if place == len(used):
            used.append(0)
        row[number], offset[number] = place, used[place]
        used[place] += length
    return Rows(tuple(row), tuple(offset), (len(used), _rounded(max(used), capacity, multiple)))


def padded(lengths: Sequence[int], capacity: int, multiple: int = 8) -> Rows:
    """Put each sequence into a row of its own.

    Args:
        lengths: tokens of each sequence.
        capacity: most tokens of a row.
        multiple: see `packed`.

    Raises:
        ModelError: a sequence is longer than a row.
    """
    _check_lengths(lengths, capacity)
    count = len(lengths)
    shape = (count, _rounded(max(lengths), capacity, multiple))
    return Rows(tuple(range(count)), (0,) * count, shape)


def _check_lengths(lengths: Sequence[int], capacity: int) -> None:
    if not lengths:
        raise ModelError("There is no sequence to lay out.")
    if min(lengths) < 1:
        raise ModelError(f"Sequence {lengths.index(min(lengths))} of the batch has no token.")
    if max(lengths) > capacity:
        raise ModelError(
            f"A sequence has {max(lengths)} tokens, and a row of the model holds {capacity}."
        )


def _rounded(length: int, capacity: int, multiple: int) -> int:
    return min(capacity, -(-length // multiple) * multiple)
