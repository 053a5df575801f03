"""Whether distillation helped, and what its gain goes with: tests over the cells of a study.

A cell is one pair of teacher and student under one method. The statistics are textbook ones, given as small functions,
so that what was tested, on how many cells and with which correction stands in the code that reports it. Cells that
share a teacher or a student are not independent, which every p-value here assumes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from understudy.errors import DataError

FEWEST_CELLS = 3


class Outcome(NamedTuple):
    """A statistic with its p-value; both None where it is not defined (values that do not vary)."""

    statistic: float | None
    p_value: float | None
    n: int


class Cell(NamedTuple):
    """What one run reached: its teacher, student, method and temperature, the score, and on which task and seed."""

    teacher: str
    student: str
    method: str
    temperature: float
    score: float
    task: str = ""
    seed: int = 0


class Interval(NamedTuple):
    """A confidence interval of a mean."""

    low: float
    high: float


def mean_above_zero(values: Sequence[float]) -> Outcome:
    """One-sample t-test of whether the mean is above 0, one-sided, with n - 1 degrees of freedom.

    Raises:
        DataError: there are fewer than 3 values, or one is not finite.
    """
    found = _numbers(values, "values")
    if np.ptp(found) == 0:
        return Outcome(None, None, len(found))
    from scipy import stats

    result = stats.ttest_1samp(found, 0.0, alternative="greater")
    return Outcome(float(result.statistic), float(result.pvalue), len(found))


def one_way_anova(groups: Mapping[str, Sequence[float]]) -> Outcome:
    """F-test of whether the means of several groups are equal.

    Args:
        groups: name -> values, such as method -> improvements.

    Raises:
        DataError: there are fewer than 2 groups or 3 values, no more values than groups, or one is not finite.
    """
    found = {name: np.asarray(values, dtype=np.float64) for name, values in groups.items()}
    together = _numbers([value for values in groups.values() for value in values], "values")
    if len(found) < 2 or any(len(values) == 0 for values in found.values()):
        raise DataError(
            f"An analysis of variance needs at least 2 groups with values; there are "
            f"{ {name: len(values) for name, values in found.items()} }."
        )
    if len(together) <= len(found):
        raise DataError(
            f"{len(together)} values in {len(found)} groups leave no variance within groups to compare with."
        )
    if all(np.ptp(values) == 0 for values in found.values()):
        return Outcome(None, None, len(together))
    from scipy import stats

    result = stats.f_oneway(*found.values())
    return Outcome(float(result.statistic), float(result.pvalue), len(together))


def spearman(first: Sequence[float], second: Sequence[float]) -> Outcome:
    """Rank correlation with its two-sided p-value (from t with n - 2 degrees of freedom); equal values share a rank.

    Raises:
        DataError: the lengths differ, there are fewer than 3 pairs, or a value is not finite.
    """
    if len(first) != len(second):
        raise DataError(f"There are {len(first)} and {len(second)} values to correlate.")
    ours, theirs = _numbers(first, "first values"), _numbers(second, "second values")
    if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return Outcome(None, None, len(ours))
    from scipy import stats

    result = stats.spearmanr(ours, theirs)
    return Outcome(float(result.statistic), float(result.pvalue), len(ours))


def share_of_variance(groups: Mapping[str, Sequence[float]]) -> float | None:
    """Return which share of the variance lies between groups, in [0, 1] (eta squared); None if all values are equal.

    The size of what `one_way_anova` tests.

    Raises:
        DataError: there are fewer than 3 values, or one is not finite.
    """
    found = _numbers([value for values in groups.values() for value in values], "values")
    total = float(np.square(found - found.mean()).sum())
    if np.ptp(found) == 0:
        return None
    between = sum(
        len(values) * (float(np.mean(values)) - found.mean()) ** 2
        for values in groups.values()
        if len(values)
    )
    return float(between / total)


def effect_size(values: Sequence[float]) -> float | None:
    """Return the mean in standard deviations (n - 1 below the line): Cohen's d of one sample; None if all are equal.

    Raises:
        DataError: there are fewer than 3 values, or one is not finite.
    """
    found = _numbers(values, "values")
    return None if np.ptp(found) == 0 else float(found.mean() / found.std(ddof=1))


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the percentile interval of the mean over resampled cells.

    Args:
        values: one number per cell.
        confidence: in (0, 1).
        resamples: how often n of the n values are drawn with replacement.
        seed: of the generator of its own that draws them.

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979.

    Raises:
        DataError: there are fewer than 3 values, one is not finite, or the confidence is out of its range.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise DataError(
            f"confidence is {confidence} and resamples {resamples}; they must be in (0, 1) and at least 1."
        )
    found = _numbers(values, "values")
    generator = np.random.default_rng(seed)
    drawn = found[generator.integers(len(found), size=(resamples, len(found)))].mean(axis=1)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for their number, so that the chance of any false alarm stays at the level chosen.

    The k-th smallest of m is multiplied by m - k + 1, never falls below a smaller one's, and is at most 1.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.

    Raises:
        DataError: a p-value is not in [0, 1].
    """
    ordered = _ordered(p_values)
    found, highest = {}, 0.0
    for place, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - place) * p_values[name]))
        found[name] = highest
    return {name: found[name] for name in p_values}


def benjamini_hochberg(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected so that the expected share of false ones among the findings stays at the level chosen.

    The k-th smallest of m is multiplied by m / k and never above a larger one's.

    Source: Benjamini and Hochberg, "Controlling the False Discovery Rate", 1995.

    Raises:
        DataError: a p-value is not in [0, 1].
    """
    ordered = _ordered(p_values)
    found, lowest = {}, 1.0
    for place in range(len(ordered), 0, -1):
        name = ordered[place - 1]
        lowest = min(lowest, p_values[name] * len(ordered) / place)
        found[name] = lowest
    return {name: found[name] for name in p_values}


def over_seeds(cells: Iterable[Cell]) -> list[Cell]:
    """Return one cell with the mean score for all that differ in the seed only; its seed is the first one's.

    Raises:
        DataError: two cells are of the same run.
    """
    runs: dict[tuple[str, str, str, float, str], list[Cell]] = {}
    for cell in cells:
        same = runs.setdefault((*cell[:4], cell.task), [])
        if any(cell.seed == other.seed for other in same):
            raise DataError(f"Two cells are of {_named(cell)} with seed {cell.seed}.")
        same.append(cell)
    return [
        same[0]._replace(score=math.fsum(cell.score for cell in same) / len(same))
        for same in runs.values()
    ]


def at_temperature(cells: Iterable[Cell], temperature: float | None = None) -> list[Cell]:
    """Return one cell for each task, teacher, student and method.

    Args:
        cells: as many as there were runs, one seed of each (`over_seeds`).
        temperature: keep the runs at this one. None takes the best score over temperatures, as the study does: an
            optimistic choice, which also hides runs that collapsed (see `collapsed`).

    Raises:
        DataError: two cells are of the same run, a score is not finite, or a pair has none at the temperature.
    """
    runs: dict[tuple[str, str, str, str], list[Cell]] = {}
    for cell in cells:
        if not math.isfinite(cell.score):
            raise DataError(f"{_named(cell)} has the score {cell.score}.")
        same = runs.setdefault((*cell[:3], cell.task), [])
        if any(cell.temperature == other.temperature for other in same):
            raise DataError(f"Two cells are of {_named(cell)}; take the mean over seeds first.")
        same.append(cell)
    found, missing = [], []
    for same in runs.values():
        left = [cell for cell in same if temperature in (None, cell.temperature)]
        if left:
            found.append(max(left, key=lambda cell: cell.score))
        else:
            missing.append(same[0])
    if missing:
        raise DataError(
            f"{len(missing)} pairs have no run at temperature {temperature}, the first being that of "
            f"{_named(missing[0])}."
        )
    return found


def improvements(cells: Iterable[Cell], without_teacher: Mapping[str, float]) -> list[float]:
    """Return each cell's score minus that of the same student trained without a teacher.

    Args:
        cells: of one task.
        without_teacher: student -> score, in the unit of the cells.

    Raises:
        DataError: a student has no score without a teacher, or there are several tasks.
    """
    found: list[float] = []
    tasks: set[str] = set()
    for cell in cells:
        tasks.add(cell.task)
        if len(tasks) > 1:
            raise DataError(f"The cells are of the tasks {sorted(tasks)}; compare one at a time.")
        if cell.student not in without_teacher:
            raise DataError(
                f"There is no score of {cell.student} without a teacher; there are scores of {sorted(without_teacher)}."
            )
        found.append(cell.score - without_teacher[cell.student])
    return found


def collapsed(
    cells: Iterable[Cell], without_teacher: Mapping[str, float], drop: float = 20.0
) -> list[Cell]:
    """Return the cells that lie more than `drop` below the student without a teacher: runs that failed.

    A table should name them: averaged in silently they hide the rest, and dropped silently they flatter it.

    Args:
        cells: all runs of one task, before `at_temperature`.
        without_teacher: student -> score, in the unit of the cells.
        drop: in the same unit; 20 is for percentage points.

    Raises:
        DataError: a student has no score without a teacher, or there are several tasks.
    """
    cells = list(cells)
    gains = improvements(cells, without_teacher)
    return [cell for cell, gain in zip(cells, gains, strict=True) if gain < -drop]


def _named(cell: Cell) -> str:
    where = f" on {cell.task}" if cell.task else ""
    return f"{cell.student} from {cell.teacher} by {cell.method} at {cell.temperature}{where}"


def _numbers(values: Sequence[float], what: str) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) < FEWEST_CELLS:
        raise DataError(
            f"There are {found.size} {what} of shape {found.shape}; a test needs a list of at least {FEWEST_CELLS}."
        )
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        raise DataError(
            f"Number {wrong[0]} of the {what} is {found[wrong[0]]}; all must be finite."
        )
    return found


def _ordered(p_values: Mapping[str, float]) -> list[str]:
    for name, value in p_values.items():
        if not 0 <= value <= 1:
            raise DataError(f"The p-value of '{name}' is {value}; it must lie between 0 and 1.")
    return sorted(p_values, key=lambda name: p_values[name])
