"""Real processes are killed at random points; what they resume to is bit-identical."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from understudy.errors import RunDirectoryError
from understudy.training.checkpoint import Checkpoints

TOY = Path(__file__).parent / "toy.py"
OPTIONS: dict[str, Any] = {
    "arms": {
        "baseline": [{"methods": ["supervised"], "epochs": 4}],
        "hint": [
            {"methods": ["fitnet"], "name": "hint", "epochs": 2, "accumulate": 2},
            {"methods": ["kd", ["supervised", 0.5]], "epochs": 4, "ema": 0.9, "clip": 1.0},
        ],
        "averaged": [{"methods": ["kd"], "epochs": 4, "average_from": 0.5, "accumulate": 2}],
    },
    "student": "dropped",
    "augment": True,
    "workers": 2,
    "checkpoint_every": 3,
    "log_every": 2,
    "seeds": [0, 1],
}


def launch(directory: Path, mode: str, options: dict[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(TOY), str(directory), mode, json.dumps(options)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(directory: Path, mode: str, options: dict[str, Any]) -> None:
    process = launch(directory, mode, options)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def weights(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    files = sorted(directory.glob("**/model.safetensors"))
    return {str(path.relative_to(directory)): load_file(path) for path in files}


def lines(directory: Path, event: str) -> list[dict[str, Any]]:
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["event"] == event:
            found.append(line)
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_runs_resume_bit_for_bit(tmp_path: Path, how: signal.Signals) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole, "fresh", OPTIONS)
    expected = weights(whole)
    assert len(expected) == 1 + 6

    chooser = random.Random(int(how))
    mode, kills = "fresh", 0
    while kills < 4:
        process = launch(broken, mode, OPTIONS)
        before = len(lines(broken, "step"))
        target = before + chooser.randint(1, 25)
        while process.poll() is None and len(lines(broken, "step")) < target:
            time.sleep(0.01)
        if process.poll() is None:
            time.sleep(chooser.random() * 0.05)
            os.kill(process.pid, how)
            process.wait(timeout=120)
            kills += 1
        else:
            assert process.returncode == 0, process.stderr.read() if process.stderr else ""
            break
        mode = "resume" if (broken / "recipe.yaml").exists() else "fresh"
    assert kills >= 2, "the run was over before it could be killed"
    finish(broken, "resume", OPTIONS)

    found = weights(broken)
    assert found.keys() == expected.keys()
    for name, tensors in expected.items():
        for key, value in tensors.items():
            assert torch.equal(value, found[name][key]), f"{name}: {key} differs"
    steps = [
        (line["arm"], line["seed"], line["stage"], line["step"]) for line in lines(broken, "step")
    ]
    assert len(set(steps)) == len(steps), "a resumed run wrote a step twice"
    results = [{**line["metrics"]} for line in lines(broken, "result")]
    assert results == [{**line["metrics"]} for line in lines(whole, "result")]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, "kd-seed0", keep=3)
    for number in (1, 2, 3):
        checkpoints.save(number, {"number": number, "weights": torch.full((100,), float(number))})
    newest = checkpoints.newest()
    assert newest is not None
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    newest.write_bytes(data)
    state = checkpoints.load()
    assert state is not None and state["number"] == 2
    assert newest.name in caplog.text and "damaged" in caplog.text
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(RunDirectoryError, match="Every checkpoint"):
        checkpoints.load()


def test_only_the_last_few_are_kept_and_members_do_not_mix(tmp_path: Path) -> None:
    first, other = (
        Checkpoints(tmp_path, "kd-seed0", keep=2),
        Checkpoints(tmp_path, "kd-seed00", keep=2),
    )
    other.save(9, {"number": 9})
    for number in range(5):
        first.save(number, {"number": number})
    assert sorted(path.name for path in tmp_path.glob("kd-seed0-*.pt")) == [
        "kd-seed0-000000003.pt",
        "kd-seed0-000000004.pt",
    ]
    first.clear()
    assert first.load() is None
    assert other.load() == {"number": 9}


def test_a_full_disk_is_said_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, "kd-seed0", keep=2)
    checkpoints.save(1, {"number": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirectoryError, match=r"No space left.*last good one is .*000000001\.pt"):
        checkpoints.save(2, {"number": 2})
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.partial"))
    assert checkpoints.load() == {"number": 1}
