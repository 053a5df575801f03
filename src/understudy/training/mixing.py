"""Domain mixtures in a run: they follow how far the student is behind its teacher."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from understudy import seeding
from understudy.data.mixed_order import MixedOrder
from understudy.data.mixture import DomainMixture, Mixture, perplexity_ratios
from understudy.data.source import Split
from understudy.errors import PreflightError, called
from understudy.evaluation.tokens import TokenPredictions
from understudy.models.model import Model
from understudy.tasks import LanguageModelling
from understudy.teachers.stored import StoredModel
from understudy.training.choosing import one_teacher, same_tokens
from understudy.training.distribution import World
from understudy.training.stage import Stage

if TYPE_CHECKING:
    from understudy.training.context import Context

logger = logging.getLogger("understudy")
SHORT = 100
"""Updates that lie closer together than this many steps follow chance, as the authors' ablation shows."""

Losses = Callable[[], Mapping[str, float]]
"""Gives the mean cross-entropy in nats per token on each domain's held-out documents."""


class Record(Protocol):
    """Writes a line of metrics."""

    def __call__(self, **fields: Any) -> None:
        """Write the fields."""


class Mixing:
    """The mixture of a stage: what it is now, when it changes, and to what.

    Args:
        settings: the stage's mixture.
        order: what the batches are drawn by.
        world: this process among its peers; the first one's numbers hold for all.
        student: measures the student.
        teacher: measures the teacher, once; None where nobody is asked.

    Attributes:
        record: where updates are written to.
    """

    def __init__(
        self,
        settings: Mixture,
        order: MixedOrder,
        world: World,
        student: Losses,
        teacher: Losses | None,
    ) -> None:
        """Start from the natural mixture, or from equal shares."""
        self.settings, self.order, self._world = settings, order, world
        self._student, self._ask_teacher = student, teacher
        self._teacher: dict[str, float] | None = None
        self._history: DomainMixture | None = None
        self.record: Record = _nowhere
        if settings.name == "equal":
            count = len(order.domains)
            order.change(DomainMixture(order.domains, (-math.log(count),) * count), 0)

    def end(self, step: int, last: int) -> int:
        """Return up to which step, at most `last`, the mixture holds that holds in `step`."""
        if self.settings.name == "equal":
            return last
        return min(last, (step // self.settings.every + 1) * self.settings.every)

    def update(self, step: int) -> None:
        """Measure and change the mixture where that is due before `step`; otherwise do nothing."""
        if self._ask_teacher is None:
            return
        if self._history is not None and step < self.order.begun + self.settings.every:
            return
        if self._teacher is None:
            self._teacher = self._agreed(self._ask_teacher)
        ratios = perplexity_ratios(self._agreed(self._student), self._teacher)
        if self._history is None:
            # These weights are what the first update goes on from; the first interval is as the data is.
            self._history = DomainMixture.start(ratios, self.settings.smoothing or 0.0)
        else:
            self._history = self._next(self._history, ratios)
            self.order.change(self._history, step)
        weights = self.order.mixture.weights()
        passes = self.order.passes
        self.record(step=step, weights=weights, ratios=ratios, passes=passes)
        shown = ", ".join(f"{name} {share:.3f}" for name, share in weights.items())
        logger.info("Mixture from step %d on: %s", step, shown)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain values."""
        return {
            "order": self.order.state(),
            "history": None if self._history is None else self._history.state(),
            "teacher": self._teacher,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.order.load(state["order"])
        history = state["history"]
        self._history = None if history is None else DomainMixture.from_state(history)
        self._teacher = state["teacher"]

    def _next(self, before: DomainMixture, ratios: Mapping[str, float]) -> DomainMixture:
        if self.settings.smoothing is not None:
            return before.updated(ratios)
        return dataclasses.replace(DomainMixture.start(ratios), updates=before.updates + 1)

    def _agreed(self, measure: Losses) -> dict[str, float]:
        """Return what the first process measured."""
        return dict(self._world.gather(dict(measure()))[0])


def make_mixing(
    context: Context,
    stage: Stage,
    *,
    student: Model,
    teachers: Mapping[str, Model | StoredModel],
    split: Split,
    population: torch.Tensor | None,
    batch_size: int,
    seed: int,
) -> Mixing | None:
    """Return the mixture of a stage; None where it has none.

    Args:
        context: the run.
        stage: the stage.
        student: its student.
        teachers: the run's teachers.
        split: the training samples.
        population: positions that the stage draws from; None for all.
        batch_size: samples in a batch.
        seed: the seed of the stage's order.

    Raises:
        PreflightError: the mixture cannot be had so; says why.
    """
    settings = stage.mixture
    if settings is None:
        return None
    order = MixedOrder(
        split.labels,
        torch.arange(len(split)) if population is None else population,
        names=context.classes,
        batch_size=batch_size,
        seed=seeding.derive(seed, "mixed"),
    )
    if settings.name == "equal":
        return Mixing(settings, order, context.world, dict, None)
    what = f"Stage '{stage.name}' mixes domains by perplexity"
    if not isinstance(context.experiment.task, LanguageModelling):
        raise PreflightError(
            f"{what}, which a model of task {context.experiment.task.name} has none of. Use `equal`."
        )
    name = one_teacher(context.experiment, settings.teacher, what)
    teacher = teachers.get(name)
    if not isinstance(teacher, Model):
        raise PreflightError(f"{what}, which a teacher's own training cannot.")
    if not same_tokens(student, teacher):
        raise PreflightError(
            f"{what}, and student and {called(name)} read different tokens: their perplexities cannot be compared. "
            "Give both the same `tokenizer`, or use `equal`."
        )
    held = _held_out(context, order.domains, settings.documents, what)

    def measured(model: Model) -> Losses:
        def measure() -> dict[str, float]:
            predictions = context.predictions(model, model.module, held)
            assert isinstance(predictions, TokenPredictions)
            return domain_losses(predictions, context.classes, order.domains)

        return measure

    return Mixing(settings, order, context.world, measured(student), measured(teacher))


def domain_losses(
    predictions: TokenPredictions, classes: tuple[str, ...], domains: tuple[str, ...]
) -> dict[str, float]:
    """Return the mean cross-entropy of each domain in nats per token; not a number where there is no token."""
    nats = predictions.scores.nats
    return {
        name: float(nats[predictions.domains == classes.index(name)].mean()) for name in domains
    }


def mixing_notes(mixing: Mixing, steps: int) -> list[str]:
    """Say what a mixture will do in a stage of so many steps."""
    settings, domains = mixing.settings, ", ".join(mixing.order.domains)
    if settings.name == "equal":
        return [f"draws equally from {domains}"]
    updates = (steps - 1) // settings.every
    notes = [
        f"draws from {domains} by how far the student is behind: {updates} updates, one every {settings.every} steps, "
        f"measured on at most {settings.documents} validation documents of each"
    ]
    if updates == 0:
        notes.append(
            f"the mixture never changes: the stage has {steps} steps, and it would after {settings.every}; lower "
            "`mixture.every`"
        )
    elif settings.every < SHORT:
        notes.append(f"updates every {settings.every} steps follow chance; hundreds are usual")
    return notes


def _held_out(context: Context, domains: tuple[str, ...], documents: int, what: str) -> Split:
    """Return the first validation documents of each domain; the same split for all stages of a run."""
    validation = context.splits.validation
    if validation is None:
        raise PreflightError(
            f"{what} of validation documents, and there are none. Set data.validation."
        )
    key = (domains, documents)
    if key not in context.held_out:
        parts = []
        missing = []
        for name in domains:
            own = (validation.labels == context.classes.index(name)).nonzero().flatten()
            parts.append(own[:documents])
            if not len(own):
                missing.append(name)
        if missing:
            raise PreflightError(
                f"{what} of validation documents, and there is none of {', '.join(missing)}. Set a larger "
                "data.validation."
            )
        context.held_out[key] = validation.subset(torch.cat(parts).sort().values)
    return context.held_out[key]


def _nowhere(**_: Any) -> None:
    """Write nothing."""
