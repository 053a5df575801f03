"""Predicted tokens of two models that read the same documents in different tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from understudy.errors import UnderstudyError
from understudy.methods.step import Step
from understudy.models.tokens import Tokens
from understudy.tasks import CausalLM


def tokens_in(inputs: Mapping[str, Any], role: str, method: str) -> Tokens:
    """Return what a role reads in a batch.

    Raises:
        UnderstudyError: it is no tokens, such as the outputs that a store holds.
    """
    found = inputs.get(role)
    if not isinstance(found, Tokens):
        raise UnderstudyError(
            f"Method '{method}' needs to know which tokens the {role} reads, and the batch does not hold them. It "
            "works on language models, and with a teacher that runs beside the student."
        )
    return found


def refuse_other_tasks(step: Step, method: str) -> None:
    """Refuse a task in which two models do not predict the same text from its beginning to its end.

    Raises:
        UnderstudyError: the task is another one than `causal_lm`.
    """
    if not isinstance(step.task, CausalLM):
        raise UnderstudyError(
            f"Method '{method}' follows a text token by token, which only `task: causal_lm` predicts so."
        )


def side_by_side(ours: Tokens, theirs: Tokens, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each predicted token of `ours` [N] which one of `theirs` stands at its place, and whether one does.

    Both are counted from the beginning of their document. Nothing waits for the device.

    Args:
        ours: one model's tokens.
        theirs: the other's, of the same documents; at least one.
        first: how many predicted tokens at the beginning of each document are left out on both sides.

    Returns:
        int64 [N], rows of `theirs` (any row where there is none), and bool [N].
    """
    own, other = _counts(ours), _counts(theirs)
    numbers = torch.arange(len(ours.owners), device=ours.device)
    rank = numbers - (own.cumsum(0) - own)[ours.owners]
    place = (other.cumsum(0) - other)[ours.owners] + rank
    valid = (rank >= first) & (rank < other[ours.owners])
    return torch.where(valid, place, 0), valid


def _counts(tokens: Tokens) -> torch.Tensor:
    """Return how many tokens are predicted in each document, int64 [B]."""
    counts = torch.zeros(tokens.documents, dtype=torch.int64, device=tokens.device)
    return counts.index_add_(0, tokens.owners, torch.ones_like(tokens.owners))
