"""A progress bar that follows a run's `metrics.jsonl`, so that training need not know of terminals."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from understudy.report.run import role_of

if TYPE_CHECKING:
    from rich.console import Console

INTERVAL = 0.5
"""Seconds between two looks at the file."""


class Follower:
    """Reads the lines that are appended to a file.

    Args:
        path: the file; it may not exist yet, and may be cut back, as a resumed run does.
    """

    def __init__(self, path: Path) -> None:
        """Start at the beginning."""
        self._path, self._place = path, 0

    def lines(self) -> list[dict[str, Any]]:
        """Return the whole lines that were added since the last call."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._place:
                    self._place = 0
                file.seek(self._place)
                added = file.read()
        except OSError:
            return []
        whole = added.rpartition(b"\n")[0]
        self._place += len(whole) + 1 if whole else 0
        return [json.loads(line) for line in whole.splitlines() if line.strip()]


class Progress:
    """Shows how many members of a run are done and how far the one in training is, while it is entered.

    Args:
        console: the terminal.
        directory: the run directory.
    """

    def __init__(self, console: Console, directory: Path) -> None:
        """Draw nothing yet."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._follower = Follower(directory / "metrics.jsonl")
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
            transient=True,
        )
        self._members = self._bars.add_task("members", total=None, values="")
        self._steps = self._bars.add_task("steps", total=None, values="", visible=False)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        """Draw the bars and follow the file."""
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bars away."""
        self._ends.set()
        self._thread.join()
        self._bars.stop()

    def _follow(self) -> None:
        while not self._ends.wait(INTERVAL):
            for line in self._follower.lines():
                self.show(line)

    def show(self, line: Mapping[str, Any]) -> None:
        """Take one line of metrics into account."""
        if line["event"] == "run":
            self._bars.update(self._members, total=len(line["arms"]) * len(line["seeds"]))
        elif line["event"] == "result" and role_of(line["arm"]) != "teacher":
            self._bars.advance(self._members)
        elif line["event"] == "step":
            speed = line.get("samples_per_second")
            values = f"loss {line['loss']:.3g}" if line.get("loss") is not None else ""
            self._bars.update(
                self._steps,
                description=f"{line['arm']} seed {line['seed']}, {line['stage']}",
                completed=line["step"],
                total=round(line["step"] / line["progress"]) if line["progress"] else None,
                values=f"{values}  {speed:.0f} samples/s" if speed else values,
                visible=True,
            )
