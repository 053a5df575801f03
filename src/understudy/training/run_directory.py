"""The run directory: the only thing that a run leaves behind."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from understudy.errors import RunDirectoryError
from understudy.training.checkpoint import write_atomic


class RunDirectory:
    """`runs/NAME/` as the architecture page describes it.

    Args:
        path: the directory.
        writes: whether this process writes (the first of several does).

    Attributes:
        listeners: called with every line that is recorded, as live trackers are.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Remember the place."""
        self.path, self.writes = Path(path), writes
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The file of everything measured."""
        return self.path / "metrics.jsonl"

    def student(self, arm: str, seed: int) -> Path:
        """Where the trained student of an arm and seed lies."""
        return self.path / "student" / arm / f"seed-{seed}"

    def teacher(self, name: str) -> Path:
        """Where a teacher lies."""
        return self.path / "models" / name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training into the directory at the same time.

        The lock goes with the process, however that ends, and is not inherited by the processes that
        read data, which may outlive a killed trainer by seconds.

        Raises:
            RunDirectoryError: another process has it.
        """
        if not self.writes:
            yield
            return
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunDirectoryError(
                    f"Another process is training into {self.path}. Wait for it or stop it."
                ) from error
            yield

    def check_free(self) -> None:
        """Check that there is no run yet.

        Raises:
            RunDirectoryError: the directory exists and is not empty.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunDirectoryError(
                f"{self.path} exists already. Choose another name, `understudy resume {self.path}` to go on "
                "with it, or delete it."
            )

    def create(self, recipe: dict[str, Any]) -> None:
        """Make the directory with its recipe and environment.

        Raises:
            RunDirectoryError: it exists already, or cannot be written.
        """
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
            write_atomic(self.path / "environment.json", json.dumps(environment(), indent=2))
        except OSError as error:
            raise RunDirectoryError(f"{self.path} cannot be written: {error}.") from error

    def open(self) -> None:
        """Check that the directory holds a run, and drop what a killed process wrote of its last line.

        Raises:
            RunDirectoryError: it does not.
        """
        if not (self.path / "recipe.yaml").is_file():
            raise RunDirectoryError(f"{self.path} is no run directory: it has no recipe.yaml.")
        if self.metrics.exists():
            self.truncate(self.metrics.read_bytes().rfind(b"\n") + 1)

    def record(self, event: str, **fields: Any) -> None:
        """Append a line to `metrics.jsonl`."""
        if not self.writes:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = _finite({"event": event, "time": now, **fields})
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RunDirectoryError(f"{self.metrics} cannot be written: {error}.") from error
        for listener in self.listeners:
            listener(line)

    def size(self) -> int:
        """Return the length of `metrics.jsonl` in bytes."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def truncate(self, size: int) -> None:
        """Cut `metrics.jsonl` back to `size` bytes: what a resumed run will write again."""
        if self.writes and self.metrics.exists() and self.size() > size:
            os.truncate(self.metrics, size)

    def forget_member(self, arm: str, seed: int) -> None:
        """Cut off what a member wrote that was killed before its first checkpoint. Members write one after another."""
        position = 0
        if not self.metrics.exists():
            return
        for text in self.metrics.read_bytes().splitlines(keepends=True):
            line = json.loads(text)
            if line["event"] == "member" and (line["arm"], line["seed"]) == (arm, seed):
                self.truncate(position)
                return
            position += len(text)

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines of `metrics.jsonl`."""
        if not self.metrics.exists():
            return []
        return [json.loads(text) for text in self.metrics.read_text(encoding="utf-8").splitlines()]


def _finite(value: Any) -> Any:
    """Return plain values with null for numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


def environment() -> dict[str, Any]:
    """Return versions, machine and commit."""
    import torch

    names = ["torch", "torchvision", "timm", "transformers", "numpy", "scikit-learn", "kornia"]
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "understudy": metadata.version("understudy") if _installed() else "source",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def commit() -> str | None:
    """Return the commit of the working directory's repository, with `+` when it has changes; None outside of one."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _installed() -> bool:
    try:
        metadata.version("understudy")
    except metadata.PackageNotFoundError:
        return False
    return True
