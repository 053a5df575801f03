"""What the contract battery has to know about an objective: the shapes it takes and the laws it obeys."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, ParamSpec

import torch

P = ParamSpec("P")
Kind = Literal["logits", "tokens", "vectors", "maps", "sequences", "attention", "scores"]


@dataclass(frozen=True)
class Card:
    """An objective's declared properties. `tests/contract/` checks every one of them.

    Attributes:
        takes: what student and teacher are: "logits" [B, C], "tokens" (logits) [B, T, V], "vectors" [B, D],
            "maps" [B, C, H, W], "sequences" (features) [B, T, D], "attention" (queries, keys or values) [B, heads,
            T, D], "scores" (of every sample with every sample) [B, B].
        needs: further tensors that the call needs, by keyword: "labels", or a name with what it holds and its
            dimensions, as in "baseline: real B". What it holds: "real" numbers, "positive" ones, "probabilities"
            over the last dimension, "classes" (int64, one of C) or "samples" (int64, one of B). Dimensions are B
            (batch), C (classes or width), T (time), H (heads) or numbers.
        teacher: whether there is a teacher tensor at all (false for self-distillation and cross-entropy).
        minimum: the value at student = teacher; None where it has none to declare.
        invariances: laws the value obeys under a change of the student tensor: "shift" (adding a number to a sample's
            logits), "scale" (multiplying everything by a positive number), "sample scale" (each sample by its own),
            "rotation" (of the width), "channel permutation".
        widths_differ: whether the widths (last feature dimension, channels) of student and teacher may differ.
        coupled: whether a sample's value depends on the rest of the batch; a split batch then gives another value,
            and reduction="none" may be refused.
        smallest_batch: how many samples it needs.
        smallest_classes: how many classes it needs.
        masked_classes: whether a class at -inf in the teacher and the student counts nothing.
        held_constant: whether a part of the value gets no gradient by design, such as a target made from the
            student; finite differences then do not give the gradient.
        temperature_power: n, where the value at temperature T is T^n times the value at 1 of all logits divided by T;
            None where it is not that simple.
        extreme: whether value and gradient are finite at T = 0.05 and logits of 1e4.
    """

    takes: Kind
    needs: tuple[str, ...] = ()
    teacher: bool = True
    minimum: float | None = 0.0
    invariances: tuple[str, ...] = ()
    widths_differ: bool = False
    coupled: bool = False
    smallest_batch: int = 1
    smallest_classes: int = 1
    masked_classes: bool = False
    held_constant: bool = False
    temperature_power: int | None = None
    extreme: bool = True


cards: dict[str, tuple[Callable[..., torch.Tensor], Card]] = {}
"""Objective name ("response.kd") -> (function, card)."""


def card(
    takes: Kind,
    *,
    needs: tuple[str, ...] = (),
    teacher: bool = True,
    minimum: float | None = 0.0,
    invariances: tuple[str, ...] = (),
    widths_differ: bool = False,
    coupled: bool = False,
    smallest_batch: int = 1,
    smallest_classes: int = 1,
    masked_classes: bool = False,
    held_constant: bool = False,
    temperature_power: int | None = None,
    extreme: bool = True,
) -> Callable[[Callable[P, torch.Tensor]], Callable[P, torch.Tensor]]:
    """Declare an objective: enters the function with its `Card`, and keeps autocast out of it.

    An objective computes in float32 or better whatever surrounds it; under autocast its matrix products would not.
    """
    found = Card(
        takes=takes,
        needs=needs,
        teacher=teacher,
        minimum=minimum,
        invariances=invariances,
        widths_differ=widths_differ,
        coupled=coupled,
        smallest_batch=smallest_batch,
        smallest_classes=smallest_classes,
        masked_classes=masked_classes,
        held_constant=held_constant,
        temperature_power=temperature_power,
        extreme=extreme,
    )

    def enter(function: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
        kept_out = without_autocast(function)
        room = function.__module__.removeprefix("understudy.objectives.").partition(".")[0]
        cards[f"{room}.{function.__name__}"] = (kept_out, found)
        return kept_out

    return enter


def without_autocast(function: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
    """Return the function with autocast switched off inside, on the device of its first tensor."""

    @functools.wraps(function)
    def kept_out(*args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
        if not torch._C._is_any_autocast_enabled():
            return function(*args, **kwargs)
        device = _autocast_on((*args, *kwargs.values()))
        if device is None:
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return kept_out


def _autocast_on(values: Iterable[object]) -> str | None:
    """Return the kind of device of the first tensor among the values, where autocast is enabled for it."""
    for value in values:
        if isinstance(value, (list, tuple)):
            return _autocast_on(value)
        if isinstance(value, torch.Tensor):
            kind = value.device.type
            return kind if _knows_autocast(kind) and torch.is_autocast_enabled(kind) else None
    return None


_knows_autocast = functools.cache(torch.amp.is_autocast_available)
