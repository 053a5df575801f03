"""Whether two models give the same answers: agreement, agreement beyond chance, and where it is worth something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from understudy.errors import DataError


class Agreement(NamedTuple):
    """How often two models give the same answer.

    Attributes:
        overall: share of all items.
        kappa: (overall - chance) / (1 - chance) (Cohen 1960), chance being what two models with these frequencies of
            answers and nothing else in common would have; None where chance is 1.
        teacher_right: share of the items that the teacher answers rightly; None where there is none.
        teacher_wrong: share of those that it answers wrongly: mistakes that the student took over.
        rights: how many items the teacher answers rightly.
        wrongs: how many it answers wrongly.
    """

    overall: float
    kappa: float | None
    teacher_right: float | None
    teacher_wrong: float | None
    rights: int
    wrongs: int


def answer_agreement(
    student: Sequence[Hashable], teacher: Sequence[Hashable], expected: Sequence[Hashable]
) -> Agreement:
    """Compare the answers of two models, item by item.

    Two bad models can agree by chance, and a student that agrees with its teacher may only have learnt its mistakes; so
    one number is not enough.

    Args:
        student: its answers: classes, numbers, texts. None for an item without an answer, which agrees with nothing.
        teacher: its answers to the same items.
        expected: the right answers.

    Raises:
        DataError: there is no item, or the counts differ.
    """
    if not len(student) == len(teacher) == len(expected) or len(student) == 0:
        raise DataError(
            f"There are {len(student)} answers of the student, {len(teacher)} of the teacher and {len(expected)} right "
            "ones; the counts must be equal and not 0."
        )
    same = [
        ours == theirs and ours is not None for ours, theirs in zip(student, teacher, strict=True)
    ]
    right = [theirs == truth for theirs, truth in zip(teacher, expected, strict=True)]
    rights = [one for one, good in zip(same, right, strict=True) if good]
    wrongs = [one for one, good in zip(same, right, strict=True) if not good]
    return Agreement(
        sum(same) / len(same),
        cohens_kappa(student, teacher),
        sum(rights) / len(rights) if rights else None,
        sum(wrongs) / len(wrongs) if wrongs else None,
        len(rights),
        len(wrongs),
    )


def cohens_kappa(student: Sequence[Hashable], teacher: Sequence[Hashable]) -> float | None:
    """Return agreement beyond chance, at most 1 and 0 for none; None where chance alone makes it certain.

    Args:
        student: its answers; None for an item without an answer, which agrees with nothing.
        teacher: its answers to the same items.

    Source: Cohen, "A Coefficient of Agreement for Nominal Scales", 1960.

    Raises:
        DataError: there is no item, or the counts differ.
    """
    if len(student) != len(teacher) or len(student) == 0:
        raise DataError(
            f"There are {len(student)} answers of the student and {len(teacher)} of the teacher; the counts must be "
            "equal and not 0."
        )
    count = len(student)
    pairs = zip(student, teacher, strict=True)
    observed = sum(ours == theirs and ours is not None for ours, theirs in pairs) / count
    ours, theirs = Counter(student), Counter(teacher)
    shared = (ours.keys() & theirs.keys()) - {None}
    chance = sum(ours[answer] * theirs[answer] for answer in shared) / count**2
    return None if chance == 1 else (observed - chance) / (1 - chance)
