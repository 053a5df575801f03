"""Heads that take the place of a student's linear classifier, and fold into one again where they can."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from understudy.errors import ModelError, unknown_name
from understudy.models.rebuildable import Rebuildable
from understudy.registry import Registry

heads: Registry[type[Head]] = Registry("head")
"""All heads by name."""


class Head(Rebuildable):
    """Takes the place of a classifier: features [..., `in_features`] -> logits [..., `out_features`], one per class.

    What losses want to read of it, it computes in submodules, which can be tapped like any other. A class of this
    package enters itself into the registry with `class Mine(Head, name="mine")`; one from elsewhere goes by
    `py:module:class`.

    Attributes:
        in_features: width of what it reads.
        out_features: number of classes.
    """

    in_features: int
    out_features: int

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        """Enter the class into the registry under `name`."""
        super().__init_subclass__(**kwargs)
        cls.entry = name
        if name is not None:
            heads.add(name, cls)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of the classes."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward.")

    def fold(self) -> nn.Linear | None:
        """Return one linear layer that gives the same logits; None where there is none, and the head is exported."""
        return None


class Affine(nn.Module):
    """x W^T + b, where both are trained or both are fixed.

    Args:
        inputs: width of what it reads.
        outputs: width of what it gives.
        bias: whether there is a b.
        frozen: whether W and b are buffers, which no optimiser sees, instead of parameters.

    Initial values are those of `nn.Linear`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, frozen: bool = False
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        _hold(self, "weight", torch.empty(outputs, inputs).uniform_(-bound, bound), frozen)
        _hold(self, "bias", torch.empty(outputs).uniform_(-bound, bound) if bias else None, frozen)
        self.outputs = outputs

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return [..., outputs]."""
        return F.linear(features, self.weight, self.bias)

    def compose(
        self, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the map that first applies (weight, bias), both float64, and then this."""
        own = self.weight.detach().double()
        added = 0 if self.bias is None else self.bias.detach().double()
        return own @ weight, own @ bias + added


class Shift(nn.Module):
    """x + b. Initially b is 0; to subtract a mean, set b to minus the mean.

    Args:
        inputs: width.
        frozen: whether b is a buffer instead of a parameter.
    """

    bias: torch.Tensor

    def __init__(self, inputs: int, *, frozen: bool = False) -> None:
        super().__init__()
        _hold(self, "bias", torch.zeros(inputs), frozen)
        self.outputs = inputs

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        return features + self.bias

    def compose(
        self, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the map that first applies (weight, bias), both float64, and then this."""
        return weight, bias + self.bias.detach().double()


class Scale(nn.Module):
    """x * m, a factor for each coordinate: a mask. Initially m is 1.

    No optimiser lets m decay: that would shrink what is of use and not of use alike. A fixed m, which may select, is
    copied and not averaged where weights are.

    Args:
        inputs: width.
        frozen: whether m is a buffer instead of a parameter.
    """

    undecayed = ("weight",)
    unaveraged = ("weight",)
    weight: torch.Tensor

    def __init__(self, inputs: int, *, frozen: bool = False) -> None:
        super().__init__()
        _hold(self, "weight", torch.ones(inputs), frozen)
        self.outputs = inputs

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the same shape."""
        return features * self.weight

    def compose(
        self, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the map that first applies (weight, bias), both float64, and then this."""
        own = self.weight.detach().double()
        return own[:, None] * weight, own * bias


_SETTINGS = {
    "linear": {"size", "bias", "frozen"},
    "shift": {"frozen"},
    "scale": {"frozen"},
}


class LinearChain(Head, name="linear_chain"):
    """Linear parts in a row, some trained and some fixed, that fold into one linear layer.

    Args:
        in_features: width of what it reads.
        parts: in the order in which they run, {"name": N, "kind": "linear", "size": outputs, "bias": True},
            {"name": N, "kind": "shift"} (x + b) or {"name": N, "kind": "scale"} (x * m), each with "frozen": True where
            its values are fixed. The submodule N can be tapped as `HEAD.N`.

    Values are set by `assign`, or in place.

    Raises:
        UnknownName: a part has no such kind or setting.
        ModelError: there is no part, or two have one name.
    """

    def __init__(self, in_features: int, parts: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.in_features = in_features
        self.parts = [dict(settings) for settings in parts]
        if not self.parts:
            raise ModelError("A chain of linear parts needs at least one part.")
        self._order: list[str] = []
        width = in_features
        for settings in self.parts:
            name = settings.get("name")
            if not isinstance(name, str) or not name.isidentifier() or hasattr(self, name):
                raise ModelError(
                    f"A part of a head cannot be called {name!r}; choose another name."
                )
            part = _part(settings, width)
            self.add_module(name, part)
            self._order.append(name)
            width = part.outputs
        self.out_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits, [..., out_features]."""
        for name in self._order:
            features = self._modules[name](features)  # type: ignore[misc]
        return features

    def assign(self, part: str, **values: torch.Tensor) -> None:
        """Set a part's `weight` or `bias`.

        Raises:
            UnknownName: no such part, or it has no such value.
            ModelError: the shape is another one.
        """
        if part not in self._order:
            raise unknown_name("part of the head", part, self._order)
        module = self.get_submodule(part)
        held = dict([*module.named_parameters(), *module.named_buffers()])
        for name, value in values.items():
            if name not in held:
                raise unknown_name(f"value of the part '{part}'", name, held)
            if value.shape != held[name].shape:
                raise ModelError(
                    f"The {name} of the part '{part}' has the shape {tuple(held[name].shape)}, "
                    f"not {tuple(value.shape)}."
                )
            with torch.no_grad():
                held[name].copy_(value)

    def fold(self) -> nn.Linear:
        """Return the one linear layer, accumulated in float64 and rounded once to the head's own precision."""
        chain: list[Any] = [self.get_submodule(name) for name in self._order]
        own = next(value for part in chain for value in (*part.parameters(), *part.buffers()))
        weight = torch.eye(self.in_features, dtype=torch.float64, device=own.device)
        bias = torch.zeros(self.in_features, dtype=torch.float64, device=own.device)
        for part in chain:
            weight, bias = part.compose(weight, bias)
        return _linear(weight, bias, own)


class MarginalHead(Head, name="marginal"):
    """Several sub-classes for each class, and the classes' logits as their marginals.

    Sub-class s of class c is output c * S + s of the submodule `subclasses`; the logit of class c is
    log sum_s exp(z[c * S + s]), so that the softmax of the logits is the sum of the sub-classes' probabilities.
    Losses read the S * C logits at the tap `HEAD.subclasses`.

    Args:
        in_features: width of what it reads.
        out_features: number of classes C.
        subclasses_per_class: S.
        has_bias: whether the linear layer has a bias.
    """

    def __init__(
        self, in_features: int, out_features: int, subclasses_per_class: int, has_bias: bool = True
    ) -> None:
        super().__init__()
        if subclasses_per_class < 1:
            raise ModelError(
                f"subclasses_per_class is {subclasses_per_class}; it must be at least 1."
            )
        self.in_features, self.out_features = in_features, out_features
        self.subclasses_per_class, self.has_bias = subclasses_per_class, has_bias
        outputs = out_features * subclasses_per_class
        self.subclasses = nn.Linear(in_features, outputs, bias=has_bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the classes' logits, [..., C], in float32 or better."""
        return marginal_logits(self.subclasses(features), self.subclasses_per_class)

    def fold(self) -> nn.Linear | None:
        """Return the linear layer itself where every class has one sub-class; a marginal over more is not linear."""
        return self.subclasses if self.subclasses_per_class == 1 else None


def marginal_logits(logits: torch.Tensor, subclasses_per_class: int) -> torch.Tensor:
    """Return log sum_s exp(z[c * S + s]) for each class c.

    Args:
        logits: [..., C * S], the S sub-classes of a class side by side.
        subclasses_per_class: S.

    Returns:
        [..., C] in float32, or float64 where the logits are.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return torch.logsumexp(logits.unflatten(-1, (-1, subclasses_per_class)), dim=-1)


def _hold(module: nn.Module, name: str, value: torch.Tensor | None, frozen: bool) -> None:
    if frozen:
        module.register_buffer(name, value)
    else:
        module.register_parameter(name, None if value is None else nn.Parameter(value))


def _part(settings: Mapping[str, Any], width: int) -> Affine | Shift | Scale:
    options = dict(settings)
    name, kind = options.pop("name"), options.pop("kind", None)
    if kind not in _SETTINGS:
        raise unknown_name(f"kind of linear part (for '{name}')", str(kind), _SETTINGS)
    for option in options:
        if option not in _SETTINGS[kind]:
            raise unknown_name(f"setting of the {kind} part '{name}'", option, _SETTINGS[kind])
    if kind == "linear":
        size = options.pop("size", None)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ModelError(
                f"The linear part '{name}' has the size {size!r}; it must be a whole number of at least 1."
            )
        return Affine(width, size, **options)
    return Shift(width, **options) if kind == "shift" else Scale(width, **options)


def _linear(weight: torch.Tensor, bias: torch.Tensor, like: torch.Tensor) -> nn.Linear:
    # On the meta device first: nothing is drawn, so folding leaves the random state alone.
    folded = nn.Linear(weight.shape[1], weight.shape[0], device="meta", dtype=like.dtype)
    folded = folded.to_empty(device=like.device)
    with torch.no_grad():
        folded.weight.copy_(weight)
        folded.bias.copy_(bias)
    return folded
