"""A student whose logits nobody reads ends its pass at its last tap, and learns the same."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy import METHODS, experiment

from understudy.errors import TrainingError
from understudy.methods import FitNet, Method, Ramp, Step
from understudy.models import kd
from understudy.training.plan import make_plan
from understudy.training.run import run

ENDS = "the student ends after 'layer2': nothing reads what lies behind it"
HINT = {"hint": [{"methods": ["fitnet"], "steps": 4}]}


class Liar(FitNet):
    """Reads the student's logits and says that it does not."""

    def loss(self, step: Step) -> torch.Tensor:
        assert step.student.logits is not None
        return super().loss(step)


class Foreign(FitNet):
    """Says nothing of the student's logits."""

    reads_student_logits = Method.reads_student_logits


def notes(methods: list[Any], **keywords: Any) -> list[str]:
    arms = {"hint": [{"methods": methods, "steps": 4}]}
    plan = make_plan(experiment(arms, **keywords))
    return [note for stage in plan.stages if stage.arm == "hint" for note in stage.notes]


def losses(folder: Path) -> list[float]:
    """Return the losses of the student `hint`, step by step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["event"] == "step" and line["arm"] == "hint"]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "hint" / "seed-0" / "model.safetensors")


def test_the_plan_says_where_the_student_ends_and_what_that_spares() -> None:
    said = notes(["fitnet"])
    assert ENDS in said
    (spared,) = [note for note in said if note.startswith("the student's forward pass is spared")]
    # Of three groups of blocks of equal cost and a stem, the last one and the classifier are left out.
    share = int(spared.removeprefix("the student's forward pass is spared ").partition("%")[0])
    assert 25 <= share <= 36, spared


@pytest.mark.parametrize(
    "methods",
    [["fitnet", "kd"], ["fitnet", "supervised"], [("supervised", Ramp(0.0, 1.0, 0.9)), "fitnet"]],
    ids=["kd", "supervised", "later"],
)
def test_whoever_reads_logits_at_any_time_has_the_student_run_whole(methods: list[Any]) -> None:
    assert not [note for note in notes(methods) if note.startswith("the student")]


def test_a_method_that_says_nothing_has_the_student_run_whole() -> None:
    assert not [note for note in notes([Foreign()]) if note.startswith("the student")]


@pytest.mark.parametrize(
    ("methods", "keywords", "reason"),
    [
        (["fitnet"], {"compile": True}, "a compiled student is one graph"),
        ([("fitnet", Ramp(0.0, 1.0))], {}, "the weights of all methods may be 0 in one step"),
        ([("fitnet", Ramp(1.0, -1.0))], {}, "the weights of all methods may be 0 in one step"),
    ],
    ids=["compiled", "from 0", "through 0"],
)
def test_it_says_why_a_student_runs_whole_that_need_not(
    methods: list[Any], keywords: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: module)
    (said,) = [note for note in notes(methods, **keywords) if note.startswith("the student")]
    assert said.startswith(
        f"the student runs to its end, though no method reads its logits: {reason}"
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_learns_the_same_but_for_statistics_behind_the_tap(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Afterwards comes a stage that trains all of it, on batch statistics.
    stages = [
        {"methods": ["fitnet"], "steps": 4, "accumulate": accumulate},
        {"methods": ["kd"], "steps": 3, "accumulate": accumulate},
    ]
    students, curves = {}, {}
    for whole in (False, True):
        monkeypatch.setattr(FitNet, "reads_student_logits", whole)
        folder = tmp_path / str(whole)
        run(experiment({"hint": stages}, log_every=1), folder)
        students[whole], curves[whole] = trained(folder), losses(folder)
        assert (ENDS in (folder / "log.txt").read_text()) is not whole
    assert len(curves[False]) == 7 and curves[False] == curves[True]
    differ = {
        name for name, value in students[False].items() if not value.equal(students[True][name])
    }
    assert differ and all("running_" in name or "num_batches" in name for name in differ)
    assert all(name.startswith("layer3.") for name in differ)


def test_what_lies_behind_the_tap_stays_as_it_was(tmp_path: Path) -> None:
    run(experiment(HINT), tmp_path / "run")
    found = trained(tmp_path / "run")
    fresh = kd.build("resnet8", classes=3, in_channels=1, width=0.25).state_dict()
    statistics = [name for name in found if "running_" in name or "num_batches" in name]
    untouched = {name for name in statistics if torch.equal(found[name], fresh[name])}
    assert untouched == {name for name in statistics if name.startswith("layer3.")} != set()


def test_a_run_says_it_in_its_log_and_evaluates_the_whole_student(tmp_path: Path) -> None:
    run(experiment(HINT), tmp_path / "run")
    said = (tmp_path / "run" / "log.txt").read_text()
    assert f"hint, seed 0, distil: {ENDS}" in said
    assert (
        "hint, seed 0, distil: no method reads the teacher's logits: it stops after 'layer2'"
        in said
    )
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (result,) = [line for line in lines if line["event"] == "result" and line["arm"] == "hint"]
    assert 0 <= result["metrics"]["accuracy"] <= 1 and result["metrics"]["nll"] > 0


def test_a_method_that_reads_what_it_says_it_does_not_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(METHODS, "liar", Liar)
    built = experiment({"liar": [{"methods": ["liar"], "steps": 2}]}, preflight="warn")
    said = "The student's logits are asked for, but its pass ended after 'layer2'.*reads_student_logits"
    with caplog.at_level(logging.CRITICAL), pytest.raises(TrainingError, match=said):
        run(built, tmp_path / "run")
