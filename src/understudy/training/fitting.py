"""Fitting: methods learn from passes of the teacher before a stage trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from understudy import seeding
from understudy.data.source import Split
from understudy.data.views import Views
from understudy.methods import Method
from understudy.models.model import Model
from understudy.teachers.features import Features
from understudy.teachers.listening import heard
from understudy.teachers.study import Mode, Study
from understudy.teachers.together import Together

if TYPE_CHECKING:
    from understudy.training.context import Context

FITTED = ".fitted"
"""The folder, beside the run directories, of what was fitted."""


def _go_on() -> None:
    """Never stop."""


@dataclass(frozen=True)
class Fitting:
    """How the methods of a stage are fitted.

    Attributes:
        mode: "real", "provisional" (from an example) or "restoring" (a checkpoint follows); see `Study`.
        measure: whether a provisional fit also measures what the real one would cost.
        stop: called between two batches; raises when the run is to stop.
    """

    mode: Mode = "provisional"
    measure: bool = False
    stop: Callable[[], None] = _go_on


PROVISIONAL = Fitting()
"""From an example only."""


def make_study(
    context: Context, fitting: Fitting, teachers: Mapping[str, Model], split: Split, views: Views
) -> Study:
    """Return what the methods of a stage are fitted to."""
    settings = context.experiment.settings
    return Study(
        split=split,
        teachers=teachers,
        classes=context.classes,
        task=context.experiment.task,
        device=context.world.device,
        views=views,
        folder=context.cache,
        mode=fitting.mode,
        batch_size=settings.evaluation_batch_size,
        workers=settings.workers,
        together=Together(context.world, fitting.stop),
        measure=fitting.measure,
    )


def fit_methods(study: Study, methods: Sequence[Method], seed: int, device: torch.device) -> None:
    """Fit what each method fits to the teachers that it listens to, in the stage's order."""
    whole = study
    for number, method in enumerate(methods):
        if not method.needs_study:
            continue
        names = heard(method.hears, list(whole.teachers))
        study = whole
        if len(names) < len(whole.teachers):
            study = dataclasses.replace(
                whole, teachers={name: whole.teachers[name] for name in names}
            )
        study.method = method.name
        study.seed = seeding.derive(seed, "method", number, method.name)
        study.guessed = False
        before = _outside(method)
        with seeding.isolated(seed, "fit", number, method.name), torch.no_grad():
            if method.standardised is not None:
                method.standardised.fit(study)
            if method.fits:
                method.fit(study)
            if study.guessed and _differ(before, _outside(method)):
                # A checkpoint does not bring back what lies outside of parameters and buffers.
                method.fit(dataclasses.replace(study, mode="real"))
        method.to(device)


def _outside(method: Method) -> dict[tuple[str, str], Any]:
    """Return what a method and its modules hold beside parameters, buffers and features."""
    own = {"_parameters", "_buffers", "_modules"}
    return {
        (path, name): value
        for path, module in method.named_modules()
        for name, value in vars(module).items()
        if name not in own and not isinstance(value, Features)
    }


def _differ(before: dict[tuple[str, str], Any], after: dict[tuple[str, str], Any]) -> bool:
    return before.keys() != after.keys() or any(
        after[place] is not before[place] for place in after
    )


def fit_lines(study: Study) -> list[dict[str, Any]]:
    """Return what was fitted, for a line of metrics."""
    return [
        {
            "method": note.method,
            "what": note.what,
            "samples": note.samples,
            "bytes": note.size,
            "seconds": note.seconds,
            "found": note.found,
        }
        for note in study.notes
    ]
