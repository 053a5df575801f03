"""Taps read any module's input or output without editing the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from understudy.errors import ModelError, UnknownName
from understudy.models.taps import Tap, Tapped, find_module, probe_taps, unwrap


class Block(nn.Module):
    """A block whose ReLU works in place on what the normalisation gave."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.norm(self.conv(x)))


class Twice(nn.Module):
    """A model that calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.unused = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x))


class Checkpointed(nn.Module):
    """A model whose block is recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(inplace=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = checkpoint(self.block, x, use_reentrant=False)
        return self.head(maps.mean(dim=(2, 3)))


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_parse() -> None:
    assert Tap.parse("a.b@input#2") == Tap("a.b", "input", 2)
    assert Tap.parse("a") == Tap("a", "output", None)
    with pytest.raises(UnknownName, match="@input"):
        Tap.parse("a@side")
    with pytest.raises(UnknownName, match="number"):
        Tap.parse("a#x")


def test_output_and_input() -> None:
    model, x = Block(inplace=False), torch.randn(2, 3, 6, 6)
    tapped = Tapped(model, ["conv", "relu@input"])
    output, features = tapped(x)
    assert torch.equal(features["conv"], model.conv(x))
    assert torch.equal(output, torch.relu(features["relu@input"]))


def test_tap_before_an_in_place_operation_is_found_and_copied() -> None:
    model, x = Block(inplace=True), torch.randn(4, 3, 6, 6)
    _, copied = probe_taps(model, ["norm", "conv", "relu@input"], lambda m: m(x), training=True)
    assert copied == {"norm", "relu@input"}
    tapped = Tapped(model, ["norm"], copied)
    _, features = tapped(x)
    expected = nn.functional.batch_norm(
        model.conv(x), None, None, model.norm.weight, model.norm.bias, training=True
    )
    torch.testing.assert_close(features["norm"], expected)
    assert (features["norm"] < 0).any(), "the tap must show what was there before the ReLU"
    features["norm"].sum().backward()
    assert model.norm.bias.grad is not None


def test_probe_leaves_the_model_as_it_was() -> None:
    model = Block(inplace=True).eval()
    model.norm.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    probe_taps(model, ["norm"], lambda m: m(torch.ones(4, 3, 6, 6)), training=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training and model.norm.training
    assert hooks(model) == 0


def test_repeated_calls() -> None:
    model, x = Twice(), torch.randn(3, 5)
    tapped = Tapped(model, ["layer", "layer#0", "layer#1"])
    output, features = tapped(x)
    assert torch.equal(features["layer#0"], model.layer(x))
    assert torch.equal(features["layer#1"], output)
    assert torch.equal(features["layer"], output)
    with pytest.raises(ModelError, match="ran 2 time"):
        Tapped(model, ["layer#2"])(x)
    with pytest.raises(ModelError, match="did not call"):
        Tapped(model, ["unused"])(x)


def test_activation_checkpointing_gives_the_same_gradient() -> None:
    plain, x = Checkpointed(), torch.randn(4, 3, 6, 6)
    tapped = Tapped(plain, ["block.norm"])
    output, features = tapped(x)
    (output.sum() + features["block.norm"].square().sum()).backward()
    found = plain.block.conv.weight.grad.clone()
    plain.zero_grad()
    maps = plain.block.norm(plain.block.conv(x))
    (plain.head(torch.relu(maps).mean(dim=(2, 3))).sum() + maps.square().sum()).backward()
    torch.testing.assert_close(found, plain.block.conv.weight.grad)


def test_compiled_model_has_the_same_paths_and_no_graph_break() -> None:
    model, x = Block(inplace=True), torch.randn(4, 3, 6, 6)
    assert unwrap(torch.compile(model)) is model
    tapped = Tapped(torch.compile(model), ["norm", "conv@input"], copied={"norm"})
    explained = torch._dynamo.explain(tapped)(x)
    assert explained.graph_break_count == 0
    torch._dynamo.reset()
    compiled = torch.compile(tapped, backend="aot_eager", fullgraph=True)
    output, features = compiled(x)
    expected, plain = tapped(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(features["norm"], plain["norm"])
    torch._dynamo.reset()


def test_a_distributed_wrapper_has_the_same_paths(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model, x = Block(inplace=False), torch.randn(4, 3, 6, 6)
        tapped = Tapped(nn.parallel.DistributedDataParallel(model), ["norm"])
        assert tapped.module is model
        outside = nn.parallel.DistributedDataParallel(tapped)
        _, features = outside(x)
        features["norm"].square().sum().backward()
        assert model.conv.weight.grad is not None
        assert find_module(outside.module, "module.norm") is find_module(model, "norm")
    finally:
        torch.distributed.destroy_process_group()


def test_wrong_path_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'conv'"):
        Tapped(Block(inplace=False), ["cnv"])
    with pytest.raises(UnknownName, match="norm"):
        find_module(Block(inplace=False), "norms")


def test_close_removes_every_hook() -> None:
    model = Block(inplace=False)
    tapped = Tapped(model, ["conv", "relu@input"])
    assert hooks(model) == 2
    tapped.close()
    assert hooks(model) == 0
