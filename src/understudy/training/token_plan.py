"""What labelling a language model will write: how many tokens each document has, in which columns, in which batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from understudy.data.loader import EVALUATION_VIEW
from understudy.data.source import Split
from understudy.errors import StoreError
from understudy.models.language_head import head_of
from understudy.models.model import Model
from understudy.models.tokens import TokenSequence
from understudy.objectives import Head
from understudy.teachers.store.codecs import Dense, Sparse, record_bytes
from understudy.teachers.store.manifest import HIDDEN, LOGITS, SCORES, Column
from understudy.teachers.store.settings import StoreSettings
from understudy.teachers.store.stored_head import head_bytes
from understudy.teachers.store.token_scores import TokenScores
from understudy.training.context import Context
from understudy.training.distribution import World
from understudy.training.labeller import Piece

PASS_TOKENS = 16384
"""Most tokens that the teacher reads in one pass, unless a single document has more."""
KEPT = 64
"""Logits kept in the smallest form that a plan shows; fewer where there are few tokens."""
_COUNTED_AT_ONCE = 256
_LOOKED_AT = 512


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of every (document, view) of a part, in the order of ascending ids, view after view.

    Attributes:
        predicted: int64 [pairs], how many are predicted: the rows that are stored.
        read: int64 [pairs], how many the teacher reads.
    """

    predicted: np.ndarray
    read: np.ndarray


def count_tokens(
    preprocess: Any, split: Split, positions: torch.Tensor, views: int | None, world: World
) -> TokenCounts:
    """Count the tokens of documents as a language model's preprocessing cuts them. The processes share the work.

    Args:
        preprocess: a `Layout` with `sequences_of`.
        split: the documents.
        positions: int64 [N], which of them, in which order.
        views: views of each; None for the document as it is.
        world: this process among its peers; all have to call this.
    """
    mine = positions.tensor_split(world.size)[world.rank]
    # Where nothing is drawn, a document has the same tokens in every view.
    draws = bool(getattr(preprocess, "draws", False))
    numbers = list(range(views or 1)) if views is not None else [EVALUATION_VIEW]
    found = []
    for part in mine.split(_COUNTED_AT_ONCE):
        if not len(part):
            continue
        raw = split.fetch(part)
        if not draws:
            predicted, read = _counted(preprocess.sequences_of(raw), len(part))
            columns = [(predicted, read)] * len(numbers)
        else:
            columns = []
            for number in numbers:
                tokens = preprocess(
                    raw,
                    torch.device("cpu"),
                    ids=split.ids[part],
                    views=torch.full_like(part, number),
                )
                _, read = _counted(tokens.sequences, len(part))
                columns.append((torch.bincount(tokens.owners, minlength=len(part)), read))
        found.append(torch.stack([torch.stack(pair) for pair in columns], dim=2).flatten(1))
    counted = torch.cat(found, dim=1) if found else torch.zeros(2, 0, dtype=torch.int64)
    whole = np.concatenate(world.gather(counted.numpy()), axis=1)
    return TokenCounts(whole[0], whole[1])


def _counted(
    sequences: Sequence[TokenSequence], documents: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many tokens of each document are predicted, each from those before it, and how many are read."""
    predicted = torch.zeros(documents, dtype=torch.int64)
    read = torch.zeros(documents, dtype=torch.int64)
    for sequence in sequences:
        predicted[sequence.document] += len(sequence) - max(1, sequence.start)
        read[sequence.document] += len(sequence)
    return predicted, read


def token_pieces(
    positions: torch.Tensor, views: torch.Tensor, read: np.ndarray, batch_size: int
) -> list[Piece]:
    """Cut (position, view) pairs into batches of at most `batch_size` documents and `PASS_TOKENS` tokens.

    Args:
        positions: int64 [pairs].
        views: int64 [pairs].
        read: int64 [pairs], tokens of each.
        batch_size: most documents of a batch.
    """
    pieces, start = [], 0
    ends = np.cumsum(read)
    while start < len(positions):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + PASS_TOKENS, side="right"))
        stop = min(max(stop, start + 1), start + batch_size, len(positions))
        own = slice(start, stop)
        pieces.append(Piece(positions[own], views[own], stop - start))
        start = stop
    return pieces


@dataclass(frozen=True)
class TokenColumns:
    """How what a language model says is kept.

    Attributes:
        train: the columns of the training documents.
        evaluation: those of documents that models are evaluated on.
        head: the head, where it is kept.
    """

    train: dict[str, Column]
    evaluation: dict[str, Column]
    head: Head | None


def token_columns(
    context: Context, teacher: Model, settings: StoreSettings, temperatures: tuple[float, ...]
) -> TokenColumns:
    """Choose the columns: the k largest logits, all logits, or the last hidden states with the head.

    Raises:
        StoreError: hidden states are to be kept of a model whose head is not known.
    """
    width = context.outputs(teacher)
    if settings.top_k is not None:
        kept: Column = Sparse(width, settings.top_k, settings.dtype, temperatures)
        return TokenColumns({LOGITS: kept}, {SCORES: TokenScores()}, None)
    if settings.keep == "logits":
        exact: dict[str, Column] = {LOGITS: Dense((width,), "float32"), SCORES: TokenScores()}
        return TokenColumns({LOGITS: Dense((width,), settings.dtype)}, exact, None)
    found = head_of(teacher.module)
    if found is None:
        raise StoreError(
            f"A store keeps the last hidden states of a language model with its head, and the logits of "
            f"'{teacher.name}' are not those of a linear head on them. Keep the largest logits (top_k: 64), or all of "
            "them (keep: logits)."
        )
    head = found.head(width)
    states = Dense((head.width,), "float32")
    return TokenColumns(
        {HIDDEN: Dense((head.width,), settings.dtype)},
        {HIDDEN: states, SCORES: TokenScores()},
        head,
    )


def token_sizes(context: Context, teacher: Model, views: int) -> tuple[int, dict[str, int]]:
    """Estimate what a store of a language model's outputs on the training documents would take.

    The tokens of some documents, spread evenly, are counted; the others are taken to be as long.

    Args:
        context: the run.
        teacher: the model.
        views: views of each document.

    Returns:
        How many tokens are predicted over all views, and form -> bytes.
    """
    split = context.splits.train
    some = torch.linspace(0, len(split) - 1, min(_LOOKED_AT, len(split))).long()
    alone = World(0, 1, context.world.device)
    counted = count_tokens(teacher.preprocess, split, some, None, alone)
    tokens = round(int(counted.predicted.sum()) / len(some) * len(split)) * views
    width, found = context.outputs(teacher), head_of(teacher.module)
    kept = min(KEPT, -(-width // 2))
    forms: dict[str, Column] = {
        f"top {kept} in float16": Sparse(width, kept, "float16", (1.0,)),
        "all logits in float16": Dense((width,), "float16"),
    }
    head = 0
    if found is not None:
        made = found.head(width)
        head = len(head_bytes(made))
        states = {
            f"hidden states in {dtype}": Dense((made.width,), dtype)
            for dtype in ("float32", "bf16", "int8")
        }
        forms = {**states, **forms}
    return tokens, {
        name: tokens * record_bytes(codec) + (head if name.startswith("hidden") else 0)
        for name, codec in forms.items()
    }
