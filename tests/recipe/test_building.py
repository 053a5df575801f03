from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from understudy.errors import ModelError, UnknownName
from understudy.models.build import live
from understudy.recipe import Recipe, from_values
from understudy.recipe.building import baseline
from understudy.training.experiment import Experiment
from understudy.training.splits import make_splits

Values = Callable[..., dict[str, Any]]


def built(recipe: Recipe) -> Experiment:
    return recipe.build(Path("runs/here"))


@pytest.fixture
def data() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.rand(100, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(100) % 5
    return (inputs, labels), (inputs[:10], labels[:10])


def test_an_experiment_has_what_the_recipe_says(values: Values) -> None:
    recipe = from_values(
        values(
            seeds=[1, 2],
            data={"source": "digits", "labels": 100, "views": 4, "transforms": ["random_crop"]},
            batch_size=32,
        )
    )
    experiment = built(recipe)
    assert experiment.name == "here"
    assert experiment.settings.seeds == (1, 2)
    assert experiment.settings.batch_size == 32
    assert (experiment.data.labels, experiment.data.views) == (100, 4)
    assert [transform.name for transform in experiment.data.transforms] == ["random_crop"]
    assert list(experiment.arms) == ["baseline", "kd"]
    assert experiment.recipe == recipe.resolved()
    assert experiment.teacher is not None
    assert [stage.epochs for stage in experiment.teacher.stages] == [2]
    first, second = (experiment.arms["kd"]()[0].methods[0] for _ in range(2))
    assert first is not second


def test_models_fit_the_data_and_take_its_statistics(values: Values) -> None:
    experiment = built(from_values(values()))
    model = experiment.student()
    train = make_splits(experiment).train
    pixels = train.fetch(torch.arange(len(train)))
    assert isinstance(pixels, torch.Tensor)
    images = pixels.float() / 255
    config = model.preprocess.config()
    assert config["mean"] == pytest.approx([images.mean().item()], abs=1e-5)
    assert config["std"] == pytest.approx([images.std(correction=0).item()], abs=1e-5)
    inputs = model.preprocess(train.fetch(torch.arange(4)), torch.device("cpu"))
    model.module.eval()
    assert model.module(inputs).shape == (4, 10)
    assert model.classes is None or model.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("arms", "length"),
    [
        ({"a": ["kd"], "b": {"methods": ["kd"], "epochs": 7}}, (7, None)),
        ({"a": {"stages": [{"methods": ["fitnet"], "epochs": 3}, {"methods": ["kd"]}]}}, (7, None)),
        (
            {"a": {"methods": ["kd"], "steps": 9}, "b": {"methods": ["kd"], "steps": 30}},
            (None, 30),
        ),
        # 90 samples without the validation part are 9 steps of 10; 4 epochs and 5 steps are 41.
        (
            {"a": {"stages": [{"methods": ["kd"]}, {"methods": ["kd"], "steps": 5}]}, "b": ["kd"]},
            (None, 41),
        ),
    ],
)
def test_the_baseline_is_as_long_as_the_longest_arm(
    values: Values, data: Any, arms: dict[str, Any], length: tuple[int | None, int | None]
) -> None:
    recipe = from_values(values(data=data, arms=arms, batch_size=10, optimizer={"lr": 0.3}))
    (stage,) = baseline(recipe, built(recipe)).build()
    assert (stage.epochs, stage.steps) == length
    assert [method.name for method in stage.methods] == ["supervised"]
    assert stage.optimizer.keywords["lr"] == 0.3


def test_no_baseline_when_not_wanted(values: Values) -> None:
    assert list(built(from_values(values(baseline=False))).arms) == ["kd"]


def test_a_live_student_is_copied_and_a_function_called(values: Values, data: Any) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    experiment = built(from_values(values(data=data, student=network)))
    first, second = experiment.student().module, experiment.student().module
    assert network is not first is not second
    assert torch.equal(first[1].weight, network[1].weight)  # type: ignore[index]
    made: list[nn.Module] = []

    def factory() -> nn.Module:
        made.append(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)))
        return made[-1]

    experiment = built(from_values(values(data=data, student=factory)))
    assert experiment.student().module is made[0]
    assert experiment.student().module is made[1]


def test_a_live_teacher_is_only_copied_when_it_is_trained(values: Values, data: Any) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    teacher = built(from_values(values(data=data, teacher=network))).teacher
    assert teacher is not None
    assert teacher.build().module is network
    section = {"model": network, "train": {"epochs": 1}}
    teacher = built(from_values(values(data=data, teacher=section))).teacher
    assert teacher is not None
    assert teacher.build().module is not network


def test_a_model_brings_its_own_preprocessing(values: Values, data: Any) -> None:
    own = live(
        nn.Sequential(nn.Flatten(), nn.Linear(48, 5)),
        kind="image",
        input_shape=(3, 4, 4),
        preprocess={"mean": [0.5] * 3, "std": [0.25] * 3},
    )
    model = built(from_values(values(data=data, student=own))).student()
    assert model.preprocess.config()["mean"] == [0.5] * 3


def test_errors_of_models_name_their_place(values: Values) -> None:
    experiment = built(from_values(values(student="kd:resnet9")))
    with pytest.raises(UnknownName, match=r"^student.model: There is no kd model called 'resnet9'"):
        experiment.student()
    experiment = built(from_values(values(student={"name": "kd:resnet8", "widht": 1})))
    with pytest.raises(UnknownName, match=r"^student.model: .*Did you mean 'width'"):
        experiment.student()
    experiment = built(from_values(values(student={"name": "kd:resnet8", "classes": 7})))
    with pytest.raises(
        ModelError, match="student.model: 'classes' of the model 'kd:resnet8' is that of the data"
    ):
        experiment.student()


def test_a_teacher_with_random_weights_that_is_not_trained_is_refused(values: Values) -> None:
    teacher = built(from_values(values(teacher="kd:resnet20"))).teacher
    assert teacher is not None
    with pytest.raises(ModelError, match="teacher.model: 'kd:resnet20' has random weights"):
        teacher.build()
