"""Means, spreads and paired tests over seeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from understudy.report.measure import Measure
from understudy.report.run import BASELINE, Result, Role, RunData, role_of

METRICS = (
    "accuracy",
    "macro_f1",
    "nll",
    "ece",
    "agreement",
    "kl",
    "procrustes",
    "gram",
    "cka",
    "cosine_gap",
    "perplexity",
    "bits_per_byte",
    "exact_match",
    "rouge_l",
)
COSTS = (
    "parameters",
    "flops",
    "bytes",
    "latency_ms.1",
    "latency_ms.64",
    "train_seconds",
    "peak_memory_bytes",
    "steps",
    "samples",
    "tokens",
)
SIGNIFICANCE = 0.05
FEWEST_PAIRS = 3
"""From two pairs a small p-value rests on the assumed normal distribution alone; it is shown, not believed."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Values of one quantity over seeds.

    Attributes:
        mean: arithmetic mean.
        std: sample standard deviation (n - 1 below the line); None for a single value.
        values: the values themselves, in the order of the seeds.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """Return how many values there are."""
        return len(self.values)


@dataclass(frozen=True)
class PairedTest:
    """Two-sided paired t-test (Student 1908) of the differences first - second, seed by seed.

    Attributes:
        n: number of pairs.
        mean: mean difference.
        std: sample standard deviation of the differences.
        low, high: 95 per cent confidence interval of the mean difference; None like `p_value`.
        p_value: probability of a mean difference at least as far from 0 if there were none; None when all
            differences are equal, since t is not defined then.
    """

    n: int
    mean: float
    std: float
    low: float | None
    high: float | None
    p_value: float | None

    @property
    def significant(self) -> bool:
        """Tell whether the p-value is below 0.05, from at least three pairs."""
        return self.p_value is not None and self.p_value < SIGNIFICANCE and self.n >= FEWEST_PAIRS


@dataclass(frozen=True)
class Row:
    """One arm over its seeds.

    Attributes:
        arm: its name.
        role: teacher, baseline or student.
        seeds: the seeds that have a result.
        values: name of a metric or cost -> spread over the seeds that have it.
        difference: the run's main measure minus the baseline's, mean over the seeds both have; None for teacher and
            baseline.
        test: the paired test of that difference; None with fewer than two shared seeds.
    """

    arm: str
    role: Role
    seeds: tuple[int, ...]
    values: Mapping[str, Spread]
    difference: float | None = None
    test: PairedTest | None = None

    def mean(self, key: str) -> float | None:
        """Return the mean of a quantity, None when it was not measured."""
        found = self.values.get(key)
        return None if found is None else found.mean


@dataclass(frozen=True)
class Pair:
    """Two arms compared on the seeds that both have: `first` minus `second`."""

    first: str
    second: str
    seeds: tuple[int, ...]
    difference: float
    test: PairedTest | None


def spread(values: Iterable[float]) -> Spread | None:
    """Return mean and sample standard deviation; None when there are no values."""
    found = tuple(float(value) for value in values)
    if not found:
        return None
    mean = math.fsum(found) / len(found) if all(map(math.isfinite, found)) else sum(found)
    if len(found) < 2 or not math.isfinite(mean):
        return Spread(mean, None, found)
    squares = math.fsum((value - mean) ** 2 for value in found)
    return Spread(mean, math.sqrt(squares / (len(found) - 1)), found)


def paired_test(first: Mapping[int, float], second: Mapping[int, float]) -> PairedTest | None:
    """Test whether `first` and `second` (seed -> value) differ, on the seeds that both have.

    Returns:
        The test; None with fewer than two pairs, which say nothing about chance.
    """
    differences = spread(
        first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())
    )
    if differences is None or differences.std is None:
        return None
    n, mean, std = differences.n, differences.mean, differences.std
    # Differences that are equal but for rounding would give t of any size.
    if std <= 1e-12 * max(map(abs, [*first.values(), *second.values()]), default=0.0):
        return PairedTest(n, mean, 0.0, None, None, None)
    from scipy import stats

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
    with warnings.catch_warnings():
        # scipy warns of "catastrophic cancellation" for differences that hardly vary; the case of none is above.
        warnings.simplefilter("ignore", RuntimeWarning)
        p_value = float(stats.ttest_1samp(differences.values, 0.0).pvalue)
    return PairedTest(n, mean, std, mean - half, mean + half, p_value)


def by_seed(results: Iterable[Result], arm: str, key: str) -> dict[int, float]:
    """Return seed -> value of one quantity of one arm, where it was measured."""
    return {
        result.seed: value
        for result in results
        if result.arm == arm
        and result.seed is not None
        and (value := result.value(key)) is not None
    }


def summarise(run: RunData) -> list[Row]:
    """Return one row for each arm that has results: the teachers, the baseline, then the others in their order."""
    arms = [result.arm for result in run.results]
    teachers = [arm for arm in arms if role_of(arm) == "teacher"]
    order = dict.fromkeys([*teachers, BASELINE, *arms])
    rows = []
    for arm in order:
        own = run.of_arm(arm)
        if own:
            rows.append(_row(arm, own, run))
    return rows


def best_teacher(rows: Sequence[Row], measure: Measure) -> Row | None:
    """Return the teacher that is best by the measure, the first one where none has any; None without a teacher."""
    teachers = [row for row in rows if row.role == "teacher"]
    return max(teachers, key=lambda row: measure.rank(row.mean(measure.name)), default=None)


def compare_arms(run: RunData) -> list[Pair]:
    """Return the paired comparison of every two arms (teacher aside) that share seeds; later minus earlier arm."""
    results, key = run.results, run.measure.name
    arms = [row.arm for row in summarise(run) if row.role != "teacher"]
    pairs = []
    for index, second in enumerate(arms):
        for first in arms[index + 1 :]:
            pair = compare_values(
                first, by_seed(results, first, key), second, by_seed(results, second, key)
            )
            if pair is not None:
                pairs.append(pair)
    return pairs


def compare_values(
    first: str, first_values: Mapping[int, float], second: str, second_values: Mapping[int, float]
) -> Pair | None:
    """Compare two arms given as seed -> value; None when no seed is in both."""
    shared = sorted(first_values.keys() & second_values.keys())
    difference = spread(first_values[seed] - second_values[seed] for seed in shared)
    if difference is None:
        return None
    test = paired_test(first_values, second_values)
    return Pair(first, second, tuple(shared), difference.mean, test)


def _row(arm: str, own: Sequence[Result], run: RunData) -> Row:
    values, main = {}, run.measure.name
    for key in dict.fromkeys((*METRICS, main, *COSTS)):
        found = spread(value for result in own if (value := result.value(key)) is not None)
        if found is not None:
            values[key] = found
    seeds = tuple(result.seed for result in own if result.seed is not None)
    role = role_of(arm)
    if role != "student":
        return Row(arm, role, seeds, values)
    base = by_seed(run.results, BASELINE, main)
    pair = compare_values(arm, by_seed(run.results, arm, main), BASELINE, base)
    if pair is None:
        return Row(arm, role, seeds, values)
    return Row(arm, role, seeds, values, pair.difference, pair.test)
