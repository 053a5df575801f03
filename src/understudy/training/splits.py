"""The parts of the data that a run learns from, selects on and is tested on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

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
        teachers: teacher name -> the same samples with the labels that this teacher may see.
        teacher_train: the same with the labels that any teacher may see, all of them where there is no teacher.
        validation: for selection; None when there is none.
        test: for the final evaluation only.
        reference: what only the reference model is trained on; None where there is none, or it is not trained.
    """

    train: Split
    teachers: Mapping[str, Split]
    teacher_train: Split
    validation: Split | None
    test: Split
    reference: Split | None = None


def make_splits(experiment: Experiment) -> Splits:
    """Set the validation part aside and hide the labels that students and teacher may not see."""
    data, source = experiment.data, experiment.data.source
    train, validation = source.train, source.validation
    if validation is None and data.validation:
        train, validation = carve(train, data.validation, seed=DATA_SEED)
    reference = None
    if experiment.reference is not None and experiment.reference.stages:
        train, reference = _set_aside(train, experiment.reference.share)
    teachers = {name: _kept(train, given.labels) for name, given in experiment.teachers.items()}
    return Splits(
        train=_kept(train, data.labels),
        teachers=teachers,
        teacher_train=max(teachers.values(), key=lambda split: len(split.labelled), default=train),
        validation=validation,
        test=source.test,
        reference=reference,
    )


def _set_aside(train: Split, share: int | float) -> tuple[Split, Split]:
    """Take documents out at random, whether they have a domain or not."""
    alike = train.with_labels(torch.zeros_like(train.labels))
    _, taken = carve(alike, share, stratified=False, seed=DATA_SEED)
    inside = torch.isin(train.ids, taken.ids)
    return train.subset((~inside).nonzero().flatten()), train.subset(inside.nonzero().flatten())


def _kept(split: Split, labels: int | float | None) -> Split:
    return split if labels is None else keep_labels(split, labels, seed=DATA_SEED)
