"""AT, NST, FSP, MGD and CWD: pairs of taps, values and gradients against the plain formula, refusals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from understudy.data.batch import Batch
from understudy.errors import UnderstudyError
from understudy.methods import AT, CWD, FSP, MGD, NST, Method, Step, Wiring
from understudy.methods.wiring import Side
from understudy.models import kd
from understudy.models.outputs import Outputs
from understudy.tasks.classification import Classification

Maps = list[torch.Tensor]


class Blocks(nn.Module):
    """Convolutions with a ReLU, each halving the map if it says so; `tap_stages` names the ReLUs."""

    def __init__(self, widths: list[int], strides: list[int]) -> None:
        super().__init__()
        inputs = [3, *widths]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=s, padding=1)
            for (a, b), s in zip(pairwise(inputs), strides, strict=True)
        )
        self.relus = nn.ModuleList(nn.ReLU() for _ in widths)
        self.fc = nn.Linear(widths[-1], 5)

    def tap_stages(self) -> list[str]:
        return [f"relus.{number}" for number in range(len(self.relus))]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, relu in zip(self.convs, self.relus, strict=True):
            x = relu(conv(x))
        return self.fc(x.mean(dim=(2, 3)))


def wired(
    method: Method, student: nn.Module, teacher: nn.Module, size: int = 8, channels: int = 3
) -> Wiring:
    """Wire a method between two models on made images."""
    images = torch.randn(4, channels, size, size)
    sides = [
        Side(role, module, images, training=role == "student", input_height=size)
        for role, module in (("student", student), ("teacher", teacher))
    ]
    wiring = Wiring(sides[0], {"teacher": sides[1]}, classes=5)
    wiring.seed = 11
    method.wire(wiring)
    return wiring


def between(method: Any, student: Maps, teacher: Maps, **fields: Any) -> Step:
    """A step in which the method's taps give these maps, in the order of its places."""
    count = len(student[0])
    progress = fields.pop("progress", 0.25)
    ids = fields.pop("index", torch.arange(count))
    batch = Batch({}, None, ids, torch.zeros(count, dtype=torch.int64), **fields)
    ours = {place[0]: value for place, value in zip(method.places, student, strict=True)}
    theirs = {place[1]: value for place, value in zip(method.places, teacher, strict=True)}
    return Step(
        batch,
        task=Classification(),
        student=lambda batch: Outputs(None, ours),
        teachers={"teacher": lambda batch: Outputs(None, theirs)},
        progress=progress,
    )


def maps(*shapes: tuple[int, ...], grad: bool = False) -> Maps:
    """Made maps, some elements negative."""
    return [torch.randn(4, *shape, dtype=torch.float64, requires_grad=grad) for shape in shapes]


WEIGHT = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=torch.float64)


def mean(values: list[torch.Tensor]) -> torch.Tensor:
    """The weighted mean over samples."""
    return sum(w * v for w, v in zip(WEIGHT, values, strict=True)) / WEIGHT.sum()


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


def at(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    values = []
    for one, other in zip(s, t, strict=True):
        ours, theirs = (unit((x**2).mean(dim=0).flatten()) for x in (one, other))
        values.append(((ours - theirs) ** 2).mean())
    return mean(values)


def at_paper(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    values = []
    for one, other in zip(s, t, strict=True):
        ours, theirs = (unit((x.abs() ** 4).sum(dim=0).flatten()) for x in (one, other))
        values.append((ours - theirs).norm())
    return mean(values)


def nst(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.dot(a, b) ** 2 for a in x for b in y]).mean()

    values = []
    for one, other in zip(s, t, strict=True):
        ours, theirs = (torch.stack([unit(c.flatten()) for c in x]) for x in (one, other))
        values.append(kernel(theirs, theirs) + kernel(ours, ours) - 2 * kernel(ours, theirs))
    return mean(values)


def pooled(s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    size = min(s.shape[-1], t.shape[-1])
    return F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)


PLAIN: list[tuple[Callable[[], Method], Callable[..., torch.Tensor]]] = [
    (AT, at),
    (lambda: AT(form="paper", power=4), at_paper),
    (NST, nst),
]


@pytest.mark.parametrize(("make", "plain"), PLAIN, ids=["at", "at-paper", "nst"])
def test_value_and_gradient_of_maps_compared_one_by_one(
    make: Callable[[], Method], plain: Callable[..., torch.Tensor]
) -> None:
    method = make()
    wired(method, Blocks([4, 5], [1, 2]), Blocks([6, 7], [1, 2]))
    # Sizes differ both ways.
    student, teacher = maps((4, 6, 6), (5, 2, 2), grad=True), maps((6, 3, 3), (7, 4, 4))
    found = method.loss(between(method, student, teacher, weight=WEIGHT))
    expected = sum(plain(*pooled(s, t)) for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found, student, retain_graph=True)
    for gradient, known in zip(ours, torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(gradient, known)
        assert (gradient[1] == 0).all() and gradient[0].abs().sum() > 0


@pytest.mark.parametrize("form", ["mean", "paper"])
def test_fsp_is_the_distance_between_flows(form: Any) -> None:
    method = FSP(form=form)
    wired(method, Blocks([4, 5, 3], [1, 1, 2]), Blocks([4, 5, 3], [1, 1, 2]))
    assert not list(method.parameters())
    student = maps((4, 4, 4), (5, 4, 4), (3, 2, 2), grad=True)
    teacher = maps((4, 4, 4), (5, 4, 4), (3, 2, 2))
    found = method.loss(between(method, student, teacher, weight=WEIGHT))

    def flow(one: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        one = F.adaptive_max_pool2d(one, later.shape[-1])
        return torch.einsum("ahw,bhw->ab", one, later) / later[0].numel()

    expected = torch.zeros((), dtype=torch.float64)
    for first in (0, 1):
        squares = [
            (
                flow(student[first][b], student[first + 1][b])
                - flow(teacher[first][b], teacher[first + 1][b])
            )
            ** 2
            for b in range(4)
        ]
        expected = expected + mean([s.mean() if form == "mean" else s.sum() for s in squares])
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found, student, retain_graph=True)
    for gradient, known in zip(ours, torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(gradient, known)


def test_fsp_aligns_widths_that_differ() -> None:
    method = FSP()
    wired(method, Blocks([2, 3], [1, 2]), Blocks([4, 3], [1, 2]))
    sizes = [tuple(parameter.shape) for parameter in method.parameters()]
    assert sizes == [(4, 2, 1, 1)]
    assert method.places == [("relus.0", "relus.0"), ("relus.1", "relus.1")]
    student, teacher = maps((2, 4, 4), (3, 2, 2)), maps((4, 4, 4), (3, 2, 2))
    method.double().loss(between(method, student, teacher)).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_mgd_generates_the_teachers_map_from_what_is_kept() -> None:
    method = MGD(ratio=0.5)
    wired(method, Blocks([4, 5], [1, 2]), Blocks([6, 7], [1, 2]))
    method.double()
    assert method.places == [("relus.1", "relus.1")]
    (student,), (teacher,) = maps((5, 4, 4), grad=True), maps((7, 8, 8))
    step = between(method, [student], [teacher], weight=WEIGHT)
    kept = method.kept(step, torch.Size((4, 7, 4, 4)), 0)
    assert kept.shape == (4, 7, 1, 1) and 0.2 < kept.double().mean() < 0.8
    align, (first, _, second) = method.align[0], method.generation[0]
    target = F.avg_pool2d(teacher, 2)
    made = second(F.relu(first(align(student) * kept)))
    expected = mean([((a - b) ** 2).sum() for a, b in zip(made, target, strict=True)])
    found = method.loss(step)
    torch.testing.assert_close(found, expected)
    reached = [student, *method.parameters()]
    ours = torch.autograd.grad(found, reached, retain_graph=True)
    for gradient, known in zip(ours, torch.autograd.grad(expected, reached), strict=True):
        torch.testing.assert_close(gradient, known)


@pytest.mark.parametrize(("mask", "shape"), [("channels", (4, 64, 1, 1)), ("places", (4, 1, 8, 8))])
def test_mgd_draws_its_mask_for_a_sample_and_a_step(mask: Any, shape: tuple[int, ...]) -> None:
    method = MGD(mask=mask, ratio=0.25)
    wired(method, Blocks([4, 64], [1, 1]), Blocks([4, 64], [1, 1]))
    full = torch.Size((4, 64, 8, 8))
    nothing = maps((64, 1, 1))

    def kept(**fields: Any) -> torch.Tensor:
        return method.kept(between(method, nothing, nothing, **fields), full, 0)

    first = kept()
    assert first.shape == shape and first.dtype == torch.bool
    assert torch.equal(first, kept())
    # The sample decides, not its place in the batch: parts of a batch and other ranks see the same.
    turned = kept(index=torch.tensor([3, 2, 1, 0]))
    assert torch.equal(first.flip(0), turned) and not torch.equal(first, turned)
    assert not torch.equal(first, kept(progress=0.5))
    many = torch.stack([kept(progress=number / 99) for number in range(99)]).double()
    assert abs(many.mean() - 0.75) < 0.02
    method.draws = 12
    assert not torch.equal(first, kept())


def test_cwd_compares_distributions_over_places() -> None:
    method = CWD(temperature=2.0)
    wired(method, Blocks([4, 5], [1, 2]), Blocks([6, 7], [1, 2]))
    method.double()
    (student,), (teacher,) = maps((5, 4, 4), grad=True), maps((7, 2, 2))
    found = method.loss(between(method, [student], [teacher], weight=WEIGHT))
    weight = method.align[0].weight
    assert method.align[0].bias is None
    ours = torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], F.avg_pool2d(student, 2)).flatten(2)
    p, q = (torch.softmax(x / 2, dim=2) for x in (teacher.flatten(2), ours))
    expected = mean([4 * (a * (a / b).log()).sum(dim=1).mean() for a, b in zip(p, q, strict=True)])
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found, [student, weight], retain_graph=True)
    known = torch.autograd.grad(expected, [student, weight])
    for gradient, other in zip(gradients, known, strict=True):
        torch.testing.assert_close(gradient, other)


STAGES = ["layer1", "layer2", "layer3"]
BLOCKS = ["block1", "block2", "block3"]


@pytest.mark.parametrize(
    ("make", "student", "teacher", "places"),
    [
        (AT, "resnet8", "resnet14", list(zip(STAGES, STAGES, strict=True))),
        (AT, "wrn16_1", "resnet8", list(zip(BLOCKS, STAGES, strict=True))),
        (NST, "resnet8", "wrn16_1", list(zip(STAGES, BLOCKS, strict=True))),
        (FSP, "resnet8", "resnet14", [("relu", "relu"), *zip(STAGES, STAGES, strict=True)]),
        (MGD, "resnet8", "wrn16_1", [("layer3", "block3")]),
        (CWD, "resnet8", "resnet14", [("layer3", "layer3")]),
    ],
)
def test_the_published_places_are_paired(
    make: Callable[[], Any], student: str, teacher: str, places: list[tuple[str, str]]
) -> None:
    method = make()
    models = [kd.build(name, classes=5, width=0.25) for name in (student, teacher)]
    wired(method, *models, size=16)
    assert method.places == places


@pytest.mark.parametrize("make", [AT, NST, CWD])
def test_maps_of_one_place_say_nothing_and_are_refused(make: Callable[[], Method]) -> None:
    models = [kd.build("vgg8", classes=5, width=0.125) for _ in range(2)]
    with pytest.raises(UnderstudyError, match=r"needs 2, but student 'relu4' \(64, 1, 1\).*have 1"):
        wired(make(), *models)


@pytest.mark.parametrize("make", [AT, NST, FSP, MGD, CWD])
def test_vectors_are_refused(make: Callable[..., Method]) -> None:
    method = make(student_taps=["relus.0", "fc"], teacher_taps=["relus.0", "relus.1"])
    with pytest.raises(UnderstudyError, match=f"'{method.name}' compares feature maps .*'fc'"):
        wired(method, Blocks([4, 5], [1, 2]), Blocks([6, 7], [1, 2]))


def test_fsp_needs_two_taps() -> None:
    method = FSP(student_taps=["relus.1"], teacher_taps=["relus.1"])
    with pytest.raises(UnderstudyError, match="there is one pair of taps"):
        wired(method, Blocks([4, 5], [1, 2]), Blocks([4, 5], [1, 2]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AT(form="sum"), "form is 'sum'; it must be 'code' or 'paper'"),
        (lambda: AT(power=0.5), "power is 0.5; it must be at least 1"),
        (lambda: NST(kernel="cosine"), "kernel is 'cosine'"),
        (lambda: FSP(form="sum"), "form is 'sum'; it must be 'mean' or 'paper'"),
        (lambda: MGD(ratio=1.0), r"ratio is 1.0; it must be in \[0, 1\)"),
        (lambda: MGD(mask="pixels"), "mask is 'pixels'"),
        (lambda: CWD(temperature=0.0), "temperature is 0.0; it must be greater than 0"),
    ],
)
def test_values_out_of_range_are_named(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
