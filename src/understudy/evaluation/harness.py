"""EleutherAI's lm-evaluation-harness on an exported language model, where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from understudy.errors import ModelError

PROGRAM = "lm_eval"
"""What the harness calls itself on the command line."""


def run_harness(
    folder: str | Path, tasks: Sequence[str], *, limit: int | None = None, batch_size: int = 8
) -> dict[str, Any]:
    """Run tasks of the harness on a folder that transformers loads, in a process of its own.

    Args:
        folder: a Hugging Face folder, as `understudy export --to hf` writes it.
        tasks: names of the harness' tasks.
        limit: samples of each task; None for all.
        batch_size: samples at the same time.

    Returns:
        The harness' results: task -> measure -> value.

    Raises:
        ModelError: it is not installed, the folder holds no model, no task was named, or it failed (its last words).
    """
    place = Path(folder)
    if not (place / "config.json").is_file():
        raise ModelError(
            f"'{place}' is no folder of transformers. Write one with `understudy export STUDENT --to hf`."
        )
    if not tasks:
        raise ModelError("No task was named for the evaluation harness.")
    program = shutil.which(PROGRAM)
    if program is None:
        raise ModelError(
            "The evaluation harness is not installed; `pip install lm-eval` brings the program `lm_eval`."
        )
    with tempfile.TemporaryDirectory() as output:
        command = [program, "--model", "hf", "--model_args", f"pretrained={place}"]
        command += ["--tasks", ",".join(tasks), "--batch_size", str(batch_size)]
        command += ["--output_path", output]
        command += [] if limit is None else ["--limit", str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        files = sorted(Path(output).rglob("results*.json"))
        if done.returncode != 0 or not files:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            last = said[-1].strip() if said else f"exit status {done.returncode}"
            raise ModelError(f"The evaluation harness failed: {last}")
        found: dict[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))["results"]
        return found
