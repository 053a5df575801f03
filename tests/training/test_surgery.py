"""Grafts and heads in whole runs: what they promise from the plan to the export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from surgeon import SURGEON_FILE, Grafted, experiment, named_student
from torch import nn
from toy import CLASSES, model, source

from understudy import seeding
from understudy.cli.exporting import export_student
from understudy.errors import UnderstudyError, UnknownName
from understudy.evaluation import cost
from understudy.methods import Method, Wiring
from understudy.models.heads import LinearChain
from understudy.models.model import Model, fingerprint
from understudy.models.saved import load, read_description
from understudy.models.surgery import surgery_of
from understudy.training.plan import make_plan
from understudy.training.run import run
from understudy.training.stage import EarlyStopping
from understudy.training.stage_run import StageRun

STAGES: dict[str, list[dict[str, Any]]] = {
    "marginal": [
        {
            "methods": ["graft", "subclasses", "supervised"],
            "epochs": 1,
            "ema": 0.9,
            "name": "first",
        },
        {"methods": ["subclasses", "graft", "kd"], "epochs": 1, "name": "again"},
        {"methods": ["supervised"], "epochs": 1, "name": "without", "accumulate": 2},
    ],
    "chain": [
        {"methods": ["linear_chain", "supervised"], "epochs": 1, "name": "other"},
        {"methods": ["kd"], "epochs": 1, "name": "other without"},
    ],
}


def folder(directory: Path, arm: str) -> Path:
    return directory / "student" / arm / "seed-0"


def weights(directory: Path, arm: str) -> dict[str, torch.Tensor]:
    return load_file(folder(directory, arm) / "model.safetensors")


def lines(directory: Path, event: str, **wanted: Any) -> list[dict[str, Any]]:
    found = [json.loads(text) for text in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        line
        for line in found
        if line["event"] == event and all(line[key] == value for key, value in wanted.items())
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("surgery") / "run"
    run(experiment(STAGES, augment=True, checkpoint_every=2, log_every=1), directory)
    return directory


def test_the_student_holds_one_graft_and_its_head_after_all_stages(finished: Path) -> None:
    description = read_description(folder(finished, "marginal"))
    assert [(entry["kind"], entry["path"], entry["name"]) for entry in description["surgery"]] == [
        ("graft", "layer2.0", "py:spare_parts:Templates"),
        ("head", "fc", "marginal"),
    ]
    assert read_description(folder(finished, "chain"))["surgery"] == []
    assert set(weights(finished, "chain")) == set(named_student().module.state_dict())
    terms = [set(line["terms"]) for line in lines(finished, "step", arm="marginal")]
    assert {"grafted", "subclasses", "supervised"} in terms and {"supervised"} in terms


@pytest.mark.parametrize("arm", ["marginal", "chain"])
def test_what_was_measured_is_what_lies_in_the_folder(finished: Path, arm: str) -> None:
    loaded = load(folder(finished, arm))
    result = lines(finished, "result", arm=arm)[0]
    test = source().test
    raw = test.samples.fetch(test.positions)
    inputs = loaded.preprocess(raw, torch.device("cpu"))
    with torch.no_grad():
        logits = loaded.module.eval()(inputs)
    assert logits.shape == (60, CLASSES)
    accuracy = float((logits.argmax(dim=1) == test.labels).float().mean())
    assert result["metrics"]["accuracy"] == pytest.approx(accuracy)
    nll = float(nn.functional.cross_entropy(logits, test.labels))
    assert result["metrics"]["nll"] == pytest.approx(nll, rel=1e-5)
    plain = named_student().module
    assert result["cost"]["parameters"] == cost.parameters(loaded.module)
    assert result["cost"]["flops"] == cost.flops(loaded.module, inputs[:2])
    if arm == "marginal":
        added = 8 * 5 + 5 + 10 + 5 * 8 + 8 + CLASSES * 17
        assert cost.parameters(loaded.module) == cost.parameters(plain) + added
    else:
        assert cost.parameters(loaded.module) == cost.parameters(plain)


def test_frozen_parts_stayed_and_trained_ones_moved(finished: Path) -> None:
    with seeding.isolated(0, "student"):
        start = named_student().module.state_dict()
    end = weights(finished, "marginal")
    assert set(start) - {"fc.weight", "fc.bias"} < set(end)
    assert not torch.equal(start["layer2.0.conv1.weight"], end["layer2.0.conv1.weight"])
    assert end["layer2.0.graft.norm.running_mean"].abs().sum() > 0


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_a_finished_run_is_exported(finished: Path, form: str, tmp_path: Path) -> None:
    export_student(finished, form, arm="marginal", seed=None, output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["verified"]
    if form == "onnx":
        import onnxruntime

        loaded = load(folder(finished, "marginal"))
        inputs = torch.randn(3, 1, 8, 8)
        file = str(tmp_path / "out" / "model.onnx")
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        given = session.run(["logits"], {"images": inputs.numpy()})[0]
        expected = loaded.module.eval()(inputs).detach().numpy()
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


class Crash(Exception):
    """The power went."""


def test_a_resumed_run_is_bit_identical(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StageRun.clip
    # In the stage that operates, in the next, in the one without the methods; the same in the other arm.
    left = ["first", "again", "without", "other", "other without"]

    def clip(self: StageRun) -> Any:
        if left and (self.stage.name, self.step) == (left[0], 3):  # a checkpoint was written at 2
            left.pop(0)
            raise Crash
        return original(self)

    monkeypatch.setattr(StageRun, "clip", clip)
    directory, resume = tmp_path / "run", False
    while left:
        with pytest.raises(Crash):
            run(
                experiment(STAGES, augment=True, checkpoint_every=2, log_every=1),
                directory,
                resume=resume,
            )
        resume = True
    run(experiment(STAGES, augment=True, checkpoint_every=2, log_every=1), directory, resume=True)
    for arm in STAGES:
        expected, found = weights(finished, arm), weights(directory, arm)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), f"{arm}: {name}"
        here, there = (lines(place, "result", arm=arm)[0] for place in (finished, directory))
        assert here["metrics"] == there["metrics"]


def test_weight_zero_grafts_nothing(tmp_path: Path) -> None:
    arms = {
        "without": [{"methods": ["supervised"], "epochs": 1}],
        "zero": [
            {"methods": [("graft", 0), ("subclasses", 0.0), "supervised"], "epochs": 1},
        ],
    }
    run(experiment(arms, teacher=None), tmp_path / "r")
    first, second = (weights(tmp_path / "r", arm) for arm in arms)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_description(folder(tmp_path / "r", "zero"))["surgery"] == []


def test_the_plan_leaves_students_and_teacher_as_they_were() -> None:
    built = experiment(STAGES, precision="bf16", channels_last=False)
    assert built.teacher is not None
    built.teacher.stages = [*built.teacher.stages]
    built.teacher.stages[0].methods = [*built.teacher.stages[0].methods, Grafted("layer3")]
    made: list[tuple[Model, str, list[int]]] = []

    def watched(build: Any) -> Any:
        def make() -> Model:
            fresh = build()
            hooks = [len(part._forward_hooks) for part in fresh.module.modules()]
            made.append((fresh, fingerprint(fresh.module), hooks))
            return fresh

        return make

    built.student = watched(named_student)
    built.teacher.build = watched(lambda: model("resnet14", 0.5))
    plan = make_plan(built)
    assert not plan.refused and len(made) >= 4
    for fresh, before, hooks in made:
        assert fingerprint(fresh.module) == before and not surgery_of(fresh.module)
        assert hooks == [len(part._forward_hooks) for part in fresh.module.modules()]
        assert all(parameter.requires_grad for parameter in fresh.module.parameters())
    first, again, without = [stage for stage in plan.stages if stage.arm == "marginal"]
    assert first.notes[0] == "graft Templates at student 'layer2.0', 103 parameters"
    assert again.notes[1].endswith("103 parameters, there from before")
    assert first.extra == 0 and first.trained == without.trained == again.trained
    assert first.trained == cost.parameters(named_student().module) + 103 + CLASSES * 17
    assert {tap.name for tap in first.taps["student"]} == {
        "layer2.0.graft.scores",
        "fc.subclasses",
    }


def test_freezing_a_place_does_not_freeze_its_graft(tmp_path: Path) -> None:
    arms = {
        "host": [
            {"methods": ["graft", "supervised"], "freeze": ["layer2"], "epochs": 1},
            {"methods": ["graft", "supervised"], "freeze": ["layer2"], "epochs": 1, "name": "b"},
        ],
        "graft": [
            {"methods": ["graft", "supervised"], "epochs": 1},
            {
                "methods": ["supervised"],
                "freeze": ["layer2.0.graft", "layer1", "layer2"],
                "epochs": 1,
                "name": "b",
            },
        ],
    }
    built = experiment(arms, teacher=None)
    seen: list[dict[str, torch.Tensor]] = []
    original = StageRun.finish

    def finish(self: StageRun) -> None:
        original(self)
        state = self._student.state_dict()
        seen.append({name: value.clone() for name, value in state.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "finish", finish)
        run(built, tmp_path / "r")
    with seeding.isolated(0, "student"):
        start = named_student().module.state_dict()

    def moved(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
        return {name for name in first if not torch.equal(first[name], second[name])}

    for before, after in ((start, seen[0]), (seen[0], seen[1])):
        changed = moved(before, after)
        assert not any(n.startswith("layer2.") and ".graft." not in n for n in changed)
        if before is not start:
            assert "layer2.0.graft.scores.weight" in changed
            assert "layer2.0.graft.norm.running_mean" in changed
    changed = moved(seen[2], seen[3])
    assert changed and not any(name.startswith(("layer1.", "layer2.")) for name in changed)


def test_averages_early_stopping_and_precision_keep_what_was_put_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["graft", "fitted", "supervised"]
    arms = {
        "ema": [{"methods": methods, "steps": 4, "ema": 0.9}],
        "averaged": [{"methods": methods, "epochs": 3, "average_from": 0.3}],
        "early": [
            {"methods": methods, "epochs": 3, "early_stopping": EarlyStopping(patience=1)},
        ],
    }
    original, centres = StageRun.finish, []

    def finish(self: StageRun) -> None:
        original(self)
        if isinstance(self._student.fc, LinearChain):
            centres.append(self._student.fc.centre.bias.clone())

    monkeypatch.setattr(StageRun, "finish", finish)
    built = experiment(arms, precision="bf16", channels_last=True)
    built.student = lambda: named_student(0.5)
    run(built, tmp_path / "r")
    # What was fitted is what the averages and the best weights hold, exactly.
    assert len(centres) == 3 and all(centre.eq(2.0).all() for centre in centres)
    for arm in arms:
        found = weights(tmp_path / "r", arm)
        assert found["layer2.0.graft.scores.weight"].dtype == torch.float32
        assert all(value.isfinite().all() for value in found.values())
        assert lines(tmp_path / "r", "result", arm=arm)[0]["metrics"]["accuracy"] > 0.3


class Owner(Grafted):
    """Makes the graft its own, which it is not."""

    def wire(self, wiring: Wiring) -> None:
        super().wire(wiring)
        self.graft = self.graft.module  # type: ignore[assignment]


def test_a_wrong_place_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    cases: list[tuple[Method, type[Exception], str]] = [
        (Grafted("layer9"), UnknownName, "Did you mean 'layer3'"),
        (Grafted("layer2.0.conv"), UnknownName, "'layer2.0.conv1'"),
        (Owner(), UnderstudyError, "keeps the student's Templates as its own module 'graft'"),
    ]
    for method, kind, message in cases:
        built = experiment({"g": [{"methods": [method, "supervised"], "epochs": 1}]}, teacher=None)
        with pytest.raises(kind, match=message):
            run(built, tmp_path / "r")
        assert not (tmp_path / "r").exists()


STEADY: dict[str, Any] = {
    "arms": {
        "both": [{"methods": ["graft_relu", "linear_chain", "supervised"], "epochs": 1}],
    },
    "student": "steady",  # batch statistics are those of a rank, so it has none
    "teacher": None,
    "preflight": "warn",
    "log_every": 1,
}


@pytest.mark.slow
def test_two_gloo_processes_give_the_student_of_one(tmp_path: Path) -> None:
    run(experiment(**STEADY), tmp_path / "1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(SURGEON_FILE), str(tmp_path / "2"), "fresh", json.dumps(STEADY)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (weights(tmp_path / ranks, "both") for ranks in "12")
    assert one.keys() == two.keys() and "relu.graft.map.weight" in one
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-4, atol=2e-4, msg=name)


@pytest.mark.slow
def test_compiled_students_train_to_the_same_result(tmp_path: Path) -> None:
    torch._dynamo.reset()
    for compiled in (False, True):
        run(experiment(**STEADY, compile=compiled), tmp_path / str(compiled))
    plain, fast = (weights(tmp_path / name, "both") for name in ("False", "True"))
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-3, atol=1e-3, msg=name)
    torch._dynamo.reset()
