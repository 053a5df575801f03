"""What several teachers say together: averages and routes against the plain formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from understudy import objectives
from understudy.data.batch import Batch
from understudy.errors import UnderstudyError, UnknownName
from understudy.methods import DKD, KD, FitNet, Method, Step
from understudy.models.outputs import Outputs
from understudy.tasks.classification import Classification
from understudy.teachers.listening import Combined, Hears, Route, check_hears, heard

BATCH, CLASSES = 6, 4
NAMES = ("big", "other", "third")


def logits() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: 3 * torch.randn(BATCH, CLASSES, generator=generator) for name in NAMES}


def batch(labels: Any = None) -> Batch:
    index = torch.arange(BATCH)
    return Batch({}, labels=labels, index=index, view=torch.zeros_like(index))


def together(
    hears: Hears | None, temperature: float = 1.0, labels: Any = None, **given: torch.Tensor
) -> torch.Tensor:
    outputs = {name: Outputs(rows) for name, rows in (given or logits()).items()}
    found = Combined(hears, outputs, batch(labels), temperature=temperature, method="kd").logits
    assert found is not None
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(
    ("hears", "weights"),
    [
        (None, {"big": 1 / 3, "other": 1 / 3, "third": 1 / 3}),
        (["third", "big"], {"big": 1 / 2, "third": 1 / 2}),
        ({"big": 0.7, "other": 0.3}, {"big": 0.7, "other": 0.3}),
        ({"big": 6, "other": 2}, {"big": 0.75, "other": 0.25}),
    ],
)
def test_an_average_is_the_mean_of_softened_probabilities(
    hears: Hears | None, weights: dict[str, float], temperature: float
) -> None:
    given = logits()
    expected = sum(
        weight * torch.softmax(given[name].double() / temperature, dim=1)
        for name, weight in weights.items()
    )
    found = torch.softmax(together(hears, temperature).double() / temperature, dim=1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_an_average_is_finite_where_teachers_are_sure_or_rule_classes_out() -> None:
    big = torch.tensor([[1e4, 0.0, -1e4, 0.0]] * BATCH)
    other = torch.tensor([[0.0, float("-inf"), 0.0, 0.0]] * BATCH)
    found = together(None, big=big, other=other).softmax(dim=1)
    torch.testing.assert_close(found[0], torch.tensor([2 / 3, 0.0, 1 / 6, 1 / 6]))
    half = together(None, big=big.half(), other=other.half())
    assert half.dtype == torch.float32


def test_the_most_confident_teacher_answers_for_each_sample() -> None:
    given = logits()
    found = together(Route(by="confidence"), 4.0)
    for row in range(BATCH):
        entropy = {}
        for name, rows in given.items():
            p = torch.softmax(rows[row].double(), dim=0)
            entropy[name] = float(-(p * p.log()).sum())
        assert torch.equal(found[row], given[min(entropy, key=entropy.__getitem__)][row])
    some = together(Route(by="confidence", among=["other"]))
    assert torch.equal(some, given["other"])


def test_labels_choose_the_teacher_and_samples_without_one_get_the_average() -> None:
    given = logits()
    route = Route(by="label", classes={"other": [0, 3], "big": [1, 2]})
    labels = torch.tensor([0, 1, 2, 3, -1, 1])
    found = together(route, 2.0, labels)
    for row, name in enumerate(["other", "big", "big", "other", None, "big"]):
        if name is not None:
            assert torch.equal(found[row], given[name][row])
    torch.testing.assert_close(found[4], together(["big", "other"], 2.0)[4])
    torch.testing.assert_close(together(route, 2.0), together(["big", "other"], 2.0))
    soft = torch.zeros(BATCH, CLASSES)
    soft[:, 1], soft[:, 3] = 0.4, 0.6
    soft[5] = 0.0
    found = together(route, 2.0, soft)
    assert torch.equal(found[:5], given["other"][:5])
    torch.testing.assert_close(found[5], together(["big", "other"], 2.0)[5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Route(by="label"), "needs `classes`"),
        (lambda: Route(by="confidence", classes={"big": [0]}), "by confidence has none"),
        (lambda: Route(by="confidence", among=[]), "at least one"),
        (lambda: Route(by="sorted"), "no route called 'sorted'"),
        (lambda: Route(by="label", classes={"a": [0, 1], "b": [1]}), "class 1 is given to several"),
        (lambda: Route(by="label", classes={"a": [0]}).check_classes(3), "the classes 1, 2; the"),
        (lambda: Route(by="label", classes={"a": [0, 7]}).check_classes(1), "class 7, which the"),
        (lambda: check_hears([]), "names of its teachers"),
        (lambda: check_hears(["big", "big"]), "each once"),
        (lambda: KD().listening_to({"big": 0.0, "other": 1.0}), "greater than 0"),
        (lambda: heard("bigg", NAMES), "no teacher called 'bigg'. Did you mean 'big'"),
        (lambda: heard({"big": 1.0, "x": 2.0}, NAMES), "no teacher called 'x'"),
    ],
)
def test_what_cannot_be_listened_to_is_refused(make: Any, message: str) -> None:
    with pytest.raises((UnderstudyError, UnknownName), match=message):
        make()


def test_teachers_with_other_classes_or_without_logits_cannot_be_combined() -> None:
    with pytest.raises(UnderstudyError, match=r"'big' \(6, 4\), 'other' \(6, 3\)"):
        together(None, big=torch.zeros(BATCH, 4), other=torch.zeros(BATCH, 3))
    found = Combined(None, {"a": Outputs(None)}, batch(), temperature=1.0, method="kd")
    with pytest.raises(UnderstudyError, match="'a' gives no logits"):
        _ = found.logits


def step_for(method: Method, calls: list[str]) -> tuple[Step, Step]:
    given, labels = logits(), torch.arange(BATCH) % CLASSES

    def answers(name: str) -> Any:
        def targets(_: Batch) -> Outputs:
            calls.append(name)
            return Outputs(given[name], {"layer": given[name]})

        return targets

    student = torch.zeros(BATCH, CLASSES, requires_grad=True)
    whole = Step(
        batch(labels),
        task=Classification(),
        student=lambda _: Outputs(student, {"layer": student}),
        teachers={name: answers(name) for name in NAMES},
        progress=0.5,
    )
    return whole, whole.heard_by(method)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_methods_get_the_average_at_their_own_temperature(temperature: float) -> None:
    given, calls = logits(), []
    kd = KD(temperature=temperature)
    whole, view = step_for(kd, calls)
    mean = sum(torch.softmax(rows / temperature, dim=1) for rows in given.values()) / 3
    student = torch.log_softmax(torch.zeros(BATCH, CLASSES), dim=1)
    expected = temperature**2 * (mean * (mean.log() - student)).sum(dim=1).mean()
    torch.testing.assert_close(kd.loss(view), expected)
    assert calls == list(NAMES)
    dkd = DKD(temperature=temperature)
    labels = torch.arange(BATCH) % CLASSES
    torch.testing.assert_close(
        dkd.loss(whole.heard_by(dkd)),
        objectives.dkd(
            torch.zeros(BATCH, CLASSES),
            temperature * mean.log(),
            labels,
            alpha=1.0,
            beta=8.0,
            temperature=temperature,
        ),
    )
    assert calls == list(NAMES)


def test_a_step_is_shared_and_each_method_sees_its_own_teacher() -> None:
    calls: list[str] = []
    first, second = KD().listening_to("big"), KD().listening_to("third")
    whole, view = step_for(first, calls)
    other = whole.heard_by(second)
    assert view is whole.heard_by(first) and view is not other
    assert view.student is other.student is whole.student
    given = logits()
    assert torch.equal(view.logits()[1], given["big"])
    assert torch.equal(other.logits()[1], given["third"])
    assert calls == ["big", "third"]
    with pytest.raises(UnderstudyError, match="belongs to no method"):
        _ = whole.teacher
    with pytest.raises(UnderstudyError, match="listens to 3: big, other, third. Name one of them"):
        whole.heard_by(FitNet()).features("layer", "layer")
