"""Stages that learn from a selected part of the documents."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import FILE, go, lines, model, recipe, reference
from safetensors.torch import load_file

from understudy.data.batch import Batch
from understudy.data.selection import Select
from understudy.errors import PreflightError, RecipeError, UnderstudyError
from understudy.models import saved
from understudy.recipe import from_values
from understudy.report.html import write_report
from understudy.tasks import make_task
from understudy.training import likelihoods
from understudy.training.context import Context
from understudy.training.distribution import World
from understudy.training.plan import make_plan
from understudy.training.splits import make_splits

ARMS = {
    "all": ["supervised"],
    "best": {"methods": ["supervised"], "select": {"name": "difference", "ratio": 0.5}},
    "any": {"methods": ["supervised"], "select": {"name": "random", "ratio": 0.5}},
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run with all three arms, and its recipe."""
    folder = tmp_path_factory.mktemp("selecting")
    values = recipe(folder, ARMS, reference=reference())
    go(values, folder / "runs" / "whole")
    return folder / "runs" / "whole", values


def by_hand(directory: Path, name: str, documents: list[str]) -> torch.Tensor:
    """Return the mean log-likelihood of each document under a saved model, one document at a time."""
    found = saved.load(directory / "models" / name)
    task, means = make_task("causal_lm"), []
    found.module.eval()
    for document in documents:
        tokens = found.preprocess([document], CPU)
        batch = Batch({"student": tokens}, None, torch.zeros(1).long(), torch.zeros(1).long())
        with torch.no_grad():
            logits = task.forward(found.module, batch, "student").logits
        assert logits is not None
        rows = logits.double().log_softmax(dim=1)
        means.append(rows.gather(1, tokens.labels[:, None]).mean())
    return torch.stack(means)


def test_the_documents_with_the_largest_difference_are_learnt_from(
    done: tuple[Path, dict[str, Any]],
) -> None:
    directory, values = done
    experiment = from_values(values).build(directory)
    train = make_splits(experiment).train
    documents = list(train.fetch(torch.arange(len(train))))
    expected = by_hand(directory, "teacher", documents) - by_hand(directory, "reference", documents)
    count = len(train) // 2
    kept = expected.argsort(descending=True)[:count]
    (line,) = lines(directory, "selection")[:1]
    labels = torch.bincount(train.labels[kept], minlength=3).tolist()
    assert (line["arm"], line["kept"], line["of"]) == ("best", count, len(train))
    assert line["kept_by_class"] == labels and line["name"] == "difference"
    # Letters at random are as unlikely to the teacher as to the reference.
    assert labels[2] < int((train.labels == 2).sum()) / 2


def test_arms_take_as_many_steps_and_samples(done: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = done
    results = {line["arm"]: line for line in lines(directory, "result")}
    assert set(results) == {"teacher", "teacher.reference", "all", "best", "any"}
    costs = [results[arm]["cost"] for arm in ARMS]
    assert len({(each["steps"], each["samples"]) for each in costs}) == 1
    best, random = lines(directory, "selection")
    assert best["kept"] == random["kept"] and random["name"] == "random"


def test_the_reference_learns_from_documents_that_nobody_else_sees(
    done: tuple[Path, dict[str, Any]],
) -> None:
    directory, values = done
    splits = make_splits(from_values(values).build(directory))
    assert splits.reference is not None
    everyone = [splits.train, splits.reference, splits.test, splits.validation]
    ids = torch.cat([each.ids for each in everyone if each is not None])
    assert len(ids.unique()) == len(ids)
    assert torch.equal(splits.teachers["teacher"].ids, splits.train.ids)
    assert lines(directory, "run")[0]["counts"]["reference"] == len(splits.reference)


def test_likelihoods_are_kept_by_id_and_shared_with_other_runs(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, values = done
    files = sorted((directory.parent / ".fitted" / likelihoods.FOLDER).glob("*.bin"))
    train = make_splits(from_values(values).build(directory)).train
    assert len(files) == 2 and all(map(likelihoods.is_complete, files))
    for file in files:
        records = np.fromfile(file, likelihoods.RECORD)
        assert records["id"].tolist() == train.ids.tolist()
        assert (records["nats"] < 0).all() and (records["tokens"] > 3).all()

    def refuse(*_: Any) -> Any:
        raise AssertionError("scored again")

    monkeypatch.setattr(likelihoods, "_batches", refuse)
    again = {**values, "arms": {"best": ARMS["best"]}}
    again["teacher"] = {"model": f"saved:{directory}/models/teacher"}
    go(again, directory.parent / "again")
    first, second = (
        load_file(path / "student" / "best" / "seed-0" / "model.safetensors")
        for path in (directory, directory.parent / "again")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def fresh(values: dict[str, Any], directory: Path) -> tuple[Context, Any]:
    experiment = from_values(values).build(directory)
    context = Context(experiment, make_splits(experiment), World(0, 1, CPU), None)
    context.experiment.settings.cache = str(directory / "cache")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return context, experiment.student()


def test_an_interrupted_pass_goes_on_and_writes_the_same_bytes(tmp_path: Path) -> None:
    values = recipe(tmp_path, ARMS, reference=reference(), evaluation_batch_size=8)
    context, student = fresh(values, tmp_path / "whole")
    split = context.splits.train
    whole = likelihoods.measure_likelihoods(context, student, split, lambda: None, whom="model")
    path = likelihoods.likelihood_file(context, student, split)
    expected = path.read_bytes()

    class Stopped(Exception):
        pass

    context.experiment.settings.cache = str(tmp_path / "stopped")
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        likelihoods.measure_likelihoods(context, student, split, stop, whom="model")
    path = likelihoods.likelihood_file(context, student, split)
    assert 0 < path.stat().st_size < len(expected) and not likelihoods.is_complete(path)
    # What a killed process wrote of its last batch counts nothing.
    path.write_bytes(path.read_bytes() + expected[:37])
    again = likelihoods.measure_likelihoods(context, student, split, lambda: None, whom="model")
    assert path.read_bytes() == expected and torch.equal(again.nats, whole.nats)


def test_a_damaged_file_is_scored_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = recipe(tmp_path, ARMS, reference=reference())
    context, student = fresh(values, tmp_path / "run")
    split = context.splits.train
    measure = likelihoods.measure_likelihoods
    whole = measure(context, student, split, lambda: None, whom="model")
    path = likelihoods.likelihood_file(context, student, split)
    broken = bytearray(path.read_bytes())
    broken[16] ^= 1
    path.write_bytes(bytes(broken))
    again = measure(context, student, split, lambda: None, whom="model")
    assert torch.equal(again.nats, whole.nats) and likelihoods.is_complete(path)
    assert any("damaged" in message for message in caplog.messages)


def test_other_weights_documents_and_preprocessing_have_other_files(tmp_path: Path) -> None:
    values = recipe(tmp_path, ARMS, reference=reference())
    context, student = fresh(values, tmp_path / "run")
    split = context.splits.train
    first = likelihoods.likelihood_file(context, student, split)
    assert likelihoods.likelihood_file(context, student, split.subset(torch.arange(9))) != first
    with torch.no_grad():
        next(student.module.parameters()).add_(1)
    second = likelihoods.likelihood_file(context, student, split)
    student.preprocess.long = "cut"
    assert len({first, second, likelihoods.likelihood_file(context, student, split)}) == 3


def test_a_killed_run_goes_on_to_the_same_student(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    expected, values = done
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    command = [sys.executable, str(FILE), str(tmp_path / "runs" / "killed")]
    end = str(tmp_path / "recipe.json")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([*command, "fresh", end], env=environment)
    folder = tmp_path / "runs" / ".fitted" / likelihoods.FOLDER
    limit = time.monotonic() + 120
    while not list(folder.glob("*.bin")) and time.monotonic() < limit and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    subprocess.run([*command, "resume", end], env=environment, check=True, timeout=300)
    for arm in ("best", "any"):
        place = Path("student") / arm / "seed-0" / "model.safetensors"
        first, second = (load_file(each / place) for each in (expected, tmp_path / "runs/killed"))
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_plan_says_what_is_kept_and_what_scoring_costs(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, values = done
    plan = make_plan(from_values(values).build(tmp_path / "run"), tmp_path / "run")
    notes = {stage.arm: "\n".join(stage.notes) for stage in plan.stages}
    assert "learns from 43 of 87 samples, chosen by log p(teacher)" in notes["best"]
    assert "tokens" in notes["best"] and "tokens" in notes["any"]
    assert "the teacher scores 87 documents once: about" in notes["best"]
    assert "the reference scores 87 documents once" in notes["best"]
    assert "chosen at random" in notes["any"] and "scores" not in notes["any"]
    assert "learns from" not in notes["all"] and not plan.refused
    assert plan.counts["reference"] == 10


def test_the_report_knows_the_reference_as_a_teacher(done: tuple[Path, dict[str, Any]]) -> None:
    directory, _ = done
    page = write_report(directory).read_text()
    assert "reference" in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": None}, "reference: is missing; the arms best select by difference"),
        ({"arms": {"all": ["supervised"]}}, "reference: is given, and no stage selects"),
        ({"teacher": None}, "teacher: is missing; the arms best"),
        ({"reference": {**reference(), "train": ["kd"]}}, "the reference has no teacher"),
        (
            {
                "arms": {
                    "best": {"methods": ["supervised"], "select": {"name": "random", "ratio": 2}}
                }
            },
            "ratio is 2",
        ),
        (
            {"arms": {"best": {"methods": ["supervised"], "select": {"name": "randm"}}}},
            "there is no choice 'randm'",
        ),
    ],
)
def test_recipes_that_cannot_be_right_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError) as refusal:
        given = recipe(tmp_path, ARMS, reference=reference()) | changes
        from_values({key: value for key, value in given.items() if value is not None})
    assert said in str(refusal.value)


def test_a_reference_with_other_tokens_is_refused(tmp_path: Path) -> None:
    other = {**reference(), "model": model(8, train={"size": 270})}
    values = recipe(tmp_path, ARMS, reference=other)
    with pytest.raises(PreflightError, match="read different tokens"):
        go(values, tmp_path / "run")


def test_a_resolved_recipe_reads_as_the_same_one(tmp_path: Path) -> None:
    first = from_values(recipe(tmp_path, ARMS, reference=reference()))
    resolved = first.resolved()
    assert from_values(json.loads(json.dumps(resolved))) == first
    assert "select" not in resolved["arms"]["all"]["stages"][0]
    assert first.arms is not None
    select = first.arms["best"].build()[0].select
    assert select == Select("difference", 0.5)


def test_a_selection_that_cannot_be_is_refused() -> None:
    with pytest.raises(UnderstudyError, match="selection"):
        Select("other")  # type: ignore[arg-type]
    with pytest.raises(UnderstudyError, match="listens to no teacher"):
        Select("random", teacher="big")


def test_filters_of_a_recipe_are_named_in_plan_and_run(tmp_path: Path) -> None:
    values = recipe(tmp_path, {"all": ["supervised"]}, steps=1)
    values["data"] = {
        **values["data"],
        "filters": [{"name": "letters", "least": 0.95}, "duplicates"],
    }
    given = from_values(values)
    assert from_values(json.loads(json.dumps(given.resolved()))) == given
    plan = make_plan(given.build(tmp_path / "run"))
    assert [each.name for each in plan.dropped] == ["letters", "duplicates"]
    assert plan.dropped[0].count >= 25 and plan.dropped[1].of == 108 - plan.dropped[0].count
    go({**values, "teacher": None}, tmp_path / "run")
    (line,) = lines(tmp_path / "run", "run")
    assert line["filters"][0]["name"] == "letters"
    assert "Filter letters: " in (tmp_path / "run" / "log.txt").read_text()
    with pytest.raises(RecipeError, match="duplicates"):
        from_values({**values, "data": {**values["data"], "filters": ["duplicate"]}})


def test_a_reference_is_merged_over_a_base_and_may_be_its_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = recipe(tmp_path, ARMS, reference=reference())
    Path("base.json.yaml").write_text(json.dumps(values))
    changed = from_values({"base": "base.json.yaml", "reference": {"train": {"steps": 7}}})
    assert changed.reference is not None and changed.reference.train is not None
    assert changed.reference.train.stages[0].steps == 7
    assert changed.reference.model.name == "hf:llama" and changed.reference.share == 0.1
    alone = from_values({**values, "reference": "saved:somewhere"})
    assert alone.reference is not None and alone.reference.train is None
    schema = importlib.import_module("understudy.recipe").schema()
    check = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    for good in (values, {**values, "reference": "saved:somewhere"}):
        assert not list(check.iter_errors(good))
    bad = {**values, "arms": {"best": {"methods": ["kd"], "select": {"name": "best"}}}}
    assert list(check.iter_errors(bad))
