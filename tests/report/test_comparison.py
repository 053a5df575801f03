"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import RunDirectoryError
from understudy.report import compare, paired_test, write_comparison

MakeRun = Callable[..., Path]
LinesOf = Callable[[Path, str], list[dict[str, Any]]]


def test_arms_of_the_same_name_are_paired_by_seed(make_run: MakeRun, metrics_of: LinesOf) -> None:
    first, second = (
        make_run("first"),
        make_run("second", random_seed=5, arms={"teacher": 0.97, "kd": 0.95}),
    )
    found = compare([first, second])
    assert [row.label for row in found.rows] == [
        "first / teacher",
        "first / baseline",
        "first / kd",
        "first / fitnet",
        "second / teacher",
        "second / kd",
    ]
    assert [(pair.first, pair.second) for pair in found.pairs] == [("second / kd", "first / kd")]
    own, other = (
        {
            line["seed"]: line["metrics"]["accuracy"]
            for line in metrics_of(folder, "result")
            if line["arm"] == "kd"
        }
        for folder in (second, first)
    )
    assert found.pairs[0].test == paired_test(own, other)
    assert found.pairs[0].difference > 0.01
    assert "second / kd minus first / kd: +" in found.text


def test_equal_runs_give_no_warning(make_run: MakeRun) -> None:
    found = compare([make_run("first"), make_run("second", random_seed=5)])
    assert found.warnings == ()
    assert [entry.path for entry in found.recipe] == ["name"]


def test_what_differs_is_named(make_run: MakeRun) -> None:
    first = make_run("first")
    second = make_run(
        "second",
        seeds=[0, 1],
        classes=["a", "b"],
        counts={"train": 10, "labelled": 10, "validation": 0, "test": 5},
        commit="fedcba",
        precision="bfloat16",
        unfinished=[("kd", 1)],
    )
    path = second / "metrics.jsonl"
    path.write_text(path.read_text().replace('"steps": 400', '"steps": 300'))
    found = compare([first, second])
    text = "\n".join(found.warnings)
    for what in ("numbers of samples", "classes", "seeds", "precision", "commits"):
        assert f"different {what}" in text
    assert "teachers" not in text
    assert "first / kd 400" in text and "second / kd 300" in text
    assert "training samples" not in text
    assert "second is not complete: 1 results are missing" in text
    assert all(f"Warning: {warning}" in found.text for warning in found.warnings)
    assert ("seeds", ("0, 1, 2", "0, 1")) in [(entry.path, entry.values) for entry in found.recipe]


def test_runs_with_one_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    first = make_run("same")
    second = tmp_path / "other" / "same"
    second.parent.mkdir()
    first.rename(second)
    assert compare([make_run("same"), second]).names == ("runs/same", "other/same")


def test_bad_questions(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    with pytest.raises(RunDirectoryError, match="at least two"):
        compare([folder])
    with pytest.raises(RunDirectoryError, match="named twice"):
        compare([folder, folder / ".." / folder.name])
    with pytest.raises(RunDirectoryError, match="no run directory"):
        compare([folder, tmp_path / "missing"])


def test_the_page(make_run: MakeRun, tmp_path: Path) -> None:
    found = compare([make_run("first"), make_run("second", random_seed=5, seeds=[0, 1, 2, 3])])
    page = write_comparison(found, tmp_path / "pages" / "comparison.html").read_text()
    assert 'data-arm="second / kd"' in page
    assert "The runs have different seeds." in page
    assert 'id="curve-accuracy"' in page and 'id="trade-off"' in page
