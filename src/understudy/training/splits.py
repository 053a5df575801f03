"""The parts of the data that a run learns from, selects on and is tested on."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.data.labels import carve, keep_labels
from understudy.data.source import Split
from understudy.training.experiment import Experiment

DATA_SEED = 0
"""Decides which samples keep their labels and which are set aside; the same for all seeds of a run."""


@dataclass(frozen=True)
class Splits:
    """The parts of a run's data.

    Attributes:
        train: what students learn from, with the labels that they may see.
        teacher_train: the same samples with the labels that the teacher may see.
        validation: for selection; None when there is none.
        test: for the final evaluation only.
    """

    train: Split
    teacher_train: Split
    validation: Split | None
    test: Split


def make_splits(experiment: Experiment) -> Splits:
    """Set the validation part aside and hide the labels that students and teacher may not see."""
    data, source = experiment.data, experiment.data.source
    train, validation = source.train, source.validation
    if validation is None and data.validation:
        train, validation = carve(train, data.validation, seed=DATA_SEED)
    teacher_labels = experiment.teacher.labels if experiment.teacher else None
    return Splits(
        train=train if data.labels is None else keep_labels(train, data.labels, seed=DATA_SEED),
        teacher_train=train
        if teacher_labels is None
        else keep_labels(train, teacher_labels, seed=DATA_SEED),
        validation=validation,
        test=source.test,
    )
