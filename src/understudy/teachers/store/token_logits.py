"""Logits of predicted tokens, made of hidden states part after part, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from understudy.errors import StoreError
from understudy.objectives import Head
from understudy.teachers.store.codecs import Codec
from understudy.teachers.store.deviation import Deviation

PART_NUMBERS = 2**22
"""Logits that are in memory at a time."""


def encoded_logits(codec: Codec, hidden: torch.Tensor, head: Head) -> tuple[np.ndarray, Deviation]:
    """Return the records of the logits of hidden states [N, H], and how far they are from them."""
    rows, deviations = [np.empty((0, *codec.row_shape), codec.record)], []
    for _, logits in logit_parts(hidden, head):
        records, deviation = codec.encode(logits)
        rows.append(records)
        deviations.append(deviation)
    return np.concatenate(rows), Deviation.sum(deviations)


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
