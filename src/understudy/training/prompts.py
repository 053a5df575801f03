"""Prompts out of documents, as a language model reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from understudy.data.source import Split
from understudy.models.model import Model
from understudy.models.tokens import TokenSequence


@dataclass(frozen=True)
class DocumentPrompt:
    """The part of a document that a response is written to.

    Attributes:
        id: the document's id.
        ids: the prompt's tokens, int64 [L], L at least 1.
        text: the prompt.
        response: what the document goes on with.
        pair: whether the document was a prompt and a response to begin with.
    """

    id: int
    ids: torch.Tensor
    text: str
    response: str
    pair: bool


def prompts_of(
    model: Model, split: Split, count: int, *, beginning: int, room: int
) -> list[DocumentPrompt]:
    """Return the prompts of the first documents of a split.

    A pair gives its first text as the prompt, another document its beginning. Documents that have no prompt, or no
    response to it, give none.

    Args:
        model: a causal language model; its preprocessing says what the tokens are.
        split: the documents.
        count: how many of them are looked at, at most.
        beginning: tokens that a document's beginning has, at most; half of a shorter document.
        room: tokens of a row that are left for a response. A longer prompt is cut on its left.
    """
    preprocess: Any = model.preprocess
    part = split.subset(torch.arange(min(count, len(split))))
    raw = part.fetch(torch.arange(len(part)))
    firsts: dict[int, TokenSequence] = {}
    for sequence in preprocess.sequences_of(raw):
        firsts.setdefault(sequence.document, sequence)
    found = []
    for number, (document, name) in enumerate(zip(raw, part.ids.tolist(), strict=True)):
        if number not in firsts:
            continue
        ids, pair = firsts[number].ids, isinstance(document, tuple)
        prompt = firsts[number].prompt if pair else ids[: min(beginning, len(ids) // 2)]
        if len(prompt) == 0:
            continue
        if isinstance(document, tuple):
            text, response = document
        else:
            text = preprocess.decode(prompt)
            response = preprocess.decode(ids[len(prompt) : len(prompt) + room])
        kept = prompt[-max(1, preprocess.max_length - room) :]
        found.append(DocumentPrompt(name, kept, text, response, pair))
    return found
