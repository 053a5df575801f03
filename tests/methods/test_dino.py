"""DINO: a backbone trained as the student of its own moving average."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from wired_step import Wired, reached, wired

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods import DINO

SMALL = {"prototypes": 12, "hidden": 8, "bottleneck": 6}


def stepped(given: Wired) -> Any:
    step = given.step()
    step.batch = given.method.inputs(step.batch)
    return step


def test_value_is_the_plain_formula() -> None:
    ours = torch.randn(4, 3, 6, dtype=torch.float64)
    theirs = torch.randn(4, 2, 6, dtype=torch.float64)
    centre = torch.randn(6, dtype=torch.float64)
    total = 0.0
    for sample in range(4):
        for g in range(2):
            wanted = torch.softmax((theirs[sample, g] - centre) / 0.04, dim=0)
            for v in range(3):
                if v != g:
                    said = torch.log_softmax(ours[sample, v] / 0.1, dim=0)
                    total -= float(wanted @ said)
    found = objectives.dino(ours, theirs, centre=centre)
    torch.testing.assert_close(found, torch.tensor(total / (4 * 2 * 2), dtype=torch.float64))


def test_collapse_costs_log_k_and_no_gradient_reaches_the_average() -> None:
    ours = torch.zeros(3, 2, 7, requires_grad=True)
    theirs = torch.zeros(3, 2, 7, requires_grad=True)
    loss = objectives.dino(ours, theirs)
    assert loss.item() == pytest.approx(math.log(7))
    loss.backward()
    assert theirs.grad is None and ours.grad is not None


def test_the_centre_takes_off_what_all_outputs_share() -> None:
    ours, theirs = torch.randn(3, 2, 7), torch.randn(3, 2, 7)
    shift = torch.randn(7)
    torch.testing.assert_close(
        objectives.dino(ours, theirs + shift, centre=shift), objectives.dino(ours, theirs)
    )


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
