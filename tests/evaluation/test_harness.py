"""The evaluation harness as a program beside us; here a small one that stands in for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from understudy.cli.commands import cli
from understudy.errors import ModelError
from understudy.evaluation.harness import run_harness

STAND_IN = """#!{python}
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if given["--tasks"] == "unknown":
    sys.exit("Tasks not found: unknown")
place = pathlib.Path(given["--output_path"]) / "model"
place.mkdir()
results = {{task: {{"acc,none": 0.5, "limit": given.get("--limit")}} for task in given["--tasks"].split(",")}}
(place / "results_2026.json").write_text(json.dumps({{"results": results, "args": given}}))
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a model, and a program of the harness' name on the path."""
    program = tmp_path / "bin" / "lm_eval"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_results_come_back_by_task(model: Path) -> None:
    found = run_harness(model, ["piqa", "arc_easy"], limit=10)
    assert found["piqa"] == {"acc,none": 0.5, "limit": "10"} and set(found) == {"piqa", "arc_easy"}
    done = CliRunner().invoke(cli, ["harness", str(model), "--task", "piqa"])
    assert done.exit_code == 0 and "piqa" in done.output and "0.5" in done.output


def test_what_is_missing_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="failed: Tasks not found: unknown"):
        run_harness(model, ["unknown"])
    with pytest.raises(ModelError, match="is no folder of transformers"):
        run_harness(tmp_path, ["piqa"])
    with pytest.raises(ModelError, match="No task"):
        run_harness(model, [])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match="pip install lm-eval"):
        run_harness(model, ["piqa"])
