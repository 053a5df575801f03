"""What a model may be for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from understudy.errors import ModelError, unknown_name

Task = Literal["classification", "causal_lm", "masked_lm", "seq2seq"]
TASKS: tuple[Task, ...] = ("classification", "causal_lm", "masked_lm", "seq2seq")
"""What a model may be for. All but the first are tasks of language models, which take texts."""


def check_language(name: str, task: str, kind: str, able: Iterable[str]) -> None:
    """Refuse a language model's task that does not exist, or that model or data are not for.

    Args:
        name: full name of the model.
        task: what it is wanted for.
        kind: what the raw samples are.
        able: prefixes of builders that make language models.
    """
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    prefixes = list(able)
    if name.partition(":")[0] not in prefixes:
        raise ModelError(
            f"'{name}' is no language model, so it cannot be used for the task {task}. Language models have the "
            f"prefixes {', '.join(f'{prefix}:' for prefix in prefixes)}."
        )
    if kind != "text":
        raise ModelError(f"The task {task} takes texts; the data of '{name}' are {kind}s.")
