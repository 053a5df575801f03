"""Wiring: how a method asks for taps and gets projectors in the right size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from understudy.errors import UnderstudyError
from understudy.models.description import (
    ModelDescription,
    StageDescription,
    describe,
    pair_stages,
)
from understudy.models.outputs import call, logits_of
from understudy.models.projectors import Projector
from understudy.models.taps import find_module, probe_taps


@dataclass(frozen=True)
class TapShape:
    """A tap that was asked for, and the shape of what it gives, without the batch."""

    name: str
    shape: tuple[int, ...]


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

    def tap(self, name: str) -> TapShape:
        """Ask for a tap; its tensor is in `step.<role>.features[name]` from then on."""
        if name not in self.taps:
            find_module(self.module, name.partition("#")[0].partition("@")[0])
            tensors, copied = probe_taps(
                self.module,
                [name],
                lambda tapped: call(tapped, self.inputs),
                training=self.training,
            )
            self.taps[name] = TapShape(name, tuple(tensors[name].shape[1:]))
            self.copied |= copied
        return self.taps[name]

    @cached_property
    def description(self) -> ModelDescription:
        """The model's stages and classifier."""

        def run(module: nn.Module) -> torch.Tensor:
            return logits_of(call(module, self.inputs))

        return describe(self.module, run, input_height=self.input_height)


class Wiring:
    """What `Method.wire` sees.

    Attributes:
        student: the student's side.
        teachers: teacher name -> side.
        classes: number of classes.
        notes: sentences for the plan, such as which layers were paired and why.
    """

    def __init__(self, student: Side, teachers: dict[str, Side], *, classes: int) -> None:
        """Keep the sides."""
        self.student, self.teachers, self.classes = student, teachers, classes
        self.notes: list[str] = []

    @property
    def teacher(self) -> Side:
        """The only teacher's side."""
        if len(self.teachers) != 1:
            raise UnderstudyError(
                f"A method asks for the teacher, but this stage has {len(self.teachers)} teachers."
            )
        return next(iter(self.teachers.values()))

    def stage_pairs(self) -> list[tuple[StageDescription, StageDescription]]:
        """Return (student stage, teacher stage) pairs, paired by stride or depth."""
        return pair_stages(self.student.description, self.teacher.description)

    def pair(self, student_tap: str, teacher_tap: str) -> tuple[TapShape, TapShape]:
        """Resolve a pair of taps, either of which may be "auto": the middle pair of stages.

        With one tap given and the other "auto", the partner of the nearest stage is taken.
        """
        if student_tap == "auto" or teacher_tap == "auto":
            pairs = self.stage_pairs()
            chosen = next(
                (
                    pair
                    for pair in pairs
                    if student_tap == pair[0].tap or teacher_tap == pair[1].tap
                ),
                pairs[len(pairs) // 2],
            )
            student_tap = chosen[0].tap if student_tap == "auto" else student_tap
            teacher_tap = chosen[1].tap if teacher_tap == "auto" else teacher_tap
            self.notes.append(f"paired student '{student_tap}' with teacher '{teacher_tap}'")
        return self.student.tap(student_tap), self.teacher.tap(teacher_tap)

    def projector(self, student: TapShape, teacher: TapShape) -> Projector:
        """Return a projector between two taps, on the student's device."""
        projector = Projector(student.shape, teacher.shape)
        self.notes.append(f"projector {projector.extra_repr()}")
        device = next(self.student.module.parameters()).device
        return projector.to(device)
