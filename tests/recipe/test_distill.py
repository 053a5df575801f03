from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import understudy
from understudy.errors import RecipeError, RunDirectoryError, UnderstudyError
from understudy.recipe.result import Result


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture(scope="module")
def data() -> Any:
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(240, 8, generator=draws)
    labels = (inputs @ torch.randn(8, 3, generator=draws)).argmax(dim=1)
    return (inputs[:180], labels[:180]), (inputs[180:], labels[180:])


@pytest.fixture(scope="module")
def teacher(data: Any) -> nn.Module:
    torch.manual_seed(0)
    module = network(32)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(data[0][0]), data[0][1]).backward()
        optimizer.step()
    return module


def arguments(teacher: nn.Module, data: Any, **changes: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "teacher": teacher,
        "student": network(4),
        "data": data,
        "methods": [understudy.methods.KD(temperature=2.0)],
        "epochs": 2,
        "seeds": [0, 1],
        "batch_size": 32,
        "precision": "float32",
        "channels_last": False,
    } | changes


@pytest.fixture(scope="module")
def result(data: Any, teacher: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Result:
    directory = tmp_path_factory.mktemp("runs") / "api"
    return understudy.distill(**arguments(teacher, data, directory=directory))


def test_the_result_has_what_was_measured_and_the_trained_students(
    result: Result, data: Any
) -> None:
    assert set(result.metrics) == {"teacher", "baseline", "student"}
    assert list(result.metrics["student"]) == [0, 1]
    assert list(result.students) == ["baseline", "student"]
    assert result.student is result.students["student"][0]
    # What is loaded is what was measured.
    inputs, labels = data[1]
    assert not result.student.training
    for arm, seeds in result.students.items():
        for seed, module in seeds.items():
            measured = result.metrics[arm][seed]["accuracy"]
            config = yaml.safe_load(
                (result.directory / "student" / arm / f"seed-{seed}" / "config.json").read_text()
            )["preprocess"]
            mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
            given = module((inputs - mean) / std).argmax(dim=1)
            assert (given == labels).float().mean().item() == pytest.approx(measured)
    assert "student: accuracy" in repr(result)
    assert result.table().row_count == 3
    assert result.report().is_file()


def test_wrong_arms_and_seeds_are_answered_with_the_right_ones(result: Result) -> None:
    with pytest.raises(UnderstudyError, match="Did you mean 'student'"):
        result.students["studnt"]
    with pytest.raises(UnderstudyError, match=r"has the seeds \[0, 1\], not 7"):
        result.students["student"][7]


def test_live_objects_are_described_and_resumed_with_the_same_arguments(
    result: Result, data: Any, teacher: nn.Module
) -> None:
    written = yaml.safe_load((result.directory / "recipe.yaml").read_text())
    assert written["student"]["model"] == {"object": "torch.nn.modules.container.Sequential"}
    assert written["name"] == "api"
    before = (result.directory / "metrics.jsonl").read_bytes()
    again = understudy.distill(**arguments(teacher, data, directory=result.directory, resume=True))
    assert again.metrics == result.metrics
    assert (result.directory / "metrics.jsonl").read_bytes() == before
    with pytest.raises(RunDirectoryError, match="exists already"):
        understudy.distill(**arguments(teacher, data, directory=result.directory))


def test_what_was_given_is_left_as_it_was(data: Any, teacher: nn.Module, tmp_path: Path) -> None:
    given = arguments(teacher, data, directory=tmp_path / "run", seeds=[0], baseline=False)
    before = {
        name: [parameter.detach().clone() for parameter in given[name].parameters()]
        for name in ("teacher", "student")
    }
    trained = understudy.distill(**given).student
    for name, parameters in before.items():
        for old, new in zip(parameters, given[name].parameters(), strict=True):
            assert torch.equal(old, new)
    assert trained is not given["student"]
    assert not torch.equal(trained[0].weight, given["student"][0].weight)  # type: ignore[index]


def test_names_and_objects_give_the_same_run(data: Any, teacher: nn.Module, tmp_path: Path) -> None:
    changes = {"seeds": [0], "baseline": False}
    by_object = understudy.distill(
        **arguments(teacher, data, directory=tmp_path / "objects", **changes)
    )
    by_name = understudy.distill(
        **arguments(
            teacher,
            data,
            directory=tmp_path / "names",
            methods=[{"name": "kd", "temperature": 2}],
            **changes,
        )
    )
    for one, other in zip(
        by_object.student.parameters(), by_name.student.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_wrong_arguments_are_listed(data: Any, teacher: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        understudy.distill(
            **arguments(teacher, data, directory=tmp_path / "x", epoch=3, student=3, clip="no")
        )
    text = str(caught.value)
    assert "epoch: there is no such key. Did you mean 'epochs'" in text
    assert "student.model: expected a model" in text
    assert "clip: expected a number or null" in text
    assert not (tmp_path / "x").exists()


def test_several_processes_need_a_name(
    data: Any, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="resume=True needs the name"):
        understudy.distill(**arguments(teacher, data, resume=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="With several processes"):
        understudy.distill(**arguments(teacher, data))
