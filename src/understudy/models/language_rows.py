"""Sequences of a language model in rows: where each token lies, and what is predicted from where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from understudy.models.tokens import Layout, Rows, Tokens, TokenSequence

Packing = Literal["padded", "positions", "mask", "bias"]
"""How sequences share rows: not at all; told apart by positions that begin again; or by a mask, of bools or as numbers
that are added to the attention's scores."""


@dataclass(frozen=True)
class Placed:
    """All tokens of a batch in document order, with where they lie. N tokens of S sequences, on the CPU.

    Attributes:
        ids: int64 [N].
        sequence: int64 [N], the sequence of each token.
        within: int64 [N], its number in the sequence.
        cell: int64 [N], r * T + t.
        document: int64 [N].
        predicted: bool [N], whether it is predicted (from the token before).
        shape: (R, T).
        sequences: the sequences in document order.
    """

    ids: torch.Tensor
    sequence: torch.Tensor
    within: torch.Tensor
    cell: torch.Tensor
    document: torch.Tensor
    predicted: torch.Tensor
    shape: tuple[int, int]
    sequences: tuple[TokenSequence, ...]

    def grid(self, values: torch.Tensor, empty: int) -> torch.Tensor:
        """Return [R, T] with a value [N] for each token and `empty` where there is none."""
        cells = values.new_full((self.shape[0] * self.shape[1],), empty)
        cells[self.cell] = values
        return cells.view(self.shape)

    def elements(self, counts: torch.Tensor, documents: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `Tokens.elements` and `Tokens.mask` for tokens [N] that count."""
        kept = self._kept()
        cell, owner, counts = self.cell[kept], self.document[kept], counts[kept]
        lengths = torch.bincount(owner, minlength=documents)
        number = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
        longest = max(1, int(lengths.max()))
        elements = torch.zeros(documents, longest, dtype=torch.int64)
        mask = torch.zeros(documents, longest, dtype=torch.bool)
        elements[owner, number] = cell
        mask[owner, number] = counts
        return elements, mask

    def _kept(self) -> torch.Tensor:
        """Leave out what the next window of the same document repeats."""
        kept = torch.ones(len(self.ids), dtype=torch.bool)
        end = 0
        for sequence in self.sequences:
            if sequence.repeated:
                kept[end - sequence.repeated : end] = False
            end += len(sequence)
        return kept


def placed(sequences: Sequence[TokenSequence], rows: Rows) -> Placed:
    """Put the tokens of sequences where `rows` says, and bring them into the order of documents."""
    order = sorted(range(len(sequences)), key=lambda number: sequences[number].document)
    chosen = tuple(sequences[number] for number in order)
    length = rows.shape[1]
    lengths = torch.tensor([len(sequence) for sequence in chosen], dtype=torch.int64)
    first = [rows.row[number] * length + rows.offset[number] for number in order]
    first_learnt = torch.tensor([max(1, sequence.start) for sequence in chosen], dtype=torch.int64)
    documents = torch.tensor([sequence.document for sequence in chosen], dtype=torch.int64)
    sequence = torch.arange(len(chosen)).repeat_interleave(lengths)
    within = torch.arange(len(sequence)) - (lengths.cumsum(0) - lengths)[sequence]
    return Placed(
        ids=torch.cat([each.ids for each in chosen] or [torch.zeros(0, dtype=torch.int64)]),
        sequence=sequence,
        within=within,
        cell=torch.tensor(first, dtype=torch.int64)[sequence] + within,
        document=documents[sequence],
        predicted=within >= first_learnt[sequence],
        shape=rows.shape,
        sequences=chosen,
    )


def causal_tokens(
    sequences: Sequence[TokenSequence],
    rows: Rows,
    documents: int,
    device: torch.device,
    *,
    packing: Packing,
    padding: int,
    attention_mask: bool,
    layout: Layout,
) -> Tokens:
    """Return the rows of a model that predicts each token from those before it.

    Args:
        sequences: what lies in the rows.
        rows: where.
        documents: number of documents B.
        device: where the tensors go.
        packing: how sequences in one row are kept apart.
        padding: id of the token in cells that hold none.
        attention_mask: whether a padded row is given with the mask of its tokens [R, T].
        layout: what laid it out.
    """
    laid = placed(sequences, rows)
    # A token predicts the one behind it, which is the next of all: a sequence's first token is never predicted.
    predicts = torch.cat([laid.predicted[1:], torch.zeros(1, dtype=torch.bool)])[: len(laid.ids)]
    elements, mask = laid.elements(predicts, documents)
    keywords = {"input_ids": laid.grid(laid.ids, padding).to(device, non_blocking=True)}
    if packing == "padded":
        if attention_mask:
            present = laid.grid(torch.ones_like(laid.ids), 0)
            keywords["attention_mask"] = present.to(device, non_blocking=True)
    else:
        keywords |= separating_keywords(laid, packing, device)
    return Tokens(
        keywords=keywords,
        places=(laid.cell[laid.predicted] - 1).to(device, non_blocking=True),
        labels=laid.ids[laid.predicted].to(device, non_blocking=True),
        owners=laid.document[laid.predicted].to(device, non_blocking=True),
        elements=elements.to(device, non_blocking=True),
        mask=mask.to(device, non_blocking=True),
        grid=laid.shape,
        sequences=laid.sequences,
        layout=layout,
    )


def separating_keywords(
    laid: Placed,
    packing: Packing,
    device: torch.device,
    *,
    causal: bool = True,
    first_position: int = 0,
) -> dict[str, torch.Tensor]:
    """Return what tells a model which tokens of a row belong together.

    Args:
        laid: the tokens.
        packing: how; not "padded".
        device: where the tensors go.
        causal: whether a token looks at earlier ones only.
        first_position: the position of a sequence's first token.
    """
    positions = _positions(laid).add_(first_position)
    keywords = {"position_ids": positions.to(device, non_blocking=True)}
    if packing != "positions":
        segments = laid.grid(laid.sequence + 1, 0).to(device, non_blocking=True)
        allowed = separating_mask(segments, causal)
        keywords["attention_mask"] = allowed if packing == "mask" else _added(allowed)
    return keywords


def separating_mask(segments: torch.Tensor, causal: bool = True) -> torch.Tensor:
    """Return bool [R, 1, T, T], True where a token (third dimension) may look at another (fourth).

    That is one of the same segment [R, T], and with `causal` one that does not come after it. Padding is a segment too,
    so that every row of the softmax has something to look at.
    """
    allowed = segments.unsqueeze(2) == segments.unsqueeze(1)
    if causal:
        length = segments.shape[1]
        allowed &= torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return allowed.unsqueeze(1)


def _added(allowed: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers of the same shape that leave what is allowed and bring the rest to nothing."""
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, lowest)


def _positions(laid: Placed) -> torch.Tensor:
    """Return the number of each token in its sequence [R, T]; padding behind the last counts from 0 as well."""
    rows, length = laid.shape
    begins = laid.grid((laid.within == 0).to(torch.int64), 0)
    present = laid.grid(torch.ones_like(laid.ids), 0)
    end = present.sum(dim=1)
    inside = end < length
    begins[torch.arange(rows)[inside], end[inside]] = 1
    number = torch.arange(length).expand(rows, length)
    found: torch.Tensor = number - torch.where(begins == 1, number, 0).cummax(dim=1).values
    return found
