"""DINO: a backbone trained as the student of its own moving average."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from wired_step import Wired, reached, wired

from understudy.errors import UnderstudyError
from understudy.methods import DINO

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
