"""What a stage's methods ask of the task and of the labels."""

from __future__ import annotations

from understudy.data.source import Split
from understudy.errors import PreflightError
from understudy.tasks import LanguageModelling, Task
from understudy.training.stage import Stage


def refuse_other_tasks(stage: Stage, task: Task) -> None:
    """Refuse methods for language models on anything else, and those that classify samples on them.

    Raises:
        PreflightError: the stage has such a method; names it.
    """
    for method in stage.active_methods:
        if isinstance(task, LanguageModelling):
            if method.needs_classes:
                raise PreflightError(
                    f"Stage '{stage.name}' uses {method.name}, which needs one answer for every sample, and a "
                    f"language model (task: {task.name}) gives one for every token."
                )
        elif method.needs_tokens:
            raise PreflightError(
                f"Stage '{stage.name}' uses {method.name}, which is for language models, and the task is "
                f"{task.name}. Set `task: causal_lm` (or masked_lm, seq2seq) for those."
            )


def learns_from_labels_only(stage: Stage, split: Split, task: Task) -> bool:
    """Tell whether every method of a stage needs labels that are given.

    Raises:
        PreflightError: one does, and no training sample has a label.
    """
    if task.labels_itself:
        return False
    needing = [method.name for method in stage.active_methods if method.needs_labels]
    if needing and not len(split.labelled):
        raise PreflightError(
            f"Stage '{stage.name}' uses {', '.join(needing)}, which needs labels, but no training sample has one."
        )
    return len(needing) == len(stage.active_methods)
