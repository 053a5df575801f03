"""Reading a run directory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.errors import RunDirectoryError
from understudy.report.measure import measure_of
from understudy.report.run import (
    EpochLine,
    Member,
    ModelFacts,
    Result,
    RunData,
    StepLine,
    Written,
    parse_recipe,
)


def read_run(folder: str | Path) -> RunData:
    """Read a run directory, finished or in progress.

    A last line of `metrics.jsonl` that was not written to its end is left out; every other line must be whole.

    Raises:
        RunDirectoryError: when `folder` is not a run directory, or a file in it cannot be read;
            names the file and line.
    """
    path = Path(folder)
    metrics, recipe = path / "metrics.jsonl", path / "recipe.yaml"
    if not path.is_dir():
        raise RunDirectoryError(f"There is no run directory '{path}'.")
    if not metrics.is_file() and not recipe.is_file():
        raise RunDirectoryError(
            f"'{path}' is not a run directory: it has neither metrics.jsonl nor recipe.yaml.{_runs_inside(path)}"
        )
    run = RunData(path)
    if recipe.is_file():
        run.recipe_text = recipe.read_text(encoding="utf-8")
        parse_recipe(run.recipe_text, recipe)
    environment = path / "environment.json"
    if environment.is_file():
        run.environment = _load_json(environment)
    if metrics.is_file():
        _read_metrics(run, metrics)
    return run


def read_header(folder: str | Path) -> dict[str, Any]:
    """Return the `run` line of a run directory, without reading the rest.

    Raises:
        RunDirectoryError: there is none; names the file.
    """
    path = Path(folder) / "metrics.jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            for text in file:
                line = json.loads(text) if text.strip() else {}
                if line.get("event") == "run":
                    return dict(line)
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"'{path}' cannot be read: {error}.") from error
    raise RunDirectoryError(f"'{path}' has no line that says what was run.")


def _read_metrics(run: RunData, path: Path) -> None:
    content = path.read_bytes()
    run.digest = hashlib.sha256(content).hexdigest()
    reader = _LineReader(run)
    lines = content.split(b"\n")
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            reader.take(json.loads(raw))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break  # No line end yet: it is being written, or writing it was interrupted.
            reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
            raise RunDirectoryError(
                f"Line {number} of '{path}' cannot be read: {reason}."
            ) from error
        run.lines += 1
    run.results = list(reader.results.values())


class _LineReader:
    """Takes the lines one after the other; remembers how far each member has come."""

    def __init__(self, run: RunData) -> None:
        self.run = run
        self.results: dict[Member, Result] = {}
        self._places: dict[tuple[str, str, int | None], tuple[int, int]] = {}

    def take(self, line: Mapping[str, Any]) -> None:
        moment = str(line.get("time", ""))
        self.run.started = self.run.started or moment
        self.run.ended = moment or self.run.ended
        event = line["event"]
        if event == "run":
            measure_of(line)  # One that cannot be understood is an error of this line.
            self.run.header = dict(line)
        elif event == "model":
            parameters = line.get("parameters")
            self.run.models[line["role"]] = ModelFacts(
                role=str(line["role"]),
                name=str(line["name"]),
                parameters=None if parameters is None else int(parameters),
                weights=str(line.get("weights") or ""),
                fingerprint=str(line.get("fingerprint") or ""),
            )
        elif event == "step":
            self.run.steps.append(
                StepLine(
                    arm=str(line["arm"]),
                    seed=line["seed"],
                    stage=str(line.get("stage", "")),
                    epoch=int(line["epoch"]),
                    position=self._position(line),
                    terms=dict(line.get("terms") or {}),
                    loss=line.get("loss"),
                    samples_per_second=line.get("samples_per_second"),
                )
            )
        elif event == "epoch":
            self.run.epochs.append(
                EpochLine(
                    arm=str(line["arm"]),
                    seed=line["seed"],
                    stage=str(line.get("stage", "")),
                    epoch=int(line["epoch"]),
                    position=self._position(line),
                    split=str(line["split"]),
                    metrics=self._metrics(line),
                    elapsed=line.get("elapsed"),
                )
            )
        elif event == "result":
            per_class = dict(line.get("per_class") or {})
            counts = per_class.pop("count", None) or ()
            self.results[line["arm"], line["seed"]] = Result(
                arm=str(line["arm"]),
                seed=line["seed"],
                split=str(line["split"]),
                metrics=self._metrics(line),
                cost=dict(line.get("cost") or {}),
                per_class={name: tuple(values or ()) for name, values in per_class.items()},
                class_count=tuple(counts),
                calibration=line.get("calibration"),
            )
        elif event == "samples":
            self.run.samples[line["arm"], line["seed"]] = tuple(
                Written(
                    id=int(sample["id"]),
                    prompt=str(sample["prompt"]),
                    reference=None if sample.get("reference") is None else str(sample["reference"]),
                    text=str(sample["text"]),
                )
                for sample in line["samples"]
            )
        elif event == "member":
            member: Member = (line["arm"], line["seed"])
            self.run.states[member] = str(line["state"])
            if line["state"] == "resumed":
                self.run.resumed[member] = self.run.resumed.get(member, 0) + 1

    def _metrics(self, line: Mapping[str, Any]) -> dict[str, float | None]:
        """Return the metrics of a line; those of a language task have the perplexity, which is exp(nll)."""
        found = dict(line["metrics"])
        if self.run.words.language and found.get("nll") is not None:
            found.setdefault("perplexity", _exponential(found["nll"]))
        return found

    def _position(self, line: Mapping[str, Any]) -> int:
        """Return the step since the member began, also where each stage counts from the start again."""
        place = (line["event"], line["arm"], line["seed"])
        step = int(line["step"])
        offset, last = self._places.get(place, (0, 0))
        if step + offset <= last:
            # Steps only grow within a stage.
            offset = last
        self._places[place] = (offset, offset + step)
        return offset + step


def _exponential(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _load_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunDirectoryError(f"'{path}' is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise RunDirectoryError(
            f"'{path}' should hold a JSON object, not a {type(found).__name__}."
        )
    return found


def _runs_inside(path: Path) -> str:
    inside = sorted(entry.parent.name for entry in path.glob("*/metrics.jsonl"))[:5]
    return f" Did you mean one of the runs in it: {', '.join(inside)}?" if inside else ""
