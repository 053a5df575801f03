"""What a store of the teacher's outputs would cost and save, or costs and saves, for one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from understudy.models.model import Model
from understudy.tasks import LanguageModelling
from understudy.teachers.store.codecs import Dense, Sparse, record_bytes
from understudy.teachers.store.manifest import TRAIN
from understudy.teachers.stored import StoredModel
from understudy.training.context import Context
from understudy.training.experiment import place_of
from understudy.training.splits import DATA_SEED
from understudy.training.token_plan import token_sizes

EXAMPLE_VIEWS = 8
"""The number of views that a plan reckons with where the recipe has none."""
KEPT = 16
"""Logits kept in the smallest forms that a plan shows; fewer where there are few classes."""


@dataclass(frozen=True)
class TeacherUse:
    """How one stage uses the teacher.

    Attributes:
        rows: samples that the teacher would see in the stage's steps, over all of them.
        seconds: time of the teacher for one sample, from one measured batch; None when it was not run.
        features: tap -> shape of what is asked for beside the logits.
    """

    rows: int
    seconds: float | None
    features: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class StorePlan:
    """What a store costs and saves.

    Attributes:
        views: views of each sample that it holds.
        samples: training samples.
        sizes: form -> bytes.
        label_seconds: time of the teacher to fill it, one pass over every view; None when not measured.
        live_seconds: time of the teacher in the run's steps without it; None when not measured.
        used: whether the run reads one.
        sentence: what follows.
        tokens: of a language model: predicted tokens over all views, counted on some documents; None for others.
    """

    views: int
    samples: int
    sizes: Mapping[str, int]
    label_seconds: float | None
    live_seconds: float | None
    used: bool
    sentence: str
    tokens: int | None = None


def plan_store(
    context: Context, name: str, teacher: Model | StoredModel, uses: Sequence[TeacherUse]
) -> StorePlan | None:
    """Reckon what a store costs and saves; None where no stage asks for the teacher.

    Args:
        context: the run's data and settings.
        name: the teacher's name.
        teacher: one of its teachers.
        uses: the stages of all arms, for one seed, that ask for the teacher.
    """
    if not uses:
        return None
    views = context.views(DATA_SEED)
    samples = len(context.splits.train)
    if isinstance(teacher, StoredModel):
        manifest = teacher.store.manifest
        sentence = f"The teacher's outputs come from the store {teacher.store.place}; no teacher is in memory."
        sizes = {"stored": manifest.bytes}
        tokens = manifest.parts[TRAIN].rows if manifest.ragged else None
        return StorePlan(teacher.store.views, samples, sizes, None, None, True, sentence, tokens)
    endless = views.stochastic and views.count is None
    count = 1 if not views.stochastic else views.count or EXAMPLE_VIEWS
    seeds = len(context.experiment.settings.seeds)
    seconds = max((use.seconds for use in uses if use.seconds is not None), default=None)
    label = live = None
    if seconds is not None:
        label = seconds * samples * count
        live = seeds * sum(use.rows * (use.seconds or 0.0) for use in uses)
    rows = seeds * sum(use.rows for use in uses)
    sentence = _sentence(rows / max(1, samples), count, endless, label, live, place_of(name))
    if isinstance(context.experiment.task, LanguageModelling):
        taps = sorted({tap for use in uses for tap in use.features})
        if taps:
            sentence = (
                f"A store cannot serve this run: it holds what a language model predicts, and methods read the "
                f"teacher's features ({', '.join(taps)})."
            )
        tokens, found = token_sizes(context, teacher, count)
        return StorePlan(count, samples, found, label, live, False, sentence, tokens)
    sizes = _sizes(len(context.classes), uses, samples * count)
    return StorePlan(count, samples, sizes, label, live, False, sentence)


def _sizes(classes: int, uses: Sequence[TeacherUse], rows: int) -> dict[str, int]:
    taps = {tap: shape for use in uses for tap, shape in use.features.items()}
    kept = min(KEPT, math.ceil(classes / 2))
    found = {}
    for name, logits, dtype in (
        ("float32", Dense((classes,), "float32"), "float32"),
        ("float16", Dense((classes,), "float16"), "float16"),
        (f"top {kept} in float16", Sparse(classes, kept, "float16", (1.0, 4.0)), "float16"),
        (f"top {kept} in int8", Sparse(classes, kept, "int8", (1.0, 4.0)), "int8"),
    ):
        row = record_bytes(logits) + sum(
            record_bytes(Dense(shape, dtype)) for shape in taps.values()
        )
        found[name] = rows * row
    return found


def _sentence(
    passes: float,
    count: int,
    endless: bool,
    label: float | None,
    live: float | None,
    place: str,
) -> str:
    """Say whether a store pays on this device: the teacher has to see every different view once.

    Args:
        passes: how often the teacher would see each sample over all members of the run.
        count: how many views of it the store would hold.
        endless: whether the recipe shows a new view on every pass.
        label: seconds to fill the store.
        live: seconds of the teacher without it.
        place: where a recipe says things about the teacher.
    """
    gain = ""
    if label is not None and live is not None:
        gain = f" The teacher would take {label:.3g} s instead of {live:.3g} s."
    if endless:
        use = (
            f" With data.views={count} a store would hold {count} views of each, for {passes:.3g} passes over the "
            f"data.{gain}"
            if passes > count
            else f" Nor would a fixed number pay: there are {passes:.3g} passes over the data only."
        )
        return (
            "A store cannot pay with `views: null`: every pass shows every sample in a new view, and the teacher has "
            f"to see each of them once.{use}"
        )
    if passes <= count:
        return (
            f"A store does not pay for this run alone: it has {passes:.3g} passes over the data, and filling a store "
            f"takes {count}. It would for more seeds, arms or runs, or when another machine labels."
        )
    return (
        f"A store would pay: {passes:.3g} passes over the data look at {count} views of each sample.{gain} Fill it "
        f"with `understudy label RECIPE {place}.store=PATH`."
    )
