"""Wiring: how a method asks for taps and gets projectors in the right size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from understudy.data.source import Split
from understudy.errors import UnderstudyError
from understudy.methods.side import Side, TapShape
from understudy.methods.surgery import G, H, Placed, Shape, graft_student, replace_head
from understudy.models.description import StageDescription, pair_stages
from understudy.models.projectors import Projector
from understudy.teachers.listening import Hears, Route, heard, name_one

__all__ = ["Side", "TapShape", "Taps", "Wiring"]

Taps = Literal["auto"] | Sequence[str]
"""Where a method reads features: module paths, or "auto"."""


class Wiring:
    """What `Method.wire` sees.

    Attributes:
        student: the student's side.
        teachers: teacher name -> side, of those that the method listens to.
        classes: number of classes.
        train: the stage's training samples, with the labels that may be seen; None outside of a run.
        seed: the seed of the method that is being wired: what it draws, it draws from streams of this seed.
        earlier: method name -> the state that it had at the end of an earlier stage of the same arm.
        notes: sentences for the plan, such as which layers were paired and why.
        method: the name of the method that is being wired (see `heard_by`).
    """

    def __init__(
        self,
        student: Side,
        teachers: dict[str, Side],
        *,
        classes: int,
        train: Split | None = None,
        earlier: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        """Keep the sides."""
        self.student, self.teachers, self.classes = student, teachers, classes
        self.train, self.earlier = train, dict(earlier or {})
        self.seed = 0
        self.method = "method"
        self.notes: list[str] = []
        self._claimed: set[nn.Module] = set()

    def heard_by(self, method: str, hears: Hears | None, seed: int) -> Wiring:
        """Return the wiring as one method sees it: with the teachers that it listens to.

        Args:
            method: its name.
            hears: to whom it listens (see `Method.listening_to`).
            seed: its seed.
        """
        view = copy.copy(self)
        names = heard(hears, list(self.teachers))
        view.teachers = {name: self.teachers[name] for name in names}
        view.method, view.seed = method, seed
        if isinstance(hears, Route):
            hears.check_classes(self.classes)
        return view

    @property
    def teacher(self) -> Side:
        """The side of the teacher that the method listens to.

        Raises:
            UnderstudyError: there is none, or it listens to several.
        """
        if not self.teachers:
            raise UnderstudyError(
                f"Method '{self.method}' asks for the teacher, but this stage has none."
            )
        if len(self.teachers) > 1:
            raise UnderstudyError(name_one(self.method, list(self.teachers)))
        return next(iter(self.teachers.values()))

    @contextmanager
    def recorded(self) -> Iterator[dict[str, TapShape]]:
        """Give the taps that are asked for of the one teacher within, once they are."""
        side = self.teacher
        own = copy.copy(side)
        own.taps, own.copied = {}, set()
        self.teachers = {side.role: own}
        yield own.taps
        side.taps |= own.taps
        side.copied |= own.copied
        self.teachers = {side.role: side}

    def check_classes(self, least: int, *, method: str) -> None:
        """Refuse data with fewer classes than a method can work with.

        Raises:
            UnderstudyError: there are fewer.
        """
        if self.classes < least:
            raise UnderstudyError(
                f"Method '{method}' needs at least {least} classes, and the data has {self.classes}."
            )

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

    def pairs(
        self,
        student_taps: Taps,
        teacher_taps: Taps,
        *,
        stem: bool = False,
        last: int | None = None,
        but_deepest: bool = False,
    ) -> list[tuple[TapShape, TapShape]]:
        """Resolve several pairs of taps, in order of depth.

        Args:
            student_taps: module paths, or "auto": the deepest stage at each resolution (every block of a model without
                maps).
            teacher_taps: as many paths, or "auto": the stages that correspond.
            stem: whether "auto" also takes stages that are followed by one of their own resolution, such as a stem.
            last: how many of the deepest pairs "auto" takes; None for all.
            but_deepest: whether "auto" on both sides leaves out the deepest pair, where there are others.

        Raises:
            UnderstudyError: the two lists differ in length, or a named student tap with an automatic partner is no
                stage.
        """
        if student_taps != "auto" and teacher_taps != "auto":
            if len(student_taps) != len(teacher_taps):
                raise UnderstudyError(
                    f"student_taps names {len(student_taps)} places ({', '.join(student_taps)}) and teacher_taps "
                    f"{len(teacher_taps)} ({', '.join(teacher_taps)}); they are compared one by one."
                )
            names = list(zip(student_taps, teacher_taps, strict=True))
        else:
            names = self._automatic(student_taps, teacher_taps, stem, last, but_deepest)
        return [(self.student.tap(ours), self.teacher.tap(theirs)) for ours, theirs in names]

    def maps(
        self,
        student_taps: Taps,
        teacher_taps: Taps,
        *,
        method: str,
        stem: bool = False,
        last: int | None = None,
        places: int = 1,
    ) -> list[tuple[TapShape, TapShape]]:
        """Resolve pairs as `pairs` does, and refuse what is not a feature map (C, H, W).

        Args:
            student_taps: see `pairs`.
            teacher_taps: see `pairs`.
            method: the method's name, for the refusal.
            stem: see `pairs`.
            last: see `pairs`.
            places: how many places the two maps of a pair need in common.

        Raises:
            UnderstudyError: a tap gives something else, or a map has too few places.
        """
        pairs = self.pairs(student_taps, teacher_taps, stem=stem, last=last)
        for ours, theirs in pairs:
            _check_map(ours, "student", method)
            _check_map(theirs, "teacher", method)
            common = min(ours.shape[1], theirs.shape[1]) * min(ours.shape[2], theirs.shape[2])
            if common < places:
                raise UnderstudyError(
                    f"Method '{method}' compares maps over their places and needs {places}, but student '{ours.name}' "
                    f"{ours.shape} and teacher '{theirs.name}' {theirs.shape} have {common} in common. Name earlier "
                    "taps in student_taps and teacher_taps."
                )
        return pairs

    def teacher_map(self, tap: str, *, method: str) -> TapShape:
        """Resolve a tap of the teacher alone, where "auto" is the partner of the student's last stage.

        Args:
            tap: a module path, or "auto".
            method: the method's name, for the refusal.

        Raises:
            UnderstudyError: the tap gives no feature map (C, H, W).
        """
        found = self.teacher.tap(self.stage_pairs()[-1][1].tap if tap == "auto" else tap)
        _check_map(found, "teacher", method)
        return found

    def before_activation(
        self, pairs: Sequence[tuple[TapShape, TapShape]]
    ) -> list[tuple[TapShape, TapShape]]:
        """Return the same places before the activations that end them or read them, where there are such.

        Raises:
            UnderstudyError: a place has no negative values, so that it lies behind an activation that cannot be seen.
        """
        found = []
        for ours, theirs in pairs:
            student = self.student.description.before_activation(ours.name)
            teacher = self.teacher.description.before_activation(theirs.name)
            for side, name in ((self.student, student), (self.teacher, teacher)):
                if not side.is_signed(name):
                    raise UnderstudyError(
                        f"What goes into the activation is asked for, but the {side.called}'s tap '{name}' gives no "
                        "negative number: it lies behind an activation that is no module of its own. Name a tap "
                        "before it."
                    )
            found.append((self.student.tap(student), self.teacher.tap(teacher)))
            self.notes.append(f"before activation: student '{student}', teacher '{teacher}'")
        return found

    def embeddings(
        self, student_tap: str = "auto", teacher_tap: str = "auto"
    ) -> tuple[TapShape, TapShape]:
        """Resolve a pair of taps, where "auto" is what goes into the model's classifier."""
        return (
            self.student.tap(self.student.embedding if student_tap == "auto" else student_tap),
            self.teacher.tap(self.teacher.embedding if teacher_tap == "auto" else teacher_tap),
        )

    def projector(self, student: TapShape, teacher: TapShape) -> Projector:
        """Return a projector between two taps, on the student's device."""
        projector = Projector(student.shape, teacher.shape)
        self.notes.append(f"projector {projector.extra_repr()}")
        device = next(self.student.module.parameters()).device
        return projector.to(device)

    def take_over(self, module: nn.Module, *, method: str, attribute: str) -> None:
        """Give a module the weights that a method of an earlier stage had trained, and freeze it.

        Args:
            module: a module like that method's, wired on the same taps.
            method: the earlier method's name.
            attribute: under which attribute that method holds its module.

        Raises:
            UnderstudyError: no earlier stage of the arm had that method, or its module was of another size.
        """
        if method not in self.earlier:
            had = ", ".join(self.earlier) or "none"
            raise UnderstudyError(
                f"This stage goes on from what '{method}' learnt in an earlier stage of the same arm, and no earlier "
                f"stage has that method (methods of earlier stages: {had}). Put a stage with `methods: [{method}]` "
                "before it."
            )
        start = f"{attribute}."
        state = {
            name.removeprefix(start): value
            for name, value in self.earlier[method].items()
            if name.startswith(start)
        }
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise UnderstudyError(
                f"What '{method}' learnt in an earlier stage does not fit this stage; give both the same taps and "
                f"sizes. {error}"
            ) from error
        module.requires_grad_(False)

    def _automatic(
        self,
        student_taps: Taps,
        teacher_taps: Taps,
        stem: bool,
        last: int | None,
        but_deepest: bool,
    ) -> list[tuple[str, str]]:
        pairs = [(ours.tap, theirs.tap) for ours, theirs in self.stage_pairs()]
        if student_taps == "auto" and teacher_taps == "auto":
            main = {stage.tap for stage in self.student.description.main_stages}
            names = [pair for pair in pairs if stem or pair[0] in main]
            names = names[-last:] if last else names
            names = names[:-1] if but_deepest and len(names) > 1 else names
        elif teacher_taps == "auto":
            partner = dict(pairs)
            names = [(tap, self._partner(tap, partner, "student")) for tap in student_taps]
        else:
            back = {theirs: ours for ours, theirs in pairs}
            names = [(self._partner(tap, back, "teacher"), tap) for tap in teacher_taps]
        for ours, theirs in names:
            self.notes.append(f"paired student '{ours}' with teacher '{theirs}'")
        return names

    @staticmethod
    def _partner(tap: str, partners: Mapping[str, str], role: str) -> str:
        if tap not in partners:
            raise UnderstudyError(
                f"The {role}'s tap '{tap}' is none of its stages ({', '.join(partners)}), so its partner cannot be "
                "found by itself. Name the taps of both models."
            )
        return partners[tap]

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


def _check_map(tap: TapShape, role: str, method: str) -> None:
    """Refuse a tap that gives no feature map."""
    if len(tap.shape) != 3:
        raise UnderstudyError(
            f"Method '{method}' compares feature maps (C, H, W), but the {role}'s tap '{tap.name}' gives {tap.shape} "
            "per sample. Name taps that give maps, or use a method for vectors and tokens such as 'fitnet', 'rkd' or "
            "'pkt'."
        )
