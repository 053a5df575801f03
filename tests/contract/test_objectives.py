"""The battery that every objective passes.

It runs for each entry of `understudy.objectives.card.cards` and reads from the card what to call it with and what to
demand: a new objective is tested as soon as it has a card. Each test takes the name of an objective;
`scripts/mutate_objectives.py` calls them as plain functions.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from understudy import objectives
from understudy.objectives.card import Card, cards

assert objectives  # importing the rooms is what fills `cards`

Tensors = dict[str, torch.Tensor]


def where(applies: Callable[[Card], bool]) -> pytest.MarkDecorator:
    """Run a test for the objectives to whose card it applies."""
    names = [name for name, (_, card) in sorted(cards.items()) if applies(card)]
    return pytest.mark.parametrize("name", names)


def having(
    parameter: str, applies: Callable[[Card], bool] = lambda card: True
) -> pytest.MarkDecorator:
    """Run a test for the objectives that have a parameter of this name, and to whose card it applies."""
    names = [
        name
        for name, (function, card) in sorted(cards.items())
        if parameter in inspect.signature(function).parameters and applies(card)
    ]
    return pytest.mark.parametrize("name", names)


every = where(lambda card: True)

SHAPES = {
    "logits": "B C",
    "tokens": "B T C",
    "vectors": "B C",
    "maps": "B C 4 4",
    "sequences": "B T C",
    "attention": "B H T C",
    "scores": "B B",
}
SIZES = {"B": 5, "C": 6, "T": 4, "H": 2}


@dataclass
class Call:
    """Inputs for one objective, as its card describes them, and the call itself."""

    function: Callable[..., torch.Tensor]
    card: Card
    tensors: Tensors
    dims: dict[str, tuple[str, ...]]
    keywords: dict[str, Any] = field(default_factory=dict)

    def __call__(self, tensors: Tensors | None = None, **keywords: Any) -> torch.Tensor:
        given = dict(self.tensors if tensors is None else tensors)
        positional = [given.pop("student")] + ([given.pop("teacher")] if self.card.teacher else [])
        return self.function(*positional, **given, **{**self.keywords, **keywords})

    @property
    def parameters(self) -> set[str]:
        return set(inspect.signature(self.function).parameters)

    @property
    def batch(self) -> int:
        return self.tensors["student"].shape[0]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """Return the same call with floating-point tensors changed."""
        tensors = {
            key: change(value) if value.is_floating_point() else value
            for key, value in self.tensors.items()
        }
        return Call(self.function, self.card, tensors, self.dims, self.keywords)

    def rows(self, index: torch.Tensor) -> Call:
        """Return the call with samples taken, in this order, from every dimension over the batch."""
        tensors = {}
        for key, value in self.tensors.items():
            for dim, letter in enumerate(self.dims[key]):
                value = value.index_select(dim, index) if letter == "B" else value
            tensors[key] = value
        return Call(self.function, self.card, tensors, self.dims, self.keywords)

    def leaf(self, key: str = "student") -> torch.Tensor:
        """Make a tensor a leaf that gets a gradient, and return it."""
        self.tensors = {**self.tensors, key: self.tensors[key].detach().clone().requires_grad_()}
        return self.tensors[key]

    def weight(self) -> torch.Tensor:
        """Return weights of the shape that the objective's values have."""
        shape: tuple[int, ...] = (self.batch,)
        if "reduction" in self.parameters and not self.card.coupled:
            shape = tuple(self(reduction="none").shape)
        return 0.2 + torch.rand(shape, dtype=torch.float64)


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int) -> Call:
    """Return a call with random inputs; `sizes` replaces the sizes of dimensions."""
    function, card = cards[name]
    torch.manual_seed(seed)
    size = {**SIZES, **sizes}

    def shape(dims: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(size[letter] if letter in size else int(letter) for letter in dims)

    wanted = {"student": f"real {SHAPES[card.takes]}"}
    if card.teacher:
        wanted["teacher"] = wanted["student"]
    for need in card.needs:
        label, _, description = need.partition(": ")
        wanted[label] = description or {"labels": "classes B", "mask": "mask B T"}[label]
    tensors, dims = {}, {}
    for key, description in wanted.items():
        kind, *letters = description.split()
        dims[key] = tuple(letters)
        tensors[key] = draw(kind, shape(dims[key]), size).to(
            torch.int64 if kind in ("classes", "samples") else dtype
        )
    return Call(function, card, tensors, dims)


def draw(kind: str, shape: tuple[int, ...], size: dict[str, int]) -> torch.Tensor:
    """Return random contents of one kind."""
    if kind == "real":
        return torch.randn(shape, dtype=torch.float64)
    if kind == "positive":
        return 0.5 + torch.rand(shape, dtype=torch.float64)
    if kind == "probabilities":
        return torch.randn(shape, dtype=torch.float64).softmax(-1)
    if kind == "mask":
        return (torch.rand(shape) > 0.3).to(torch.float64)
    # Every class appears, and at least two of them where there are two.
    top = {"classes": size["C"], "samples": size["B"]}[kind]
    return torch.arange(int(torch.tensor(shape).prod())).reshape(shape) % top


def close(found: Any, expected: Any, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    """Compare what should be equal but for rounding."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def value_and_gradient(call: Call, **keywords: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return value and gradient with respect to the student."""
    student = call.leaf()
    value = call(**keywords)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def assert_finite(call: Call, **keywords: Any) -> None:
    """Demand a finite value and a finite gradient."""
    value, gradient = value_and_gradient(call, **keywords)
    assert value.isfinite(), f"the value is {value}"
    assert gradient.isfinite().all(), f"the gradient has {gradient[~gradient.isfinite()]}"


def shapes_named(error: pytest.ExceptionInfo[ValueError], *shapes: torch.Size) -> None:
    """Demand that a message names shapes."""
    for shape in shapes:
        assert str(tuple(shape)) in str(error.value), (
            f"'{error.value}' does not name {tuple(shape)}"
        )


# Declaration


@every
def test_docstring_describes_every_argument_and_names_the_source(name: str) -> None:
    function, _ = cards[name]
    text = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^ +{parameter}: ", text, re.M), f"{parameter} is not described"
    assert "\nSource: " in text and "\nRaises:\n" in text


@every
def test_signature_follows_the_contract(name: str) -> None:
    function, card = cards[name]
    parameters = inspect.signature(function).parameters
    assert parameters["weight"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["weight"].default is None
    assert card.coupled or parameters["reduction"].default == "mean"
    assert ("teacher" in parameters) == card.teacher
    assert {need.partition(": ")[0] for need in card.needs} <= set(parameters)
    assert getattr(objectives, function.__name__) is function


# Value and gradient


@where(lambda card: not card.held_constant)
def test_gradient_is_that_of_the_value(name: str) -> None:
    call = build(name)
    weight = call.weight()
    learns = [key for key, value in call.tensors.items() if value.is_floating_point()]
    leaves = {key: call.leaf(key) for key in learns if not key.startswith("teacher")}
    found = torch.autograd.grad(call(), list(leaves.values()), allow_unused=True)
    live = [key for key, gradient in zip(leaves, found, strict=True) if gradient is not None]
    assert "student" in live

    for keywords in ({}, {"weight": weight}):

        def value(*changed: torch.Tensor, keywords: Any = keywords) -> torch.Tensor:
            return call({**call.tensors, **dict(zip(live, changed, strict=True))}, **keywords)

        assert torch.autograd.gradcheck(value, [leaves[key] for key in live], fast_mode=True)


@every
def test_half_precision_in_is_single_precision_inside(name: str) -> None:
    single = build(name, dtype=torch.float32).map(lambda tensor: tensor.bfloat16().float())
    value, gradient = value_and_gradient(single)
    assert value.dtype == torch.float32
    half_value, half_gradient = value_and_gradient(single.map(torch.Tensor.bfloat16))
    assert half_value.dtype == torch.float32 and half_gradient.dtype == torch.bfloat16
    # The same numbers go in, so only the gradient's own rounding may differ.
    close(half_value, value, rtol=1e-5, atol=1e-6)
    close(half_gradient.float(), gradient, rtol=1e-2, atol=1e-2 * gradient.abs().max().item())


@every
def test_single_precision_agrees_with_double(name: str) -> None:
    double = build(name)
    value, gradient = value_and_gradient(double)
    found, found_gradient = value_and_gradient(double.map(torch.Tensor.float))
    close(found.double(), value, rtol=1e-4, atol=1e-5)
    close(found_gradient.double(), gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())


@every
def test_autocast_changes_nothing(name: str) -> None:
    call = build(name, dtype=torch.float32)
    value, gradient = value_and_gradient(call)
    student = call.leaf()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call()
    assert torch.equal(found.detach(), value)
    assert torch.equal(torch.autograd.grad(found, student)[0], gradient)


@every
def test_inputs_are_left_as_they_are_and_nothing_is_random(name: str) -> None:
    call = build(name)
    before = {key: value.clone() for key, value in call.tensors.items()}
    first = call()
    torch.manual_seed(1)
    assert torch.equal(first, call())
    assert all(torch.equal(before[key], call.tensors[key]) for key in before)


@every
def test_nothing_waits_for_a_value(name: str) -> None:
    # Tensors without contents cannot be read: whoever looks at a value, and so would hold up an accelerator, fails.
    call = build(name)
    weight = call.weight().to("meta")
    call.tensors = {key: value.to("meta") for key, value in call.tensors.items()}
    for keywords in ({}, {"weight": weight}):
        value, gradient = value_and_gradient(call, **keywords)
        assert value.shape == () and gradient.shape == call.tensors["student"].shape


@every
def test_teacher_gets_no_gradient_and_student_does(name: str) -> None:
    call = build(name)
    theirs = [call.leaf(key) for key in call.tensors if key.startswith("teacher")]
    student = call.leaf()
    call().backward()
    assert all(tensor.grad is None for tensor in theirs)
    assert student.grad is not None and (student.grad != 0).any()


# Laws


@where(lambda card: card.minimum is not None)
def test_minimum_is_at_the_teacher(name: str) -> None:
    call = build(name)
    assert call() > call.card.minimum
    if not call.card.teacher:
        return
    equal = {
        key: call.tensors[key.replace("student", "teacher")]
        for key in call.tensors
        if "student" in key
    }
    call.tensors = {**call.tensors, **equal}
    close(call(), torch.tensor(call.card.minimum, dtype=torch.float64), atol=1e-7)
    for scale in (0.1, -0.1):
        near = {key: value + scale * torch.randn_like(value) for key, value in equal.items()}
        assert call({**call.tensors, **near}) >= call.card.minimum - 1e-12


@where(lambda card: bool(card.invariances))
def test_invariances_hold(name: str) -> None:
    call = build(name)
    student = call.tensors["student"]
    per_sample = (-1,) + (1,) * (student.dim() - 1)
    turn, _ = torch.linalg.qr(
        torch.randn(student.shape[-1], student.shape[-1], dtype=torch.float64)
    )
    shift = torch.randn(
        student.shape[:-1] if call.card.takes in ("logits", "tokens") else student.shape[:1],
        dtype=torch.float64,
    )
    changes = {
        "shift": lambda: (
            student + shift.reshape(shift.shape + (1,) * (student.dim() - shift.dim()))
        ),
        "scale": lambda: 2.5 * student,
        "sample scale": lambda: (
            (0.5 + torch.rand(len(student)).double()).view(per_sample) * student
        ),
        "rotation": lambda: student @ turn,
        "channel permutation": lambda: student.roll(1, dims=1),
    }
    for law in call.card.invariances:
        changed = {**call.tensors, "student": changes[law]()}
        assert not torch.equal(changed["student"], student)
        close(call(changed), call(), rtol=1e-5)


@where(lambda card: card.temperature_power is not None)
def test_temperature_scales_as_declared(name: str) -> None:
    call = build(name)
    power = call.card.temperature_power
    for temperature in (0.5, 3.0):
        divided = call.map(lambda tensor, by=temperature: tensor / by)
        close(call(temperature=temperature), temperature**power * divided(temperature=1.0))


@every
def test_order_of_the_batch_does_not_matter(name: str) -> None:
    call = build(name)
    order = torch.tensor([3, 0, 4, 2, 1])
    weight = call.weight()
    close(call.rows(order)(), call())
    close(call.rows(order)(weight=weight[order]), call(weight=weight))


# Weights


@every
def test_a_weight_of_1_changes_nothing_and_only_ratios_count(name: str) -> None:
    call = build(name)
    weight = call.weight()
    value, gradient = value_and_gradient(call)
    close(value_and_gradient(call, weight=torch.ones_like(weight)), (value, gradient))
    weighted, weighted_gradient = value_and_gradient(call, weight=weight)
    assert not torch.isclose(weighted, value, rtol=1e-9, atol=0)
    tripled, tripled_gradient = value_and_gradient(call, weight=3 * weight)
    close(tripled_gradient, weighted_gradient, rtol=1e-5)
    if not call.card.coupled:  # a logarithm of a sum may gain a constant
        close(tripled, weighted)


@every
def test_masked_samples_count_nothing_whatever_they_hold(name: str) -> None:
    call = build(name)
    kept = torch.tensor([0, 2, 3])
    weight = torch.zeros_like(call.weight())
    weight[kept] = 1
    masked = torch.tensor([1, 4])
    expected, expected_gradient = value_and_gradient(call.rows(kept))

    def check(value: torch.Tensor, gradient: torch.Tensor) -> None:
        close(value, expected, rtol=1e-5)
        of_kept = gradient
        for dim, letter in enumerate(call.dims["student"]):
            if letter == "B":
                assert (gradient.index_select(dim, masked) == 0).all()
                of_kept = of_kept.index_select(dim, kept)
        close(of_kept, expected_gradient, rtol=1e-5)

    for mask in (weight, weight.bool()):
        check(*value_and_gradient(call, weight=mask))
    # What stands there is not looked at, be it not a number.
    for key in ("student", "teacher"):
        if key in call.tensors:
            call.tensors[key] = call.tensors[key].detach().clone()
            for dim, letter in enumerate(call.dims[key]):
                if letter == "B":
                    call.tensors[key].index_fill_(dim, masked, torch.nan)
    check(*value_and_gradient(call, weight=weight))


@having("official")
def test_official_form_heeds_the_weight(name: str) -> None:
    call = build(name)
    weight = call.weight()
    call.keywords["official"] = True
    try:
        value, gradient = value_and_gradient(call, weight=weight)
    except ValueError as error:
        assert "no weight" in str(error)
        return
    assert not torch.isclose(value, call(), rtol=1e-9, atol=0)
    weight[1] = 0
    value, gradient = value_and_gradient(call, weight=weight)
    assert (gradient[1] == 0).all() and (gradient[0] != 0).any()


@every
def test_all_masked_has_no_value_and_no_gradient(name: str) -> None:
    call = build(name)
    value, gradient = value_and_gradient(call, weight=torch.zeros_like(call.weight()))
    assert torch.equal(gradient, torch.zeros_like(gradient))
    # A coupled objective may have another constant for "nothing to compare".
    assert value == 0 or (call.card.coupled and value.isfinite())


@where(lambda card: not card.coupled)
def test_splitting_and_accumulating_equals_the_whole(name: str) -> None:
    call = build(name)
    weight = call.weight()
    value, gradient = value_and_gradient(call, weight=weight)
    parts = [torch.tensor([0, 1]), torch.tensor([2, 3, 4])]
    found = [
        value_and_gradient(call.rows(part), weight=weight[part], reduction="sum") for part in parts
    ]
    close(sum(part for part, _ in found) / weight.sum(), value)
    close(torch.cat([part for _, part in found]) / weight.sum(), gradient)
    each = call(reduction="none")
    close((weight * each).sum() / weight.sum(), value)
    close(call(weight=weight, reduction="none"), weight * each)
    close(call(reduction="sum"), each.sum())
    close(call(), each.mean())


@having("reduction", lambda card: card.coupled)
def test_reductions_of_a_coupled_objective_agree(name: str) -> None:
    call = build(name)
    weight = call.weight()
    total = call(weight=weight, reduction="sum")
    close(total / weight.sum(), call(weight=weight))
    close(call(weight=weight, reduction="none").sum(), total)


@having("labels")
def test_samples_without_a_label_count_nothing(name: str) -> None:
    call = build(name)
    kept = torch.tensor([0, 2, 3])
    labels = call.tensors["labels"].clone()
    labels[[1, 4]] = -1
    unlabelled = {**call.tensors, "labels": labels}
    close(call(unlabelled), call.rows(kept)())
    nobody = {**call.tensors, "labels": torch.full_like(labels, -1)}
    assert call(nobody) == 0


# Edges


def temperatures(call: Call) -> list[dict[str, float]]:
    """Return the keywords for the temperature's extremes."""
    return [{"temperature": 0.05}, {}] if "temperature" in call.parameters else [{}]


@where(lambda card: card.extreme)
def test_value_and_gradient_are_finite_at_extremes(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for scale in (1.0, 1e4):
            call = build(name, dtype=dtype)
            call.tensors = {
                key: scale * value if key.partition("_")[0] in ("student", "teacher") else value
                for key, value in call.tensors.items()
            }
            for keywords in temperatures(call):
                assert_finite(call, **keywords)


@every
def test_value_and_gradient_are_finite_where_nothing_differs(name: str) -> None:
    for fill in (0.0, 1.0):
        call = build(name, dtype=torch.float32)
        call.tensors = {
            key: torch.full_like(value, fill)
            if key.partition("_")[0] in ("student", "teacher")
            else value
            for key, value in call.tensors.items()
        }
        assert_finite(call)
    call = build(name, dtype=torch.float32)
    if call.card.teacher:
        equal = {
            key: call.tensors[key.replace("student", "teacher")]
            for key in call.tensors
            if "student" in key
        }
        call.tensors = {**call.tensors, **equal}
        assert_finite(call)


@every
def test_smallest_batch(name: str) -> None:
    smallest = cards[name][1].smallest_batch
    assert_finite(build(name, B=smallest))
    assert_finite(build(name, B=smallest), weight=build(name, B=smallest).weight())
    for batch in range(1, smallest):
        call = build(name, B=batch)
        with pytest.raises(ValueError) as error:
            call()
        shapes_named(error, call.tensors["student"].shape)


@where(lambda card: card.takes != "scores")
def test_smallest_number_of_classes(name: str) -> None:
    card = cards[name][1]
    assert_finite(build(name, C=card.smallest_classes))
    for classes in range(1, card.smallest_classes):
        with pytest.raises(ValueError, match=f"at least {card.smallest_classes} classes"):
            build(name, C=classes)()


@where(lambda card: card.masked_classes)
def test_masked_classes_count_nothing(name: str) -> None:
    call = build(name)
    expected, expected_gradient = value_and_gradient(call)
    wider = call.rows(torch.arange(5))
    for key in ("student", "teacher"):
        masked = torch.full_like(wider.tensors[key][..., :1], -torch.inf)
        wider.tensors[key] = torch.cat([wider.tensors[key], masked], dim=-1)
    value, gradient = value_and_gradient(wider)
    close(value, expected)
    close(gradient[..., :-1], expected_gradient)
    assert (gradient[..., -1] == 0).all()
    for keywords in temperatures(call):
        assert_finite(wider, **keywords)


# Refusals


@every
def test_shapes_that_do_not_fit_are_refused_by_name(name: str) -> None:
    call = build(name)
    student = call.tensors["student"].shape
    wrong: list[tuple[str, int]] = []
    for key in call.tensors:
        dims = call.dims[key]
        if key == "student":
            continue
        for dim, letter in enumerate(dims):
            if letter == "B" or (
                letter == "C" and key == "teacher" and not call.card.widths_differ
            ):
                wrong.append((key, dim))
    for key, dim in wrong:
        tensor = call.tensors[key]
        longer = torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim=dim)
        with pytest.raises(ValueError) as error:
            call({**call.tensors, key: longer})
        shapes_named(error, student, longer.shape)
    if call.card.takes == "scores":
        scores = call.tensors["student"][:, :-1]
        with pytest.raises(ValueError) as error:
            call({**call.tensors, "student": scores})
        shapes_named(error, scores.shape)


@every
def test_weights_that_do_not_fit_are_refused_by_name(name: str) -> None:
    call = build(name)
    weight = torch.ones(call.batch + 7)
    with pytest.raises(ValueError) as error:
        call(weight=weight)
    shapes_named(error, weight.shape)


@having("reduction")
def test_unknown_reductions_are_refused(name: str) -> None:
    call = build(name)
    with pytest.raises(ValueError, match="'average'"):
        call(reduction="average")


@having("temperature")
def test_temperatures_that_are_not_positive_are_refused(name: str) -> None:
    call = build(name)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            call(temperature=temperature)
