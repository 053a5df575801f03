"""From a recipe to an experiment: data are loaded, models and stages can be made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from understudy.data.source import Source, Split
from understudy.errors import DataError, ModelError, UnderstudyError
from understudy.methods import Supervised
from understudy.models.build import build as build_model
from understudy.models.build import live as live_model
from understudy.models.model import Model
from understudy.models.normalisation import Statistics, channel_statistics
from understudy.recipe.components import Component
from understudy.recipe.kinds import FILTER, METHOD, SOURCE, TRANSFORM
from understudy.recipe.problems import Place, dotted
from understudy.recipe.sections import (
    Arm,
    ReferenceSection,
    StageDefaults,
    TeacherSection,
    read_stage,
)
from understudy.tasks import LanguageModelling, Task, make_task
from understudy.training.experiment import (
    BASELINE,
    REFERENCE,
    TEACHER,
    Experiment,
    ExperimentData,
    ExperimentReference,
    ExperimentTeacher,
)
from understudy.training.splits import make_splits
from understudy.training.stage import Stage

if TYPE_CHECKING:
    from understudy.recipe.recipe import Recipe

MOST_MEASURED = 5_000
"""Samples that mean and deviation are measured on, at most; more would not change a digit that matters."""
_PART = 500


def build(recipe: Recipe, directory: Path) -> Experiment:
    """Load the data and return the experiment that a recipe describes.

    Args:
        recipe: the recipe.
        directory: the run directory, whose name the experiment takes.

    Raises:
        DataError: the data cannot be loaded.
    """
    section = recipe.data
    data = ExperimentData(
        source=SOURCE.make(section.source),
        transforms=[TRANSFORM.make(transform) for transform in section.transforms],
        labels=section.labels,
        validation=section.validation,
        views=section.views,
        filters=[FILTER.make(each) for each in section.filters],
    )
    task = make_task(recipe.task)
    check_kind(task, data.source)
    makers = ModelMaker(data.source, lambda: make_splits(experiment).train, task)
    teachers = {
        name: _teacher(
            makers, section, ("teacher",) if recipe.teachers is None else ("teachers", name)
        )
        for name, section in recipe.named_teachers.items()
    }
    arms: dict[str, Callable[[], list[Stage]]] = {}
    if recipe.baseline:
        arms[BASELINE] = lambda: baseline(recipe, experiment).build()
    for name, arm in (recipe.arms or {}).items():
        arms[name] = arm.build
    experiment = Experiment(
        name=directory.name,
        data=data,
        student=lambda: makers.make(recipe.student.model, "student.model"),
        teacher=teachers.get(TEACHER) if recipe.teachers is None else None,
        teachers=teachers if recipe.teachers is not None else {},
        arms=arms,
        settings=recipe.settings(),
        task=task,
        recipe=recipe.resolved(),
        reference=None if recipe.reference is None else _reference(makers, recipe.reference),
    )
    return experiment


def baseline(recipe: Recipe, experiment: Experiment) -> Arm:
    """Return the arm that learns from labels alone, under the recipe's defaults, for as long as the longest arm."""
    lengths = []
    for arm in (recipe.arms or {}).values():
        epochs = sum(stage.epochs or 0 for stage in arm.stages)
        steps = sum(stage.steps or 0 for stage in arm.stages)
        lengths.append((epochs, steps))
    if all(steps == 0 for _, steps in lengths):
        length = {"epochs": max(epochs for epochs, _ in lengths)}
    elif all(epochs == 0 for epochs, _ in lengths):
        length = {"steps": max(steps for _, steps in lengths)}
    else:
        samples = len(make_splits(experiment).train)
        per_epoch = max(1, samples // min(experiment.settings.batch_size, samples))
        length = {"steps": max(epochs * per_epoch + steps for epochs, steps in lengths)}
    defaults = {key: getattr(recipe, key) for key in StageDefaults.model_fields}
    methods = [METHOD.from_object(Supervised())]
    return Arm(stages=[read_stage(length, defaults, name=BASELINE, methods=methods)])


def check_kind(task: Task, source: Source) -> None:
    """Refuse data that a task cannot be done on.

    Raises:
        DataError: a language model's data are no texts.
    """
    if isinstance(task, LanguageModelling) and source.kind != "text":
        raise DataError(
            f"task: {task.name} models texts, and '{source.name}' holds {source.kind}s. Use a source of texts."
        )


class ModelMaker:
    """Makes the models of a recipe for its data; what they need to know of the data is measured once.

    Args:
        source: the data.
        train: gives the training split.
        task: what a sample means.
    """

    def __init__(self, source: Source, train: Callable[[], Split], task: Task) -> None:
        """Measure nothing yet."""
        self._source, self._give_train, self._task = source, train, task

    def make(self, component: Component, place: str, *, copied: bool = True) -> Model:
        """Return a fresh model.

        Args:
            component: its name and keywords, or a live module, model, or function that is called.
            place: where it stands in the recipe, for errors.
            copied: whether to copy a live module; without need only if it is never trained.
        """
        try:
            if component.live is not None:
                return self._live(component.live, copied)
            measured: dict[str, Any] = {
                "classes": len(self._source.classes),
                "kind": self._source.kind,
                "input_shape": self._input_shape,
                "class_names": self._source.classes,
                "statistics": self._statistics,
                "texts": self._texts if self._source.kind == "text" else None,
                "task": self._task.name,
            }
            for key in component.keywords.keys() & measured.keys():
                raise ModelError(
                    f"'{key}' of the model '{component.name}' is that of the data and cannot be set. Leave it out."
                )
            return build_model(component.name, **measured, **component.extra, **component.keywords)
        except UnderstudyError as error:
            raise type(error)(f"{place}: {error}") from error

    def _live(self, given: Any, copied: bool) -> Model:
        made = given
        if not isinstance(given, nn.Module | Model):
            made = given()
        elif copied:
            made = copy.deepcopy(given)
        if isinstance(made, Model):
            return made
        return live_model(
            made,
            kind=self._source.kind,
            input_shape=self._input_shape,
            statistics=self._statistics,
        )

    @cached_property
    def _train(self) -> Split:
        return self._give_train()

    @cached_property
    def _input_shape(self) -> tuple[int, ...] | None:
        first = self._train.fetch(torch.zeros(1, dtype=torch.int64))
        return tuple(first.shape[1:]) if isinstance(first, torch.Tensor) else None

    @cached_property
    def _statistics(self) -> Statistics | None:
        if self._source.kind == "text":
            return None
        return channel_statistics(self._parts())

    def _parts(self) -> Iterable[torch.Tensor]:
        step = max(1, len(self._train) // MOST_MEASURED)
        for positions in torch.arange(0, len(self._train), step).split(_PART):
            part = self._train.fetch(positions)
            assert isinstance(part, torch.Tensor)
            yield part

    def _texts(self) -> Iterable[Any]:
        return self._train.fetch(torch.arange(len(self._train)))


def _teacher(makers: ModelMaker, section: TeacherSection, place: Place) -> ExperimentTeacher:
    """Return a teacher; `place` is where it stands in the recipe."""
    return ExperimentTeacher(
        build=None
        if section.model is None
        else _trained_maker(makers, section.model, section.train is not None, place),
        stages=section.train.build() if section.train is not None else (),
        labels=section.labels,
        store=section.store,
        precision=section.precision,
        ahead=section.ahead,
        device=section.device,
    )


def _reference(makers: ModelMaker, section: ReferenceSection) -> ExperimentReference:
    """Return the model against which documents are scored."""
    return ExperimentReference(
        build=_trained_maker(makers, section.model, section.train is not None, (REFERENCE,)),
        stages=section.train.build() if section.train is not None else (),
        share=section.share,
    )


def _trained_maker(
    makers: ModelMaker, component: Component, trained: bool, place: Place
) -> Callable[[], Model]:
    """Return what makes a model, and refuses one that knows nothing and will not be trained."""
    where = dotted((*place, "model"))

    def make() -> Model:
        model = makers.make(component, where, copied=trained)
        if not trained and model.weights == "random":
            raise ModelError(
                f"{where}: '{model.name}' has random weights and is not trained, so it has nothing to teach. Give its "
                f"`weights`, or say under `{dotted(place)}.train` how to train it."
            )
        return model

    return make
