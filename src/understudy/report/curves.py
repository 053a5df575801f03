"""Learning curves over seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from understudy.report.run import Member, RunData

MOST_POINTS = 400
"""A line on a page shows no more than this; longer ones are averaged over neighbouring points."""


@dataclass(frozen=True)
class Curve:
    """One quantity against the optimiser step, over seeds.

    Attributes:
        steps: optimiser steps since the member began.
        mean, low, high: mean, least and greatest over the seeds that have a value at that step.
        seeds: how many those are.
    """

    steps: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: tuple[int, ...]


def validation_curve(run: RunData, arm: str, metric: str) -> Curve | None:
    """Return a metric on the validation split while `arm` trained; None when it was not measured."""
    return _curve(
        (line.seed, line.position, line.metrics.get(metric))
        for line in run.epochs
        if line.arm == arm and line.split == "validation"
    )


def term_curves(run: RunData, arm: str) -> dict[str, Curve]:
    """Return term name -> its unweighted value while `arm` trained."""
    lines = [line for line in run.steps if line.arm == arm]
    names = dict.fromkeys(name for line in lines for name in line.terms)
    found = {
        name: _curve((line.seed, line.position, line.terms.get(name)) for line in lines)
        for name in names
    }
    return {name: curve for name, curve in found.items() if curve is not None}


def stage_starts(run: RunData, arm: str) -> list[tuple[str, int]]:
    """Return (stage, last step before it) for each stage of `arm` after the first, of its first seed."""
    starts: list[tuple[str, int]] = []
    stage, last, seed = None, 0, None
    for line in run.steps:
        if line.arm != arm or (seed is not None and line.seed != seed[0]):
            continue
        seed = (line.seed,)
        if stage is not None and line.stage != stage:
            starts.append((line.stage, last))
        stage, last = line.stage, line.position
    return starts


def last_validation(run: RunData) -> dict[Member, float]:
    """Return member -> the last value of the run's main measure on the validation split."""
    found: dict[Member, float] = {}
    for line in run.epochs:
        value = line.metrics.get(run.measure.name)
        if line.split == "validation" and value is not None:
            found[line.arm, line.seed] = value
    return found


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """Return the curve with at most `most` points: means of neighbours, least and greatest kept."""
    length = len(curve.steps)
    if length <= most:
        return curve
    width = math.ceil(length / most)
    groups = [slice(start, start + width) for start in range(0, length, width)]
    return Curve(
        steps=tuple(_mean(curve.steps[group]) for group in groups),
        mean=tuple(_mean(curve.mean[group]) for group in groups),
        low=tuple(min(curve.low[group]) for group in groups),
        high=tuple(max(curve.high[group]) for group in groups),
        seeds=tuple(max(curve.seeds[group]) for group in groups),
    )


def _curve(points: Iterable[tuple[int | None, int, float | None]]) -> Curve | None:
    by_step: defaultdict[int, dict[int | None, float]] = defaultdict(dict)
    for seed, step, value in points:
        if value is not None and math.isfinite(value):
            # A step that was repeated after a resume counts once, as it was done last.
            by_step[step][seed] = value
    if not by_step:
        return None
    steps = sorted(by_step)
    columns: Mapping[int, Sequence[float]] = {step: list(by_step[step].values()) for step in steps}
    return Curve(
        steps=tuple(float(step) for step in steps),
        mean=tuple(_mean(columns[step]) for step in steps),
        low=tuple(min(columns[step]) for step in steps),
        high=tuple(max(columns[step]) for step in steps),
        seeds=tuple(len(columns[step]) for step in steps),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
