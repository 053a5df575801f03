"""What a run promises: equal weights where nothing differs, an untouched teacher, clear refusals."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy import TOY_FILE, Dropped, experiment, model, source

from understudy.data.sources.python import from_tensors
from understudy.errors import PreflightError, RunDirectoryError, TrainingError
from understudy.methods import KD, FitNet, Method, Ramp, Step, Supervised
from understudy.models.model import Model, fingerprint
from understudy.training.run import run
from understudy.training.stage import EarlyStopping


def student(directory: Path, arm: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return load_file(directory / "student" / arm / f"seed-{seed}" / "model.safetensors")


def lines(directory: Path, event: str, **wanted: Any) -> list[dict[str, Any]]:
    found = [json.loads(text) for text in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        line
        for line in found
        if line["event"] == event and all(line[key] == value for key, value in wanted.items())
    ]


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def close(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float
) -> None:
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=tolerance, rtol=tolerance, msg=key)


def test_weight_zero_is_bit_for_bit_the_same_as_leaving_out(tmp_path: Path) -> None:
    arms = {
        "without": [{"methods": ["supervised"]}],
        "kd_zero": [{"methods": ["supervised", ("kd", 0)]}],
        "fitnet_zero": [{"methods": [("fitnet", 0.0), "supervised"]}],
        "ramped": [{"methods": ["supervised", ("kd", Ramp(0, 0))]}],
        "with": [{"methods": ["supervised", ("kd", 0.1)]}],
    }
    run(experiment(arms, student="dropped", augment=True, missing=30), tmp_path / "r")
    without = student(tmp_path / "r", "without")
    for arm in ("kd_zero", "fitnet_zero", "ramped"):
        assert equal(without, student(tmp_path / "r", arm)), arm
    assert not equal(without, student(tmp_path / "r", "with"))


def test_equal_runs_are_equal_and_seeds_differ(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(experiment(augment=True, seeds=(0, 1)), tmp_path / name)
    for seed in (0, 1):
        assert equal(student(tmp_path / "a", "kd", seed), student(tmp_path / "b", "kd", seed))
    assert not equal(student(tmp_path / "a", "kd", 0), student(tmp_path / "a", "kd", 1))


def test_embeddings_are_compared_with_the_teachers(tmp_path: Path) -> None:
    alone_arms = {"baseline": [{"methods": ["supervised"], "epochs": 1}]}
    arms = {"kd": [{"methods": ["kd"], "epochs": 1}], **alone_arms}
    run(experiment(arms, teacher_epochs=1), tmp_path / "r")
    run(experiment(alone_arms, teacher=None), tmp_path / "alone")
    keys = ("procrustes", "gram", "cka", "cosine_gap")
    found = {line["arm"]: line["metrics"] for line in lines(tmp_path / "r", "result")}
    (alone,) = lines(tmp_path / "alone", "result")
    for metrics in (found["teacher"], alone["metrics"]):
        assert all(metrics[key] is None for key in keys)
    for arm in ("kd", "baseline"):
        values = [found[arm][key] for key in keys]
        assert all(0 < value < 2 for value in values), values
    assert found["kd"]["procrustes"] != found["baseline"]["procrustes"]


def test_workers_change_nothing(tmp_path: Path) -> None:
    for workers in (0, 2):
        run(experiment(augment=True, workers=workers), tmp_path / str(workers))
    assert equal(student(tmp_path / "0", "kd"), student(tmp_path / "2", "kd"))


def test_accumulation_gives_the_whole_batch_gradient(tmp_path: Path) -> None:
    # Half of the samples have no label, so parts hold different numbers of them.
    for parts in (1, 3):
        arms = {"kd": [{"methods": ["kd", ("supervised", 2.0)], "accumulate": parts, "epochs": 2}]}
        built = experiment(arms, missing=45, student="steady")
        run(built, tmp_path / str(parts))
    close(student(tmp_path / "1", "kd"), student(tmp_path / "3", "kd"), 1e-5)
    terms = [[line["terms"] for line in lines(tmp_path / name, "step", arm="kd")] for name in "13"]
    assert terms[0] and len(terms[0]) == len(terms[1])
    for one, three in zip(*terms, strict=True):
        assert one.keys() == {"kd", "supervised"}
        for name, value in one.items():
            assert three[name] == pytest.approx(value, rel=1e-4)


def test_two_gloo_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    options = {
        "arms": {
            "kd": [
                {
                    "methods": ["kd", ["fitnet", 0.1], ["supervised", 2.0]],
                    "epochs": 2,
                    "accumulate": 2,
                }
            ]
        },
        "student": "steady",
        "preflight": "warn",
        "teacher": "steady",  # batch statistics are those of a rank, so neither model has any
        "missing": 45,
        "augment": True,
        "log_every": 1,
        "teacher_epochs": 2,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for ranks in (1, 2):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
        ]
        command += [str(TOY_FILE), str(tmp_path / str(ranks)), "fresh", json.dumps(options)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (lines(tmp_path / str(ranks), "step", arm="kd") for ranks in (1, 2))
    assert len(one) == len(two) == 10
    for first, second in zip(one, two, strict=True):
        assert second["terms"].keys() == first["terms"].keys()
        for name, value in first["terms"].items():
            assert second["terms"][name] == pytest.approx(value, rel=2e-4, abs=1e-6), name
    close(student(tmp_path / "1", "kd"), student(tmp_path / "2", "kd"), 2e-4)


def test_the_teacher_is_untouched_and_no_hook_is_left(tmp_path: Path) -> None:
    built = experiment({"both": [{"methods": ["kd", "fitnet"]}]}, augment=True, teacher_epochs=2)
    made: list[Model] = []
    original = built.teacher
    assert original is not None

    def build() -> Model:
        made.append(model("resnet14", 0.5))
        return made[-1]

    original.build = build
    run(built, tmp_path / "r")
    module = made[0].module
    kept = load_file(tmp_path / "r" / "models" / "teacher" / "model.safetensors")
    assert any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    assert equal(kept, {name: value for name, value in module.state_dict().items()})
    for part in module.modules():
        assert not part._forward_hooks and not part._forward_pre_hooks
    assert all(parameter.grad is None for parameter in made[0].module.parameters())


class Meddler(Method):
    """Writes to the teacher, which no method may do."""

    def loss(self, step: Step) -> torch.Tensor:
        assert step.student.logits is not None
        with torch.no_grad():
            next(iter(self.victim[0].parameters())).add_(1.0)
        return step.student.logits.square().mean() + 0 * step.teacher.logits.sum()  # type: ignore[union-attr]

    def wire(self, wiring: Any) -> None:
        self.victim = [wiring.teacher.module]


def test_a_method_that_changes_the_teacher_is_found(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="teacher changed"):
        run(experiment({"bad": [{"methods": [Meddler()]}]}), tmp_path / "r")


def test_the_teacher_does_not_run_when_nothing_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a stage without a method that needs a teacher set one up")

    monkeypatch.setattr("understudy.training.stage_run.LiveTeacher", refuse)
    run(experiment({"baseline": [{"methods": ["supervised", ("kd", 0)]}]}), tmp_path / "r")
    assert lines(tmp_path / "r", "result", arm="baseline")


def test_nothing_of_a_stage_leaks_into_the_next(tmp_path: Path) -> None:
    arms = {
        "two": [
            {"methods": ["fitnet"], "name": "hint", "freeze": ["fc"], "epochs": 1},
            {"methods": ["kd"], "epochs": 1},
        ]
    }
    seen: list[tuple[int, bool]] = []
    built = experiment(arms, student="dropped")

    class Watch(KD):
        def wire(self, wiring: Any) -> None:
            module = wiring.student.module
            hooks = sum(len(part._forward_hooks) for part in module.modules())
            seen.append((hooks, all(parameter.requires_grad for parameter in module.parameters())))

    make = built.arms["two"]
    built.arms = {"two": lambda: [make()[0], _with(make()[1], Watch())]}
    run(built, tmp_path / "r")
    assert seen and all(state == (0, True) for state in seen)
    assert set(student(tmp_path / "r", "two")) == set(Dropped().state_dict())


def _with(stage: Any, method: Method) -> Any:
    stage.methods = [method]
    return stage


def test_freeze_keeps_parameters_and_statistics(tmp_path: Path) -> None:
    built = experiment({"kd": [{"methods": ["kd"], "freeze": ["layer1", "bn1"]}]})
    run(built, tmp_path / "r")
    from understudy import seeding

    with seeding.isolated(0, "student"):
        start = model("resnet8").module.state_dict()
    end = student(tmp_path / "r", "kd")
    for name, value in start.items():
        frozen = name.startswith(("layer1.", "bn1."))
        if (value.is_floating_point() and not name.endswith(("weight", "bias"))) or "conv" in name:
            assert torch.equal(value, end[name]) == frozen, name


def test_ema_is_the_moving_average(tmp_path: Path) -> None:
    built = experiment(
        {"kd": [{"methods": ["kd"], "steps": 3, "ema": 0.5, "lr": 0.1}]}, student="dropped"
    )
    seen: list[torch.Tensor] = []

    class Watch(KD):
        def wire(self, wiring: Any) -> None:
            self.module = [wiring.student.module]
            seen.clear()

        def after_step(self, step: Step) -> None:
            seen.append(self.module[0].fc.weight.detach().clone())

    make = built.arms["kd"]
    built.arms = {"kd": lambda: [_with(make()[0], Watch())]}
    run(built, tmp_path / "r")
    average = seen[0]
    for value in seen[1:]:
        average = 0.5 * average + 0.5 * value
    torch.testing.assert_close(student(tmp_path / "r", "kd")["fc.weight"], average)


def test_stochastic_weight_averaging_with_batch_statistics(tmp_path: Path) -> None:
    run(experiment({"kd": [{"methods": ["kd"], "epochs": 4, "average_from": 0.5}]}), tmp_path / "r")
    assert lines(tmp_path / "r", "result", arm="kd")


def test_early_stopping_goes_back_to_the_best_weights(tmp_path: Path) -> None:
    stages = [
        {"methods": ["kd"], "epochs": 40, "early_stopping": EarlyStopping(2, "accuracy"), "lr": 0.1}
    ]
    run(experiment({"kd": stages}), tmp_path / "r")
    found = [line["metrics"]["accuracy"] for line in lines(tmp_path / "r", "epoch", arm="kd")]
    assert len(found) < 40
    best = max(range(len(found)), key=lambda place: (found[place], -place))
    assert len(found) == best + 1 + 2


def test_a_learning_rate_that_explodes_is_named(tmp_path: Path) -> None:
    arms = {"wild": [{"methods": ["supervised", "kd"], "lr": 1e30, "epochs": 5}]}
    with pytest.raises(TrainingError, match=r"not finite|NaN"):
        run(experiment(arms, log_every=1), tmp_path / "r")


class Exploding(Method):
    """Becomes infinite at the third step."""

    needs_teacher = False

    def loss(self, step: Step) -> dict[str, torch.Tensor]:
        assert step.student.logits is not None
        factor = float("inf") if step.progress >= 2 / 15 and step.progress != 0.5 else 1.0
        return {
            "fine": step.student.logits.mean(),
            "wild": step.student.logits.square().mean() * factor,
        }


def test_a_non_finite_term_is_named_with_its_samples(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run(experiment({"bad": [{"methods": [Exploding()]}]}, checkpoint_every=1), tmp_path / "r")
    text = str(caught.value)
    assert "exploding.wild" in text and "at step 3" in text and "ids" in text
    assert "bad-seed0-000000002.pt" in text, "the last good checkpoint must be named"


def test_a_teacher_no_better_than_chance_is_refused(tmp_path: Path) -> None:
    built = experiment()
    assert built.teacher is not None
    built.teacher.stages = ()
    with pytest.raises(PreflightError, match="no better than chance"):
        run(built, tmp_path / "r")
    assert not (tmp_path / "r" / "student").exists()


def test_a_student_of_other_classes_is_refused(tmp_path: Path) -> None:
    built = experiment()
    built.student = lambda: Model(Dropped(5), model("dropped").preprocess, "dropped")
    with pytest.raises(PreflightError, match="student gives 5 logits, but the data has 3 classes"):
        run(built, tmp_path / "r")
    assert not (tmp_path / "r").exists(), "a refused run must not stand in the way of the next"


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    built = experiment()
    inner = built.student

    def turned() -> Model:
        made = inner()
        made.classes = ("middle", "low", "high")
        return made

    built.student = turned
    with pytest.raises(PreflightError, match="low"):
        run(built, tmp_path / "r")


class Dead(nn.Module):
    """A student with a layer that gives zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Dropped()
        self.zero = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.zero(x * 0).sum(dim=(1, 2, 3))[:, None]


def test_a_dead_tap_is_refused(tmp_path: Path) -> None:
    built = experiment({"hint": [{"methods": [FitNet("zero", "layer2")]}]})
    built.student = lambda: Model(Dead(), model("dropped").preprocess, "dead")
    with pytest.raises(PreflightError, match="student's tap 'zero' is dead"):
        run(built, tmp_path / "r")


def test_a_method_without_teacher_or_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="needs a teacher"):
        run(experiment(teacher=None), tmp_path / "a")
    bare = source()
    unlabelled = from_tensors(
        bare.train.samples.fetch(bare.train.positions),
        None,  # type: ignore[arg-type]
        test_inputs=bare.test.samples.fetch(bare.test.positions),  # type: ignore[arg-type]
        test_labels=bare.test.labels,
        classes=list(bare.classes),
    )
    built = experiment(
        {"s": [{"methods": ["supervised"]}]}, teacher=None, source_override=unlabelled
    )
    built.data.validation = None
    with pytest.raises(PreflightError, match="needs labels"):
        run(built, tmp_path / "b")


def test_directories(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(RunDirectoryError, match="exists already"):
        run(experiment(), tmp_path / "full")
    with pytest.raises(RunDirectoryError, match=r"no recipe\.yaml"):
        run(experiment(), tmp_path / "full", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        run(experiment(), tmp_path / "file" / "below")


def test_two_processes_do_not_train_into_one_directory(tmp_path: Path) -> None:
    run(experiment({"kd": [{"methods": ["kd"], "epochs": 1}]}), tmp_path / "r")
    holder = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); "
    holder += "fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "r" / ".lock")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        with pytest.raises(RunDirectoryError, match="Another process"):
            run(experiment({"kd": [{"methods": ["kd"], "epochs": 1}]}), tmp_path / "r", resume=True)
    finally:
        process.kill()
        process.wait()


def test_bf16_trains(tmp_path: Path) -> None:
    run(experiment({"both": [{"methods": ["kd", "fitnet"]}]}, precision="bf16"), tmp_path / "r")
    assert lines(tmp_path / "r", "run")[0]["precision"] == "bf16"
    assert all(value.dtype != torch.bfloat16 for value in student(tmp_path / "r", "both").values())


def test_auto_precision_is_measured_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="understudy"):
        run(experiment(precision="auto", channels_last="auto"), tmp_path / "r")
    assert "Probe: a step takes" in caplog.text
    assert lines(tmp_path / "r", "run")[0]["precision"] in ("float32", "bf16")


def test_channels_last_is_neither_tried_nor_taken_where_it_corrupts_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with caplog.at_level(logging.INFO, logger="understudy"):
        run(experiment(precision="auto", channels_last="auto"), tmp_path / "auto")
    assert "channels last" not in caplog.text and "Probe: a step takes" in caplog.text
    with pytest.raises(PreflightError, match=r"layer2.0.downsample.0' of the student \(4 input"):
        run(experiment(channels_last=True), tmp_path / "refused")
    with pytest.raises(PreflightError, match=r"Use compile: false"):
        run(experiment(compile=True), tmp_path / "compiled")


def test_supervised_reads_only_the_labelled(tmp_path: Path) -> None:
    seen: set[int] = set()

    class Watch(Supervised):
        def loss(self, step: Step) -> torch.Tensor:
            assert (step.labels is not None and (step.labels >= 0).all()) or step.progress == 0.5
            seen.update(step.batch.index.tolist())
            return super().loss(step)

    built = experiment({"s": [{"methods": [Watch()], "epochs": 4}]}, labels=12)
    run(built, tmp_path / "r")
    counts = lines(tmp_path / "r", "run")[0]["counts"]
    assert counts["labelled"] == 12 and counts["train"] == 84
    assert lines(tmp_path / "r", "result", arm="s")[0]["cost"]["steps"] == 4 * (84 // 16)


def test_fingerprint_changes_with_any_weight() -> None:
    first = Dropped()
    before = fingerprint(first)
    assert before == fingerprint(first)
    with torch.no_grad():
        first.fc.bias[0] += 1e-6
    assert fingerprint(first) != before
