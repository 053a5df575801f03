"""What the methods that splice a KD layer into the student have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from understudy.errors import UnderstudyError
from understudy.methods.wiring import Side, Taps, TapShape, Wiring
from understudy.models.grafts.kd_layer import KDLayer
from understudy.models.taps import find_module
from understudy.teachers.readings import Reading


@dataclass(frozen=True)
class Point:
    """Where a layer sits, and what it is compared with.

    Attributes:
        scores: the student's tap of the layer's scores, [B, H, W, K], [B, T, K] or [B, K].
        teacher: the teacher's tap; "" without a teacher.
        width: the teacher's channels.
        size: height and width of the student's map where the teacher's is averaged to it; None where it fits.
        sequence: whether there are tokens.
    """

    scores: str
    teacher: str
    width: int
    size: tuple[int, int] | None
    sequence: bool

    @property
    def reading(self) -> Reading:
        """What a fit reads of the teacher."""
        return Reading(self.teacher, size=self.size)

    def places(self, features: torch.Tensor) -> torch.Tensor:
        """Return what the teacher says of each place, [B, H, W, D], [B, T, D] or [B, D], where the student has places.

        Args:
            features: the teacher's, as tapped.
        """
        if features.dim() != 4:
            return features
        if self.size is not None:
            features = functional.adaptive_avg_pool2d(features.float(), self.size)
        return features.permute(0, 2, 3, 1)


def place_layer(
    wiring: Wiring, student: str, teacher: TapShape | None, *, templates: int, alpha: float
) -> Point:
    """Splice a layer into the student behind the module at `student`, and say what it is compared with.

    Raises:
        UnderstudyError: the places of the two taps cannot be brought together.
    """
    placed = wiring.graft(student, lambda shape: KDLayer(_channels(shape), templates, alpha))
    scores = placed.tap("scores")
    if teacher is None:
        return Point(scores.name, "", 0, None, False)
    return Point(
        scores.name,
        teacher.name,
        teacher.width,
        _common_size(student, scores.shape, teacher),
        len(teacher.shape) == 2,
    )


def count_places(shape: tuple[int, ...]) -> int:
    """Return how many places a map (C, H, W), a sequence (T, D) or a vector (D,) has."""
    if len(shape) == 3:
        return shape[1] * shape[2]
    return shape[0] if len(shape) == 2 else 1


def first_blocks(wiring: Wiring, student_taps: Taps, teacher_taps: Taps) -> tuple[Taps, Taps]:
    """Return the taps, where two times "auto" is the first block of each model's last stage."""
    if student_taps != "auto" or teacher_taps != "auto":
        return student_taps, teacher_taps
    return [_first_block(wiring.student)], [_first_block(wiring.teacher)]


def _first_block(side: Side) -> str:
    """Return the first block of a model's last stage, or the stage before where a stage is a block itself."""
    *before, last = side.description.stages
    module = find_module(side.module, last.tap)
    if type(module) is nn.Sequential and len(module):
        return f"{last.tap}.{next(iter(module._modules))}"
    same = [stage.tap for stage in before if stage.shape == last.shape]
    return same[-1] if same else last.tap


def _channels(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]


def _common_size(tap: str, scores: tuple[int, ...], teacher: TapShape) -> tuple[int, int] | None:
    """Return the size to which the teacher's map has to be averaged; None where the places are the same."""
    theirs = (*teacher.shape[1:], 0) if len(teacher.shape) == 3 else teacher.shape
    if scores[:-1] == theirs[:-1]:
        return None
    fits = len(scores) == len(theirs) == 3 and scores[0] <= theirs[0] and scores[1] <= theirs[1]
    if not fits:
        raise UnderstudyError(
            f"A KD layer compares place by place: student '{tap}' has {_shown(scores[:-1])}, teacher "
            f"'{teacher.name}' {_shown(theirs[:-1])}. A teacher's map may be larger, which is averaged; all else has "
            "to be the same. Name other taps in student_taps and teacher_taps."
        )
    return scores[0], scores[1]


def _shown(places: tuple[int, ...]) -> str:
    if not places:
        return "one vector"
    return f"{places[0]} tokens" if len(places) == 1 else f"{places[0]} x {places[1]} places"
