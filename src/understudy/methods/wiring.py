"""Wiring: how a method asks for taps and gets projectors in the right size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from understudy.errors import UnderstudyError
from understudy.methods.surgery import G, H, Placed, Shape, graft_student, replace_head
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
            tensors, copied = self._probe([name])
            self.taps[name] = TapShape(name, tuple(tensors[name].shape[1:]))
            self.copied |= copied
        return self.taps[name]

    def shape_at(self, name: str) -> tuple[int, ...]:
        """Return the shape at a tap, without the batch, and do not ask for it."""
        return tuple(self._probe([name])[0][name].shape[1:])

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
                    f"The {self.role}'s tap '{name}', which a method was wired to, had the shape {tap.shape} and has "
                    f"{shape} with {cause}. List the method that changes the student before the one that taps it."
                )

    @cached_property
    def description(self) -> ModelDescription:
        """The model's stages and classifier."""

        def run(module: nn.Module) -> torch.Tensor:
            return logits_of(call(module, self.inputs))

        return describe(self.module, run, input_height=self.input_height)

    def _probe(self, names: Iterable[str]) -> tuple[dict[str, torch.Tensor], set[str]]:
        return probe_taps(
            self.module, names, lambda tapped: call(tapped, self.inputs), training=self.training
        )


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
        self._claimed: set[nn.Module] = set()

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

    def graft(self, path: str, graft: G | Callable[[Shape], G]) -> Placed[G]:
        """Splice a module into the student behind the module at `path`: its output replaces what that one returned.

        The graft is trained with the student, stays in it and is exported. Initial values come from the method's own
        random stream. A student that has the same graft there already, from an earlier stage or from the folder it was
        loaded from, keeps it as it is; so whatever sets initial values belongs into the function.

        Args:
            path: a module path; the module has to run once in a forward and return one tensor.
            graft: a function that makes the graft for the shape of that tensor, without the batch; or the graft.

        Returns:
            The graft in its place. Keep this, not its module, which is the student's and not the method's.

        Raises:
            UnknownName: no such path; gives the nearest.
            ModelError: the output at `path` cannot be replaced, or the student does not run with the graft.
        """
        placed = graft_student(self.student, path, graft, self._claimed)
        self._note("graft", path, placed)
        return placed

    def head(self, factory: Callable[[int, int], H]) -> Placed[H]:
        """Replace the student's linear classifier by a head, which gives the same classes.

        A head that folds is exported as one linear layer, another one as it is. As with `graft`, a student that has the
        same head already keeps it.

        Args:
            factory: (width of the features, number of classes) -> the head.

        Raises:
            ModelError: the student has no linear classifier that stands by itself, or does not run with the head.
        """
        placed = replace_head(self.student, factory, self._claimed)
        self._note("head", placed.path, placed)
        return placed

    def check_owner(self, method: nn.Module) -> None:
        """Check that a method did not make a graft or a head its own, which would count and save it twice.

        Raises:
            UnderstudyError: it did.
        """
        for name, part in method.named_modules():
            if part in self._claimed:
                raise UnderstudyError(
                    f"{type(method).__name__} keeps the student's {type(part).__name__} as its own module '{name}'. "
                    "Keep what `wiring.graft` or `wiring.head` returned, and read its `module`."
                )

    def _note(self, kind: str, path: str, placed: Placed[Any]) -> None:
        count = sum(parameter.numel() for parameter in placed.module.parameters())
        since = "" if placed.new else ", there from before"
        self.notes.append(
            f"{kind} {type(placed.module).__name__} at student '{path}', {count:,} parameters{since}"
        )
