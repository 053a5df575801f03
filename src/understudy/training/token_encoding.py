"""What a language model says of a batch's tokens, as records of a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from understudy.errors import StoreError
from understudy.objectives import Head
from understudy.teachers.store.deviation import Deviation
from understudy.teachers.store.manifest import HIDDEN, LOGITS, OFFSETS, SCORES, Column
from understudy.teachers.store.ragged import offsets_of

LABELS, OWNERS = "labels", "owners"
"""What a labeller calls the predicted tokens and the numbers of their documents."""
PART_NUMBERS = 2**22
"""Logits that are in memory at a time."""


class EncodedTokens:
    """Records of predicted tokens as they come, batch by batch.

    Args:
        columns: column -> its codec.
        head: makes logits of hidden states; None where a labeller gives logits.
        planned: int64 [pairs], how many tokens each (document, view) is to have.
    """

    def __init__(
        self, columns: Mapping[str, Column], head: Head | None, planned: np.ndarray
    ) -> None:
        """Hold nothing yet."""
        self._codecs, self._head, self._planned = columns, head, planned
        self._rows: dict[str, list[np.ndarray]] = {column: [] for column in columns}
        self._deviations: dict[str, list[Deviation]] = {column: [] for column in columns}
        self._counts: list[np.ndarray] = []

    def add(self, found: Mapping[str, torch.Tensor], documents: int) -> None:
        """Encode what a labeller gave for so many documents."""
        owners = found[OWNERS].cpu()
        self._counts.append(torch.bincount(owners, minlength=documents).numpy())
        if HIDDEN in self._codecs:
            self._encode(HIDDEN, found[HIDDEN])
        if not {LOGITS, SCORES} & set(self._codecs):
            return
        for place, logits in self._logits(found):
            if LOGITS in self._codecs:
                self._encode(LOGITS, logits)
            if SCORES in self._codecs:
                self._encode(SCORES, scores_of(logits, found[LABELS][place]))

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Column -> all records, and the offsets.

        Raises:
            StoreError: there are other tokens than were counted when labelling was planned.
        """
        counts = np.concatenate(self._counts)
        if not np.array_equal(counts, self._planned):
            wrong = int((counts != self._planned).argmax())
            raise StoreError(
                f"Document {wrong} of a shard has {counts[wrong]} predicted tokens, and {self._planned[wrong]} were "
                "counted before. Its preprocessing has to give the same tokens every time."
            )
        found = {OFFSETS: offsets_of(counts)}
        for column, codec in self._codecs.items():
            rows = self._rows[column] or [np.empty((0, *codec.row_shape), codec.record)]
            found[column] = np.concatenate(rows)
        return found

    @property
    def deviations(self) -> dict[str, Deviation]:
        """Column -> how far the records are from the numbers."""
        return {column: Deviation.sum(each) for column, each in self._deviations.items()}

    def _encode(self, column: str, values: torch.Tensor) -> None:
        rows, deviation = self._codecs[column].encode(values)
        self._rows[column].append(rows)
        self._deviations[column].append(deviation)

    def _logits(self, found: Mapping[str, torch.Tensor]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Give float32 logits [n, C], part after part, each with its place."""
        given = found[HIDDEN] if self._head is not None else found[LOGITS]
        yield from logit_parts(given, self._head)


def logit_parts(given: torch.Tensor, head: Head | None) -> Iterator[tuple[slice, torch.Tensor]]:
    """Give float32 logits [n, C] of hidden states [N, H] (or, without a head, of logits), part after part.

    Raises:
        StoreError: a logit is NaN or +infinity.
    """
    width = given.shape[1] if head is None else head.size
    step = max(1, PART_NUMBERS // width)
    for start in range(0, len(given), step):
        place = slice(start, min(start + step, len(given)))
        with torch.no_grad():
            logits = given[place].float()
            logits = logits if head is None else head.logits(logits)
        if not bool(logits.amax(dim=1).isfinite().all()):
            raise StoreError(
                "The teacher's logits are NaN or infinite. Its precision may be too low for its values, or its "
                "weights are damaged."
            )
        yield place, logits


def scores_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return float64 [n, 4] as `TokenScores` keeps it: token, most likely token, nats, confidence.

    Args:
        logits: float32 [n, C].
        labels: int64 [n], the tokens.
    """
    logarithms = logits.log_softmax(dim=1)
    own = labels.to(logits.device).unsqueeze(1)
    top = logarithms.max(dim=1)
    columns = (
        own.squeeze(1),
        top.indices,
        -logarithms.gather(1, own).squeeze(1),
        top.values.exp(),
    )
    return torch.stack([column.double() for column in columns], dim=1)
