"""Loading the checkpoints that RepDistiller and mdistiller publish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError

_WRAPPERS = ("model", "state_dict")
_PARALLEL_PREFIX = "module."
_COUNTER = "num_batches_tracked"


def load_published(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Copy a published checkpoint into a network of the family.

    The parameter names of the family are RepDistiller's, so nothing is renamed. What is taken off:
    the wrapper that holds epoch and optimiser beside the weights (`{"model": ...}` or
    `{"state_dict": ...}`) and the `module.` that `DataParallel` puts before each name. Checkpoints
    from before PyTorch 0.4.1 lack batch-norm step counters (`num_batches_tracked`); the model keeps
    its own then, which the forward pass does not read.

    The published CIFAR-100 weights expect images in [0, 1] normalised by mean
    (0.5071, 0.4867, 0.4408) and standard deviation (0.2675, 0.2565, 0.2761).

    Args:
        model: what `build` gave for the same name, with the checkpoint's number of classes.
        state_dict: the checkpoint, read by `torch.load(..., weights_only=True)` or from
            safetensors.

    Raises:
        ModelError: names or shapes differ, or a weight is not a tensor; the message says which. The
            model is unchanged then.
    """
    if not isinstance(state_dict, Mapping):
        raise ModelError(
            f"A checkpoint is a mapping from names to tensors, not a {type(state_dict).__name__}."
        )
    weights = _plain_names(state_dict)
    expected = model.state_dict()
    for name, value in expected.items():
        if name.endswith(_COUNTER):
            weights.setdefault(name, value)
    problems: list[str] = []
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    if missing:
        problems.append(f"{len(missing)} missing ({_listed(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({_listed(unexpected)})")
    differing: list[str] = []
    for name, mine in expected.items():
        value = weights.get(name, mine)
        if not isinstance(value, torch.Tensor):
            differing.append(f"{name}: a {type(value).__name__}, not a tensor")
        elif value.shape != mine.shape:
            differing.append(f"{name}: {list(value.shape)} instead of {list(mine.shape)}")
    if differing:
        problems.append(f"{len(differing)} of another shape ({_listed(differing)})")
    if problems:
        raise ModelError(
            f"The checkpoint does not fit {type(model).__name__}: {'; '.join(problems)}. Build the "
            "model under the name, and with the classes, in_channels and width, of the checkpoint."
        )
    model.load_state_dict(weights)


def _plain_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Take off the wrapper and the `module.` prefixes."""
    weights = state_dict
    for wrapper in _WRAPPERS:
        inner = weights.get(wrapper)
        if isinstance(inner, Mapping):
            weights = inner
    plain = dict(weights)
    while plain and all(name.startswith(_PARALLEL_PREFIX) for name in plain):
        plain = {name.removeprefix(_PARALLEL_PREFIX): value for name, value in plain.items()}
    return plain


def _listed(items: list[str], limit: int = 8) -> str:
    """Join `items`; a long list is cut, since a wrong architecture makes hundreds."""
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
