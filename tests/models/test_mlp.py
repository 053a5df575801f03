"""`mlp:` networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from understudy.errors import ModelError, UnknownName
from understudy.models.build import build
from understudy.models.description import describe
from understudy.models.model import Model
from understudy.models.saved import load, save

IMAGES = torch.arange(128, dtype=torch.uint8).reshape(2, 1, 8, 8)


def logits(model: Model, raw: torch.Tensor) -> torch.Tensor:
    prepared: torch.Tensor = model.module(model.preprocess(raw, torch.device("cpu")))
    return prepared


def perceptron(name: str = "mlp:6-3", **more: Any) -> Model:
    more = {"classes": 4, "kind": "image", "input_shape": (1, 8, 8)} | more
    return build(name, **more)


def test_its_layers_are_those_of_the_name() -> None:
    shapes = [
        tuple(weight.shape) for weight in perceptron().module.parameters() if weight.dim() == 2
    ]
    assert shapes == [(6, 64), (3, 6), (4, 3)]


def test_stages_are_the_hidden_layers_and_the_classifier_reads_the_last() -> None:
    model = perceptron()
    seen = describe(model.module, lambda module: module(torch.zeros(2, 1, 8, 8)))
    assert [(stage.tap, stage.shape) for stage in seen.stages] == [("relu1", (6,)), ("relu2", (3,))]
    assert (seen.classifier, seen.pooled_width, seen.classes) == ("fc", 3, 4)


def test_it_takes_tables_and_resized_images() -> None:
    table = perceptron("mlp:5", kind="tensor", input_shape=(7,))
    assert logits(table, torch.randn(3, 7)).shape == (3, 4)
    resized = perceptron(preprocess={"size": 4})
    assert logits(resized, IMAGES).shape == (2, 4)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = perceptron()
    save(model, tmp_path / "model", classes=4, input_shape=(1, 8, 8), kind="image")
    assert torch.equal(logits(load(tmp_path / "model"), IMAGES), logits(model, IMAGES))


@pytest.mark.parametrize("name", ["mlp:wide", "mlp:64-", "mlp:0", "mlp:-3"])
def test_a_name_without_widths_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="such as mlp:256-128"):
        perceptron(name)


def test_texts_and_keywords_are_refused() -> None:
    with pytest.raises(ModelError, match="the data are texts"):
        perceptron(kind="text", input_shape=None)
    with pytest.raises(UnknownName, match="width"):
        perceptron(width=2)
