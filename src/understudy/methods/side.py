"""One model as the wiring sees it: its taps, their shapes, its description."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from understudy.errors import UnderstudyError, called
from understudy.models.description import ModelDescription, describe
from understudy.models.outputs import call, logits_of
from understudy.models.taps import find_module, probe_taps


@dataclass(frozen=True)
class TapShape:
    """A tap that was asked for, and the shape of what it gives, without the batch."""

    name: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Channels of a map (C, H, W), else the last dimension."""
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]


class Side:
    """One model as the wiring sees it: an example batch through it tells every shape.

    Args:
        role: "student", or a teacher's name.
        module: the model.
        inputs: example inputs for its forward.
        training: whether it runs in training mode in the stage.
        input_height: height of the input image, where there is one.
    """

    def __init__(
        self, role: str, module: nn.Module, inputs: Any, *, training: bool, input_height: int | None
    ) -> None:
        """Keep the model; nothing is run yet."""
        self.role, self.module, self.inputs = role, module, inputs
        self.training, self.input_height = training, input_height
        self.taps: dict[str, TapShape] = {}
        self.copied: set[str] = set()

    @property
    def called(self) -> str:
        """What a sentence calls the model: "student", "teacher", or "teacher 'big'"."""
        return called(self.role)

    def tap(self, name: str) -> TapShape:
        """Ask for a tap; its tensor is in `step.<role>.features[name]` from then on."""
        if name not in self.taps:
            find_module(self.module, name.partition("#")[0].partition("@")[0])
            tensors, copied = self._probe([name])
            self.taps[name] = TapShape(name, tuple(tensors[name].shape[1:]))
            self.copied |= copied
        return self.taps[name]

    def shape_at(self, name: str) -> tuple[int, ...]:
        """Return the shape at a tap, without the batch, and do not ask for it."""
        return tuple(self._probe([name])[0][name].shape[1:])

    def is_signed(self, name: str) -> bool:
        """Tell whether a tap gives negative numbers too on the example, as what goes into an activation does."""
        return bool((self._probe([name])[0][name] < 0).any())

    def refresh(self, cause: str) -> None:
        """Look at the model again, which was changed by `cause`.

        Raises:
            UnderstudyError: a tap that was asked for has another shape now.
        """
        self.__dict__.pop("description", None)
        if not self.taps:
            return
        tensors, self.copied = self._probe(self.taps)
        for name, tap in self.taps.items():
            shape = tuple(tensors[name].shape[1:])
            if shape != tap.shape:
                raise UnderstudyError(
                    f"The {self.called}'s tap '{name}', which a method was wired to, had the shape {tap.shape} and has "
                    f"{shape} with {cause}. List the method that changes the student before the one that taps it."
                )

    @cached_property
    def description(self) -> ModelDescription:
        """The model's stages and classifier."""

        def run(module: nn.Module) -> torch.Tensor:
            return logits_of(call(module, self.inputs))

        return describe(self.module, run, input_height=self.input_height)

    @property
    def embedding(self) -> str:
        """The tap of what goes into the classifier; without a linear classifier the last stage."""
        if self.description.classifier is not None:
            return f"{self.description.classifier}@input"
        if not self.description.stages:
            raise UnderstudyError(
                f"The {self.called} has neither a linear classifier nor stages that were found; name the tap."
            )
        return self.description.stages[-1].tap

    def _probe(self, names: Iterable[str]) -> tuple[dict[str, torch.Tensor], set[str]]:
        return probe_taps(
            self.module, names, lambda tapped: call(tapped, self.inputs), training=self.training
        )
