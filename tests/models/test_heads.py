from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import TEXTS, answer, bert, network, run_here, side, sized, tokens, wiring
from spare_parts import Doubled, Wrapped
from torch import nn

from understudy import seeding
from understudy.errors import ModelError, UnknownName
from understudy.evaluation import cost
from understudy.methods.wiring import Side, Wiring
from understudy.models.build import build
from understudy.models.export import export
from understudy.models.heads import Head, LinearChain, MarginalHead, marginal_logits
from understudy.models.model import Model, fingerprint
from understudy.models.saved import load, read_description, save
from understudy.models.surgery import fold_heads, folded, operate, surgery_of

VECTORS = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))


def coordinates(width: int, classes: int, *, teacher: int = 20, kept: int = 12) -> LinearChain:
    """Return align -> subtract a mean -> project -> mask -> classify, with values that are no special case."""
    chain = LinearChain(
        width,
        [
            {"name": "align", "kind": "linear", "size": teacher},
            {"name": "centre", "kind": "shift", "frozen": True},
            {"name": "basis", "kind": "linear", "size": kept, "bias": False, "frozen": True},
            {"name": "mask", "kind": "scale"},
            {"name": "classify", "kind": "linear", "size": classes},
        ],
    )
    directions = torch.linalg.qr(torch.randn(teacher, kept))[0]
    chain.assign("centre", bias=-3 * torch.randn(teacher))
    chain.assign("basis", weight=directions.T)
    chain.assign("mask", weight=torch.rand(kept).round(decimals=1))
    return chain


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_folded_layer_is_the_chain(dtype: torch.dtype, tolerance: float) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        chain = coordinates(64, 10).to(dtype)
        features = torch.randn(200, 64, dtype=dtype)
        linear = chain.fold()
        assert type(linear) is nn.Linear and linear.weight.dtype == dtype
        scale = float(chain(features).detach().abs().max())
        assert float((linear(features) - chain(features)).detach().abs().max()) <= tolerance * max(
            1.0, scale
        )


def test_the_fold_is_the_formula() -> None:
    chain = coordinates(16, 3).double()
    p, p0, c, c0 = (
        chain.align.weight,
        chain.align.bias,
        chain.classify.weight,
        chain.classify.bias,
    )
    mu, v, m = -chain.centre.bias, chain.basis.weight.T, chain.mask.weight
    weight = c @ torch.diag(m) @ v.T @ p
    bias = c @ torch.diag(m) @ v.T @ (p0 - mu) + c0
    linear = chain.fold()
    torch.testing.assert_close(linear.weight, weight, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(linear.bias, bias, rtol=1e-12, atol=1e-13)


def test_folding_is_accumulated_in_float64() -> None:
    # In float32 the large part would swallow the small one before it is taken away again.
    chain = LinearChain(
        1,
        [
            {"name": "up", "kind": "shift", "frozen": True},
            {"name": "down", "kind": "shift", "frozen": True},
            {"name": "out", "kind": "linear", "size": 1},
        ],
    )
    chain.assign("up", bias=torch.tensor([1e8]))
    chain.assign("down", bias=torch.tensor([-1e8 + 8]))
    chain.assign("out", weight=torch.ones(1, 1), bias=torch.tensor([0.25]))
    assert chain.fold().bias.item() == 8.25


@given(
    kinds=st.lists(st.sampled_from(["linear", "shift", "scale"]), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    bias=st.booleans(),
)
def test_any_chain_folds(kinds: list[str], seed: int, bias: bool) -> None:
    torch.manual_seed(seed)
    parts = []
    for number, kind in enumerate(kinds):
        part: dict[str, Any] = {"name": f"p{number}", "kind": kind, "frozen": number % 2 == 0}
        if kind == "linear":
            part |= {"size": 1 + (seed + number) % 4, "bias": bias}
        parts.append(part)
    chain = LinearChain(3, parts).double()
    for value in chain.state_dict().values():
        value.copy_(torch.randn_like(value))
    features = torch.randn(2, 7, 3, dtype=torch.float64)
    before = torch.random.get_rng_state()
    linear = chain.fold()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(linear(features), chain(features), rtol=1e-12, atol=1e-12)
    assert (linear.in_features, linear.out_features) == (chain.in_features, chain.out_features)


def test_what_is_frozen_is_no_parameter_and_passes_the_gradient_on() -> None:
    chain = coordinates(8, 3)
    assert {name for name, _ in chain.named_parameters()} == {
        "align.weight",
        "align.bias",
        "mask.weight",
        "classify.weight",
        "classify.bias",
    }
    assert {name for name, _ in chain.named_buffers()} == {"centre.bias", "basis.weight"}
    with torch.no_grad():
        chain.mask.weight[4] = 0.0
    chain(VECTORS).square().sum().backward()
    assert chain.align.weight.grad.abs().sum() > 0
    # A coordinate that is masked out has no say: no gradient for its column, none through it.
    assert chain.classify.weight.grad[:, 4].abs().sum() == 0
    assert chain.classify.weight.grad[:, 3].abs().sum() > 0


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        ([], ModelError, "at least one part"),
        ([{"name": "a", "kind": "liner", "size": 3}], UnknownName, "'linear'"),
        ([{"name": "a", "kind": "linear", "sizes": 3}], UnknownName, "'size'"),
        ([{"name": "a", "kind": "linear"}], ModelError, "size None"),
        ([{"name": "a", "kind": "linear", "size": 0}], ModelError, "at least 1"),
        ([{"name": "a", "kind": "shift"}] * 2, ModelError, "cannot be called 'a'"),
        ([{"name": "forward", "kind": "shift"}], ModelError, "cannot be called 'forward'"),
        ([{"name": "a.b", "kind": "shift"}], ModelError, "cannot be called"),
        ([{"kind": "shift"}], ModelError, "cannot be called None"),
        ([{"name": "a", "kind": "shift", "size": 3}], UnknownName, "setting of the shift part"),
    ],
)
def test_parts_that_are_none(parts: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        LinearChain(8, parts)


def test_values_that_do_not_fit() -> None:
    chain = coordinates(8, 3)
    with pytest.raises(UnknownName, match="Did you mean 'basis'"):
        chain.assign("bases", weight=torch.zeros(1))
    with pytest.raises(UnknownName, match="Valid names: weight"):
        chain.assign("basis", bias=torch.zeros(12))
    with pytest.raises(ModelError, match=r"the shape \(12, 20\), not \(20, 12\)"):
        chain.assign("basis", weight=torch.zeros(20, 12))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_marginal_is_the_sum_of_probabilities(count: int) -> None:
    head = MarginalHead(8, 3, count).double()
    features = VECTORS.double()
    inner = head.subclasses(features)
    assert inner.shape == (5, 3 * count)
    summed = torch.zeros(5, 3, dtype=torch.float64)
    for column, share in enumerate(inner.softmax(dim=1).T):
        summed[:, column // count] += share  # sub-class s of class c is column c * S + s
    torch.testing.assert_close(head(features).softmax(dim=1), summed, rtol=1e-12, atol=1e-15)
    assert head(features).shape == (5, 3)


def test_marginals_of_extreme_logits() -> None:
    logits = torch.tensor([[1e4, 1e4, -1e4, -1e4], [-math.inf, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[1e4 + math.log(2), -1e4 + math.log(2)], [0.0, math.log(2)]])
    torch.testing.assert_close(marginal_logits(logits, 2), expected)
    halves = torch.randn(4, 6).bfloat16()
    assert marginal_logits(halves, 3).dtype == torch.float32
    torch.testing.assert_close(marginal_logits(halves, 3), marginal_logits(halves.float(), 3))
    assert marginal_logits(torch.randn(2, 7, 6), 2).shape == (2, 7, 3)
    with pytest.raises(ModelError, match="at least 1"):
        MarginalHead(8, 3, 0)


def test_a_marginal_folds_only_without_sub_classes() -> None:
    assert MarginalHead(8, 3, 2).fold() is None
    one = MarginalHead(8, 3, 1)
    linear = one.fold()
    assert isinstance(linear, nn.Linear)
    torch.testing.assert_close(linear(VECTORS), one(VECTORS))


@pytest.mark.parametrize("kind", ["resnet8", "vgg8", "sequential", "mlp"])
def test_a_head_takes_the_place_of_the_classifier(kind: str) -> None:
    module = network(kind)
    before = side(module).description
    assert before.classifier is not None
    wired = wiring(module)
    placed = wired.head(coordinates)
    assert placed.new and placed.path == before.classifier
    assert placed.tap("basis").shape == (12,) and placed.tap("@input").shape == (
        before.pooled_width,
    )
    after = wired.student.description
    assert (after.classifier, after.stages) == (before.classifier, before.stages)
    assert (after.pooled_width, after.classes) == (before.pooled_width, 3)
    logits = answer(module)
    assert logits.shape == (6, 3)
    training = copy.deepcopy(module)
    with folded(module):
        assert type(dict(module.named_modules())[before.classifier]) is nn.Linear
        assert not surgery_of(module)
        torch.testing.assert_close(answer(module), logits, rtol=1e-5, atol=1e-5)
    assert fingerprint(module) == fingerprint(training) and len(surgery_of(module)) == 1
    fold_heads(module)
    assert set(module.state_dict()) == set(network(kind).state_dict())
    assert cost.parameters(module) == cost.parameters(network(kind))


def test_heads_refuse_what_is_no_classifier() -> None:
    cases = {
        "after": "not what its last linear layer 'fc' gives: its code goes on",
        "functional": "no linear classifier",
        "tied": r"shares its weight \('body.weight' and 'fc.weight'\)",
        "shared": "'fc' and 'again' are one module",
        "reads": "cannot run with LinearChain for its classifier 'fc'.*may read",
    }
    for how, message in cases.items():
        module = Wrapped(how)
        before = fingerprint(module)
        wired = Wiring(
            Side("student", module, VECTORS, training=True, input_height=None), {}, classes=3
        )
        with pytest.raises(ModelError, match=message):
            wired.head(coordinates)
        assert fingerprint(module) == before and not surgery_of(module), how
    with pytest.raises(ModelError, match="no linear classifier"):
        wiring(nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())).head(
            coordinates
        )


def test_heads_that_do_not_fit() -> None:
    module = network("resnet8")
    with pytest.raises(
        ModelError, match="maps 32 features to 3 classes; the head LinearChain maps 32 to 6"
    ):
        wiring(module).head(lambda width, classes: coordinates(width, 2 * classes))
    with pytest.raises(ModelError, match="not a Linear"):
        wiring(module).head(nn.Linear)  # type: ignore[arg-type]
    wired = wiring(module)
    placed = wired.head(coordinates)
    with pytest.raises(
        ModelError, match="Two methods of a stage replace the student's classifier 'fc'"
    ):
        wired.head(coordinates)
    with pytest.raises(ModelError, match="'fc.basis' belongs to the head 'fc'"):
        wired.graft("fc.basis", sized)
    with pytest.raises(ModelError, match="from before; this stage asks for"):
        wiring(module).head(lambda width, classes: coordinates(width, classes, kept=7))
    again = wiring(module).head(coordinates)
    assert again.module is placed.module and not again.new
    module = network("resnet8")
    wiring(module).graft("fc", sized)
    with pytest.raises(ModelError, match="'fc' has a graft"):
        wiring(module).head(coordinates)


def test_surgery_is_done_again_from_its_list() -> None:
    module = network("resnet8")
    wiring(module).graft("layer3", sized)
    wiring(module).head(coordinates)
    again = network("resnet8")
    operate(again, surgery_of(module))
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(answer(again), answer(module), rtol=0, atol=0)
    assert list(again.state_dict()) == list(module.state_dict())
    assert [p.shape for p in again.parameters()] == [p.shape for p in module.parameters()]
    with pytest.raises(ModelError, match="At 'fc' sits"):
        operate(again, [{"kind": "head", "path": "fc", **MarginalHead(32, 3, 2).identity}])


def model_with(head: Any) -> Model:
    with seeding.isolated(7, "test"):
        model = build(
            "kd:resnet8",
            classes=3,
            kind="image",
            input_shape=(1, 16, 16),
            statistics=((0.3,), (0.4,)),
            width=0.5,
        )
        wiring(model.module).head(head)
    return model


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (coordinates, None),
        (lambda width, classes: MarginalHead(width, classes, 1), None),
        (lambda width, classes: MarginalHead(width, classes, 4), "marginal"),
        (Doubled, "py:spare_parts:Doubled"),
    ],
)
def test_saved_students_give_classes_and_are_folded_where_they_can(
    head: Any, kept: str | None, tmp_path: Path
) -> None:
    model = model_with(head)
    before, logits = fingerprint(model.module), answer(model.module)
    folder = save(model, tmp_path / "s", classes=3, input_shape=(1, 16, 16), kind="image")
    assert fingerprint(model.module) == before, "saving folded the student that is still training"
    assert isinstance(model.module.fc, Head)
    loaded = load(folder)
    described = read_description(folder)
    assert [entry["name"] for entry in described["surgery"]] == ([kept] if kept else [])
    assert (type(loaded.module.fc) is nn.Linear) == (kept is None)
    torch.testing.assert_close(answer(loaded.module), logits, rtol=1e-5, atol=1e-5)
    assert described["parameters"] == cost.parameters(loaded.module)
    if kept == "marginal":
        assert cost.parameters(loaded.module) == cost.parameters(network("resnet8")) + 9 * 33


def test_a_folded_head_leaves_a_transformer_that_transformers_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.models.export.run_fresh", run_here)
    model = bert()
    inputs = tokens(model)
    placed = wiring(model.module, inputs).head(coordinates)
    assert placed.path == "classifier"
    path = export(model, "hf", tmp_path / "hf", example_raw=TEXTS[:3], kind="text")
    assert (path / "model.safetensors").is_file()
    assert isinstance(model.module.classifier, LinearChain)
    other = model_with(lambda width, classes: MarginalHead(width, classes, 2))
    with pytest.raises(ModelError, match="no model of transformers"):
        export(
            other, "hf", tmp_path / "no", example_raw=torch.zeros(1, 1, 16, 16).byte(), kind="image"
        )
    fold_heads(model.module)
    wiring(model.module, inputs).head(lambda width, classes: MarginalHead(width, classes, 2))
    with pytest.raises(ModelError, match="holds a head at 'classifier'"):
        export(model, "hf", tmp_path / "no", example_raw=TEXTS[:3], kind="text")
