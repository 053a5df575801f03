"""What a model gave for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from understudy.errors import ModelError


@dataclass(slots=True)
class Outputs:
    """What one model gave for one batch.

    Attributes:
        logits: [B, C], raw scores before the softmax; None when the pass stopped before them.
        features: tap name -> tensor, in the shape that the tapped module gave or took.
    """

    logits: torch.Tensor | None = None
    features: dict[str, torch.Tensor] = field(default_factory=dict)


def logits_of(raw: Any) -> torch.Tensor:
    """Find the logits in what a classifier returned: a tensor, `.logits`, `["logits"]` or a tuple's first item."""
    found = raw
    if hasattr(raw, "logits"):
        found = raw.logits
    elif isinstance(raw, Mapping) and "logits" in raw:
        found = raw["logits"]
    elif isinstance(raw, tuple | list) and raw:
        found = raw[0]
    if not isinstance(found, torch.Tensor):
        raise ModelError(
            f"The model returned a {type(raw).__name__} in which no logits can be found. "
            "It should return a tensor, an object with `.logits`, or a tuple that starts with the logits."
        )
    return found


def call(module: torch.nn.Module | Any, inputs: Any) -> Any:
    """Call `module` on what a batch holds for it: keywords for a mapping, one argument otherwise."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(inputs)
