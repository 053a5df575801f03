"""What a reader should know before believing the numbers of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from understudy.report import formatting
from understudy.report.measure import ACCURACY, TOKEN_LIKELIHOOD, Measure, Words
from understudy.report.run import BASELINE, TEACHER, RunData
from understudy.report.statistics import Row

BUDGET_TOLERANCE = 0.01


def budgets(words: Words) -> list[tuple[str, str]]:
    """Return what every arm should get the same of: the name of the cost, and what it is called."""
    return [
        ("steps", "optimiser steps"),
        ("samples", f"training {words.samples}"),
        ("tokens", "training tokens"),
    ]


def warnings(run: RunData, rows: Sequence[Row]) -> list[str]:
    """Return one sentence for each thing that makes the comparison less than fair, or not yet whole."""
    by_arm = {row.arm: row for row in rows}
    students = [row for row in rows if row.role == "student"]
    found: list[str] = []
    if rows and BASELINE not in by_arm and BASELINE not in run.arms:
        found.append(
            "The student was not trained without a teacher, so what the teacher adds is not known."
        )
    for row in rows:
        if row.role == "teacher":
            found += _teacher(run, row, by_arm.get(BASELINE))
    found += _unequal_budgets([row for row in rows if row.role != "teacher"], run.words)
    found += [
        f"{row.arm} has results for the seeds {_listed(row.seeds)}, the baseline for "
        f"{_listed(by_arm[BASELINE].seeds)}; only shared seeds are compared."
        for row in students
        if BASELINE in by_arm and row.seeds != by_arm[BASELINE].seeds
    ]
    found += [sentence for row in rows for sentence in _collapsed(row, run.measure)]
    seen = sorted({line.split for line in run.epochs if line.split != "validation"})
    if seen:
        found.append(
            f"During training this run was measured on {_listed(seen)}, not only on the validation split."
        )
    return found


def _teacher(run: RunData, teacher: Row, baseline: Row | None) -> list[str]:
    measure = run.measure
    own = teacher.mean(measure.name)
    base = baseline.mean(measure.name) if baseline is not None else None
    called = "teacher" if teacher.arm == TEACHER else f"teacher '{teacher.arm.partition('.')[2]}'"
    if own is None:
        return [
            f"The {called}'s {run.words.head} was not trained: it has no {measure.level_noun}, and no student is "
            "compared with its answers."
        ]
    guess = _no_better_than_chance(run, own)
    if guess:
        return [f"The {called} is no better than {guess}."]
    if base is not None and not measure.improves(own - base):
        return [
            f"The {called} ({_shown(measure, own)}) is no better than the student without it "
            f"({_shown(measure, base)})."
        ]
    return []


def _no_better_than_chance(run: RunData, own: float) -> str:
    """Return what a teacher with this value of the main measure is not better than; "" where it is, or nobody knows."""
    if run.measure == ACCURACY and not run.words.language:
        if run.classes and own <= 1 / len(run.classes):
            return f"guessing among {len(run.classes)} classes ({own:.1%} of the test samples)"
    elif run.measure == TOKEN_LIKELIHOOD and run.vocabulary and own >= math.log(run.vocabulary):
        return (
            f"guessing among the {run.vocabulary:,} tokens of its vocabulary (NLL {own:.2f} nats, "
            f"a guess {math.log(run.vocabulary):.2f})"
        )
    return ""


def _shown(measure: Measure, value: float) -> str:
    if measure == ACCURACY:
        return f"{value:.1%}"
    return f"{measure.noun} {value:.3f}"


def _unequal_budgets(rows: Sequence[Row], words: Words) -> list[str]:
    found = []
    for key, unit in budgets(words):
        means = {row.arm: mean for row in rows if (mean := row.mean(key)) is not None}
        if means and max(means.values()) > min(means.values()) * (1 + BUDGET_TOLERANCE):
            each = ", ".join(f"{arm} {formatting.count(mean)}" for arm, mean in means.items())
            found.append(f"The arms did not get the same number of {unit}: {each}.")
    return found


def _collapsed(row: Row, measure: Measure) -> list[str]:
    spread, limit = row.values.get(measure.name), measure.collapse
    if limit is None or spread is None or spread.n < 2 or len(row.seeds) != spread.n:
        return []
    median = sorted(spread.values)[spread.n // 2]
    far = "far below" if measure.better == "higher" else "far above"
    return [
        f"{row.arm} with seed {seed} ended at {_shown(measure, value)}, {far} its other seeds. Its mean includes it."
        for seed, value in zip(row.seeds, spread.values, strict=True)
        if abs(value - median) > limit and not measure.improves(value - median)
    ]


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "none"
