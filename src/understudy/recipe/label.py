"""`label`: filling a store of teacher outputs as one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.recipe.loading import from_values
from understudy.teachers.store import Store


def label(
    teacher: Any = None,
    student: Any = None,
    data: Any = None,
    methods: Sequence[Any] | None = None,
    *,
    teachers: Mapping[str, Any] | None = None,
    which: str | None = None,
    arms: Mapping[str, Any] | None = None,
    repair: bool = False,
    **settings: Any,
) -> Store:
    """Run a teacher once over every view that students will see, and keep what it says in a store.

    The arguments are those of `distill`, which can then be called with the same ones: what is kept depends on what the
    methods ask for. Called again after a crash it goes on.

    Args:
        teacher: a mapping with `model` and `store`: a path, or a mapping with `path`, `top_k`, `dtype`, ...
        teachers: as for `distill`; with one of them labelled in a call.
        which: the name of the teacher to label, where several have a store.
        student: as for `distill`.
        data: as for `distill`; with random transforms it needs a number of `views`.
        methods: as for `distill`.
        arms: as for `distill`.
        repair: also read what is finished, and make again what is damaged.
        settings: every other key of a recipe.

    Returns:
        The store, open for reading.

    Raises:
        RecipeError: arguments that cannot be right; lists all of them.
        StoreError: the store belongs to something else or cannot be written, or the teacher's outputs cannot be held.
    """
    from understudy.training.labelling import label as fill
    from understudy.training.labelling import stored_teacher

    given = {
        "teacher": teacher,
        "teachers": teachers,
        "student": student,
        "data": data,
        "methods": methods,
        "arms": arms,
    }
    values = {key: value for key, value in given.items() if value is not None}
    settings = {key: value for key, value in settings.items() if key not in ("directory", "resume")}
    recipe = from_values({**values, **settings})
    experiment = recipe.build(Path(recipe.name))
    fill(experiment, repair=repair, teacher=which)
    store = experiment.teachers[stored_teacher(experiment, which)].store
    assert store is not None
    return Store(store.path)
