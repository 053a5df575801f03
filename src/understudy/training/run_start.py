"""The first lines of a run's metrics: what is run, and on which models."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from understudy.errors import called
from understudy.models.model import Model
from understudy.teachers.stored import StoredModel
from understudy.training.context import Context
from understudy.training.experiment import REFERENCE, Experiment, arm_of
from understudy.training.run_directory import RunDirectory, commit
from understudy.training.teacher import teacher_fingerprint

logger = logging.getLogger("understudy")


def record_start(
    context: Context,
    directory: RunDirectory,
    student: Model,
    teachers: Mapping[str, Model | StoredModel],
    reference: Model | None,
) -> None:
    """Write the line of the run and a line for each model.

    Args:
        context: the run's context, whose precision is decided.
        directory: where the lines go.
        student: the student of the first seed.
        teachers: teacher name -> model.
        reference: the reference model, where there is one.
    """
    experiment = context.experiment
    splits, source = context.splits, experiment.data.source
    recipe = json.dumps(dict(experiment.recipe), sort_keys=True, default=str)
    dropped = experiment.data.dropped
    for each in dropped:
        logger.info("Filter %s", each)
    directory.record(
        "run",
        name=experiment.name,
        task=experiment.task.name,
        **_measure(context, student),
        kind=source.kind,
        classes=list(context.classes),
        seeds=list(experiment.settings.seeds),
        arms=list(experiment.arms),
        counts={
            "train": len(splits.train),
            "labelled": len(splits.train.labelled),
            "validation": len(splits.validation) if splits.validation else 0,
            "test": len(splits.test),
            **({} if splits.reference is None else {"reference": len(splits.reference)}),
        },
        **({"filters": [asdict(each) for each in dropped]} if dropped else {}),
        data=source.identity,
        commit=commit(),
        recipe_hash=hashlib.sha256(recipe.encode()).hexdigest()[:16],
        precision=context.precision.dtype,
        channels_last=context.precision.channels_last,
    )
    everyone: dict[str, Model | StoredModel] = {"student": student, **teachers}
    if reference is not None:
        everyone[REFERENCE] = reference
    for role, model in everyone.items():
        fingerprint = teacher_fingerprint(model)
        directory.record(
            "model",
            role=role if role == "student" else arm_of(role),
            name=model.name,
            parameters=model.parameters,
            weights=model.weights,
            fingerprint=fingerprint,
            trained_here=_is_trained(experiment, role),
        )
        logger.info(
            "%s: %s, %s parameters, initial weights: %s (%s)",
            called(role)[0].upper() + called(role)[1:],
            model.name,
            f"{model.parameters:,}",
            model.weights,
            fingerprint,
        )


def _measure(context: Context, student: Model) -> dict[str, Any]:
    """Return by what models are compared first, where that is not accuracy."""
    measure = context.experiment.task.measure
    if measure.name == "accuracy":
        return {}
    return {"measure": asdict(measure), "vocabulary": context.outputs(student)}


def _is_trained(experiment: Experiment, role: str) -> bool:
    """Tell whether this run trains a model."""
    if role == "student":
        return True
    if role == REFERENCE:
        return experiment.reference is not None and bool(experiment.reference.stages)
    return bool(experiment.teachers[role].stages)
