"""What a run does with a method that is fitted to the teacher before it trains."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from toy import TOY_FILE, Coordinates, experiment, model, start

from understudy.cli.planning import show_plan
from understudy.data.batch import Batch
from understudy.errors import PreflightError
from understudy.methods import Step, Study
from understudy.models.outputs import Outputs
from understudy.teachers.live import LiveTeacher
from understudy.training.experiment import Experiment
from understudy.training.loop import Interrupted
from understudy.training.plan import Plan, make_plan
from understudy.training.run import run

TRAIN = 84
"""Training samples of the toy data."""
STAGE: dict[str, Any] = {"methods": ["coordinates", "supervised"], "epochs": 2}


def student(directory: Path, arm: str = "pca", seed: int = 0) -> dict[str, torch.Tensor]:
    return load_file(directory / "student" / arm / f"seed-{seed}" / "model.safetensors")


def lines(directory: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(text) for text in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the batch sizes that teachers are run on in passes, but for the example of 8."""
    sizes: list[int] = []

    class Counting(LiveTeacher):
        def targets(self, batch: Batch) -> Outputs:
            if len(batch) != 8:
                sizes.append(len(batch))
            return super().targets(batch)

    monkeypatch.setattr("understudy.teachers.passes.LiveTeacher", Counting)
    # The geometry of embeddings is read in passes, too.
    for room in ("member", "run"):
        place = f"understudy.training.{room}.embeddings"
        monkeypatch.setattr(place, lambda context, model: None)
    return sizes


def given(stages: list[dict[str, Any]] | None = None, **settings: Any) -> Experiment:
    """Return an experiment with a teacher of given weights, always the same ones."""
    torch.manual_seed(7)
    teacher = model("resnet14", 0.5)
    teacher.weights = "given"
    settings = {"preflight": "warn", "evaluation_batch_size": 24, **settings}
    made = experiment({"pca": stages or [STAGE]}, augment=True, **settings)
    assert made.teacher is not None
    made.teacher.stages, made.teacher.build = (), lambda: teacher
    return made


def test_a_pass_serves_all_seeds_arms_and_runs(tmp_path: Path) -> None:
    arms = {"pca": [{**STAGE, "epochs": 1}], "again": [{**STAGE, "epochs": 1}]}
    run(experiment(arms, seeds=(0, 1), teacher_epochs=1), tmp_path / "one")
    fits = lines(tmp_path / "one", "fit")
    assert [(line["arm"], line["seed"]) for line in fits] == [
        ("pca", 0),
        ("again", 0),
        ("pca", 1),
        ("again", 1),
    ]
    samples = [[note["samples"] for note in line["fitted"]] for line in fits]
    assert samples == [[TRAIN], [0], [0], [0]]
    assert {path.name.partition("-")[0] for path in (tmp_path / ".fitted").glob("*/")} == {
        "moments",
        "features",
    }
    shutil.copytree(tmp_path / ".fitted", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / ".fitted")
    cache = str(tmp_path / "elsewhere")
    run(experiment({"pca": arms["pca"]}, teacher_epochs=1, cache=cache), tmp_path / "two")
    (fit,) = lines(tmp_path / "two", "fit")
    assert all(note["found"] for note in fit["fitted"]) and not (tmp_path / ".fitted").exists()
    assert equal(student(tmp_path / "one"), student(tmp_path / "two"))


def test_the_teacher_does_not_run_in_the_steps_of_a_method_that_only_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was set up for the steps")

    monkeypatch.setattr("understudy.training.stage_run.LiveTeacher", refuse)
    made = given()
    assert made.teacher is not None
    run(made, tmp_path / "r")
    module = made.teacher.build().module
    assert all(not part._forward_hooks for part in module.modules())


def stop_after(steps: int) -> type[Coordinates]:
    """Return a method that asks the process to stop after so many steps, once."""

    class Stopping(Coordinates):
        taken = 0

        def after_step(self, step: Step) -> None:
            Stopping.taken += 1
            if Stopping.taken == steps:
                os.kill(os.getpid(), signal.SIGTERM)

    Stopping.name = "coordinates"
    return Stopping


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("emptied", [True, False])
def test_a_run_that_stopped_in_a_stage_goes_on_bit_for_bit(
    tmp_path: Path, collected: list[int], cached: bool, emptied: bool
) -> None:
    def stages(kind: type[Coordinates]) -> list[dict[str, Any]]:
        return [{"methods": [kind(cached=cached), "supervised"], "epochs": 2}]

    run(given(stages(Coordinates)), tmp_path / "whole" / "r")
    with pytest.raises(Interrupted):
        run(given(stages(stop_after(7))), tmp_path / "broken" / "r")
    if emptied:
        shutil.rmtree(tmp_path / "broken" / ".fitted")
    collected.clear()
    run(given(stages(Coordinates)), tmp_path / "broken" / "r", resume=True)
    assert equal(student(tmp_path / "whole" / "r"), student(tmp_path / "broken" / "r"))
    assert len(lines(tmp_path / "broken" / "r", "fit")) == 1
    # Only rows that the steps read have to be there; parameters and buffers are in the checkpoint.
    assert sum(collected) == (TRAIN if emptied and cached else 0)


class Careless(Coordinates):
    """Keeps what it learned where no checkpoint finds it."""

    def fit(self, study: Study) -> None:
        super().fit(study)
        self.kept = self.basis.clone()

    def loss(self, step: Step) -> torch.Tensor:
        self.basis.copy_(self.kept)
        return super().loss(step)


def test_what_lies_outside_of_buffers_is_fitted_again(tmp_path: Path, collected: list[int]) -> None:
    def stages() -> list[dict[str, Any]]:
        return [{"methods": [Careless(cached=False), stop_after(7)(cached=False)], "epochs": 2}]

    run(
        given([{**stages()[0], "methods": [Careless(cached=False), Coordinates(cached=False)]}]),
        tmp_path / "whole" / "r",
    )
    with pytest.raises(Interrupted):
        run(given(stages()), tmp_path / "broken" / "r")
    shutil.rmtree(tmp_path / "broken" / ".fitted")
    collected.clear()
    run(given(stages()), tmp_path / "broken" / "r", resume=True)
    assert sum(collected) == TRAIN
    assert equal(student(tmp_path / "whole" / "r"), student(tmp_path / "broken" / "r"))


def test_a_run_that_stopped_in_a_pass_goes_on_with_it(tmp_path: Path, collected: list[int]) -> None:
    stages = [{"methods": ["supervised"], "epochs": 1, "name": "first"}, STAGE]
    run(given(stages), tmp_path / "whole" / "r")
    collected.clear()
    made = given(stages)
    assert made.teacher is not None
    module = made.teacher.build().module

    def stop(*_: object) -> None:
        if len(collected) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = module.register_forward_hook(stop)
    with pytest.raises(Interrupted, match="fitted"):
        run(made, tmp_path / "broken" / "r")
    handle.remove()
    assert all(not part._forward_hooks for part in module.modules())
    assert collected == [24, 24]
    run(given(stages), tmp_path / "broken" / "r", resume=True)
    assert equal(student(tmp_path / "whole" / "r"), student(tmp_path / "broken" / "r"))
    assert collected == [24, 24, 24, 12]


def test_a_plan_runs_no_pass_and_says_what_one_costs(tmp_path: Path, collected: list[int]) -> None:
    def shown(plan: Plan) -> str:
        out = io.StringIO()
        show_plan(Console(file=out, width=200), plan, modules=False)
        return out.getvalue()

    plan = make_plan(given(), tmp_path / "r")
    assert collected == [24, 24], "a batch to warm up and one to measure"
    (stage,) = [stage for stage in plan.stages if stage.arm == "pca"]
    (note,) = stage.fits
    assert note.what.startswith("moments of ") and "features of " in note.what
    assert note.samples == TRAIN and (note.seconds or 0) > 0
    assert note.size == TRAIN * (32 * 4 + 8) + 8 * (1 + 32 + 32 * 32)
    assert plan.fit_seconds == note.seconds
    assert not list(tmp_path.iterdir())
    assert "coordinates fits moments of" in shown(plan)
    assert "one pass over 84 samples, about" in shown(plan)
    run(given(), tmp_path / "r")
    assert shown(make_plan(given(), tmp_path / "other")).count("in the cache") == 1


def test_probes_and_checks_only_see_an_example(tmp_path: Path, collected: list[int]) -> None:
    # It holds 8 samples: 20 directions are more than they can have, and steps want the rows of others.
    run(given(precision="auto"), tmp_path / "r")
    assert sum(collected) == TRAIN


def test_a_fit_needs_a_teacher() -> None:
    with pytest.raises(PreflightError, match="uses coordinates, which needs a teacher"):
        make_plan(experiment({"pca": [STAGE]}, teacher=None))


def test_weight_zero_fits_nothing(tmp_path: Path) -> None:
    class Refusing(Coordinates):
        def fit(self, study: Study) -> None:
            raise AssertionError("a method that is left out was fitted")

    methods = [Refusing().weighted(0), "supervised"]
    run(experiment({"zero": [{"methods": methods}]}, teacher_epochs=1), tmp_path / "r")
    assert lines(tmp_path / "r", "fit") == []


def test_two_gloo_processes_fit_alike(tmp_path: Path) -> None:
    options = {
        "arms": {"pca": [{"methods": ["narrow"], "epochs": 2}]},
        "student": "steady",
        "preflight": "warn",
        "teacher": "steady",
        "log_every": 1,
        "teacher_epochs": 1,
    }
    start(tmp_path / "1" / "r", False, options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(TOY_FILE), str(tmp_path / "2" / "r"), "fresh", json.dumps(options)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (lines(tmp_path / str(ranks) / "r", "step") for ranks in (1, 2))
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-3)
    (fit,) = lines(tmp_path / "2" / "r", "fit")
    assert [note["samples"] for note in fit["fitted"]] == [TRAIN]
