"""How the teacher of a run runs: ahead of the student, in a precision of its own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import language_toy
import pytest
import torch
from safetensors.torch import load_file
from toy import METHODS, experiment

from understudy.data.batch import Batch
from understudy.errors import PreflightError
from understudy.methods import KD, Ramp
from understudy.models import kd
from understudy.models.model import fingerprint
from understudy.teachers import elsewhere
from understudy.training import live_side
from understudy.training.plan import make_plan
from understudy.training.run import run

ARMS: dict[str, Any] = {
    "parts": [
        {"methods": ["fitnet"], "name": "hint", "steps": 4},
        {"methods": ["kd", "supervised"], "steps": 9, "accumulate": 2},
    ]
}


class Turned(KD):
    """Turns the images upside down before anybody sees them."""

    def inputs(self, batch: Batch) -> Batch:
        turned = {role: given.flip(-2) for role, given in batch.inputs.items()}
        return Batch(turned, batch.labels, batch.index, batch.view, batch.weight, batch.mask)


def student(path: Path, arm: str) -> dict[str, torch.Tensor]:
    return load_file(path / "student" / arm / "seed-0" / "model.safetensors")


def notes(arms: dict[str, Any], **keywords: Any) -> list[str]:
    plan = make_plan(experiment(arms, **keywords))
    assert not plan.refused
    return [note for stage in plan.stages if stage.arm in arms for note in stage.notes]


def test_a_teacher_that_runs_ahead_teaches_the_same(tmp_path: Path) -> None:
    for ahead in (False, True):
        run(experiment(ARMS, ahead=ahead, augment=True), tmp_path / str(ahead))
    expected, found = student(tmp_path / "False", "parts"), student(tmp_path / "True", "parts")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert "ahead of the student by one batch: the teacher" in notes(ARMS, ahead=True)


def test_a_weight_that_ends_at_zero_goes_on_without_the_teacher(tmp_path: Path) -> None:
    fading = KD().weighted(Ramp(1.0, 0.0, finish=0.5))
    arms = {"fading": [{"methods": [fading, "supervised"], "steps": 8}]}
    for ahead in (False, True):
        run(experiment(arms, ahead=ahead), tmp_path / str(ahead))
    expected, found = student(tmp_path / "False", "fading"), student(tmp_path / "True", "fading")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_what_changes_the_inputs_keeps_the_teacher_in_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "turned", lambda: Turned())
    arms = {"turned": [{"methods": ["turned"], "steps": 3}]}
    said = notes(arms, ahead=True)
    assert [note for note in said if note.startswith("the teacher cannot run ahead: turned")]
    for ahead in (False, True):
        run(experiment(arms, ahead=ahead), tmp_path / str(ahead))
    expected, found = student(tmp_path / "False", "turned"), student(tmp_path / "True", "turned")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_precision_of_its_own_is_used_and_changes_nothing_in_the_teacher(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        run(experiment(), tmp_path / "same")
        run(experiment(teacher_precision="bf16"), tmp_path / "bf16")
    expected, found = student(tmp_path / "same", "kd"), student(tmp_path / "bf16", "kd")
    largest = max(
        float((value.double() - found[name].double()).abs().max())
        for name, value in expected.items()
    )
    assert 0 < largest < 0.1
    teachers = []
    for kind in ("same", "bf16"):
        module = kd.build("resnet14", classes=3, in_channels=1, width=0.5)
        module.load_state_dict(load_file(tmp_path / kind / "models/teacher/model.safetensors"))
        teachers.append(fingerprint(module))
    assert teachers[0] == teachers[1]
    assert "the teacher runs in bf16" in notes(ARMS, teacher_precision="bf16")


def test_int8_is_refused_where_it_would_change_nothing() -> None:
    with pytest.raises(PreflightError, match="no linear layers"):
        make_plan(experiment(teacher_precision="int8"))


@pytest.fixture
def another_device(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Have any device be `cpu:0`, which is another one than `cpu` to a comparison; return where tensors went."""
    went: list[torch.device] = []

    def place(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        went.append(device)
        return tensor.clone()

    monkeypatch.setattr(live_side, "find_device", lambda name, whose: torch.device("cpu:0"))
    monkeypatch.setattr(elsewhere, "place", place)
    return went


@pytest.mark.parametrize("ahead", [False, True])
def test_a_teacher_on_a_device_of_its_own_teaches_the_same(
    ahead: bool, tmp_path: Path, another_device: list[torch.device]
) -> None:
    run(experiment(ARMS), tmp_path / "same")
    assert not another_device
    built = experiment(ARMS, ahead=ahead)
    built.teacher.device = "cuda:1"
    run(built, tmp_path / "other")
    assert {str(device) for device in another_device} == {"cpu", "cpu:0"}
    expected, found = student(tmp_path / "same", "parts"), student(tmp_path / "other", "parts")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    said = (tmp_path / "other" / "log.txt").read_text()
    assert "parts, seed 0, hint: the teacher runs on cpu:0, on a copy of its weights there" in said


@pytest.mark.parametrize("methods", [("token_kd", "supervised"), ("kd",)])
def test_a_language_model_on_a_device_of_its_own_teaches_the_same(
    methods: tuple[str, ...], tmp_path: Path, another_device: list[torch.device]
) -> None:
    for device in (None, "cuda:1"):
        built = language_toy.experiment(methods=methods)
        built.teacher.device = device
        run(built, tmp_path / str(device))
    assert {str(device) for device in another_device} == {"cpu", "cpu:0"}
    expected, found = student(tmp_path / "None", "kd"), student(tmp_path / "cuda:1", "kd")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_device_that_is_not_there_is_refused_before_anything_is_trained() -> None:
    built = experiment(ARMS)
    built.teacher.device = "cuda:99"
    with pytest.raises(PreflightError, match="The teacher is to run on 'cuda:99'.*has cpu"):
        make_plan(built)


def test_the_students_device_needs_no_copy() -> None:
    built = experiment(ARMS)
    built.teacher.device = "cpu"
    plan = make_plan(built)
    assert not [note for stage in plan.stages for note in stage.notes if "runs on" in note]
