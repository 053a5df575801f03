from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

_VALUES: dict[str, Any] = {
    "name": "example",
    "data": "digits",
    "teacher": {"model": "kd:resnet20", "train": {"epochs": 2}},
    "student": "kd:resnet8",
    "epochs": 4,
    "arms": {"kd": ["kd", "supervised"]},
}


@pytest.fixture
def values() -> Callable[..., dict[str, Any]]:
    """The values of a small recipe, with changes."""

    def make(**changes: Any) -> dict[str, Any]:
        return copy.deepcopy(_VALUES) | changes

    return make
