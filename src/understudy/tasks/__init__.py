"""Tasks: what a batch means."""

from __future__ import annotations

from typing import get_args

from understudy.errors import unknown_name
from understudy.tasks.classification import Classification
from understudy.tasks.language import CausalLM, LanguageModelling, MaskedLM, Seq2Seq
from understudy.tasks.task import Measure, Name, Task

__all__ = [
    "CausalLM",
    "Classification",
    "LanguageModelling",
    "MaskedLM",
    "Measure",
    "Name",
    "Seq2Seq",
    "Task",
    "make_task",
]

_TASKS: tuple[type[Task], ...] = (Classification, CausalLM, MaskedLM, Seq2Seq)


def make_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        UnknownName: there is none of that name; gives the nearest.
    """
    for task in _TASKS:
        if task.name == name:
            return task()
    raise unknown_name("task", name, get_args(Name))
