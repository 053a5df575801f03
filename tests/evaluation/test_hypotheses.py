"""The tests of the fidelity study against its notebooks, and their own laws."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from understudy.errors import DataError
from understudy.evaluation.hypotheses import (
    Cell,
    Outcome,
    at_temperature,
    benjamini_hochberg,
    bootstrap_mean,
    collapsed,
    effect_size,
    holm,
    improvements,
    mean_above_zero,
    one_way_anova,
    over_seeds,
    share_of_variance,
    spearman,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "fidelity"


@pytest.fixture(scope="module")
def study() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "statistics_math.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def agrees(found: Outcome, expected: np.ndarray) -> None:
    assert (found.statistic, found.p_value) == pytest.approx(tuple(expected), rel=1e-9, abs=1e-12)
    assert found.n == 33


def test_the_study_of_mathematics(study: dict[str, np.ndarray]) -> None:
    names = ("SeqKD", "RevKD", "GKD")
    assert len(study["tasks"]) == 7
    for task in range(7):
        gains = study["improvement"][:, task]
        agrees(mean_above_zero(gains), study["ttest_greater"][task])
        groups = {name: gains[study["method"] == place] for place, name in enumerate(names)}
        agrees(one_way_anova(groups), study["anova"][task])
        for key, other in (
            ("spearman_vs_teacher", study["teacher_score"][:, task]),
            ("spearman_vs_size", study["student_size"]),
            ("spearman_vs_sft", study["student_sft_score"][:, task]),
        ):
            agrees(spearman(gains, other), study[key][task])
        if task < 6:  # these two have no average
            for key in ("agreement", "fidelity"):
                agrees(spearman(gains, study[key][:, task]), study[f"spearman_vs_{key}"][task])


def test_what_does_not_vary_has_no_test() -> None:
    assert mean_above_zero([2.0, 2, 2]) == (None, None, 3)
    assert one_way_anova({"a": [1.0, 1], "b": [2.0, 2]}) == (None, None, 4)
    assert spearman([1.0, 2, 3], [5.0, 5, 5]) == spearman([5.0, 5, 5], [1.0, 2, 3])
    assert spearman([1.0, 2, 3], [5.0, 5, 5]) == (None, None, 3)
    assert effect_size([2.0, 2, 2]) is None


def test_values_by_hand() -> None:
    found = mean_above_zero([1.0, 2, 3])
    assert found.statistic == pytest.approx(2 * math.sqrt(3))
    # Two degrees of freedom have a closed form.
    t = 2 * math.sqrt(3)
    assert found.p_value == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))
    assert effect_size([1.0, 2, 3]) == pytest.approx(2.0)
    assert one_way_anova({"a": [1.0, 3], "b": [5.0, 7]}).statistic == pytest.approx(8.0)
    assert share_of_variance({"a": [1.0, 3], "b": [5.0, 7]}) == pytest.approx(0.8)
    assert share_of_variance({"a": [1.0, 3], "b": [1.0, 3], "c": []}) == pytest.approx(0.0)
    assert share_of_variance({"a": [2.0, 2], "b": [2.0]}) is None
    assert spearman([1.0, 2, 3, 4], [1.0, 4, 9, 16]).statistic == pytest.approx(1.0)
    assert spearman([1.0, 1, 2], [3.0, 3, 1]).statistic == pytest.approx(-1.0)


def test_corrections_by_hand() -> None:
    p_values = {"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.5}
    assert holm(p_values) == pytest.approx({"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.5})
    expected = {"a": 0.16 / 3, "b": 0.04, "c": 0.16 / 3, "d": 0.5}
    assert benjamini_hochberg(p_values) == pytest.approx(expected)
    assert list(holm(p_values)) == list(benjamini_hochberg(p_values)) == list(p_values)
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == benjamini_hochberg({}) == {}


def test_bootstrap_covers_the_mean_and_is_reproducible() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, size=50)
    found = bootstrap_mean(values)
    assert found == bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    half = 1.96 * values.std() / math.sqrt(50)
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)
    narrow = bootstrap_mean(values, confidence=0.5)
    assert found.low < narrow.low < narrow.high < found.high


CELLS = [
    Cell("7B", "1B", "reverse", 1.0, 17.0),
    Cell("7B", "1B", "reverse", 5.0, 61.0),
    Cell("7B", "1B", "forward", 1.0, 60.0),
    Cell("7B", "1B", "forward", 5.0, 40.0),
]


def test_the_best_temperature_hides_what_collapsed() -> None:
    assert [cell.score for cell in at_temperature(CELLS)] == [61.0, 60.0]
    assert [cell.score for cell in at_temperature(CELLS, 1.0)] == [17.0, 60.0]
    alone = {"1B": 55.0}
    assert improvements(at_temperature(CELLS), alone) == [6.0, 5.0]
    assert collapsed(CELLS, alone) == [CELLS[0]]
    assert collapsed(CELLS, alone, drop=10.0) == [CELLS[0], CELLS[3]]
    assert collapsed(CELLS, {"1B": 60.0}) == [CELLS[0]]  # 20 points below are not more than 20


def test_seeds_are_averaged_and_tasks_kept_apart() -> None:
    runs = [
        Cell("7B", "1B", "forward", 1.0, 60.0, "maths", 0),
        Cell("7B", "1B", "forward", 1.0, 50.0, "code", 0),
        Cell("7B", "1B", "forward", 1.0, 64.0, "maths", 1),
    ]
    found = over_seeds(runs)
    assert found == [runs[0]._replace(score=62.0), runs[1]]
    assert at_temperature(found) == found
    assert improvements(found[:1], {"1B": 60.0}) == [2.0]
    with pytest.raises(DataError, match="'code', 'maths'"):
        improvements(found, {"1B": 60.0})
    with pytest.raises(DataError, match="1B from 7B by forward at 1.0 on maths with seed 0"):
        over_seeds([*runs, runs[0]])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mean_above_zero([1.0, 2.0]), "2 values .* at least 3"),
        (lambda: spearman([1.0, 2, math.nan], [1.0, 2, 3]), "Number 2 of the first values is nan"),
        (lambda: spearman([1.0, 2, 3], [1.0, 2]), "3 and 2 values"),
        (lambda: one_way_anova({"a": [1.0, 2, 3]}), "at least 2 groups"),
        (lambda: one_way_anova({"a": [1.0, 2, 3], "b": []}), "at least 2 groups"),
        (lambda: one_way_anova({"a": [1.0], "b": [2.0], "c": [3.0]}), "3 values in 3 groups"),
        (lambda: bootstrap_mean([1.0, 2, 3], confidence=1.0), "confidence is 1.0"),
        (lambda: holm({"a": 1.5}), "'a' is 1.5"),
        (lambda: benjamini_hochberg({"a": math.nan}), "'a' is nan"),
        (lambda: at_temperature([*CELLS, CELLS[0]]), "Two cells"),
        (lambda: at_temperature(CELLS, 2.0), "2 pairs have no run at temperature 2.0"),
        (lambda: at_temperature([CELLS[0]._replace(score=math.inf)]), "score inf"),
        (lambda: improvements(CELLS, {"2B": 1.0}), "no score of 1B"),
    ],
)
def test_what_cannot_be_tested_is_refused(call: object, said: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=said):
        call()
