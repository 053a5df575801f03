"""How closely a student answers like its teacher, on the same samples, labels aside."""

from __future__ import annotations

import torch

from understudy.errors import DataError
from understudy.evaluation.predictions import Predictions

PART = 4096
"""Samples that are worked on at a time."""


def agreement(student: Predictions, teacher: Predictions) -> float:
    """Return the fraction of samples whose largest logit is at the same class (top-1 agreement).

    Raises:
        DataError: when the two were not made from the same samples in the same order, or class
            counts differ.
    """
    _require_same_samples(student, teacher)
    same = student.logits.argmax(dim=1) == teacher.logits.argmax(dim=1)
    return int(same.sum()) / len(same)


def kl_to_teacher(student: Predictions, teacher: Predictions) -> float:
    """Return KL(teacher || student) in nats at temperature 1, mean over samples.

    For each sample sum_c p_t(c) (log p_t(c) - log p_s(c)), in log space, with 0 log 0 = 0. It is
    infinite where the student rules out (logit -infinity) a class that the teacher does not.

    Raises:
        DataError: when the two were not made from the same samples in the same order, or class
            counts differ.
    """
    _require_same_samples(student, teacher)
    total = 0.0
    # In parts, so that the float64 copies stay small beside the logits.
    parts = zip(student.logits.split(PART), teacher.logits.split(PART), strict=True)
    for student_logits, teacher_logits in parts:
        log_teacher = teacher_logits.double().log_softmax(dim=1)
        log_student = student_logits.double().log_softmax(dim=1)
        terms = log_teacher.exp() * (log_teacher - log_student)
        total += float(torch.where(log_teacher.isneginf(), 0.0, terms).sum())
    # Rounding can leave -1e-17 for equal models; a divergence is never below zero.
    return max(total / len(student), 0.0)


def fidelity_metrics(student: Predictions, teacher: Predictions) -> dict[str, float]:
    """Return agreement and kl (nats) under the names that `metrics.jsonl` uses."""
    return {"agreement": agreement(student, teacher), "kl": kl_to_teacher(student, teacher)}


def _require_same_samples(student: Predictions, teacher: Predictions) -> None:
    if len(student) == 0:
        raise DataError("There are no samples on which to compare student and teacher.")
    if len(student) != len(teacher):
        raise DataError(
            f"The student was evaluated on {len(student)} samples and the teacher on "
            f"{len(teacher)}; they can only be compared on the same samples."
        )
    differing = torch.nonzero(student.ids != teacher.ids).flatten()
    if len(differing):
        first = int(differing[0])
        raise DataError(
            "Student and teacher were not evaluated on the same samples in the same order: at "
            f"position {first} the student has sample {int(student.ids[first])} and the teacher "
            f"sample {int(teacher.ids[first])} ({len(differing)} of {len(student)} positions differ)."
        )
    if student.classes != teacher.classes:
        raise DataError(
            f"The student gives {student.classes} classes and the teacher {teacher.classes}; bring "
            "the logits to the same classes before comparing them."
        )
