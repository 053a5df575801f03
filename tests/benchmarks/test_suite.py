"""The benchmark suite runs at tiny sizes; nothing is asserted on times."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.suite", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every row at tiny sizes, without torchdistill, as the JSON file holds it."""
    folder = tmp_path_factory.mktemp("suite")
    output = folder / "results.json"
    empty = folder / "empty"
    empty.mkdir()
    ended = suite(
        *("--quick", "--torchdistill", str(empty), "--output", str(output), "--docs", str(folder))
    )
    assert ended.returncode == 0, ended.stderr
    assert "| C5 |" in ended.stdout
    page = (folder / "benchmarks.md").read_text()
    assert "| C9 |" in page
    assert "(assets/benchmarks.svg)" in page
    drawn = ElementTree.parse(folder / "assets" / "benchmarks.svg").getroot()
    assert len(drawn.findall("{http://www.w3.org/2000/svg}text")) > 10
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_every_row_is_there_with_its_figures(results: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["C1", "C2", "C3", "C4", "C5", "C9", "C10"]
    for name, row in rows.items():
        if name == "C10":
            continue
        assert row["skipped"] is None
        assert row["values"] and all(math.isfinite(value) for value in row["values"].values())
        assert row["goals"] and all(
            {"what", "value", "limit", "met"} <= set(goal) for goal in row["goals"]
        )
    assert results["machine"]["packages"]["torch"] and results["machine"]["threads"] >= 1


@pytest.mark.parametrize(
    ("name", "allowed"), [("C1", 1e-4), ("C2", 1e-4), ("C3", 2e-2), ("C5", 1e-4)]
)
def test_understudy_computes_what_the_plain_loop_does(
    results: dict[str, Any], name: str, allowed: float
) -> None:
    [row] = [row for row in results["rows"] if row["name"] == name]
    assert row["gate"]["understudy"] <= allowed


def test_forms_of_a_store_show_what_their_size_costs(results: dict[str, Any]) -> None:
    [row] = [row for row in results["rows"] if row["name"] == "C4"]
    usual, small, smallest = row["details"]["forms"].values()
    # 47, 33 and 25 bytes of a row, its id, and the share of the heads of few files.
    assert usual["files"] - small["files"] == pytest.approx(14, abs=0.2)
    assert small["files"] - smallest["files"] == pytest.approx(8, abs=0.2)
    assert all(form["read"] > 0 and form["files"] <= form["blocks"] for form in (usual, small))
    errors = row["details"]["gradient_errors"]
    assert errors.pop("teacher").startswith("made logits")
    usual, small, smallest = errors.values()
    for case, error in usual.items():
        assert 0 < error <= small[case] * 1.001 and small[case] < smallest[case]
    assert small["the teacher with noise, T = 4"] < 1.01 * usual["the teacher with noise, T = 4"]


def test_what_is_missing_is_said(results: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in results["rows"]}
    for name in ("C1", "C2", "C3", "C4", "C5"):
        assert any("holds no package 'torchdistill'" in note for note in rows[name]["notes"])
        against = [goal for goal in rows[name]["goals"] if "torchdistill" in goal["what"]]
        assert all(goal["met"] is None for goal in against)
    assert "--data" in rows["C10"]["skipped"]


def test_a_row_that_does_not_exist_is_refused() -> None:
    ended = suite("--rows", "C77")
    assert ended.returncode == 2
    assert "no row C77; there are C1, C2" in ended.stderr


def test_a_disturbed_round_is_repeated_and_then_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from benchmarks.suite import rounds

    class Busy:
        def cores(self) -> float:
            return 1.5

    monkeypatch.setattr(rounds, "Others", Busy)
    turns: list[str] = []
    times = rounds.measure(
        {name: lambda _steps, name=name: turns.append(name) for name in "AB"}, 3, 2
    )
    assert "".join(turns) == "AB" + "AB" * 3 + "BA"
    assert times.marked == 2 and len(times.seconds["A"]) == 2


def test_ratios_are_those_of_paired_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from benchmarks.suite.rounds import Times

    times = Times({"a": [1.0, 2.0, 4.0], "b": [2.0, 6.0, 4.0]}, [0.0, 0.0, 0.0])
    assert times.paired("a", "b") == 2.0
    assert times.excess("b", "a") == 1.0
