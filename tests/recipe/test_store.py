"""A teacher that is a store, beside its model or instead of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

import understudy as us
from understudy.errors import RecipeError, StoreError
from understudy.recipe import from_values
from understudy.recipe.schema import schema
from understudy.teachers.store.settings import StoreSettings

Values = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("given", ["stores/x", Path("stores/x"), {"path": "stores/x"}])
def test_a_path_is_enough(values: Values, given: Any) -> None:
    recipe = from_values(values(teacher={"store": given}))
    assert recipe.teacher is not None
    assert recipe.teacher.store == StoreSettings("stores/x") and recipe.teacher.model is None
    assert from_values(recipe.resolved()) == recipe
    if not isinstance(given, Path):
        jsonschema.validate(values(teacher={"store": given}), schema())


def test_every_setting_has_a_place(values: Values) -> None:
    settings = {
        "path": "s3://bucket/folder",
        "top_k": 16,
        "keep": "logits",
        "dtype": "float16",
        "feature_dtype": "int8",
        "taps": ["layer2"],
        "temperatures": [1.0, 4.0],
        "precision": "bf16",
        "batch_size": 512,
        "shard_samples": 100,
    }
    given = values(teacher={"model": "kd:resnet20", "store": settings})
    recipe = from_values(given)
    jsonschema.validate(given, schema())
    assert recipe.resolved()["teacher"]["store"] == settings
    assert from_values(recipe.resolved()) == recipe


@pytest.mark.parametrize(
    ("teacher", "problem"),
    [
        ({}, "teacher.model: is missing; name a model, or a `store` of its outputs"),
        (
            {"model": "kd:resnet20", "store": "x", "train": {}},
            "teacher.train: stands beside `store`",
        ),
        (
            {"store": {"path": "x", "dtype": "half"}},
            "teacher.store.dtype: there is no choice 'half'",
        ),
        ({"store": {"path": "x", "top_k": 0}}, "teacher.store: top_k of a store is 0"),
        ({"store": {"path": "x", "temperatures": [0.0]}}, "must be greater than 0"),
        ({"store": {"pth": "x"}}, "teacher.store.pth: there is no such key. Did you mean 'path'"),
        ({"store": ""}, "teacher.store: A store needs a path"),
    ],
)
def test_what_cannot_be_is_said(values: Values, teacher: Any, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_values(values(teacher=teacher))
    assert problem in str(caught.value)


class Small(nn.Module):
    """A linear classifier of digits."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        torch.manual_seed(3)
        nn.init.normal_(self.layer.weight, std=scale)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def test_distill_learns_from_a_store(tmp_path: Path) -> None:
    teacher = Small()
    arguments: dict[str, Any] = {
        "student": lambda: Small(0.1),
        "data": {"source": "digits", "transforms": ["horizontal_flip"], "views": 2},
        "methods": [us.methods.KD()],
        "epochs": 1,
        "baseline": False,
        "preflight": "warn",
        "precision": "float32",
        "channels_last": False,
    }
    store = str(tmp_path / "store")
    held = us.label({"model": teacher, "store": store}, **arguments)
    assert (held.views, held.place) == (2, store)
    live = us.distill(teacher, directory=tmp_path / "live", **arguments)
    stored = us.distill({"store": store}, directory=tmp_path / "stored", **arguments)
    for one, other in zip(live.student.parameters(), stored.student.parameters(), strict=True):
        assert torch.equal(one, other)
    assert live.metrics["teacher"] == stored.metrics["teacher"]
    assert stored.report().is_file()
    other_teacher = {"model": Small(2.0), "store": store}
    with pytest.raises(StoreError, match="the teacher's weights"):
        us.distill(other_teacher, directory=tmp_path / "other", **arguments)
