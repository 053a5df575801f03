"""Runs with several teachers: each is like an only one, methods hear those that they name."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy import TOY_FILE, experiment

from understudy import objectives
from understudy.errors import PreflightError, StoreError, UnderstudyError
from understudy.methods import KD, FitNet, Method, Step, Supervised
from understudy.report.html import write_report
from understudy.report.reading import read_run
from understudy.teachers.listening import Route
from understudy.training.context import Context
from understudy.training.distribution import World
from understudy.training.labelling import label
from understudy.training.plan import make_plan
from understudy.training.run import run
from understudy.training.splits import make_splits
from understudy.training.teacher import build_teachers

ROUTE = {"by": "label", "classes": {"big": [0, 2], "other": [1]}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Two trained teachers of another kind, with preprocessing of their own."""
    path = tmp_path_factory.mktemp("teachers") / "run"
    several = {"big": {"mean": 0.25}, "other": {"kind": "resnet8", "mean": 0.1, "epochs": 4}}
    run(experiment({"baseline": [{"methods": ["supervised"], "steps": 1}]}, teachers=several), path)
    return {
        name: {**given, "file": str(path / "models" / name / "model.safetensors")}
        for name, given in several.items()
    }


def student(directory: Path, arm: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return load_file(directory / "student" / arm / f"seed-{seed}" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def lines(directory: Path, event: str) -> list[dict[str, Any]]:
    path = directory / "metrics.jsonl"
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(text) for text in texts if text.endswith("\n")]
    return [line for line in found if line["event"] == event]


def arm(*methods: Any, **stage: Any) -> list[dict[str, Any]]:
    return [{"methods": list(methods), "epochs": 2, **stage}]


def test_each_teacher_has_its_lines_folder_and_row(trained: dict[str, Any], tmp_path: Path) -> None:
    several = {"big": {"epochs": 2}, "other": trained["other"]}
    arms = {
        "mean": arm("kd"),
        "one": arm(("kd", 1.0, "other")),
        "two": arm(("kd", 1.0, "big"), ("kd", 0.5, "other"), ("fitnet", 1.0, "big")),
        "baseline": arm("supervised"),
    }
    path = tmp_path / "run"
    run(experiment(arms, teachers=several, augment=True), path)
    roles = {line["role"]: line for line in lines(path, "model")}
    assert list(roles) == ["student", "teacher.big", "teacher.other"]
    assert roles["teacher.big"]["trained_here"] and not roles["teacher.other"]["trained_here"]
    assert {folder.name for folder in (path / "models").iterdir()} == {"big", "other"}
    results = {line["arm"]: line["metrics"] for line in lines(path, "result")}
    assert results["teacher.big"]["agreement"] is None
    assert results["teacher.big"]["accuracy"] != results["teacher.other"]["accuracy"]
    # Geometry is that of the only teacher that was heard.
    assert results["one"]["procrustes"] is not None
    assert results["mean"]["procrustes"] is None and results["baseline"]["procrustes"] is None
    assert all(results[name]["agreement"] is not None for name in arms)
    terms = lines(path, "step")[-1]["terms"]
    assert {"kd-1", "kd-2", "fitnet"} <= next(
        line["terms"].keys() for line in lines(path, "step") if line["arm"] == "two"
    ), terms
    read = read_run(path)
    assert read.teachers == ["teacher.big", "teacher.other"] and read.missing == []
    page = write_report(path).read_text()
    assert "Teacher &#39;big&#39;" in page and "mean of their probabilities" in page


def test_agreement_is_with_the_mean_of_those_that_were_heard(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    built = experiment({"mean": arm("kd"), "big": arm(("kd", 1.0, "big"))}, teachers=trained)
    path = tmp_path / "run"
    run(built, path)
    context = Context(built, make_splits(built), World(0, 1, torch.device("cpu")))
    test, teachers = context.splits.test, build_teachers(context)
    answers = {
        name: context.predictions(each, each.module, test).logits.softmax(dim=1)  # type: ignore[union-attr]
        for name, each in teachers.items()
    }
    results = {line["arm"]: line["metrics"] for line in lines(path, "result")}
    for name, reference in (
        ("mean", (answers["big"] + answers["other"]) / 2),
        ("big", answers["big"]),
    ):
        model = built.student()
        model.module.load_state_dict(student(path, name))
        own = context.predictions(model, model.module, test).logits
        agreement = float((own.argmax(dim=1) == reference.argmax(dim=1)).double().mean())
        kl = (reference * (reference.log() - own.log_softmax(dim=1))).sum(dim=1).mean()
        assert results[name]["agreement"] == pytest.approx(agreement)
        assert results[name]["kl"] == pytest.approx(float(kl), rel=1e-4)


def test_a_named_teacher_among_several_teaches_what_it_teaches_alone(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    for name, other in (("big", "resnet14"), ("other", "resnet8")):
        arms = {"a": arm(("kd", 1.0, name), ("fitnet", 0.1, name))}
        given = trained[name]
        run(experiment(arms, teachers=trained, augment=True), tmp_path / f"{name}-several")
        alone = {"a": arm("kd", ("fitnet", 0.1))}
        only = {"teacher_file": given["file"], "teacher_mean": given["mean"]}
        run(experiment(alone, teacher=other, augment=True, **only), tmp_path / f"{name}-alone")
        run(experiment(alone, teachers={name: given}, augment=True), tmp_path / f"{name}-named")
        found = [student(tmp_path / f"{name}-{how}", "a") for how in ("several", "alone", "named")]
        assert same(found[0], found[1]) and same(found[0], found[2])


class Heard(Method):
    """Keeps what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def loss(self, step: Step) -> torch.Tensor:
        found, teacher = step.logits()
        self.kept += [teacher, *(step.teachers[name].logits for name in step.teachers)]  # type: ignore[list-item]
        return objectives.kd(found, teacher)


def trial(methods: list[Method], trained: dict[str, Any], **options: Any) -> Any:
    """Run one step of a stage with these methods; return the stage and the terms."""
    built = experiment({"a": [{"methods": methods, "steps": 2}]}, teachers=trained, **options)
    context = Context(built, make_splits(built), World(0, 1, torch.device("cpu")))
    stage = built.arms["a"]()[0]
    made = context.stage_run(
        stage,
        student=context.build_student(0),
        teacher=build_teachers(context),
        split=context.splits.train,
        seed=0,
        number=0,
    )
    terms = made.trial(made.precision, next(iter(made.loader.steps(0, 1)))[0])
    made.close()
    return made, terms


@pytest.mark.parametrize("hears", [None, {"big": 3.0, "other": 1.0}, Route(**ROUTE)])
def test_a_step_gives_the_plain_formula(trained: dict[str, Any], hears: Any) -> None:
    method = Heard().listening_to(hears)
    made, _ = trial([method], trained)
    combined, big, other = method.kept
    assert not torch.equal(big, other)
    if isinstance(hears, Route):
        labels = next(iter(made.loader.steps(0, 1)))[0].labels
        assert torch.equal(combined, torch.where((labels == 1).unsqueeze(1), other, big))
        return
    share = 0.5 if hears is None else 0.75
    mean = share * big.softmax(dim=1) + (1 - share) * other.softmax(dim=1)
    torch.testing.assert_close(combined.softmax(dim=1), mean)


def test_only_teachers_that_are_asked_for_run_and_they_stop_early(trained: dict[str, Any]) -> None:
    made, _ = trial([KD().listening_to("other"), Supervised()], trained)
    assert list(made.teachers) == ["other"] and set(made.example.inputs) == {"student", "other"}
    made, _ = trial([KD().listening_to("other"), FitNet().listening_to("big")], trained)
    assert "no method reads the logits of the teacher 'big': it stops after 'layer2'" in (
        made.wiring.notes
    )
    assert made.teachers["big"].stop is not None and made.teachers["other"].stop is None
    assert list(made.wiring.teachers["other"].taps) == []


def test_a_method_that_reads_features_has_to_name_one(
    trained: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for methods, message in (
        (
            ["fitnet"],
            r"'fitnet' reads features.* listens to 2: big, other\. Name one .*teacher: big",
        ),
        ([("fitnet", 1.0, ["other", "big"])], r"listens to 2: other, big"),
        (["coordinates"], r"listens to 2: big, other"),
        ([("kd", 1.0, "bigg")], r"'kd' listens to nobody: .*'bigg'. Did you mean 'big'"),
        ([("kd", 1.0, {**ROUTE, "classes": {"big": [0]}})], "no teacher for the classes 1, 2"),
    ):
        with caplog.at_level(logging.CRITICAL), pytest.raises(UnderstudyError, match=message):
            run(experiment({"a": arm(*methods)}, teachers=trained), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_methods_are_fitted_to_the_teacher_that_they_name(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    arms = {"a": [{"methods": [("narrow", 1.0, "big"), ("kd", 1.0, "other")], "epochs": 1}]}
    run(experiment(arms, teachers=trained), tmp_path / "several" / "run")
    alone = {"teacher_file": trained["big"]["file"], "teacher_mean": trained["big"]["mean"]}
    run(
        experiment(
            {"a": arm("narrow", epochs=1)}, **alone, cache=str(tmp_path / "several/.fitted")
        ),
        tmp_path / "alone" / "run",
    )
    (first,), (second,) = (lines(tmp_path / name / "run", "fit") for name in ("several", "alone"))
    # What was fitted among several is what a run with this teacher alone finds.
    assert not any(note["found"] for note in first["fitted"])
    assert all(note["found"] for note in second["fitted"])


def test_the_preflight_names_the_teacher_that_is_wrong(
    trained: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = dict(load_file(trained["other"]["file"]))
    broken["fc.weight"], broken["fc.bias"] = -broken["fc.weight"], -broken["fc.bias"]
    from safetensors.torch import save_file

    save_file(broken, tmp_path / "broken.safetensors")
    several = {
        **trained,
        "other": {**trained["other"], "file": str(tmp_path / "broken.safetensors")},
    }
    message = "teacher 'other' is no better than chance"
    with caplog.at_level(logging.CRITICAL), pytest.raises(PreflightError, match=message):
        run(experiment({"a": arm("kd")}, teachers=several), tmp_path / "run")
    built = experiment({"a": arm("kd")}, teachers=trained)
    make = built.teachers["other"].build
    assert make is not None

    def wider() -> Any:
        made = make()
        made.module.fc = torch.nn.Linear(made.module.fc.in_features, 5)
        return made

    built.teachers["other"].build = wider
    message = "The teacher 'other' gives 5 logits, but the data has 3 classes"
    with caplog.at_level(logging.CRITICAL), pytest.raises(PreflightError, match=message):
        run(built, tmp_path / "run")


def test_the_plan_shows_every_teacher(trained: dict[str, Any]) -> None:
    arms = {"a": arm(("fitnet", 1.0, "big"), "kd"), "b": arm(("kd", 1.0, "other"))}
    plan = make_plan(experiment(arms, teachers=trained))
    assert not plan.refused
    assert [model.role for model in plan.models] == ["student", "teacher.big", "teacher.other"]
    taps = {stage.arm: stage.taps for stage in plan.stages}
    assert [tap.name for tap in taps["a"]["big"]] == ["layer2"] and taps["a"]["other"] == []
    assert "big" not in taps["b"]
    assert set(plan.stores) == {"big", "other"}
    assert "teachers.other.store=PATH" in plan.stores["other"].sentence
    rows = {
        stage.arm: {name: use.rows for name, use in stage.uses.items()} for stage in plan.stages
    }
    assert rows["b"].keys() == {"other"} and rows["a"].keys() == {"big", "other"}


def test_one_of_several_teachers_may_be_stored(trained: dict[str, Any], tmp_path: Path) -> None:
    stored = {**trained["big"], "store": {"path": str(tmp_path / "big")}}
    arms = {"a": arm("kd", ("fitnet", 0.1, "big")), "b": arm(("fitnet", 0.1, "other"))}
    options: dict[str, Any] = {"transforms": [], "student": "steady"}
    live = experiment(arms, teachers=trained, **options)
    mixed = experiment(arms, teachers={**trained, "big": stored}, **options)
    manifest = label(mixed)
    assert [name for name in manifest.parts["train"].columns if name != "logits"] == [
        "tap:layer2"
    ] or len(manifest.parts["train"].columns) == 2
    for name, built in (("live", live), ("mixed", mixed)):
        run(built, tmp_path / name)
    for key, value in student(tmp_path / "live", "a").items():
        torch.testing.assert_close(
            student(tmp_path / "mixed", "a")[key], value, atol=1e-5, rtol=1e-4
        )
    assert same(student(tmp_path / "live", "b"), student(tmp_path / "mixed", "b"))
    both = {
        name: {**given, "store": {"path": str(tmp_path / name)}} for name, given in trained.items()
    }
    with pytest.raises(
        StoreError, match="big, other have a store each; say which .* --teacher big"
    ):
        label(experiment(arms, teachers=both, **options))
    label(experiment(arms, teachers=both, **options), teacher="other")
    with pytest.raises(StoreError, match=r"teachers\.other\.store=PATH"):
        label(mixed, teacher="other")


OPTIONS: dict[str, Any] = {
    "arms": {
        "mixed": [
            {
                "methods": [
                    "kd",
                    ["fitnet", 0.1, "big"],
                    ["fitnet", 0.1, "other", "phi_s"],
                    ["kd", 0.5, ROUTE],
                    ["supervised", 2.0],
                ],
                "epochs": 3,
                "accumulate": 2,
            }
        ]
    },
    "student": "steady",
    "teachers": {
        "big": {"kind": "steady", "mean": 0.2, "epochs": 2},
        "other": {"kind": "steady", "mean": 0.1, "epochs": 3},
    },
    "preflight": "warn",
    "missing": 30,
    "augment": True,
    "log_every": 1,
    "checkpoint_every": 3,
}


def launch(path: Path, mode: str, *ranks: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *ranks, str(TOY_FILE), str(path), mode, json.dumps(OPTIONS)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_killed_runs_resume_and_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    for name, ranks in (
        ("one", ()),
        ("two", ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")),
    ):
        process = launch(tmp_path / name, "fresh", *ranks)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    whole = student(tmp_path / "one", "mixed")
    for key, value in student(tmp_path / "two", "mixed").items():
        torch.testing.assert_close(value, whole[key], atol=1e-4, rtol=1e-4, msg=key)
    losses = [[line["loss"] for line in lines(tmp_path / name, "step")] for name in ("one", "two")]
    assert len(losses[0]) == len(losses[1]) > 10
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)

    broken = tmp_path / "broken"
    # Killed in the second teacher's training, and again in the student's.
    for mode, target in (("fresh", 13), ("resume", 12)):
        process = launch(broken, mode)
        before = len(lines(broken, "step"))
        while process.poll() is None and len(lines(broken, "step")) < before + target:
            time.sleep(0.01)
        assert process.poll() is None, "the run was over before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    process = launch(broken, "resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert same(whole, student(broken, "mixed"))
    assert [line["arm"] for line in lines(broken, "member") if line["state"] == "resumed"]


def test_compiled_teachers_teach_the_same(trained: dict[str, Any]) -> None:
    methods = [KD(), FitNet().listening_to("big").weighted(0.1)]
    _, eager = trial(methods, trained)
    _, compiled = trial([KD(), FitNet().listening_to("big").weighted(0.1)], trained, compile=True)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-4)


def test_features_arrive_standardised_and_are_fitted_once(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    class Seen(FitNet, name=None):
        kept: list[torch.Tensor] = []

        def loss(self, step: Step) -> torch.Tensor:
            self.kept.append(step.features(*self.places)[1])
            self.kept.append(step.teachers["big"].features[self.places[1]])
            return super().loss(step)

    def arms(number: int) -> dict[str, Any]:
        method = Seen("fc@input", "fc@input").listening_to("big", features="phi_s")
        return {"a": [{"methods": [method], "epochs": number, "name": "hint"}]}

    for number in (1, 2):
        run(experiment(arms(number), teachers=trained), tmp_path / str(number))
        (line,) = lines(tmp_path / str(number), "fit")
        assert [note["what"] for note in line["fitted"]] == ["moments of fc@input"]
        assert [note["found"] for note in line["fitted"]] == [number == 2]
    # Of the last pass over all samples; a batch of 16 does not fill 84 samples to the end.
    pairs = list(zip(Seen.kept[::2], Seen.kept[1::2], strict=True))[-5:]
    standardised, raw = (torch.cat(rows) for rows in zip(*pairs, strict=True))
    assert not torch.allclose(standardised, raw)
    variances = standardised.var(dim=0)
    assert float(variances.min()) > 0.7 and float(variances.max()) < 1.4
    spread = raw.var(dim=0)
    assert float(spread.max() / spread.min()) > float(variances.max() / variances.min())
    plan = make_plan(experiment(arms(1), teachers=trained))
    notes = [note for stage in plan.stages for note in stage.notes]
    assert "fitnet: teacher's features standardised by PHI-S at fc@input" in notes or any(
        "standardised by PHI-S at fc@input" in note for note in notes
    )
    silent = experiment(
        {"a": [{"methods": [KD().listening_to("big", features="phi_s")], "epochs": 1}]},
        teachers=trained,
    )
    with pytest.raises(UnderstudyError, match="'kd' reads no features of the teacher"):
        run(silent, tmp_path / "silent")
