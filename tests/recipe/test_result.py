"""What a finished run says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import RunDirectoryError
from understudy.recipe.result import Result


def result_of(folder: Path, header: dict[str, Any], metrics: dict[str, float | None]) -> Result:
    line = {"event": "result", "arm": "kd", "seed": 0, "split": "test", "metrics": metrics}
    lines = [{"event": "run", **header}, line]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return Result(folder, [line], lambda: pytest.fail("nothing is loaded"), ["kd"])


def test_a_classification_speaks_of_accuracy(tmp_path: Path) -> None:
    found = result_of(tmp_path, {"task": "classification"}, {"accuracy": 0.93125, "nll": 0.2})
    assert repr(found).splitlines()[1] == "  kd: accuracy 0.9313"
    found = result_of(tmp_path, {"task": "classification"}, {"accuracy": None})
    assert repr(found).endswith("  kd: accuracy none")


def test_a_language_model_speaks_of_perplexity(tmp_path: Path) -> None:
    header = {"task": "causal_lm", "measure": {"name": "nll", "better": "lower"}}
    metrics: dict[str, float | None] = {"accuracy": 0.4, "nll": 3.0, "perplexity": 20.0855369}
    assert repr(result_of(tmp_path, header, metrics)).endswith("  kd: perplexity 20.0855")


def test_a_directory_that_says_nothing_is_named(tmp_path: Path) -> None:
    found = result_of(tmp_path, {}, {"accuracy": 0.9})
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(RunDirectoryError, match="has no line that says what was run"):
        repr(found)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        repr(found)
