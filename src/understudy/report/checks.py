"""What a reader should know before believing the numbers of a run."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.report import formatting
from understudy.report.run import BASELINE, TEACHER, RunData
from understudy.report.statistics import Row

COLLAPSE = 0.2
"""A seed this far (as a fraction of the samples) below the median of its arm is pointed out."""
BUDGET_TOLERANCE = 0.01


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
    found += _unequal_budgets([row for row in rows if row.role != "teacher"])
    found += [
        f"{row.arm} has results for the seeds {_listed(row.seeds)}, the baseline for "
        f"{_listed(by_arm[BASELINE].seeds)}; only shared seeds are compared."
        for row in students
        if BASELINE in by_arm and row.seeds != by_arm[BASELINE].seeds
    ]
    found += [sentence for row in rows for sentence in _collapsed(row)]
    seen = sorted({line.split for line in run.epochs if line.split != "validation"})
    if seen:
        found.append(
            f"During training this run was measured on {_listed(seen)}, not only on the validation split."
        )
    return found


def _teacher(run: RunData, teacher: Row, baseline: Row | None) -> list[str]:
    accuracy = teacher.mean("accuracy")
    base = baseline.mean("accuracy") if baseline is not None else None
    called = "teacher" if teacher.arm == TEACHER else f"teacher '{teacher.arm.partition('.')[2]}'"
    if accuracy is None:
        return [
            f"The {called}'s classifier was not trained: it has no accuracy, and no student is compared with its "
            "answers."
        ]
    if run.classes and accuracy <= 1 / len(run.classes):
        return [
            f"The {called} is no better than guessing among {len(run.classes)} classes "
            f"({accuracy:.1%} of the test samples)."
        ]
    if base is not None and accuracy <= base:
        return [
            f"The {called} ({accuracy:.1%}) is no better than the student without it ({base:.1%})."
        ]
    return []


def _unequal_budgets(rows: Sequence[Row]) -> list[str]:
    found = []
    for key, unit in (("steps", "optimiser steps"), ("samples", "training samples")):
        means = {row.arm: mean for row in rows if (mean := row.mean(key)) is not None}
        if means and max(means.values()) > min(means.values()) * (1 + BUDGET_TOLERANCE):
            each = ", ".join(f"{arm} {formatting.count(mean)}" for arm, mean in means.items())
            found.append(f"The arms did not get the same number of {unit}: {each}.")
    return found


def _collapsed(row: Row) -> list[str]:
    spread = row.values.get("accuracy")
    if spread is None or spread.n < 2 or len(row.seeds) != spread.n:
        return []
    median = sorted(spread.values)[spread.n // 2]
    return [
        f"{row.arm} with seed {seed} ended at {value:.1%}, far below its other seeds. Its mean includes it."
        for seed, value in zip(row.seeds, spread.values, strict=True)
        if median - value > COLLAPSE
    ]


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "none"
