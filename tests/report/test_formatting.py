"""Numbers as people read them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from understudy.report import formatting, spread
from understudy.report.columns import QUALITY, columns_of
from understudy.report.measure import ACCURACY, TOKEN_LIKELIHOOD
from understudy.report.run import RunData
from understudy.report.statistics import PairedTest

COLUMNS = {column.key: column for column in (*QUALITY, *columns_of(RunData(Path()), []).cost)}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.051, "+5.1"), (-0.0125, "−1.2"), (0.0, "±0.0"), (-0.0004, "±0.0"), (0.0006, "+0.1")],
)
def test_points_have_a_sign(value: float, text: str) -> None:
    assert formatting.change(ACCURACY.change, value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004, "p < 0.001"),
        (0.0123, "p = 0.012"),
        (0.0496, "p = 0.050"),
        (0.57, "p = 0.57"),
        (None, "p not defined"),
    ],
)
def test_p_values(value: float | None, text: str) -> None:
    assert formatting.p_value(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(272_474, "272 k"), (1_540, "1.54 k"), (999, "999"), (11_173_962, "11.2 M")]
)
def test_counts(value: float, text: str) -> None:
    assert formatting.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 B"), (78_488, "78.5 kB"), (612_000_000, "612 MB")]
)
def test_sizes(value: float, text: str) -> None:
    assert formatting.size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.84, "0.8 s"),
        (42.4, "42 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7_620, "2 h 07 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_cells() -> None:
    accuracy = COLUMNS["accuracy"]
    assert accuracy.text(spread([0.92, 0.94])) == "93.00 ± 1.41"
    assert accuracy.text(spread([0.92])) == "92.00"
    assert accuracy.text(None) == "–"
    assert COLUMNS["kl"].text(spread([math.inf])) == "∞"
    assert COLUMNS["flops"].text(spread([6_811_850, 6_811_850])) == "6.81 M"
    assert COLUMNS["parameters"].one(272_474) == "272 k"


def test_intervals() -> None:
    test = PairedTest(3, 0.05, 0.01, 0.029, 0.0717, 0.01)
    assert formatting.interval(ACCURACY.change, test) == "+2.9 to +7.2"
    assert formatting.interval(ACCURACY.change, test, more=1) == "+2.90 to +7.17"
    assert formatting.interval(TOKEN_LIKELIHOOD.change, test) == "+0.03 to +0.07"
    none = PairedTest(3, 0.05, 0.0, None, None, None)
    assert formatting.interval(ACCURACY.change, none) == "no interval"
    assert formatting.chance(test) == "p = 0.010" and formatting.chance(None) == "one seed"


def test_ratios() -> None:
    assert formatting.ratio(272_474, 19_322) == "14×"
    assert formatting.ratio(2.1, 0.62) == "3.4×"
