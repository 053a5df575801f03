"""A run with a teacher that was trained without labels, and a student in its tailored coordinate system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy import experiment

from understudy.errors import PreflightError
from understudy.methods import DINO, KD, TCS, Method, SimCLR, Supervised
from understudy.report.checks import warnings
from understudy.report.reading import read_run
from understudy.report.statistics import summarise
from understudy.training.experiment import Experiment
from understudy.training.optimizers import Optimizer
from understudy.training.run import run
from understudy.training.stage import Stage


def given(alone: type[Method] = SimCLR) -> Experiment:
    """Return an experiment with a teacher that is trained without labels."""
    made = experiment()
    optimizer = Optimizer("sgd", lr=0.05, momentum=0.9)
    assert made.teacher is not None
    made.teacher.stages = [Stage([alone(flip=0.0)], epochs=1, optimizer=optimizer)]
    made.arms = {
        "tcs": lambda: [
            Stage([Supervised(), TCS(keep=0.25)], epochs=3, optimizer=optimizer, ema=0.9)
        ]
    }
    return made


@pytest.mark.parametrize("alone", [SimCLR, DINO])
def test_from_images_without_labels_to_a_plain_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: type[Method]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was set up for the steps")

    monkeypatch.setattr("understudy.training.stage_run.LiveTeacher", refuse)
    run(given(alone), tmp_path / "r")
    lines = [json.loads(text) for text in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    results = {line["arm"]: line for line in lines if line["event"] == "result"}
    assert set(results["teacher"]["metrics"].values()) == {None}
    assert results["tcs"]["metrics"]["accuracy"] > 0.2
    assert results["tcs"]["metrics"]["agreement"] is None
    weights = load_file(tmp_path / "r/student/tcs/seed-0/model.safetensors")
    # One linear layer again, in which 8 of 32 coordinates are left.
    assert weights["fc.weight"].shape == (3, 16) and not any("align" in name for name in weights)
    found = read_run(tmp_path / "r")
    assert any("was not trained" in line for line in warnings(found, summarise(found)))
    assert torch.isfinite(weights["fc.weight"]).all()
    # The teacher's own average and head are not exported.
    teacher = load_file(tmp_path / "r/models/teacher/model.safetensors")
    assert not any("average" in name or "head" in name for name in teacher)


def test_a_method_that_asks_for_its_logits_has_it_refused(tmp_path: Path) -> None:
    made = given()
    assert made.teacher is not None
    made.teacher.stages = ()
    made.arms = {"kd": lambda: [Stage([KD()], epochs=1)], **made.arms}
    with pytest.raises(PreflightError, match="no better than chance"):
        run(made, tmp_path / "r")
