"""What the contract battery has to know about an objective: the shapes it takes and the laws it obeys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, ParamSpec

import torch

P = ParamSpec("P")
Kind = Literal["logits", "tokens", "vectors", "maps", "sequences", "attention"]


@dataclass(frozen=True)
class Card:
    """An objective's declared properties. `tests/contract/` checks every one of them.

    Attributes:
        takes: what student and teacher are: "logits" [B, C], "tokens" (logits) [B, T, V], "vectors" [B, D], "maps" [B, C, H, W],
            "sequences" (features) [B, T, D], "attention" (queries, keys or values) [B, heads, T, D].
        needs: further tensors that the call needs, by keyword or position after student and teacher: "labels", "mask", ...
        teacher: whether there is a teacher tensor at all (false for self-distillation and cross-entropy).
        minimum: the value at student = teacher; None where it has none to declare.
        invariances: laws the value obeys under a change of the student tensor: "shift" (adding a number to a sample's logits),
            "scale" (multiplying everything by a positive number), "sample scale" (each sample by its own), "rotation" (of the width), "channel permutation".
        widths_differ: whether the widths (last feature dimension, channels) of student and teacher may differ.
        coupled: whether a sample's value depends on the rest of the batch; such an objective has no reduction="none"
            and a split batch gives another value.
        smallest_batch: how many samples it needs.
        masked_classes: whether a class at -inf in the teacher (and student) counts nothing.
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
    masked_classes: bool = False
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
    masked_classes: bool = False,
    extreme: bool = True,
) -> Callable[[Callable[P, torch.Tensor]], Callable[P, torch.Tensor]]:
    """Declare an objective: enters the function with its `Card` and returns it as it is."""
    found = Card(
        takes, needs, teacher, minimum, invariances, widths_differ, coupled, smallest_batch, masked_classes, extreme
    )

    def enter(function: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
        room = function.__module__.removeprefix("understudy.objectives.").partition(".")[0]
        cards[f"{room}.{function.__name__}"] = (function, found)
        return function

    return enter
