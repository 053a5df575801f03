"""`distill`: a whole run as one call."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.errors import RecipeError
from understudy.recipe.loading import from_values
from understudy.recipe.result import Result

RUNS = Path("runs")
"""Where run directories are made."""


def distill(
    teacher: Any = None,
    student: Any = None,
    data: Any = None,
    methods: Sequence[Any] | None = None,
    *,
    teachers: Mapping[str, Any] | None = None,
    arms: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    seeds: Sequence[int] | None = None,
    name: str | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Result:
    """Distil a teacher, or several, into a student: train, evaluate, and keep everything in a run directory.

    The arguments are the keys of a recipe and take what stands there in YAML, or the objects themselves.

    Args:
        teacher: a module that knows its task already, a model name ("kd:resnet56"), or a mapping with `model` and
            how to `train` it; None when no method needs one, or with `teachers`.
        student: a module (copied for every seed), a function that makes one, or a model name.
        data: a `Source`, a source's name or mapping, a dataset, (training set, test set), or
            ((inputs, labels), (test inputs, test labels)); or a mapping with `source`, `labels`, `transforms`, ...
        methods: what to learn from, such as `[methods.KD(temperature=4.0), methods.Supervised()]`.
        teachers: name -> such a teacher, where there are several; a method says to which it listens with
            `KD().listening_to("name")`.
        arms: name -> methods, or stages, to compare several; instead of `methods`.
        epochs: length of a stage in passes over the training samples (or give `steps`).
        seeds: each arm is trained once per seed.
        name: what the run is called; otherwise after the directory or the time.
        directory: the run directory; `runs/NAME` when not given.
        resume: go on with the run in the directory, which must have been started with the same arguments.
        settings: every other key of a recipe: `optimizer`, `schedule`, `batch_size`, `baseline`, `precision`, ...

    Returns:
        The trained students and what was measured.

    Raises:
        RecipeError: arguments that cannot be right; lists all of them.
        UnderstudyError: the run was refused by a check, or failed.
    """
    from understudy.training.run import run

    given = {
        "teacher": teacher,
        "teachers": teachers,
        "student": student,
        "data": data,
        "methods": methods,
        "arms": arms,
        "epochs": epochs,
        "seeds": seeds,
    }
    values = {key: value for key, value in given.items() if value is not None}
    place = _directory(name, directory, resume)
    recipe = from_values({"name": name or place.name, **values, **settings})
    experiment = recipe.build(place)
    done = run(experiment, place, resume=resume)
    return Result(done.directory, done.results, experiment.student, list(experiment.arms))


def _directory(name: str | None, directory: str | Path | None, resume: bool) -> Path:
    if directory is not None:
        return Path(directory)
    if name is not None:
        return RUNS / name
    if resume:
        raise RecipeError("resume=True needs the name or the directory of the run to go on with.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "With several processes the run needs a name or a directory, the same in all of them."
        )
    return RUNS / datetime.datetime.now().strftime("distill-%Y%m%d-%H%M%S")
