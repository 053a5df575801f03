from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from understudy.errors import RecipeError
from understudy.methods import KD, FitNet, Supervised
from understudy.methods.method import Ramp
from understudy.recipe import Recipe, from_values
from understudy.recipe.sections import StageSection
from understudy.training.optimizers import Optimizer
from understudy.training.schedules import Cosine
from understudy.training.settings import Settings
from understudy.training.stage import EarlyStopping, Stage

Values = Callable[..., dict[str, Any]]


def stages(recipe: Recipe, arm: str) -> list[StageSection]:
    assert recipe.arms is not None
    return list(recipe.arms[arm].stages)


def problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        from_values(values)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_settings_and_stages_have_the_fields_and_defaults_of_their_classes(values: Values) -> None:
    recipe = from_values(values())
    assert recipe.settings() == Settings()
    for field in dataclasses.fields(Settings):
        assert Recipe.model_fields[field.name].description
    (stage,) = stages(recipe, "kd")
    built = stage.build()
    plain = Stage(methods=built.methods, epochs=4)
    for field in dataclasses.fields(Stage):
        if field.name not in ("optimizer", "schedule"):
            assert getattr(built, field.name) == getattr(plain, field.name), field.name
    given, default = built.optimizer.keywords, plain.optimizer.keywords
    assert given == {**given, **default}
    assert isinstance(built.schedule, Cosine)


def test_an_arm_is_a_list_a_stage_or_stages(values: Values) -> None:
    recipe = from_values(
        values(
            arms={
                "list": ["kd"],
                "stage": {"methods": ["kd"], "epochs": 7, "clip": 1},
                "stages": {
                    "stages": [
                        {"name": "hint", "methods": ["fitnet"], "epochs": 2},
                        {"methods": ["kd"], "steps": 30},
                    ]
                },
            }
        )
    )
    (stage,) = stages(recipe, "list")
    assert (stage.name, stage.epochs, stage.clip) == ("distil", 4, None)
    (stage,) = stages(recipe, "stage")
    assert (stage.epochs, stage.clip) == (7, 1.0)
    hint, rest = stages(recipe, "stages")
    assert (hint.name, hint.epochs, hint.steps) == ("hint", 2, None)
    assert (rest.name, rest.epochs, rest.steps) == ("distil-2", None, 30)
    assert [type(m) for m in hint.build().methods] == [FitNet]


def test_optimizer_and_schedule_complete_what_they_inherit(values: Values) -> None:
    recipe = from_values(
        values(
            optimizer={"lr": 0.2},
            schedule={"warmup_epochs": 1},
            arms={
                "inherits": ["kd"],
                "changes": {"methods": ["kd"], "optimizer": {"momentum": 0.5}},
                "same": {"methods": ["kd"], "optimizer": "sgd"},
                "other": {"methods": ["kd"], "optimizer": {"name": "adamw"}, "schedule": "linear"},
            },
        )
    )
    assert recipe.optimizer.keywords["lr"] == 0.2
    assert recipe.optimizer.keywords["momentum"] == 0.9
    assert stages(recipe, "inherits")[0].optimizer == recipe.optimizer
    changed = stages(recipe, "changes")[0].optimizer.keywords
    assert (changed["lr"], changed["momentum"], changed["weight_decay"]) == (0.2, 0.5, 5e-4)
    assert stages(recipe, "same")[0].optimizer == recipe.optimizer
    other = stages(recipe, "other")[0]
    assert (other.optimizer.name, other.optimizer.keywords["lr"]) == ("adamw", 1e-3)
    assert (other.schedule.name, other.schedule.keywords["warmup_epochs"]) == ("linear", 0.0)
    assert stages(recipe, "changes")[0].schedule.keywords["warmup_epochs"] == 1.0


def test_short_forms_mean_the_long_ones(values: Values) -> None:
    short = from_values(values(teacher={"model": "kd:resnet20", "train": {}}))
    long = from_values(
        values(
            data={"source": {"name": "digits"}},
            student={"model": {"name": "kd:resnet8"}},
            teacher={
                "model": {"name": "kd:resnet20"},
                "train": {"stages": [{"methods": [{"name": "supervised"}], "name": "teacher"}]},
            },
        )
    )
    assert short == long
    only = from_values({**values(arms=None), "methods": ["kd"]})
    assert list(only.arms or {}) == ["student"]
    assert only.methods is None


def test_weights_are_numbers_or_ramps(values: Values) -> None:
    recipe = from_values(
        values(arms={"kd": [{"name": "kd", "weight": {"start": 1, "end": 0, "finish": 0.5}}]})
    )
    (method,) = stages(recipe, "kd")[0].build().methods
    assert isinstance(method, KD)
    assert method.weight == Ramp(1.0, 0.0, 0.0, 0.5)


def test_early_stopping_is_an_object_that_a_stage_can_switch_off(values: Values) -> None:
    recipe = from_values(
        values(
            early_stopping={"patience": 3},
            arms={"on": ["kd"], "off": {"methods": ["kd"], "early_stopping": None}},
        )
    )
    assert stages(recipe, "on")[0].early_stopping == EarlyStopping(patience=3)
    assert stages(recipe, "off")[0].early_stopping is None


def test_resolved_is_complete_plain_and_reads_as_the_same_recipe(values: Values) -> None:
    recipe = from_values(
        values(
            seeds=[3, 4],
            data={"source": "digits", "labels": 0.5, "transforms": ["horizontal_flip"]},
            optimizer={"name": "adamw", "betas": [0.8, 0.9]},
            early_stopping={"metric": "nll"},
            freeze=["conv1"],
            arms={
                "kd": [{"name": "kd", "weight": {"start": 0, "end": 1}}, "supervised"],
                "two": {"stages": [{"methods": ["fitnet"], "steps": 3}, {"methods": ["kd"]}]},
            },
        )
    )
    resolved = recipe.resolved()
    assert resolved["arms"]["kd"]["stages"][0]["optimizer"]["betas"] == [0.8, 0.9]
    assert resolved["data"]["transforms"] == [{"name": "horizontal_flip", "probability": 0.5}]
    assert resolved["batch_size"] == Settings().batch_size
    written = yaml.safe_dump(resolved)
    again = from_values(yaml.safe_load(written))
    assert again == recipe
    assert yaml.safe_dump(again.resolved()) == written


def test_every_problem_is_listed_with_its_place(values: Values) -> None:
    found = problems(
        values(
            batch_siz=3,
            seeds=[0, "1"],
            optimizer={"momentm": 2},
            schedule="cosin",
            data={"source": {"name": "digits", "tst": 1}, "transforms": ["random_crp"]},
            student={},
            teacher={"model": "kd:resnet20", "trainn": {}},
            arms={
                "kd": [
                    {"name": "kd", "temperature": "hot"},
                    {"name": "kd", "temperature": -1},
                    {"weight": 2},
                    {"name": "kd", "weight": {"start": 0, "ennd": 2}},
                ],
                "a/b": ["kd"],
                "teacher": ["kd"],
                "word": "kd",
                "late": {"stages": [{"methods": ["kd"]}, {"methds": ["kd"]}]},
            },
        )
    )
    assert set(found) == {
        "batch_siz: there is no such key. Did you mean 'batch_size' or 'evaluation_batch_size'?",
        "seeds.1: expected a whole number, found the text '1'",
        "optimizer.momentm: there is no such key. Did you mean 'momentum'?",
        "schedule: There is no schedule called 'cosin'. Did you mean 'cosine'?",
        "data.source.tst: there is no such key. Did you mean 'test'?",
        "data.transforms.0: There is no transform called 'random_crp'. Did you mean 'random_crop' or "
        "'random_resized_crop' or 'random_erasing'?",
        "student.model: is missing; expected a model",
        "teacher.trainn: there is no such key. Did you mean 'train'?",
        "arms.kd.0.temperature: expected a number, found the text 'hot'",
        "arms.kd.1: temperature is -1.0; it must be greater than 0",
        "arms.kd.2.name: is missing; which method is it?",
        "arms.kd.3.weight.ennd: there is no such key. Did you mean 'end'?",
        "arms.kd.3.weight.end: is missing; expected a number",
        "arms.a/b: 'a/b' becomes the name of a folder; use letters, digits, '-', '_' and '.'",
        "arms.teacher: an arm cannot be called 'teacher', the name of the teacher's own results",
        "arms.word: expected a list of methods, a stage (a mapping with `methods`), or `stages`; "
        "found the text 'kd'",
        "arms.late.stages.1.methods: is missing; expected a list, each a method",
        "arms.late.stages.1.methds: there is no such key. Did you mean 'methods' or 'epochs'?",
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"epochs": None}, "arms.kd: Stage 'distil' needs either epochs or steps, and not both."),
        ({"steps": 3}, "steps: stands beside `epochs`; give one of the two"),
        (
            {"epochs": 0},
            "arms.kd: Stage 'distil' has no length: epochs or steps must be at least 1.",
        ),
        ({"teacher": None}, "teacher: is missing; the arms kd learn from one"),
        (
            {"arms": None},
            "arms: is missing; name at least one arm, or give `methods` for an only one",
        ),
        ({"methods": ["kd"]}, "methods: stands beside `arms`; `methods` is short for an only arm"),
        (
            {"arms": {}},
            "arms: expected a mapping from names to lists of methods, found an empty mapping",
        ),
        (
            {"arms": {"baseline": ["supervised"]}},
            "arms.baseline: is the arm that `baseline: true` adds; set `baseline: false` to define it yourself",
        ),
        ({"seeds": [1, 1]}, "the recipe: seeds are [1, 1]; give at least one, each once"),
        ({"optimizer": {"lr": -1}}, "optimizer: Invalid learning rate: -1.0"),
        ({"optimizer": {"name": "adamm"}}, "optimizer.name: There is no optimiser called 'adamm'."),
        ({"name": "../x"}, "name: '../x' becomes the name of a folder"),
        ({"student": "resnet8"}, "student.model: 'resnet8' is no model name"),
        ({"student": "kb:resnet8"}, "student.model: 'kb:resnet8' is no model name"),
        ({"data": 3}, "data.source: expected a data source"),
        (
            {"teacher": {"model": "kd:resnet20", "train": ["kd"]}},
            "teacher.train: the teacher itself has no teacher; train it with `supervised`",
        ),
        (
            {"arms": {"a": {"stages": [{"methods": ["kd"]}], "epochs": 3}}},
            "arms.a.epochs: stands beside `stages`",
        ),
        (
            {
                "arms": {
                    "a": {
                        "stages": [
                            {"methods": ["kd"], "name": "x"},
                            {"methods": ["kd"], "name": "x"},
                        ]
                    }
                }
            },
            "arms.a.stages: two stages are called 'x'",
        ),
    ],
)
def test_a_problem_alone(values: Values, changes: dict[str, Any], problem: str) -> None:
    given = {key: value for key, value in values(**changes).items() if value is not None}
    found = problems(given)
    assert len(found) == 1, found
    assert found[0].startswith(problem)


def test_a_bad_default_is_reported_once_and_hides_no_other_problem(values: Values) -> None:
    found = problems(
        values(
            epochs="many",
            optimizer={"name": "sgdd"},
            arms={"a": {"methods": ["kd"], "optimizer": {"lr": 0.1}}, "b": ["kdd"]},
        )
    )
    assert [line.split(":")[0] for line in found] == ["epochs", "optimizer.name", "arms.b.0"]


def test_a_baseline_of_ones_own(values: Values) -> None:
    recipe = from_values(values(baseline=False, arms={"baseline": ["supervised"]}, teacher=None))
    assert isinstance(stages(recipe, "baseline")[0].build().methods[0], Supervised)


def test_stages_are_built_afresh(values: Values) -> None:
    recipe = from_values(values())
    first, second = (stages(recipe, "kd")[0].build() for _ in range(2))
    assert first.methods[0] is not second.methods[0]
    assert isinstance(first.optimizer, Optimizer)
