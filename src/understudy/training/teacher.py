"""The teachers of a run: each a model, or what a store holds of one."""

from __future__ import annotations

import logging
from typing import Any

from understudy import seeding
from understudy.data.source import Split
from understudy.errors import StoreError, called
from understudy.evaluation.assessment import Answers
from understudy.evaluation.predictions import Predictions
from understudy.models.model import Model, fingerprint
from understudy.tasks import LanguageModelling
from understudy.teachers.store import Key, Store
from understudy.teachers.store.key import data_identity, plain, view_recipe
from understudy.teachers.stored import StoredModel
from understudy.training.context import Context
from understudy.training.experiment import REFERENCE, TEACHER, ExperimentTeacher
from understudy.training.splits import DATA_SEED
from understudy.training.stored_tokens import stored_tokens

logger = logging.getLogger("understudy")
ROW_SETTINGS = ("packing", "dynamic", "attention_mask", "first_position")
"""What a language model's preprocessing says of its rows, and not of the tokens."""


def build_teachers(context: Context) -> dict[str, Model | StoredModel]:
    """Build the teachers of a run by name, or open their stores and check that they are the right ones.

    Raises:
        StoreError: as `build_teacher`.
    """
    return {
        name: build_teacher(context, name, given)
        for name, given in context.experiment.teachers.items()
    }


def build_teacher(context: Context, name: str, given: ExperimentTeacher) -> Model | StoredModel:
    """Build one teacher of a run, or open its store and check that it is the right one.

    A model beside a store is built once to compare its weights and preprocessing, and let go again.

    Raises:
        StoreError: there is no store, it is damaged, does not match (every difference is named), or lacks samples.
    """
    seed = context.experiment.settings.seeds[0]

    def build() -> Model:
        assert given.build is not None
        with seeding.isolated(seed, *seed_names(name)):
            return given.build()

    if given.store is None:
        model = build()
        model.module.to(context.world.device)
        return model
    store = context.open_store(given.store.path)
    store.check_key(store_key(context, build() if given.build is not None else None))
    store.check_holds(context.splits.train.ids)
    _check_files(store, context)
    logger.info(
        "Teacher outputs come from the store %s: %d samples, %d views of each, %.1f MB",
        store.place,
        store.samples,
        store.views,
        store.manifest.bytes / 1e6,
    )
    idle = [
        key
        for key, value in (
            ("precision", given.precision),
            ("ahead", given.ahead or None),
            ("device", given.device),
        )
        if value is not None
    ]
    if idle:
        logger.warning(
            "Nothing comes of %s: the outputs of the %s are stored, so it does not run beside the student.",
            " and ".join(f"`{key}`" for key in idle),
            called(name),
        )
    return StoredModel(store, build if given.build is not None else None)


def build_reference(context: Context) -> Model | None:
    """Build the model against which documents are scored; None where there is none."""
    given = context.experiment.reference
    if given is None:
        return None
    with seeding.isolated(context.experiment.settings.seeds[0], *seed_names(REFERENCE)):
        model = given.build()
    return context.place(model)


def seed_names(teacher: str) -> tuple[str, ...]:
    """Return what the initial weights of a teacher are drawn under: an only teacher needs no name."""
    return (TEACHER,) if teacher == TEACHER else (TEACHER, teacher)


def store_key(context: Context, teacher: Model | None) -> Key:
    """Return what the outputs of a teacher on a run's data depend on.

    Args:
        context: the run.
        teacher: the teacher; None when it is not there to be compared.

    Raises:
        StoreError: the views cannot go with a store.
    """
    return Key(
        None if teacher is None else fingerprint(teacher.module),
        None if teacher is None else _preprocessing(context, teacher),
        data_identity(context.experiment.data.source),
        view_recipe(context.views(DATA_SEED), context.splits.train),
    )


def _preprocessing(context: Context, teacher: Model) -> dict[str, Any]:
    """Return what of a teacher's preprocessing its outputs depend on.

    How token sequences lie in rows is no part of it: what is stored is found by document.
    """
    config: dict[str, Any] = plain(teacher.preprocess.config())
    if isinstance(context.experiment.task, LanguageModelling):
        return {name: value for name, value in config.items() if name not in ROW_SETTINGS}
    return config


def _check_files(store: Store, context: Context) -> None:
    """Compare checksums, each process those of its share; all raise what any of them found."""
    problem = None
    try:
        store.check_files((context.world.rank, context.world.size))
    except StoreError as error:
        problem = str(error)
    for found in context.world.gather(problem):
        if found is not None:
            raise StoreError(found)


def teacher_fingerprint(teacher: Model | StoredModel) -> str:
    """Return the fingerprint of the teacher's weights."""
    return teacher.fingerprint if isinstance(teacher, StoredModel) else fingerprint(teacher.module)


def teacher_predictions(context: Context, teacher: Model | StoredModel, split: Split) -> Answers:
    """Return what the teacher answers for every sample of a split."""
    if isinstance(teacher, StoredModel):
        if isinstance(context.experiment.task, LanguageModelling):
            return stored_tokens(teacher, split, context.world.device)
        return Predictions(teacher.store.evaluation(split.ids), split.labels, split.ids)
    return context.predictions(teacher, teacher.module, split)
