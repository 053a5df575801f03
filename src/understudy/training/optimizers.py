"""Optimisers: every one that torch has, by its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from understudy.errors import UnderstudyError, UnknownName, suggestion, unknown_name
from understudy.registry import import_entry


def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Return torch's optimisers by lower-case name: "sgd", "adamw", ..."""
    found = {
        name.lower(): member
        for name, member in vars(torch.optim).items()
        if inspect.isclass(member)
        and issubclass(member, torch.optim.Optimizer)
        and member is not torch.optim.Optimizer
    }
    return dict(sorted(found.items()))


class Optimizer:
    """A torch optimiser to be: its name and keywords, before there are parameters.

    Args:
        name: "sgd", "adamw" or any other of `torch.optim` in lower case, or `py:module:Class`.
        keywords: what the class's constructor takes, `lr` first.
    """

    def __init__(self, name: str, **keywords: Any) -> None:
        """Check the name and the keywords."""
        self.name, self.keywords = name, keywords
        closure = inspect.signature(optimizer_class(name).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise UnderstudyError(
                f"Optimiser '{name}' evaluates the loss several times per step, which the training loop "
                "does not do. Choose another, such as 'sgd' or 'adamw'."
            )
        valid = list(inspect.signature(optimizer_class(name).__init__).parameters)[2:]
        for keyword in keywords:
            if keyword not in valid:
                raise UnknownName(
                    f"Optimiser '{name}' has no keyword '{keyword}'. {suggestion(keyword, valid)}"
                )

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the torch optimiser over `parameters`, fused where torch can."""
        cls = optimizer_class(self.name)
        keywords = dict(self.keywords)
        listed = list(parameters)
        accepted = inspect.signature(cls.__init__).parameters
        if "fused" in accepted and not {"fused", "foreach"} & set(keywords):
            keywords["fused"] = all(p.device.type in ("cpu", "cuda") for p in listed)
        return cls(listed, **keywords)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the class called `name`."""
    if name.startswith("py:"):
        return import_entry(name)  # type: ignore[return-value]
    classes = optimizer_classes()
    if name not in classes:
        raise unknown_name("optimiser", name, classes)
    return classes[name]
