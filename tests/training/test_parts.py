"""Schedules, optimisers, precision, trackers and stages, each by itself."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from toy import experiment

from understudy.errors import TrainingError, UnderstudyError, UnknownName
from understudy.methods import KD, Ramp, Supervised
from understudy.training.backward import backward
from understudy.training.distribution import World
from understudy.training.fused_step import FusedStep
from understudy.training.optimizers import Optimizer, optimizer_classes, quick_step
from understudy.training.plan import make_plan
from understudy.training.precision import Precision, choose
from understudy.training.recorder import Recorder
from understudy.training.run import run
from understudy.training.schedules import (
    Constant,
    Cosine,
    Linear,
    MultiStep,
    OneCycle,
    Rate,
    schedules,
)
from understudy.training.settings import Settings
from understudy.training.stage import EarlyStopping, Stage
from understudy.training.trackers import make_trackers

ALONE = World(0, 1, torch.device("cpu"))


def test_one_cycle_equals_torch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=50, cycle_momentum=False
    )
    schedule = OneCycle()
    for step in range(50):
        ours = 0.1 * schedule.factor(step, 50, 10)
        # torch reaches its turning points one step earlier, at total - 1.
        assert ours == pytest.approx(reference.get_last_lr()[0], abs=0.006)
        optimizer.step()
        reference.step()


def test_cosine_equals_torch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for step in range(40):
        assert Cosine().factor(step, 40, 10) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        reference.step()


def test_rates_are_those_of_lambda_lr_to_the_bit() -> None:
    def factor(step: int) -> float:
        return Cosine(0.5, final=0.01).factor(step, 20, 7)

    groups = [[{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.3, 0.07)]] * 2
    ours, theirs = (torch.optim.SGD(copy.deepcopy(group), lr=1.0) for group in groups)
    reference = torch.optim.lr_scheduler.LambdaLR(theirs, factor)
    rate = Rate(ours, factor)
    for step in range(20):
        rate.set(step)
        found = [group["lr"] for group in ours.param_groups]
        assert found == [group["lr"] for group in theirs.param_groups]
        assert rate.at(step) == found[0]
        theirs.step()
        reference.step()


RULES: list[tuple[str, dict[str, object], bool]] = [
    ("sgd", {}, True),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.1}, True),
    ("sgd", {"momentum": 0.9, "nesterov": True, "maximize": True}, True),
    ("sgd", {"momentum": 0.9, "dampening": 0.5}, False),
    ("adam", {"betas": (0.7, 0.9), "eps": 1e-3}, True),
    ("adam", {"amsgrad": True}, False),
    ("adamw", {"weight_decay": 0.1, "maximize": True}, True),
    ("adagrad", {}, False),
]
"""Optimiser, keywords, and whether steps go straight to a kernel once every parameter has its state."""


@pytest.mark.parametrize(("name", "keywords", "straight"), RULES)
def test_the_quick_step_is_the_step(
    name: str, keywords: dict[str, object], straight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, taken = [], []
    original = FusedStep.__call__
    monkeypatch.setattr(
        FusedStep, "__call__", lambda self: taken.append(original(self)) or taken[-1]
    )
    for quick in (False, True):
        parameters = [nn.Parameter(torch.arange(1.0, 4.0)) for _ in range(3)]
        optimizer = Optimizer(name, lr=0.1, **keywords).build(parameters, parameters[2:])
        step = quick_step(optimizer) if quick else optimizer.step
        rate = Rate(optimizer, lambda number: 1 / (1 + number))
        for number in range(8):
            rate.set(number)
            for position, parameter in enumerate(parameters):
                # One comes late, which SGD's momentum has to be told, and then stays away for a step.
                absent = position == 1 and number in (0, 4)
                parameter.grad = None if absent else (parameter.detach() - number).square() * 0.1
            if number == 6:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            step()
        states = [state for p in parameters for state in optimizer.state[p].values()]
        found.append([*(parameter.detach() for parameter in parameters), *states])
    assert len(found[0]) == len(found[1]) and all(map(torch.equal, *found))
    assert (True in taken) == straight


def test_the_quick_step_leaves_sparse_gradients_to_torch() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    for name, refusal in (("sgd", "sparse gradients"), ("adam", "sparse gradients")):
        step = quick_step(Optimizer(name, lr=0.1).build(table.parameters()))
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match=refusal):
            step()


def test_the_quick_step_heeds_whoever_listens() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = Optimizer("sgd", lr=0.1, momentum=0.9).build([parameter])
    step, heard = quick_step(optimizer), []
    parameter.grad = torch.ones(2)
    step()
    handle = optimizer.register_step_pre_hook(lambda *_: heard.append("before"))
    step()
    handle.remove()
    handle = optimizer.register_step_post_hook(lambda *_: heard.append("after"))
    step()
    handle.remove()
    handle = register_optimizer_step_pre_hook(lambda *_: heard.append("all"))
    step()
    handle.remove()
    step()
    assert heard == ["before", "after", "all"]
    with torch.autograd.profiler.profile() as profile:
        step()
    assert any("Optimizer.step" in event.name for event in profile.function_events)


def test_backward_is_that_of_torch() -> None:
    found = []
    for pass_back in (torch.Tensor.backward, backward):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        for number, parameter in enumerate(model.parameters()):
            nn.init.constant_(parameter, 0.1 * (number + 1))
        for scale in (1.0, 2.0):
            pass_back(scale * model(torch.arange(6.0).view(2, 3)).square().mean())
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *found))
    with pytest.raises(RuntimeError, match="does not require grad"):
        backward(torch.tensor(1.0))


def test_backward_leaves_subclasses_to_themselves() -> None:
    class Own(torch.Tensor):
        heard = False

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            cls.heard = cls.heard or func is torch.Tensor.backward
            return super().__torch_function__(func, types, args, kwargs or {})

    weight = nn.Parameter(torch.ones(2))
    backward((weight * 3).sum().as_subclass(Own))
    assert Own.heard
    assert weight.grad is not None and weight.grad.tolist() == [3, 3]


def test_warm_up_steps_and_ends() -> None:
    assert [Constant(1.0).factor(step, 40, 4) for step in range(6)] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
        1.0,
    ]
    assert Linear().factor(0, 10, 5) == 1 and Linear(final=0.2).factor(10, 10, 5) == pytest.approx(
        0.2
    )
    step = MultiStep([2, 3], gamma=0.1)
    assert [step.factor(place, 40, 10) for place in (0, 19, 20, 29, 30)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    assert Cosine(final=0.1).factor(40, 40, 10) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        OneCycle(peak=1.5)
    assert set(schedules.names()) == {"constant", "cosine", "linear", "one_cycle", "step"}


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_momentum_of_parameters_that_get_their_first_gradient_later(dampening: float) -> None:
    def after(**keywords: bool) -> list[torch.Tensor]:
        early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        optimizer = Optimizer("sgd", lr=0.1, momentum=0.9, dampening=dampening, **keywords)
        built = optimizer.build([early, late])
        for step in range(4):
            early.grad = torch.full((3,), float(step + 1))
            late.grad = torch.full((2,), 2.0) if step else None
            built.step()
        return [early.detach(), late.detach()]

    for fused, plain in zip(after(), after(foreach=False), strict=True):
        torch.testing.assert_close(fused, plain)


def test_momentum_is_looked_for_again_when_a_state_is_loaded() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    built = Optimizer("sgd", lr=0.1, momentum=0.9).build([first, second])
    fresh = copy.deepcopy(built.state_dict())
    for parameter in (first, second):
        parameter.grad = torch.ones_like(parameter)
    for _ in range(2):
        built.step()
    built.load_state_dict(fresh)
    second.grad = None
    built.step()
    second.grad = torch.ones_like(second)
    before = second.detach().clone()
    built.step()
    torch.testing.assert_close(second.detach(), before - 0.1)


def test_every_torch_optimiser_is_known_by_name() -> None:
    assert {"sgd", "adamw", "adam", "rmsprop"} <= set(optimizer_classes())
    assert "lbfgs" not in optimizer_classes()
    built = Optimizer("adamw", lr=0.01, weight_decay=0.1).build([nn.Parameter(torch.zeros(3))])
    assert isinstance(built, torch.optim.AdamW) and built.param_groups[0]["fused"]
    with pytest.raises(UnknownName, match="Did you mean 'adamw'"):
        Optimizer("adamww")
    with pytest.raises(UnderstudyError, match="evaluates the loss several times"):
        Optimizer("lbfgs")
    with pytest.raises(UnknownName, match="no keyword 'momentun'. Did you mean 'momentum'"):
        Optimizer("sgd", lr=0.1, momentun=0.9)


def test_the_probe_takes_the_faster_only_when_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A step "takes" the seconds that it returns.
    monkeypatch.setattr("understudy.training.precision._time", lambda step, device: step())

    def probe(reference: float, other: float) -> tuple[Precision, dict[str, float]]:
        seconds = {Precision("float32"): reference, Precision("bf16"): other}
        return choose(list(seconds), lambda candidate: lambda: seconds[candidate])  # type: ignore[arg-type, return-value]

    assert probe(0.03, 0.005) == (Precision("bf16"), {"float32": 0.03, "bf16": 0.005})
    assert probe(0.02, 0.0185)[0] == Precision("float32"), "less than a tenth is within the noise"
    assert probe(0.005, 0.03)[0] == Precision("float32")


def test_ramp() -> None:
    ramp = Ramp(0.0, 2.0, begin=0.25, finish=0.75)
    assert [ramp(progress) for progress in (0, 0.25, 0.5, 0.75, 1)] == [0, 0, 1, 2, 2]
    with pytest.raises(ValueError, match="begin < finish"):
        Ramp(0, 1, begin=0.5, finish=0.5)
    assert KD().weighted(ramp).weight_at(0.5) == 1


def test_stages_that_cannot_be_right() -> None:
    with pytest.raises(TrainingError, match="either epochs or steps"):
        Stage([KD()])
    with pytest.raises(TrainingError, match="either epochs or steps"):
        Stage([KD()], epochs=1, steps=2)
    with pytest.raises(TrainingError, match="no methods"):
        Stage([], epochs=1)
    with pytest.raises(TrainingError, match="choose one average"):
        Stage([KD()], epochs=1, ema=0.9, average_from=0.5)
    with pytest.raises(TrainingError, match="accuracy"):
        EarlyStopping(metric="loss")
    with pytest.raises(TrainingError, match="each once"):
        Settings(seeds=(1, 1))
    assert [m.name for m in Stage([KD().weighted(0), Supervised()], epochs=1).active_methods] == [
        "supervised"
    ]


def test_the_recorder_writes_means_and_rates() -> None:
    lines: list[dict[str, object]] = []
    recorder = Recorder(lambda **line: lines.append(line), 2, str, ALONE)
    ids = [torch.arange(4)]
    recorder.add(1, {"kd": torch.tensor(1.0), "loss": torch.tensor(2.0)}, torch.tensor(3.0), ids)
    recorder.add(
        2,
        {"kd": torch.tensor(3.0), "late": torch.tensor(5.0), "loss": torch.tensor(4.0)},
        None,
        ids,
    )
    recorder.flush(step=2)
    assert lines[0]["terms"] == {"kd": 2.0, "late": 5.0}
    assert lines[0]["loss"] == 3.0 and lines[0]["gradient_norm"] == 3.0 and lines[0]["step"] == 2
    recorder.flush(step=3)
    assert len(lines) == 1
    recorder.add(3, {"kd": torch.tensor(math.nan), "loss": torch.tensor(1.0)}, None, ids)
    with pytest.raises(TrainingError, match=r"term 'kd' was nan at step 3.*ids 0, 1, 2, 3"):
        recorder.flush(step=3)


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(experiment(trackers=("tensorboard",), log_every=1), tmp_path / "r")
    events = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "kd/seed0/terms.kd",
        "kd/seed0/lr",
        "kd/seed0/metrics.accuracy",
        "teacher/seed0/loss",
    } <= tags
    assert len(events.Scalars("kd/seed0/terms.kd")) == 15


def test_mlflow_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = make_trackers(("mlflow",), tmp_path, "toy")[0]
    tracker.line(
        {"event": "step", "arm": "kd", "seed": 0, "step": 3, "terms": {"kd": 0.5}, "time": ""}
    )
    tracker.close()
    runs = mlflow.MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("understudy").experiment_id]
    )
    assert runs[0].data.metrics["kd/seed0/terms.kd"] == 0.5


def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = make_trackers(("wandb",), tmp_path, "toy")[0]
    tracker.line(
        {"event": "step", "arm": "kd", "seed": 0, "step": 3, "terms": {"kd": 0.5}, "time": ""}
    )
    tracker.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_a_step_line_has_the_rate_of_that_step(tmp_path: Path) -> None:
    stage = {"methods": ["supervised"], "steps": 4, "lr": 0.05}
    run(experiment({"s": [stage]}, log_every=1), tmp_path / "r")
    found = [
        json.loads(text) for text in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    ]
    rates = [line["lr"] for line in found if line["event"] == "step" and line["arm"] == "s"]
    assert rates == pytest.approx([0.05 * Cosine().factor(step, 4, 5) for step in range(4)])
    assert rates[0] == 0.05


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnderstudyError, match="Did you mean 'tensorboard'"):
        make_trackers(("tensorbord",), tmp_path, "toy")


def test_the_plan_says_what_a_run_will_do() -> None:
    arms = {
        "two": [
            {"methods": ["fitnet"], "name": "hint", "epochs": 1},
            {"methods": ["kd"], "epochs": 2},
        ],
        "baseline": [{"methods": ["supervised"], "epochs": 3}],
    }
    plan = make_plan(experiment(arms, labels=20))
    assert plan.counts == {"train": 84, "labelled": 20, "validation": 12, "test": 60}
    assert plan.steps_per_epoch == 5
    hint = next(stage for stage in plan.stages if stage.stage == "hint")
    assert [tap.name for tap in hint.taps["student"]] == ["layer2"]
    assert hint.taps["student"][0].shape == (8, 4, 4) and hint.taps["teacher"][0].shape == (
        16,
        4,
        4,
    )
    assert hint.extra == 8 * 16 + 16
    assert hint.loss_flops == 2 * 8 * 16 * 4 * 4, "the projector's 1x1 convolution"
    assert hint.step_seconds and hint.step_seconds > 0
    student = next(model for model in plan.models if model.role == "student")
    assert any(row.path == "layer2.0.conv1" for row in student.description.modules)
    assert student.flops > 0 and plan.refused == [] and plan.seconds


@pytest.mark.slow
def test_compiled_models_train_to_the_same_result(tmp_path: Path) -> None:
    torch._dynamo.reset()
    arms = {"both": [{"methods": ["kd", "fitnet"], "steps": 4}]}
    for compiled in (False, True):
        built = experiment(
            arms, student="dropped", teacher="steady", compile=compiled, preflight="warn"
        )
        run(built, tmp_path / str(compiled))
    from safetensors.torch import load_file

    plain, fast = (
        load_file(tmp_path / name / "student" / "both" / "seed-0" / "model.safetensors")
        for name in ("False", "True")
    )
    for name, value in plain.items():
        assert value.shape == fast[name].shape and fast[name].isfinite().all()
    torch._dynamo.reset()
