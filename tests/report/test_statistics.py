"""Means, spreads and paired tests over seeds."""

from __future__ import annotations

import math
import statistics as plain
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from understudy.report import paired_test, read_run, spread, summarise
from understudy.report.statistics import Pair, compare_arms, compare_values

MakeRun = Callable[..., Path]
LinesOf = Callable[[Path, str], list[dict[str, Any]]]
numbers = st.floats(-1, 1).map(lambda value: round(value, 4))


@given(st.lists(numbers, min_size=2, max_size=8))
def test_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    found = spread(values)
    assert found is not None and found.std is not None
    assert found.mean == pytest.approx(plain.fmean(values), abs=1e-12)
    assert found.std == pytest.approx(plain.stdev(values), abs=1e-12)
    assert found.n == len(values) and found.values == tuple(values)


def test_spread_of_little() -> None:
    assert spread([]) is None
    one = spread([0.5])
    assert one is not None and (one.mean, one.std) == (0.5, None)
    endless = spread([1.0, math.inf])
    assert endless is not None and (endless.mean, endless.std) == (math.inf, None)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8))
def test_paired_test_equals_scipy(pairs: list[tuple[float, float]]) -> None:
    first = {seed: pair[0] for seed, pair in enumerate(pairs)}
    second = {seed: pair[1] for seed, pair in enumerate(pairs)}
    found = paired_test(first, second)
    differences = [a - b for a, b in pairs]
    assert found is not None and found.n == len(pairs)
    assert found.mean == pytest.approx(plain.fmean(differences), abs=1e-12)
    if plain.stdev(differences) < 1e-9:
        assert found.p_value is None and found.low is None and not found.significant
        return
    expected = stats.ttest_rel(list(first.values()), list(second.values()))
    low, high = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.significant == (expected.pvalue < 0.05 and found.n >= 3)


def test_only_shared_seeds_are_paired() -> None:
    first, second = {0: 0.9, 1: 0.8, 5: 0.1}, {1: 0.7, 0: 0.6, 9: 1.0}
    found = paired_test(first, second)
    assert found is not None and found.n == 2
    assert found.mean == pytest.approx(0.2)
    assert paired_test({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.5}) is None
    assert paired_test({}, {}) is None


def test_equal_differences_have_no_p_value() -> None:
    """0.3 - 0.2 and 0.2 - 0.1 differ by rounding alone; that must not make t enormous."""
    found = paired_test({0: 0.3, 1: 0.2, 2: 0.9}, {0: 0.2, 1: 0.1, 2: 0.8})
    assert found is not None and found.p_value is None and found.high is None
    assert found.mean == pytest.approx(0.1)
    pair = compare_values("a", {0: 0.3}, "b", {0: 0.2})
    assert pair == Pair("a", "b", (0,), pytest.approx(0.1), None)


def test_rows_equal_the_file(make_run: MakeRun, metrics_of: LinesOf) -> None:
    folder = make_run()
    rows = summarise(read_run(folder))
    assert [(row.arm, row.role) for row in rows] == [
        ("teacher", "teacher"),
        ("baseline", "baseline"),
        ("kd", "student"),
        ("fitnet", "student"),
    ]
    written = metrics_of(folder, "result")
    for row in rows:
        own = [line for line in written if line["arm"] == row.arm]
        for key in ("accuracy", "macro_f1", "nll", "ece", "agreement", "kl"):
            values = [line["metrics"][key] for line in own if line["metrics"][key] is not None]
            assert (key in row.values) == bool(values)
            assert row.mean(key) == (pytest.approx(plain.fmean(values)) if values else None)
        assert row.mean("latency_ms.1") == pytest.approx(
            plain.fmean(line["cost"]["latency_ms"]["1"] for line in own)
        )
    base, kd = (
        [line["metrics"]["accuracy"] for line in written if line["arm"] == arm]
        for arm in ("baseline", "kd")
    )
    assert rows[2].test is not None and rows[2].test.n == 3
    assert rows[2].test.p_value == pytest.approx(stats.ttest_rel(kd, base).pvalue)
    assert rows[2].difference == pytest.approx(plain.fmean(kd) - plain.fmean(base))
    assert rows[0].difference is rows[1].difference is None
    assert rows[0].seeds == () and rows[1].seeds == (0, 1, 2)


def test_one_seed_gives_a_difference_but_no_test(make_run: MakeRun) -> None:
    rows = summarise(read_run(make_run(seeds=[7])))
    assert rows[2].difference is not None and rows[2].test is None
    assert rows[2].values["accuracy"].std is None


def test_every_two_arms_are_compared(make_run: MakeRun) -> None:
    pairs = compare_arms(read_run(make_run()))
    assert [(pair.first, pair.second) for pair in pairs] == [
        ("kd", "baseline"),
        ("fitnet", "baseline"),
        ("fitnet", "kd"),
    ]
    assert pairs[2].difference == pytest.approx(pairs[1].difference - pairs[0].difference)


def test_the_report_imports_no_torch_and_nothing_heavy() -> None:
    code = (
        "import sys, understudy.report; "
        "print([name for name in ('torch', 'plotly', 'scipy', 'rich', 'jinja2') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
