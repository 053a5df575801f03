"""What is labelled depends neither on crashes nor on processes; training from it is training with the teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import experiment, model

from understudy import seeding
from understudy.teachers.store import Store
from understudy.training.labelling import label
from understudy.training.run import run

ARMS: dict[str, list[dict[str, Any]]] = {"kd": [{"methods": ["kd", "supervised"], "epochs": 4}]}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a teacher with batch statistics that are not those of a fresh one."""
    with seeding.isolated(0, "labelling"):
        module = model("resnet14", 0.5).module
        module.train()
        for _ in range(5):
            module(torch.randn(16, 1, 8, 8))
        file = tmp_path_factory.mktemp("teacher") / "model.safetensors"
        save_file(module.state_dict(), file)
    return str(file)


def options(teacher_file: str, **changes: Any) -> dict[str, Any]:
    """Return the options of an experiment with two random views; the preflight only warns of the random teacher."""
    given = {"arms": ARMS, "teacher_file": teacher_file, "augment": True, "views": 2}
    return {**given, "preflight": "warn", **changes}


def weights(directory: Path, arm: str = "kd", seed: int = 0) -> dict[str, torch.Tensor]:
    return load_file(directory / "student" / arm / f"seed-{seed}" / "model.safetensors")


def metrics(directory: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line["metrics"] for line in lines if line["event"] == "result"]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_training_from_the_store_is_training_with_the_teacher(
    tmp_path: Path, teacher_file: str
) -> None:
    given = options(teacher_file, seeds=(1,))  # another seed than that of the views
    store = {"path": str(tmp_path / "store")}
    label(experiment(**given, store=store))
    run(experiment(**given), tmp_path / "live")
    run(experiment(**given, store=store), tmp_path / "beside")
    alone = experiment(**{**given, "teacher_file": None}, teacher=None, store=store)
    run(alone, tmp_path / "alone")
    expected = weights(tmp_path / "live", seed=1)
    assert_equal(expected, weights(tmp_path / "beside", seed=1))
    assert_equal(expected, weights(tmp_path / "alone", seed=1))
    assert metrics(tmp_path / "live") == metrics(tmp_path / "alone")


def test_the_store_holds_every_view_of_every_training_sample(
    tmp_path: Path, teacher_file: str
) -> None:
    label(experiment(**options(teacher_file, store={"path": str(tmp_path / "s")})))
    store = Store(tmp_path / "s")
    assert (store.samples, store.views) == (84, 2)
    assert set(store.manifest.parts) == {"train", "validation", "test"}
    assert store.manifest.deviation("train", "logits").maximum == 0
    ids = store._parts["train"].ids
    both = [
        store.lookup(torch.tensor(ids), torch.full((84,), view))["logits/values"] for view in (0, 1)
    ]
    assert not torch.equal(*both)
