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
from understudy.teachers.store.token_logits import logit_parts, scores_of

LABELS, OWNERS = "labels", "owners"
"""What a labeller calls the predicted tokens and the numbers of their documents."""


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
