"""AB and OFD: features before the activation, through connectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from understudy.data.batch import Batch
from understudy.data.sources.python import from_tensors
from understudy.data.views import Views
from understudy.errors import UnderstudyError
from understudy.methods import AB, OFD, Method, Step, Wiring
from understudy.methods.wiring import Side
from understudy.models import kd
from understudy.models.model import Model
from understudy.models.outputs import Outputs
from understudy.models.preprocess import ImagePreprocess
from understudy.tasks.classification import Classification
from understudy.teachers.study import Study

WEIGHT = torch.tensor([1.0, 0.0, 2.0, 0.5])


class Rectify(nn.Module):
    """An activation of a type that nobody knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x)


class Plain(nn.Module):
    """Two convolutions with activations, without batch norms."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.stage = nn.Sequential(nn.Conv2d(4, 6, 3, 2, padding=1), activation())
        self.fc = nn.Linear(6, 3)

    def tap_stages(self) -> list[str]:
        return ["relu", "stage"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stage(self.relu(self.first(x))).mean(dim=(2, 3)))


def network(name: str = "resnet8", width: float = 0.25) -> nn.Module:
    return kd.build(name, classes=3, in_channels=1, width=width)


def wired(
    method: Method, student: nn.Module | None = None, teacher: nn.Module | None = None
) -> Wiring:
    """Wire a method between two networks on made images."""
    images = torch.randn(6, 1, 8, 8)
    models = {"student": student or network(), "teacher": teacher or network("resnet14", 0.5)}
    sides = {
        role: Side(role, module, images, training=role == "student", input_height=8)
        for role, module in models.items()
    }
    wiring = Wiring(sides["student"], {"teacher": sides["teacher"]}, classes=3)
    method.wire(wiring)
    return wiring


def between(method: Any, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> Step:
    """A step in which the method's taps give these maps, in the order of its places."""
    ours = {place[0]: value for place, value in zip(method.places, student, strict=True)}
    theirs = {place[1]: value for place, value in zip(method.places, teacher, strict=True)}
    return Step(
        Batch({}, None, torch.arange(4), torch.zeros(4), weight=WEIGHT),
        task=Classification(),
        student=lambda batch: Outputs(None, ours),
        teachers={"teacher": lambda batch: Outputs(None, theirs)},
        progress=0.0,
    )


def made() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Maps of the three stages of student and teacher; the last ones differ in size."""
    shapes = [(4, 8, 8), (8, 4, 4), (16, 4, 4)]
    student = [torch.randn(4, *shape, requires_grad=True) for shape in shapes]
    return student, [torch.randn(4, 2 * c, h, h) for (c, h, _) in [*shapes[:2], (16, 2, 2)]]


def connected(connector: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """Run a connector by hand: 1x1 convolution, then the batch's own mean and variance."""
    convolution, norm = connector.map
    maps = torch.einsum("oi,bihw->bohw", convolution.weight[:, :, 0, 0], maps)
    mean, variance = (
        maps.mean(dim=(0, 2, 3), keepdim=True),
        maps.var(dim=(0, 2, 3), keepdim=True, correction=0),
    )
    shape = (1, -1, 1, 1)
    normal = (maps - mean) / (variance + norm.eps).sqrt()
    return normal * norm.weight.view(shape) + norm.bias.view(shape)


def boundary(s: torch.Tensor, t: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    active = ((0.5 - s) ** 2) * ((s <= 0.5) & (t > 0))
    return (active + ((s + 0.5) ** 2) * ((s > -0.5) & (t <= 0))).sum(dim=(1, 2, 3))


def partial(s: torch.Tensor, t: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    t = torch.max(t, margin.view(1, -1, 1, 1))
    return ((s - t) ** 2 * ((s > t) | (t > 0))).sum(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("make", "plain"), [(lambda: AB(margin=0.5), boundary), (OFD, partial)], ids=["ab", "ofd"]
)
def test_value_and_gradient(make: Callable[[], Any], plain: Callable[..., torch.Tensor]) -> None:
    method = make()
    wired(method)
    # A connector's scale and shift that are not 1 and 0, as after training.
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    student, teacher = made()
    found = method.loss(between(method, student, teacher))
    expected = torch.zeros(())
    for depth, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if s.shape[2] != t.shape[2]:
            s = F.adaptive_avg_pool2d(s, t.shape[2])
        margin = getattr(method, f"margin{depth}", torch.zeros(()))
        each = plain(connected(method.connectors[depth], s), t, margin)
        expected = expected + (WEIGHT * each).sum() / WEIGHT.sum() / 2 ** (2 - depth)
    torch.testing.assert_close(found, expected)
    inside = [*student, *method.parameters()]
    for ours, known in zip(
        torch.autograd.grad(found, inside, retain_graph=True),
        torch.autograd.grad(expected, inside),
        strict=True,
    ):
        torch.testing.assert_close(ours, known, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [AB, OFD])
@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("resnet14", ["layer1.1.relu2@input", "layer2.1.relu2@input", "layer3.1.relu2@input"]),
        ("wrn16_1", ["block2.layer.0.relu1@input", "block3.layer.0.relu1@input", "relu@input"]),
    ],
)
def test_the_published_places_are_paired(
    make: Callable[[], Any], name: str, taps: list[str]
) -> None:
    method = make()
    wired(method, teacher=network(name, 0.5))
    own = [f"layer{number}.0.relu2@input" for number in (1, 2, 3)]
    assert method.places == list(zip(own, taps, strict=True))


def test_boundaries_need_no_connector_between_equal_widths() -> None:
    method, overhaul = AB(), OFD()
    for one in (method, overhaul):
        wired(one, network(width=0.5))
    assert not list(method.parameters()) and len(list(overhaul.parameters())) == 9


@pytest.mark.parametrize("make", [AB, OFD])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_place_behind_an_unseen_activation_is_refused(
    make: Callable[..., Method], role: str
) -> None:
    models = {"student": Plain(), "teacher": Plain(), role: Plain(Rectify)}
    with pytest.raises(UnderstudyError, match=f"the {role}'s tap 'stage' gives no negative number"):
        wired(make(), **models)


# Margins


def test_margins_come_from_the_batch_norm_before_the_activation() -> None:
    teacher = network("resnet14", 0.5)
    norms = [teacher.get_submodule(f"layer{n}.1.bn2") for n in (1, 2, 3)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.3, 2)
            norm.bias.normal_()
    method = OFD()
    wiring = wired(method, teacher=teacher)
    assert method.measured == []
    assert "margin of teacher 'layer3.1.relu2@input' from 'layer3.1.bn2'" in wiring.notes
    for number, norm in enumerate(norms):
        drawn = torch.randn(norm.weight.numel(), 40_000, dtype=torch.float64)
        values = norm.weight.detach()[:, None] * drawn + norm.bias.detach()[:, None]
        below = values < 0
        expected = (values * below).sum(dim=1) / below.sum(dim=1).clamp_min(1)
        seen = below.double().mean(dim=1) > 0.05
        found = method.get_buffer(f"margin{number}").double()
        torch.testing.assert_close(found[seen], expected[seen], rtol=0.05, atol=0.02)
        assert (found < 0).all()


def study(teacher: nn.Module, images: torch.Tensor, folder: Path) -> Study:
    """A study of these images."""
    source = from_tensors(
        images,
        torch.arange(len(images)) % 3,
        test_inputs=images,
        classes=["a", "b", "c"],
        test_labels=torch.arange(len(images)) % 3,
    )
    return Study(
        split=source.train,
        teachers={"teacher": Model(teacher, ImagePreprocess([0.5], [0.25]), "teacher")},
        classes=("a", "b", "c"),
        task=Classification(),
        device=torch.device("cpu"),
        views=Views([], seed=0, count=None),
        folder=folder,
        mode="real",
        batch_size=8,
    )


def test_margins_are_measured_where_there_is_no_batch_norm(tmp_path: Path) -> None:
    teacher = Plain()
    with torch.no_grad():
        teacher.stage[0].bias.copy_(torch.tensor([0.0, 0.5, -0.5, 0.0, 50.0, 0.2]))
    method = OFD()
    wired(method, student=Plain(), teacher=teacher)
    assert method.measured == [0, 1]
    images = torch.randint(0, 255, (20, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        method.fit(study(teacher, images, tmp_path))
    seen = (images.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        maps = teacher.stage[0](F.relu(teacher.first(seen)))
    for channel, found in enumerate(method.margin1.tolist()):
        values = maps[:, channel].flatten()
        values = values[values < 0]
        expected = values.mean().item() if len(values) else 0.0
        assert found == pytest.approx(expected, rel=1e-4)
    assert method.margin1[4] == 0


def test_where_margins_come_from_can_be_said() -> None:
    with pytest.raises(
        UnderstudyError, match=r"tap 'relu@input', and there is none. Use `margin: m"
    ):
        wired(OFD(margin="batch_norm"), student=Plain(), teacher=Plain())
    method = OFD(margin="measured")
    wired(method)
    assert method.measured == [0, 1, 2] and math.isclose(method.margin2.abs().sum().item(), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AB(margin=0.0), "margin is 0.0; it must be greater than 0"),
        (lambda: OFD(margin="bn"), "margin is 'bn'; it must be 'auto'"),
    ],
)
def test_values_out_of_range_are_named(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
