"""What the members of a run share: data, device, precision, directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy import seeding
from understudy.data.batch import Batch
from understudy.data.loader import Encoder, EvaluationLoader, TrainingLoader
from understudy.data.order import Order, SampleOrder
from understudy.data.source import Split
from understudy.data.views import Views
from understudy.errors import PreflightError, UnknownName
from understudy.evaluation.assessment import Answers, Assessment, assessment_of
from understudy.methods import Method
from understudy.models.model import Model
from understudy.tasks import LanguageModelling
from understudy.teachers.listening import heard
from understudy.teachers.store import Store
from understudy.teachers.stored import StoredModel, StoredTeacher
from understudy.training.choosing import chosen
from understudy.training.distribution import World
from understudy.training.experiment import TEACHER, Experiment
from understudy.training.fitting import FITTED, PROVISIONAL, Fitting, make_study
from understudy.training.likelihoods import Likelihoods
from understudy.training.mixing import make_mixing
from understudy.training.precision import Precision
from understudy.training.run_directory import RunDirectory
from understudy.training.splits import DATA_SEED, Splits
from understudy.training.stage import Stage
from understudy.training.stage_checks import learns_from_labels_only, refuse_other_tasks
from understudy.training.stage_run import Earlier, StageRun
from understudy.training.stored_side import refuse_changed_inputs, stored_example

logger = logging.getLogger("understudy")
JUDGED = 2000
"""Training samples that a teacher is judged by where there is no validation split."""
EXAMPLE_SIZE = 8
"""Samples in the batch that shapes are measured on: enough for batch statistics, few enough to cost nothing."""


Teachers = Mapping[str, Model | StoredModel]
"""Teacher name -> a model, or what is stored of one."""


def by_name(teacher: Teachers | Model | StoredModel | None) -> Teachers:
    """Return teachers by name; a lone one is called `TEACHER`."""
    if teacher is None:
        return {}
    return teacher if isinstance(teacher, Mapping) else {TEACHER: teacher}


def heard_by_any(methods: Sequence[Method], teachers: Iterable[str]) -> list[str]:
    """Return the names of the teachers that some of these methods listen to, in the order of all.

    Raises:
        PreflightError: a method listens to one that there is not.
    """
    names = list(teachers)
    found: set[str] = set()
    for method in methods:
        try:
            found.update(heard(method.hears, names))
        except UnknownName as error:
            raise PreflightError(f"Method '{method.name}' listens to nobody: {error}") from error
    return [name for name in names if name in found]


@dataclass
class Context:
    """What all members of a run share.

    Attributes:
        experiment: what is run.
        splits: its data, in parts.
        world: this process among its peers.
        directory: where results go; None when nothing is written (a plan).
        precision: how models run; decided once per run.
        teacher_predictions: teacher name -> its answers on the test split, once there are any.
        teacher_embeddings: teacher name -> its embeddings of the first test samples, once there are any (see
            `embeddings`).
        scores: teacher name -> its likelihoods of the training documents and those of the reference model, once there
            are any.
        held_out: domains and a number of documents -> validation documents that a mixture is measured on.
    """

    experiment: Experiment
    splits: Splits
    world: World
    directory: RunDirectory | None = None
    precision: Precision = field(default_factory=Precision)
    teacher_predictions: dict[str, Answers] = field(default_factory=dict)
    teacher_embeddings: dict[str, torch.Tensor] = field(default_factory=dict)
    scores: dict[str, tuple[Likelihoods, Likelihoods]] = field(default_factory=dict)
    held_out: dict[tuple[tuple[str, ...], int], Split] = field(default_factory=dict)
    _loaders: dict[tuple[int, str], EvaluationLoader] = field(default_factory=dict)
    _stores: list[Store] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.experiment.data.source.classes

    def outputs(self, model: Model) -> int:
        """Return how many logits of a model mean something: classes, or the tokens of its vocabulary."""
        if isinstance(self.experiment.task, LanguageModelling):
            return int(model.preprocess.vocabulary)  # type: ignore[attr-defined]
        return len(self.classes)

    @property
    def batch_size(self) -> int:
        """Samples per optimiser step: as the settings say, but not more than there are."""
        return min(self.experiment.settings.batch_size, len(self.splits.train))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in a pass over the training split; the tail that fills no batch waits for the next pass."""
        return max(1, len(self.splits.train) // self.batch_size)

    @property
    def cache(self) -> Path | None:
        """Where fitted artefacts lie: as the settings say, or beside the run directory; None without either."""
        if self.experiment.settings.cache is not None:
            return Path(self.experiment.settings.cache)
        return None if self.directory is None else self.directory.path.parent / FITTED

    def build_student(self, seed: int) -> Model:
        """Make the student of a seed on the device: all arms of a seed start from the same weights."""
        with seeding.isolated(seed, "student"):
            model = self.experiment.student()
        return self.place(model)

    def place(self, model: Model) -> Model:
        """Move a model to the device and into the run's memory format."""
        model.module.to(self.world.device)
        if self.precision.channels_last:
            model.module.to(memory_format=torch.channels_last)
        if hasattr(model.preprocess, "channels_last"):
            model.preprocess.channels_last = self.precision.channels_last
        return model

    def stage_run(
        self,
        stage: Stage,
        *,
        student: Model,
        teacher: Teachers | Model | StoredModel | None,
        split: Split,
        seed: int,
        number: int,
        earlier: Earlier | None = None,
        fitting: Fitting = PROVISIONAL,
    ) -> StageRun:
        """Build a stage on this run's data.

        Args:
            stage: what to train with.
            student: the model that learns.
            teacher: the models that it learns from by name, or what is stored of them; a lone one is called `TEACHER`.
            split: the training split, with the labels that may be seen.
            seed: the member's seed.
            number: the stage's position in its arm.
            earlier: what the methods of the arm's earlier stages learnt.
            fitting: how methods are fitted before the stage: provisionally, unless it is said otherwise.
        """
        settings, given = self.experiment.settings, self.experiment.teachers
        teachers = by_name(teacher)
        refuse_other_tasks(stage, self.experiment.task)
        using = [method for method in stage.active_methods if method.uses_teacher]
        if using and not teachers:
            names = ", ".join(method.name for method in using)
            raise PreflightError(
                f"Stage '{stage.name}' uses {names}, which needs a teacher, but the run has none."
            )
        used = {name: teachers[name] for name in heard_by_any(using, teachers)}
        asked = heard_by_any([method for method in using if method.needs_teacher], teachers)
        encoders: dict[str, Encoder] = {"student": student.preprocess}
        everyone = dict(encoders)
        stored = {}
        for name, each in used.items():
            if isinstance(each, StoredModel):
                stored[name] = StoredTeacher(each, name)
                if name in asked:
                    refuse_changed_inputs(stage, name, each)
            else:
                everyone[name] = each.preprocess
                if name in asked:
                    encoders[name] = each.preprocess
        fits = any(method.needs_study for method in using)
        population = chosen(self, stage, split, seed)
        drawn_from = seeding.derive(seed, "order", number)
        mixing = make_mixing(
            self,
            stage,
            student=student,
            teachers=teachers,
            split=split,
            population=population,
            batch_size=self.batch_size,
            seed=drawn_from,
        )
        order: Order = (
            SampleOrder.over(
                split,
                batch_size=self.batch_size,
                seed=drawn_from,
                labelled_only=learns_from_labels_only(stage, split, self.experiment.task),
                population=population,
            )
            if mixing is None
            else mixing.order
        )
        views = self.views(seed)
        loader = TrainingLoader(
            split,
            order,
            views,
            encoders,
            device=self.world.device,
            workers=settings.workers,
            classes=len(self.classes),
            rank=self.world.rank,
            world=self.world.size,
            accumulate=stage.accumulate,
            lookups={name: each.lookup for name, each in stored.items() if name in asked},
        )
        return StageRun(
            stage,
            student=student,
            teachers={**used, **stored},  # type: ignore[dict-item]
            loader=loader,
            split=split,
            example=stored_example(
                list(stored.values()), split, views, everyone, self.world.device, len(self.classes)
            )
            if stored
            else self.example(split, everyone),
            steps_per_epoch=self.steps_per_epoch,
            task=self.experiment.task,
            classes=self.outputs(student),
            seed=seeding.derive(seed, "stage", number),
            precision=self.precision,
            world=self.world,
            compile=settings.compile,
            precisions={name: each.precision for name, each in given.items()},
            ahead=[name for name, each in given.items() if each.ahead],
            devices={name: each.device for name, each in given.items()},
            earlier=earlier,
            mixing=mixing,
            study=make_study(self, fitting, self._fitted(using, teachers), split, views)
            if fits
            else None,
        )

    def _fitted(self, using: Sequence[Method], teachers: Teachers) -> dict[str, Model]:
        """Return the teachers that methods fit to, also where outputs are stored: a fit runs them on what it likes."""
        names = heard_by_any([method for method in using if method.needs_study], teachers)
        found = {name: teachers[name] for name in names}
        return {
            name: self.place(each.model) if isinstance(each, StoredModel) else each
            for name, each in found.items()
        }

    def views(self, seed: int) -> Views:
        """Return the views that a member sees.

        A fixed number of views belongs to the data and is the same for every seed, so that one store serves them all.
        Without a number they are the member's own.
        """
        data = self.experiment.data
        origin = seed if data.views is None else DATA_SEED
        return Views(data.transforms, seed=seeding.derive(origin, "views"), count=data.views)

    def example(self, split: Split, encoders: Mapping[str, Any], size: int = EXAMPLE_SIZE) -> Batch:
        """Return the first samples of a split as a batch."""
        part = split.subset(torch.arange(min(size, len(split))))
        loader = EvaluationLoader(
            part, encoders, batch_size=size, device=self.world.device, workers=0
        )
        return next(iter(loader))

    @property
    def assessment(self) -> Assessment[Any]:
        """How answers are measured."""
        return assessment_of(self.experiment.task)

    def scored(self, split: Split) -> Split:
        """Return the samples of a split that models can be measured by: those with a label, where labels are given."""
        if self.experiment.task.labels_itself:
            return split
        return split.subset(split.labelled)

    def predictions(self, model: Model, module: nn.Module, split: Split) -> Answers:
        """Run a module, with a model's preprocessing, over a split in evaluation mode and float32."""
        loader = self._evaluation_loader(model, split)
        flags = {part: part.training for part in module.modules()}
        module.eval()
        task = self.experiment.task
        try:
            found: Answers = self.assessment.collect(
                lambda batch: task.forward(module, batch, "student"), loader
            )
            return found
        finally:
            for part, training in flags.items():
                part.training = training

    def open_store(self, place: str) -> Store:
        """Open a store until `close`."""
        self._stores.append(Store(place))
        return self._stores[-1]

    def selection_split(self) -> tuple[str, Split | None]:
        """Return what a teacher is judged by, and its name: the validation split, or labelled training samples."""
        validation, train = self.splits.validation, self.splits.teacher_train
        if validation is not None and len(self.scored(validation)):
            return "validation", validation
        scored = self.scored(train)
        if len(scored):
            return "training", scored.subset(torch.arange(min(JUDGED, len(scored))))
        return "none", None

    def close(self) -> None:
        """Stop the workers that read what is evaluated, and close the store."""
        for loader in self._loaders.values():
            loader.close()
        for store in self._stores:
            store.close()
        self._loaders.clear()
        self._stores.clear()

    def _evaluation_loader(self, model: Model, split: Split) -> EvaluationLoader:
        """Return the loader of a split for a model's preprocessing; kept, since every epoch asks for it."""
        settings = self.experiment.settings
        key = (id(split), json.dumps(model.preprocess.config(), sort_keys=True))
        if key not in self._loaders:
            self._loaders[key] = EvaluationLoader(
                split,
                {"student": model.preprocess},
                batch_size=settings.evaluation_batch_size,
                device=self.world.device,
                workers=settings.workers,
            )
        return self._loaders[key]
