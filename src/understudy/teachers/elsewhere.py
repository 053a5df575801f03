"""A teacher on another device than the student's: what goes to it, and what comes back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from understudy.data.placement import place
from understudy.errors import PreflightError
from understudy.models.language_head import LanguageHead
from understudy.models.outputs import Outputs, TokenOutputs
from understudy.models.tokens import Tokens


def find_device(name: str, whose: str) -> torch.device:
    """Return the device of a name, such as "cuda:1"; "cuda" is the one that this process uses.

    Args:
        name: what the recipe says.
        whose: whose device it is to be, for an error.

    Raises:
        PreflightError: there is no such device; those that there are are named.
    """
    known = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    known += ["mps"] if torch.backends.mps.is_available() else []
    wanted = name
    if name == "cuda" and torch.cuda.is_available():
        wanted = f"cuda:{torch.cuda.current_device()}"
    if wanted not in known:
        raise PreflightError(
            f"The {whose} is to run on '{name}', which is not there. This machine has {', '.join(known)}."
        )
    return torch.device(wanted)


def copied_to(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a model on another device; the model itself stays for what is wired and evaluated."""
    return copy.deepcopy(module).to(device)


def sent(inputs: Any, device: torch.device) -> Any:
    """Return what a batch holds for a model on that model's device. To a CUDA device nobody waits for the copies."""
    if isinstance(inputs, torch.Tensor):
        return place(inputs, device)
    if isinstance(inputs, Tokens):
        moved = {
            field.name: sent(getattr(inputs, field.name), device)
            for field in dataclasses.fields(inputs)
        }
        return Tokens(**moved)
    if isinstance(inputs, Mapping):
        return {name: sent(value, device) for name, value in inputs.items()}
    return inputs


def brought(outputs: Outputs, device: torch.device, head: LanguageHead | None) -> Outputs:
    """Return a model's outputs on the student's device.

    Args:
        outputs: what the model gave.
        device: the student's.
        head: the head of the same model there, so that no weight is copied in a step; None for other models.
    """
    features = {name: place(value, device) for name, value in outputs.features.items()}
    if outputs.hidden is not None and outputs.head is not None and head is not None:
        return TokenOutputs(
            hidden=place(outputs.hidden, device),
            head=head.head(outputs.head.vocabulary),
            features=features,
        )
    logits = outputs.logits
    return Outputs(logits=None if logits is None else place(logits, device), features=features)
