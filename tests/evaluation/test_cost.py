"""Parameters, FLOPs, latency and size on disk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from understudy.errors import ModelError
from understudy.evaluation import flops, latency, parameters, size_on_disk


class Scores(nn.Module):
    """Attention scores of a tensor with itself, by keyword, as language models are called."""

    def forward(self, *, queries: torch.Tensor, scale: float) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(queries, queries, queries, scale=scale)


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 4)
    assert parameters(nn.Sequential(layer, layer, nn.BatchNorm1d(4))) == 3 * 4 + 4 + 8


@pytest.mark.parametrize("batch", [1, 5])
def test_a_multiply_add_is_two_operations_per_sample(batch: int) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    expected = 2 * (36 * 27 * 8) + 2 * 8 * 36 * 10
    assert flops(network, torch.randn(batch, 3, 6, 6)) == expected


def test_kernels_that_the_counter_does_not_see_into_are_counted() -> None:
    """Without care torch counts a transformer layer or an LSTM in evaluation mode as 0."""
    width, inner, length = 16, 32, 5
    layer = nn.TransformerEncoderLayer(width, 2, inner, batch_first=True)
    linear = 2 * length * width * (3 * width + width + 2 * inner)
    attention = 2 * 2 * length * length * width
    assert flops(layer, torch.randn(2, length, width)) == linear + attention
    assert flops(nn.LSTM(4, 8, batch_first=True), torch.randn(2, 5, 4)) == 2 * 5 * 4 * 8 * (4 + 8)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled == torch.backends.mkldnn.is_available()


def test_inputs_by_keyword() -> None:
    queries = torch.randn(3, 2, 5, 4)
    assert flops(Scores(), {"scale": 1.0, "queries": queries}) == 2 * (2 * 2 * 5 * 5 * 4)
    with pytest.raises(ModelError, match="No tensor with a batch dimension"):
        flops(nn.Identity(), [1.0])


def test_measuring_leaves_the_model_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    network.train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flops(network, torch.randn(4, 2))
    latency(network, lambda size: torch.randn(size, 2), batch_sizes=(1,), budget_seconds=0.01)
    assert [part.training for part in network] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_flags_come_back_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2)).train()
    with pytest.raises(RuntimeError):
        flops(network, torch.randn(1, 3))
    assert network.training and torch.backends.mha.get_fastpath_enabled()


class Sleeper(nn.Module):
    """Takes a known time, and longer at the first call of each size, as lazy kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.modes.add((self.training, torch.is_inference_mode_enabled()))
        time.sleep(0.05 if len(values) not in self.sizes else 0.001 * len(values))
        self.sizes.append(len(values))
        return values


def test_latency_is_the_median_of_warm_runs_in_milliseconds() -> None:
    network = Sleeper().train()
    found = latency(
        network, lambda size: torch.zeros(size, 1), batch_sizes=(1, 4), budget_seconds=0.1
    )
    assert list(found) == ["1", "4"]
    assert 1.0 <= found["1"] < 3.5
    assert 4.0 <= found["4"] < 9.0
    assert network.modes == {(False, True)}
    assert network.sizes.count(1) >= 5 and network.sizes.count(4) >= 5


def test_latency_needs_a_budget() -> None:
    with pytest.raises(ValueError, match="positive"):
        latency(nn.Identity(), lambda size: torch.zeros(size), budget_seconds=0)


def test_size_on_disk(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "deeper" / "config.json").write_bytes(b"{}")
    assert size_on_disk(tmp_path) == 1002
    assert size_on_disk(tmp_path / "model.safetensors") == 1000
    with pytest.raises(ModelError, match="no folder"):
        size_on_disk(tmp_path / "missing")
