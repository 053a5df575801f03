"""Every method that has a teacher listens to the one that it names, whatever others there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from workbench import bench, go, kind_for, model

from understudy.errors import UnderstudyError
from understudy.methods import Method, methods
from understudy.training.stage_run import StageRun

LISTENING = [name for name in methods.names() if methods.get(name)().uses_teacher]


def start(method: Method, hears: Any, others: bool) -> StageRun:
    """Return a stage of one method; with `others` the teacher is called "big" and has another one beside it."""
    kind = kind_for(method.name)
    built = bench([method.listening_to(hears)], kind)
    teachers = {"big": built.teacher}
    if others:
        torch.manual_seed(9)
        teachers = {"other": model(kind, "teacher"), **teachers}
    return built.context.stage_run(
        built.stages[-1],
        student=built.student,
        teacher=teachers if others else built.teacher,
        split=built.context.splits.train,
        seed=0,
        number=len(built.stages) - 1,
        earlier=built.earlier,
    )


def trained(method: Method, hears: Any, others: bool) -> list[dict[str, float]]:
    run = start(method, hears, others)
    try:
        assert list(run.wiring.teachers) == (["big"] if others else ["teacher"])
        return go(run)
    finally:
        run.close()


@pytest.mark.parametrize("name", LISTENING)
def test_a_named_teacher_among_several_is_the_only_one(name: str) -> None:
    alone = trained(methods.get(name)(), None, others=False)
    assert alone and trained(methods.get(name)(), "big", others=True) == alone


@pytest.mark.parametrize("name", LISTENING)
def test_without_a_name_logits_are_averaged_and_features_refused(name: str) -> None:
    try:
        run = start(methods.get(name)(), None, others=True)
    except UnderstudyError as error:
        sentence = str(error)
    else:
        try:
            assert methods.get(name).reads_logits
            assert all(value == value for terms in go(run) for value in terms.values())
            return
        finally:
            run.close()
    assert "other, big" in sentence and ("Name one of them" in sentence or "say which" in sentence)
