"""A copy of a network as it will be exported."""

from __future__ import annotations

import copy

import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models.model import Model
from understudy.models.taps import Tapped, unwrap


def copied(model: Model) -> nn.Module:
    """Return the network as it will be exported: a copy on the CPU, in evaluation mode, contiguous."""
    module = unwrap(model.module)
    while isinstance(module, Tapped):
        module = unwrap(module.module)
    try:
        network = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"'{model.name}' cannot be copied for its export: it keeps something beside its parameters ({error})."
        ) from error
    network = network.cpu().to(memory_format=torch.contiguous_format)
    return network.eval().requires_grad_(False)
