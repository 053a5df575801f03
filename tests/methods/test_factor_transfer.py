"""Factor transfer in its two stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from understudy.data.batch import Batch
from understudy.errors import UnderstudyError
from understudy.methods import FT, FTParaphraser, Step, Wiring
from understudy.methods.wiring import Side
from understudy.models import kd
from understudy.models.outputs import Outputs
from understudy.tasks.classification import Classification

WEIGHT = torch.tensor([1.0, 0.0, 2.0])


def wiring(earlier: dict[str, Any] | None = None) -> Wiring:
    """A student and a teacher on 8x8 images; their last maps have 8 and 16 channels."""
    images = torch.randn(4, 3, 8, 8)
    sides = [
        Side(role, kd.build(name, classes=3, width=width), images, training=True, input_height=8)
        for role, name, width in (("student", "resnet8", 0.125), ("teacher", "resnet14", 0.25))
    ]
    return Wiring(sides[0], {"teacher": sides[1]}, classes=3, earlier=earlier)


def step(student: torch.Tensor, teacher: torch.Tensor) -> Step:
    """A step in which the last stages give these maps."""
    count = len(teacher)
    batch = Batch({}, None, torch.arange(count), torch.zeros(count), weight=WEIGHT)
    return Step(
        batch,
        task=Classification(),
        student=lambda batch: Outputs(None, {"layer3": student}),
        teachers={"teacher": lambda batch: Outputs(None, {"layer3": teacher})},
        progress=0.0,
    )


def plain(layers: nn.Sequential, maps: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """Run the convolutions of half a paraphraser by hand."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            run = F.conv_transpose2d if transposed else F.conv2d
            maps = F.leaky_relu(run(maps, layer.weight, layer.bias, padding=1), 0.1)
    return maps


def learnt(**keywords: Any) -> dict[str, Any]:
    """What a paraphraser leaves to later stages."""
    paraphraser = FTParaphraser(**keywords)
    paraphraser.wire(wiring())
    return {"ft_paraphraser": paraphraser.state_dict()}


@pytest.mark.parametrize("error", ["squared", "absolute"])
def test_paraphraser_reconstructs_the_teachers_last_map(error: Any) -> None:
    method = FTParaphraser(error=error)
    method.wire(wiring())
    widths = [
        tuple(layer.weight.shape[:2])
        for half in (method.encoder, method.decoder)
        for layer in half
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert widths == [(16, 16), (8, 16), (8, 8), (8, 8), (8, 16), (16, 16)]
    teacher = torch.randn(3, 16, 4, 4)
    made = plain(method.decoder, plain(method.encoder, teacher), transposed=True)
    distance = made - teacher
    each = (distance.abs() if error == "absolute" else distance**2).mean(dim=(1, 2, 3))
    expected = (WEIGHT * each).sum() / WEIGHT.sum()
    found = method.loss(step(torch.zeros(3, 8, 4, 4), teacher))
    torch.testing.assert_close(found, expected)
    inside = list(method.parameters())
    for ours, known in zip(
        torch.autograd.grad(found, inside, retain_graph=True),
        torch.autograd.grad(expected, inside),
        strict=True,
    ):
        torch.testing.assert_close(ours, known)


@pytest.mark.parametrize("power", [1, 2])
def test_student_learns_unit_factors(power: float) -> None:
    method = FT(power=power)
    method.wire(wiring(learnt()))
    student = torch.randn(3, 8, 6, 6, requires_grad=True)
    teacher = torch.randn(3, 16, 3, 3, requires_grad=True)
    # The teacher's encoder sees its own map; factors are pooled.
    ours = F.avg_pool2d(plain(method.translator, student), 2).flatten(1)
    theirs = plain(method.encoder, teacher).flatten(1)
    distance = ours / ours.norm(dim=1, keepdim=True) - theirs / theirs.norm(dim=1, keepdim=True)
    each = distance.abs().mean(dim=1) if power == 1 else distance.norm(dim=1)
    expected = (WEIGHT * each).sum() / WEIGHT.sum()
    found = method.loss(step(student, teacher))
    torch.testing.assert_close(found, expected)
    inside = [student, *method.translator.parameters()]
    for one, other in zip(
        torch.autograd.grad(found, inside, retain_graph=True),
        torch.autograd.grad(expected, inside),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    found.backward()
    assert teacher.grad is None
    assert all(parameter.grad is None for parameter in method.encoder.parameters())


def test_the_teachers_encoder_is_taken_over_frozen_and_keeps_its_statistics() -> None:
    state = learnt(batch_norm=True)
    means = [name for name in state["ft_paraphraser"] if name.endswith("running_mean")]
    assert len(means) == 6
    for name in means:
        state["ft_paraphraser"][name] = torch.rand_like(state["ft_paraphraser"][name])
    method = FT(batch_norm=True)
    method.wire(wiring(state))
    method.train()
    before = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    for name, value in before.items():
        assert torch.equal(value, state["ft_paraphraser"][f"encoder.{name}"])
    method.loss(step(torch.randn(3, 8, 4, 4), torch.randn(3, 16, 4, 4)))
    assert all(torch.equal(before[name], v) for name, v in method.encoder.state_dict().items())
    assert not method.encoder.training and method.translator.training
    assert not any(parameter.requires_grad for parameter in method.encoder.parameters())
    assert all(parameter.requires_grad for parameter in method.translator.parameters())


def test_a_missing_or_unlike_paraphraser_is_refused() -> None:
    with pytest.raises(UnderstudyError, match=r"no earlier stage has that method.*ft_paraphraser"):
        FT().wire(wiring())
    with pytest.raises(UnderstudyError, match="does not fit this stage; give both the same taps"):
        FT(rate=0.25).wire(wiring(learnt()))
    with pytest.raises(UnderstudyError, match=r"'ft_paraphraser' compares feature maps.*'fc'"):
        FTParaphraser(teacher_tap="fc").wire(wiring())
    for method in (FT, FTParaphraser):
        with pytest.raises(ValueError, match="rate is 0.0; it must be greater than 0"):
            method(rate=0.0)
    with pytest.raises(ValueError, match="power is 0.5"):
        FT(power=0.5)
    with pytest.raises(ValueError, match="error is 'l1'"):
        FTParaphraser(error="l1")
