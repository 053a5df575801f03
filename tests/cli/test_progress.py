from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from understudy.cli.progress import Follower, Progress


def line(**values: Any) -> str:
    return json.dumps(values) + "\n"


def test_a_follower_gives_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.lines() == []
    path.write_text(line(a=1) + line(a=2) + '{"a": ')
    assert follower.lines() == [{"a": 1}, {"a": 2}]
    assert follower.lines() == []
    with path.open("a") as file:
        file.write("3}\n")
    assert follower.lines() == [{"a": 3}]


def test_a_follower_begins_again_when_the_file_was_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    path.write_text(line(a=1) + line(a=2))
    follower.lines()
    path.write_text(line(a=1))
    assert follower.lines() == [{"a": 1}]


def test_the_bars_show_members_and_steps(tmp_path: Path) -> None:
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=120)
    with Progress(console, tmp_path) as progress:
        progress.show({"event": "run", "arms": ["baseline", "kd"], "seeds": [0, 1]})
        progress.show({"event": "result", "arm": "teacher"})
        progress.show({"event": "result", "arm": "baseline"})
        progress.show(
            {
                "event": "step",
                "arm": "kd",
                "seed": 1,
                "stage": "distil",
                "step": 20,
                "progress": 0.25,
                "loss": 0.5,
                "samples_per_second": 1234.5,
            }
        )
    text = drawn.getvalue()
    assert "1/4" in text
    assert "20/80" in text
    assert "kd seed 1, distil" in text
    assert "loss 0.5  1234 samples/s" in text
