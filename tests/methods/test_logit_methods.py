"""Methods on logits against the formulas of their papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import understudy as us
from understudy.data.batch import Batch
from understudy.errors import RecipeError, UnderstudyError
from understudy.methods import DIST, DKD, NKD, SKD, LogitStandardisedKD, Method, Step, TfKD, Wiring
from understudy.methods.wiring import Side
from understudy.models.outputs import Outputs
from understudy.recipe.result import Result
from understudy.tasks.classification import Classification

Tensor = torch.Tensor
SAMPLES, CLASSES = 7, 5


def softened(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).softmax(dim=1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(dim=1)


def mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum()


def standardised(student: Tensor, teacher: Tensor, _: Tensor, weight: Tensor) -> Tensor:
    s, t = ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True) for z in (student, teacher))
    return mean(3.0**2 * divergence(softened(t, 3.0), softened(s, 3.0)), weight)


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits [B, C - 1] of the classes that are not the label."""
    kept = nn.functional.one_hot(labels.clamp_min(0), CLASSES) == 0
    return logits[kept].view(len(logits), CLASSES - 1)


def of_label(probabilities: Tensor, labels: Tensor) -> Tensor:
    return probabilities.gather(1, labels.clamp_min(0).unsqueeze(1)).squeeze(1)


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    temperature = 2.0
    q, p = (of_label(softened(z, temperature), labels) for z in (student, teacher))
    target = divergence(torch.stack([p, 1 - p], 1), torch.stack([q, 1 - q], 1))
    rest = divergence(
        softened(others(teacher, labels), temperature),
        softened(others(student, labels), temperature),
    )
    return mean(temperature**2 * (0.5 * target + 3.0 * rest), weight * (labels >= 0))


def normalised(student: Tensor, teacher: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    q, p = (of_label(z.softmax(dim=1), labels) for z in (student, teacher))
    rest = softened(others(teacher, labels), 3.0) * softened(others(student, labels), 3.0).log()
    return mean(-p * q.log() - 3.5 * 3.0**2 * rest.sum(dim=1), weight * (labels >= 0))


def correlations(student: Tensor, teacher: Tensor, _: Tensor, weight: Tensor) -> Tensor:
    temperature = 4.0
    share = weight / weight.sum()

    def correlation(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        a, b = a - (w * a).sum(), b - (w * b).sum()
        return (w * a * b).sum() / ((w * a * a).sum() * (w * b * b).sum()).sqrt()

    q, p = softened(student, temperature), softened(teacher, temperature)
    even = torch.full((CLASSES,), 1 / CLASSES, dtype=q.dtype)
    rows = torch.stack([correlation(a, b, even) for a, b in zip(q, p, strict=True)])
    columns = torch.stack([correlation(a, b, share) for a, b in zip(q.mT, p.mT, strict=True)])
    return temperature**2 * (1.5 * (1 - (share * rows).sum()) + 0.5 * (1 - columns.mean()))


def self_training(student: Tensor, teacher: Tensor, _: Tensor, weight: Tensor) -> Tensor:
    return mean(20.0**2 * divergence(softened(teacher, 20.0), softened(student, 20.0)), weight)


def self_training_in_code(
    student: Tensor, teacher: Tensor, labels: Tensor, weight: Tensor
) -> Tensor:
    """nn.KLDivLoss() of the authors' code averages over all elements."""
    return self_training(student, teacher, labels, weight) / CLASSES


def made_up(labels: Tensor, correct: float) -> Tensor:
    teacher = torch.full((SAMPLES, CLASSES), (1 - correct) / (CLASSES - 1), dtype=torch.float64)
    return teacher.scatter(1, labels.clamp_min(0).unsqueeze(1), correct)


def virtual(student: Tensor, _: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    target = softened(made_up(labels, 0.9).log(), 20.0)
    return mean(20.0**2 * divergence(target, softened(student, 20.0)), weight * (labels >= 0))


def virtual_in_code(student: Tensor, _: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    target = softened(made_up(labels, 0.99), 40.0)
    loss = divergence(target, student.softmax(dim=1)) / CLASSES
    return mean(loss, weight * (labels >= 0))


def directions(student: Tensor, teacher: Tensor, weight: Tensor, scale: float) -> Tensor:
    kept = weight > 0
    s, t = (nn.functional.normalize(z[kept], dim=1) for z in (student, teacher))
    difference = (s @ s.mT - t @ t.mT) / scale
    covariance = torch.cov(difference.mT) + 0.1 * torch.eye(len(difference), dtype=s.dtype)
    inside = torch.einsum("bi,ij,bj->b", difference, covariance.inverse(), difference)
    return inside.sqrt().mean()


def streamlined(student: Tensor, teacher: Tensor, _: Tensor, weight: Tensor) -> Tensor:
    instance = mean(divergence(softened(teacher, 4.0), softened(student, 4.0)), weight)
    return 2.0 * instance + 0.5 * directions(student, teacher, weight, 1.0)


def streamlined_in_code(student: Tensor, teacher: Tensor, _: Tensor, weight: Tensor) -> Tensor:
    instance = mean(4.0**2 * divergence(softened(teacher, 4.0), softened(student, 4.0)), weight)
    return instance + directions(student, teacher, weight, CLASSES)


@dataclass
class Case:
    method: Method
    plain: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    mask_only: bool = False  # the plain formula takes weights 0 and 1 only


CASES = {
    "logit_standardised_kd": Case(LogitStandardisedKD(temperature=3.0), standardised),
    "dkd": Case(DKD(alpha=0.5, beta=3.0, temperature=2.0), decoupled),
    "nkd": Case(NKD(gamma=3.5, temperature=3.0), normalised),
    "dist": Case(DIST(beta=1.5, gamma=0.5), correlations),
    "tf_kd self": Case(TfKD(), self_training),
    "tf_kd self, official": Case(TfKD(official=True), self_training_in_code),
    "tf_kd virtual": Case(TfKD("virtual", correct=0.9), virtual),
    "tf_kd virtual, official": Case(
        TfKD("virtual", temperature=40.0, official=True), virtual_in_code
    ),
    "skd": Case(SKD(), streamlined_in_code, mask_only=True),
    "skd, not official": Case(
        SKD(instance=2.0, direction=0.5, official=False), streamlined, mask_only=True
    ),
}


def step_of(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, weight: Tensor | None = None
) -> Step:
    ids = torch.arange(len(student))
    return Step(
        Batch({}, labels, ids, torch.zeros_like(ids), weight),
        task=Classification(),
        student=lambda _: Outputs(student),
        teachers={} if teacher is None else {"teacher": lambda _: Outputs(teacher)},
        progress=0.5,
    )


def total(loss: Tensor | Mapping[str, Tensor]) -> Tensor:
    return loss if isinstance(loss, Tensor) else torch.stack(list(loss.values())).sum()


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = 2 * torch.randn(
        2, SAMPLES, CLASSES, generator=generator, dtype=torch.float64
    )
    labels = torch.tensor([0, 3, -1, 4, 2, -1, 1])
    return student.requires_grad_(), teacher.requires_grad_(), labels


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_papers(name: str, weighted: bool) -> None:
    case = CASES[name]
    student, teacher, labels = drawn()
    weight = None
    if weighted:
        weight = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0, 0.7, 3.0], dtype=torch.float64)
        weight = (weight > 0).double() if case.mask_only else weight
    needed = teacher if case.method.needs_teacher else None
    ours = total(case.method.loss(step_of(student, needed, labels, weight)))
    every = torch.ones(SAMPLES, dtype=torch.float64) if weight is None else weight
    plain = case.plain(student, teacher.detach(), labels, every)
    torch.testing.assert_close(ours, plain)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ours, plain)]
    torch.testing.assert_close(*gradients)
    assert teacher.grad is None


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.method.needs_labels])
def test_of_mixed_labels_the_largest_share_counts(name: str) -> None:
    method = CASES[name].method
    student, teacher, labels = drawn()
    shares = 0.6 * nn.functional.one_hot(labels.clamp_min(0), CLASSES).double()
    shares[:, 0] += 0.4
    shares[labels < 0] = 0
    needed = teacher if method.needs_teacher else None
    losses = [method.loss(step_of(student, needed, given)) for given in (labels, shares)]
    torch.testing.assert_close(*losses)
    assert int(method.valid(step_of(student, needed, shares).batch)) == 5
    with pytest.raises(UnderstudyError, match=f"'{method.name}' needs labels, and this batch"):
        method.loss(step_of(student, needed, None))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitStandardisedKD(temperature=0.0), "temperature is 0.0"),
        (lambda: DKD(temperature=-1.0), "temperature is -1.0"),
        (lambda: DKD(alpha=-1.0), "alpha is -1.0; it must be 0 or more"),
        (lambda: DKD(beta=float("nan")), "beta is nan"),
        (lambda: NKD(gamma=-0.1), "gamma is -0.1"),
        (lambda: NKD(temperature=0.0), "temperature is 0.0"),
        (lambda: DIST(gamma=-1.0), "gamma is -1.0"),
        (lambda: DIST(temperature=0.0), "temperature is 0.0"),
        (lambda: TfKD("elf"), "form is 'elf'; it must be 'self' or 'virtual'"),
        (lambda: TfKD(temperature=0.0), "temperature is 0.0"),
        (lambda: TfKD(correct=1.0), "correct is 1.0; it must lie between 0 and 1"),
        (lambda: SKD(instance=-1.0), "instance is -1.0"),
        (lambda: SKD(tikhonov=0.0), "tikhonov is 0.0; it must be greater than 0"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", [DKD(), NKD(), TfKD("virtual")], ids=lambda m: m.name)
def test_a_single_class_is_refused_before_training(method: Method) -> None:
    side = Side("student", nn.Identity(), torch.zeros(2, 1), training=True, input_height=None)
    with pytest.raises(UnderstudyError, match="needs at least 2 classes, and the data has 1"):
        method.wire(Wiring(side, {}, classes=1))
    method.wire(Wiring(side, {}, classes=2))


def test_a_batch_of_one_has_no_directions() -> None:
    student, teacher, labels = drawn()
    with pytest.raises(ValueError, match="the batch has 1 sample"):
        SKD().loss(step_of(student[:1], teacher[:1], labels[:1]))


def test_a_form_says_what_it_needs() -> None:
    assert (TfKD().needs_teacher, TfKD().needs_labels) == (True, False)
    assert (TfKD("virtual").needs_teacher, TfKD("virtual").needs_labels) == (False, True)


def run(directory: Path, **given: Any) -> Result:
    inputs = torch.randint(0, 256, (48, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(48) % 3
    return us.distill(
        student={"name": "kd:resnet8", "width": 0.25},
        data=((inputs, labels), (inputs, labels)),
        steps=2,
        batch_size=16,
        precision="float32",
        baseline=False,
        directory=directory,
        **given,
    )


def test_the_virtual_teacher_trains_without_any(tmp_path: Path) -> None:
    methods = [{"name": "tf_kd", "form": "virtual", "weight": 0.5}, "supervised"]
    done = run(tmp_path / "r", teacher=None, methods=methods)
    assert (done.directory / "student").exists()
    assert not (done.directory / "models" / "teacher").exists()
    with pytest.raises(RecipeError, match="learn from one"):
        run(tmp_path / "s", teacher=None, methods=["tf_kd"])
