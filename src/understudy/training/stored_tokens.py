"""What a stored language model predicted for the tokens of a split that models are evaluated on."""

from __future__ import annotations

import torch

from understudy.data.source import Split
from understudy.errors import DataError
from understudy.evaluation.tokens import ScoredTokens, Scores, TokenPredictions
from understudy.teachers.store.manifest import HIDDEN, LOGITS, SCORES
from understudy.teachers.store.ragged import COUNTS
from understudy.teachers.stored import StoredModel


def stored_tokens(teacher: StoredModel, split: Split, device: torch.device) -> TokenPredictions:
    """Return the predictions of a stored teacher, in the order of the split.

    From hidden states or logits everything can be measured. Where the store keeps the largest logits, it keeps of
    these documents only the scores of their tokens: exact, but no divergence can be computed.

    Args:
        teacher: what is stored.
        split: the documents.
        device: where logits are made, as those of the students that are compared.

    Raises:
        StoreError: the store does not hold the documents.
        DataError: they have no tokens.
    """
    found = teacher.store.as_they_are(split.ids, [HIDDEN, LOGITS, SCORES])
    counts, scores = found[COUNTS], found[SCORES]
    if not len(scores):
        raise DataError("There are no tokens to predict: the documents of the split are empty.")
    labels = scores[:, 0].long()
    ids, domains = (column.repeat_interleave(counts) for column in (split.ids, split.labels))
    if HIDDEN in found:
        head = teacher.store.head(device)
        return TokenPredictions(found[HIDDEN].to(device), head, None, labels, ids, domains)
    if LOGITS in found:
        return TokenPredictions(None, None, found[LOGITS].to(device), labels, ids, domains)
    measured = Scores(scores[:, 2], scores[:, 1].long(), scores[:, 3].float())
    return ScoredTokens(measured, teacher.width, labels, ids, domains)
