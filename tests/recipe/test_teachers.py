"""Recipes with several teachers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from understudy.errors import RecipeError
from understudy.methods import KD, FitNet, Supervised
from understudy.recipe import Recipe, from_values, load, schema
from understudy.recipe.kinds import METHOD
from understudy.teachers.listening import Route

Values = Callable[..., dict[str, Any]]
TEACHERS = {
    "big": {"model": "kd:resnet20", "train": {"epochs": 2}},
    "other": "saved:runs/first/models/teacher",
    "kept": {"store": "stores/kept"},
}
ROUTE = {"by": "label", "classes": {"big": [0, 1, 2, 3, 4], "other": [5, 6, 7, 8, 9]}}


def several(values: Values, *methods: Any, **changes: Any) -> dict[str, Any]:
    given = values(teachers=TEACHERS, arms={"kd": list(methods) or ["kd"]}, **changes)
    del given["teacher"]
    return given


def test_teachers_are_read_like_an_only_one_and_read_back(values: Values) -> None:
    recipe = from_values(
        several(
            values,
            {"name": "kd", "teacher": "big", "weight": 0.5},
            {"name": "kd", "teacher": ["big", "other"]},
            {"name": "kd", "teacher": {"big": 0.7, "other": 1}},
            {"name": "kd", "teacher": ROUTE},
            {"name": "kd", "teacher": {"by": "confidence"}},
            {"name": "fitnet", "teacher": "other", "teacher_features": "phi_s"},
            "supervised",
        )
    )
    assert recipe.teachers is not None and list(recipe.named_teachers) == ["big", "other", "kept"]
    assert recipe.teachers["big"].train is not None and recipe.teachers["other"].train is None
    assert recipe.teachers["kept"].store is not None and recipe.teachers["kept"].model is None
    assert recipe.arms is not None
    methods = recipe.arms["kd"].build()[0].methods
    assert [method.hears for method in methods] == [
        "big",
        ["big", "other"],
        {"big": 0.7, "other": 1.0},
        Route(**ROUTE),
        Route(by="confidence"),
        "other",
        None,
    ]
    assert [method.teacher_features for method in methods] == [None] * 5 + ["phi_s", None]
    resolved = recipe.resolved()
    assert from_values(yaml.safe_load(yaml.safe_dump(resolved))) == recipe
    # A recipe with one teacher is written as it always was.
    only = from_values(values()).resolved()
    assert "teachers" not in only
    assert not any("teacher" in method for method in only["arms"]["kd"]["stages"][0]["methods"])


def test_methods_given_as_objects_keep_to_whom_they_listen() -> None:
    given = KD(temperature=2.0).listening_to({"a": 1.0, "b": 2.0}).weighted(0.5)
    component = METHOD.read(given)
    assert component == METHOD.read(
        {"name": "kd", "temperature": 2.0, "weight": 0.5, "teacher": {"a": 1.0, "b": 2.0}}
    )
    made = METHOD.make(METHOD.read(FitNet().listening_to("a", features="phi_s")))
    assert (made.hears, made.teacher_features) == ("a", "phi_s")
    assert METHOD.read(Supervised()).values() == METHOD.read("supervised").values()


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("kd", {"teacher": "kd:resnet20"}, "teachers: stands beside `teacher`"),
        ({"name": "kd", "teacher": "bigg"}, {}, "arms.kd: method 'kd' listens to nobody: .*'big'"),
        ({"name": "kd", "teacher": {"big": "much"}}, {}, "arms.kd.0.teacher: expected text"),
        ({"name": "kd", "teacher": {"big": -1, "kept": 2}}, {}, "must be greater than 0"),
        ({"name": "kd", "teacher": {"by": "size"}}, {}, "teacher.by: there is no choice 'size'"),
        ({"name": "kd", "teacher": {"by": "label"}}, {}, "route by label needs `classes`"),
        ({"name": "fitnet", "teacher_features": "pca"}, {}, "teacher_features: .*'pca'"),
        ({"name": "lelp", "teacher_features": "phi_s"}, {}, "'lelp' is fitted to the teacher's"),
        ("kd", {"teachers": {"by": "kd:resnet20"}}, "a teacher cannot be called 'by'"),
        ("kd", {"teachers": {"a/b": "kd:resnet20"}}, "becomes the name of a folder"),
        ("kd", {"teachers": {"a": {"modle": "kd:resnet20"}}}, "teachers.a.modle: there is no such"),
        ("kd", {"teachers": {}}, "expected a mapping from names to teachers"),
        ("kd", {"arms": {"teacher.big": ["kd"]}}, "an arm cannot be called 'teacher.big'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    values: Values, method: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        from_values({**several(values, method), **changes})


def test_teachers_are_inherited_one_by_one(
    values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(several(values)))
    changes = {
        "base": "base.yaml",
        "teachers": {"big": {"train": {"epochs": 7}}, "other": "kd:resnet8", "kept": None},
    }
    recipe = _loaded(changes)
    assert list(recipe.named_teachers) == ["big", "other"]
    big = recipe.named_teachers["big"]
    assert big.model is not None and big.model.name == "kd:resnet20"
    assert big.train is not None and big.train.stages[0].epochs == 7
    only = _loaded({"base": "base.yaml", "teacher": "saved:runs/first/models/teacher"})
    assert only.teachers is None and list(only.named_teachers) == ["teacher"]
    assert load("own.yaml", ["epochs=9"]).teachers is None


def _loaded(values: dict[str, Any]) -> Recipe:
    Path("own.yaml").write_text(yaml.safe_dump(values))
    return load("own.yaml")


def test_the_schema_takes_several_teachers(values: Values) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(schema())
    good = several(
        values,
        {"name": "kd", "teacher": ["big", "other"]},
        {"name": "kd", "teacher": {"big": 0.7, "other": 1}},
        {"name": "kd", "teacher": ROUTE},
        {"name": "fitnet", "teacher": "other", "teacher_features": "phi_s"},
    )
    inherited = {"base": "digits", "teachers": {"a": {"train": {"epochs": 1}}, "b": None}}
    for recipe in (good, from_values(good).resolved(), inherited):
        assert not [error.message for error in check.iter_errors(recipe)]
    for wrong in (
        {**good, "teachers": {"a": {"train": {}}}},
        {**good, "teachers": {"a": 3}},
        several(values, {"name": "kd", "teacher": 3}),
        several(values, {"name": "fitnet", "teacher_features": "pca"}),
    ):
        assert list(check.iter_errors(wrong))


def test_how_a_teacher_runs_comes_out_of_a_recipe(values: Values, tmp_path: Path) -> None:
    given = {"precision": "bf16", "ahead": True, "device": "cuda:1"}
    made = {"model": "kd:resnet20", "train": {"epochs": 2}}
    recipe = from_values(values(teacher={**made, **given}))
    teacher = recipe.build(tmp_path).teacher
    assert teacher is not None
    assert (teacher.precision, teacher.ahead, teacher.device) == ("bf16", True, "cuda:1")
    assert from_values(values()).build(tmp_path).teacher.device is None  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"teacher\.device"):
        from_values(values(teacher={**made, "device": 1}))
