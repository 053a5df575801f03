"""A teacher in int8: close to the original, which is left alone; refused where it would change nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from understudy.errors import PreflightError
from understudy.models import kd
from understudy.teachers.quantized import quantized


def test_close_and_the_original_is_untouched() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10)
    )
    before = copy.deepcopy(model.state_dict())
    inputs = torch.randn(256, 64)
    expected = model(inputs)
    found = quantized(model)(inputs)
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.05  # not the same numbers: it does compute in 8 bits
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, _ in quantized(model).named_children()] == list("01234")


def test_without_linear_layers_it_is_refused() -> None:
    with pytest.raises(PreflightError, match="no linear layers"):
        quantized(kd.build("resnet8", classes=10))
