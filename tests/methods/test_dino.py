"""DINO: a backbone trained as the student of its own moving average."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from wired_step import Wired, reached, wired

from understudy.errors import UnderstudyError
from understudy.methods import DINO
from understudy.methods._moving_average import MovingAverage

SMALL = {"prototypes": 12, "hidden": 8, "bottleneck": 6}


def stepped(given: Wired) -> Any:
    step = given.step()
    step.batch = given.method.inputs(step.batch)
    return step


def test_the_loss_reaches_the_backbone_and_the_head_only() -> None:
    given = wired(DINO(local=2, frozen=0.0, **SMALL))
    step = stepped(given)
    assert len(step.batch) == 32
    given.method.loss(step).backward()
    names = reached(given.student)
    assert "conv1.weight" in names and not {name for name in names if name.startswith("fc")}
    assert reached(given.method) == {
        f"head.{name}" for name, _ in given.method.head.named_parameters()
    }


def test_the_prototypes_stand_still_in_the_beginning() -> None:
    given = wired(DINO(frozen=1.0, **SMALL))
    given.method.loss(stepped(given)).backward()
    gradient = given.method.head.prototypes.grad
    assert gradient is not None and not gradient.any()


def test_average_and_centre_follow_after_the_step() -> None:
    given = wired(DINO(momentum=0.5, centre_momentum=0.9, **SMALL))
    method = given.method
    step = stepped(given)
    _, features = method.average(step.batch.inputs["student"])
    said = method.average_head(step.pooled(features["fc@input"]))
    method.loss(step)
    weight, average = given.student.conv1.weight, method.average.copy.conv1.weight
    before = average.clone()
    with torch.no_grad():
        weight += 1.0
    assert not method.centre.any()
    momentum = method.momentum_at(step.progress)
    method.after_step(step)
    torch.testing.assert_close(average, momentum * before + (1 - momentum) * weight)
    assert int(method.counter) == 1
    torch.testing.assert_close(method.centre, 0.1 * said.mean(dim=0))


def test_a_batch_in_parts_moves_average_and_centre_once() -> None:
    whole, parts = (wired(DINO(momentum=0.5, **SMALL)) for _ in range(2))
    methods = []
    for given, cuts in ((whole, [list(range(8))]), (parts, [[0, 1, 2, 3, 4, 5], [6, 7]])):
        given.student.eval()  # batch norms would see the part only
        given.method.loss(stepped(given))  # a trial, which nothing follows
        taken = []
        for index in cuts:
            step = given.step(index)
            step.batch = given.method.inputs(step.batch)
            given.method.loss(step)
            taken.append(step)
        with torch.no_grad():
            given.student.conv1.weight += 1.0
        for step in taken:
            given.method.after_step(step)
        methods.append(given.method)
    torch.testing.assert_close(methods[0].centre, methods[1].centre)
    assert methods[0].centre.any() and int(methods[1].counter) == 1
    ours, theirs = (method.average.copy.conv1.weight for method in methods)
    assert torch.equal(ours, theirs)


def test_the_average_draws_nothing_and_takes_the_statistics_that_the_model_takes() -> None:
    source = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    average = MovingAverage(source)
    rows = 3 + torch.randn(16, 4)
    source.train()
    average.train()
    said = average(rows)
    assert torch.equal(said, average(rows)) and not said.requires_grad
    torch.testing.assert_close(said.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    source.eval()
    assert not torch.allclose(average(rows).mean(dim=0), torch.zeros(4), atol=0.1)
    assert set(average.state_dict()) == {f"copy.{name}" for name in source.state_dict()}


def test_a_model_that_was_changed_after_the_copy_is_refused() -> None:
    source = nn.Sequential(nn.Linear(4, 4))
    average = MovingAverage(source)
    source.append(nn.Linear(4, 4))
    with pytest.raises(UnderstudyError, match="changed it at '1'"):
        average(torch.randn(2, 4))


def test_a_vision_transformer_learns_too() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, in_chans=1, embed_dim=12, depth=2,
        num_heads=2, num_classes=3, drop_path_rate=0.5,
    )  # fmt: skip
    given = wired(DINO(frozen=0.0, **SMALL), model=model)
    step = stepped(given)
    given.method.loss(step).backward()
    assert {"cls_token", "patch_embed.proj.weight"} <= reached(given.student)
    given.method.after_step(step)
    assert given.method.centre.any()


def test_schedules_begin_and_end_as_published() -> None:
    method = DINO(momentum=0.99, warmup=0.1)
    assert method.momentum_at(0.0) == pytest.approx(0.99)
    assert method.momentum_at(1.0) == pytest.approx(1.0)
    assert method.teacher_temperature_at(0.0) == pytest.approx(0.04)
    assert method.teacher_temperature_at(0.05) == pytest.approx(0.055)
    assert method.teacher_temperature_at(0.9) == pytest.approx(0.07)


def test_texts_are_refused() -> None:
    with pytest.raises(UnderstudyError, match="needs images"):
        wired(DINO(), text=True)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"prototypes": 1}, "prototypes is 1; it must be at least 2"),
        ({"teacher_temperature": 0.2}, "must be at most the student's temperature, 0.1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"momentum": 1.0}, r"momentum is 1.0; it must be in \[0, 1\)"),
        ({"local": -1}, "local is -1"),
        ({"local_scale": 0.9}, r"local_scale is 0.9; it must be in \(0, scale\]"),
        ({"frozen": 2.0}, "frozen is 2.0"),
    ],
)
def test_settings_are_checked(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DINO(**keywords)
