"""Runs whose methods don't read the teacher's logits stop the teacher early and learn the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy import METHODS, experiment

from understudy.errors import TrainingError
from understudy.methods import FitNet, Step
from understudy.training.plan import make_plan
from understudy.training.run import run

HINT = {"hint": [{"methods": ["fitnet", "supervised"], "steps": 4}]}


class Liar(FitNet):
    """Reads logits and says that it does not."""

    def loss(self, step: Step) -> torch.Tensor:
        assert step.teacher.logits is not None
        return super().loss(step)


def notes(arms: dict[str, Any], **keywords: Any) -> list[str]:
    plan = make_plan(experiment(arms, precision="float32", channels_last=False, **keywords))
    assert not plan.refused
    return [note for stage in plan.stages if stage.arm in arms for note in stage.notes]


def test_the_plan_says_where_the_teacher_stops_and_what_that_saves() -> None:
    said = notes(HINT)
    assert "no method reads the teacher's logits: it stops after 'layer2'" in said
    (saved,) = [note for note in said if note.startswith("the teacher is spared")]
    # Of three groups of blocks of equal cost, the last one and the classifier are left out.
    share = int(saved.removeprefix("the teacher is spared ").partition("%")[0])
    assert 28 <= share <= 36, saved
    both = notes({"both": [{"methods": ["fitnet", "kd"], "steps": 4}]})
    assert not [note for note in both if "stops" in note or "spared" in note]


def test_a_stopped_teacher_teaches_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    students = {}
    for whole in (False, True):
        monkeypatch.setattr(FitNet, "reads_logits", whole)
        path = tmp_path / str(whole)
        run(experiment(HINT, precision="float32", channels_last=False), path)
        students[whole] = load_file(path / "student" / "hint" / "seed-0" / "model.safetensors")
    assert all(torch.equal(value, students[True][name]) for name, value in students[False].items())


def test_a_method_that_reads_what_it_did_not_ask_for_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(METHODS, "liar", Liar)
    built = experiment({"liar": [{"methods": ["liar"], "steps": 2}]}, preflight="warn")
    with caplog.at_level(logging.CRITICAL), pytest.raises(TrainingError, match="Method 'liar': "):
        run(built, tmp_path / "run")
