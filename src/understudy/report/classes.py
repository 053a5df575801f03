"""The main measure class by class, or domain by domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.report import formatting
from understudy.report.figures import Entry
from understudy.report.figures.classes import class_measure
from understudy.report.formatting import NOTHING
from understudy.report.run import RunData
from understudy.report.statistics import best_teacher


@dataclass(frozen=True)
class ClassCell:
    """One arm in one class: mean over seeds, and how it stands to the teacher ("" where that is not shown)."""

    text: str
    gap: str


@dataclass(frozen=True)
class ClassLine:
    """One class: its name, how many samples (tokens) it has, a cell for each arm."""

    name: str
    count: int
    cells: tuple[ClassCell, ...]


def class_lines(run: RunData, entries: Sequence[Entry]) -> list[ClassLine]:
    """Return a line for every class; in a language task cells have the multiple of the best teacher's perplexity."""
    measure = class_measure(run)
    teacher = best_teacher([entry.row for entry in entries], measure) if entries else None
    counts = next((result.class_count for result in run.results if result.class_count), ())
    lines = []
    for index, count in enumerate(counts):
        means = [_mean(entry, measure.level_name, index) for entry in entries]
        reference = next(
            (mean for entry, mean in zip(entries, means, strict=True) if entry.row is teacher), None
        )
        cells = []
        for entry, mean in zip(entries, means, strict=True):
            text = NOTHING
            if mean is not None:
                text = formatting.fixed(mean * measure.level.scale, measure.level.decimals)
            shown = measure.logarithmic and entry.row.role != "teacher"
            cells.append(ClassCell(text, _multiple(mean, reference) if shown else ""))
        name = run.classes[index] if index < len(run.classes) else str(index)
        lines.append(ClassLine(name, count, tuple(cells)))
    return lines


def _mean(entry: Entry, name: str, index: int) -> float | None:
    columns = [result.per_class.get(name, ()) for result in entry.results]
    found = [column[index] for column in columns if index < len(column)]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if values else None


def _multiple(value: float | None, reference: float | None) -> str:
    """Return "1.34×"; "" where one is missing or beyond all bounds."""
    if value is None or not reference or not math.isfinite(value / reference):
        return ""
    return f"{value / reference:.2f}×"
