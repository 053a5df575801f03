"""Which parts of a student stand still in a stage, and which parameters do not decay."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from understudy.models.splice import inside_grafts
from understudy.models.taps import find_module


def freeze(module: nn.Module, paths: Sequence[str]) -> list[nn.Parameter]:
    """Freeze the parameters of the modules at `paths` ("" is the whole); return those that were trainable before."""
    frozen = []
    for part in frozen_parts(module, paths):
        for parameter in part.parameters(recurse=False):
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                frozen.append(parameter)
    return frozen


def frozen_parts(module: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    """Return the modules at `paths` and below ("" is the whole), but for grafts, which are frozen by their own paths.

    So a place may be frozen and what a method grafts there be trained, in the stage that grafts and in the next.
    """
    found = []
    for path in paths:
        top = find_module(module, path) if path else module
        grafted = inside_grafts(top) if path else set()
        found += [part for name, part in top.named_modules() if name not in grafted]
    return found


def undecayed(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that their modules name in `undecayed`."""
    return [
        parameter
        for part in module.modules()
        for name in getattr(part, "undecayed", ())
        if (parameter := part._parameters.get(name)) is not None
    ]
