"""Reading a run directory back: what `metrics.jsonl` and its neighbours say, typed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from understudy.errors import RunDirectoryError

TEACHER = "teacher"
BASELINE = "baseline"
Role = Literal["teacher", "baseline", "student"]
Member = tuple[str, int | None]
"""(arm, seed); the seed is None for a teacher that was loaded."""


@dataclass(frozen=True)
class ModelFacts:
    """What a `model` line says about one of the two networks."""

    role: str
    name: str
    parameters: int | None
    weights: str
    fingerprint: str


@dataclass(frozen=True)
class StepLine:
    """One `step` line. `position` is the optimiser step since the member began, over all stages."""

    arm: str
    seed: int | None
    stage: str
    epoch: int
    position: int
    terms: Mapping[str, float]
    loss: float | None
    samples_per_second: float | None


@dataclass(frozen=True)
class EpochLine:
    """One `epoch` line: metrics on a split during training; `position` as for `StepLine`."""

    arm: str
    seed: int | None
    stage: str
    epoch: int
    position: int
    split: str
    metrics: Mapping[str, float | None]
    elapsed: float | None


@dataclass(frozen=True)
class Result:
    """One `result` line: what a member is worth on the test split, and what it cost."""

    arm: str
    seed: int | None
    split: str
    metrics: Mapping[str, float | None]
    cost: Mapping[str, Any]
    class_accuracy: tuple[float | None, ...] = ()
    class_count: tuple[int, ...] = ()
    calibration: Mapping[str, Any] | None = None

    def value(self, key: str) -> float | None:
        """Return a number by name: a metric, a cost, or `latency_ms.SIZE`; None when it is not there."""
        if key in self.metrics:
            return self.metrics[key]
        found: Any = self.cost
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return None if found is None else float(found)


@dataclass
class RunData:
    """A run directory, read.

    Everything is there as far as the run has come: a run in progress has fewer results, or none.

    Attributes:
        folder: where it was read from.
        header: the `run` line (empty before it was written).
        recipe_text: `recipe.yaml` as it stands, "" when missing.
        environment: `environment.json`.
        models: role -> facts.
        steps, epochs, results: the lines of that kind, in order; results one per member, the last counts.
        states: member -> "started", "finished" or "resumed", the last that was said.
        started, ended: time of the first and of the last line.
        lines: how many lines were read.
        digest: SHA-256 of `metrics.jsonl`, as hexadecimal digits.
    """

    folder: Path
    header: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    models: dict[str, ModelFacts] = field(default_factory=dict)
    steps: list[StepLine] = field(default_factory=list)
    epochs: list[EpochLine] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    states: dict[Member, str] = field(default_factory=dict)
    started: str = ""
    ended: str = ""
    lines: int = 0
    digest: str = ""

    @property
    def name(self) -> str:
        """What the run is called."""
        return str(self.header.get("name") or self.folder.resolve().name)

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        return [str(name) for name in self.header.get("classes") or []]

    @property
    def seeds(self) -> list[int]:
        """The seeds that every arm is to be run with."""
        return [int(seed) for seed in self.header.get("seeds") or []]

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples by split, and of labelled training samples."""
        return {str(key): value for key, value in (self.header.get("counts") or {}).items()}

    @property
    def arms(self) -> list[str]:
        """Arms in the order of the recipe, the baseline first, without the teacher."""
        named = [str(arm) for arm in self.header.get("arms") or []]
        seen = [result.arm for result in self.results] + [arm for arm, _ in self.states]
        ordered = [BASELINE] * (BASELINE in named or BASELINE in seen) + named + seen
        return [arm for arm in dict.fromkeys(ordered) if arm != TEACHER]

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain values."""
        return _load_yaml(self.recipe_text, self.folder / "recipe.yaml")

    def of_arm(self, arm: str) -> list[Result]:
        """Return the results of one arm, by seed."""
        found = [result for result in self.results if result.arm == arm]
        return sorted(found, key=lambda result: -1 if result.seed is None else result.seed)

    @property
    def missing(self) -> list[Member]:
        """Members that have no result yet."""
        done = {(result.arm, result.seed) for result in self.results}
        expected: list[Member] = [(arm, seed) for arm in self.arms for seed in self.seeds]
        absent = [member for member in expected if member not in done]
        teachers: list[Member] = [member for member in self.states if member[0] == TEACHER]
        if not teachers and TEACHER in self.models:
            teachers = [(TEACHER, None)]
        return ([] if self.of_arm(TEACHER) else teachers) + absent


def role_of(arm: str) -> Role:
    """Return what an arm is: the teacher, the student without a teacher, or a student with one."""
    if arm == TEACHER:
        return "teacher"
    return "baseline" if arm == BASELINE else "student"


def read_run(folder: str | Path) -> RunData:
    """Read a run directory, finished or in progress.

    A last line of `metrics.jsonl` that was not written to its end is left out; every other line must be whole.

    Raises:
        RunDirectoryError: when `folder` is not a run directory, or a file in it cannot be read; names the file and line.
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
        _load_yaml(run.recipe_text, recipe)
    environment = path / "environment.json"
    if environment.is_file():
        run.environment = _load_json(environment)
    if metrics.is_file():
        _read_metrics(run, metrics)
    return run


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
            raise RunDirectoryError(f"Line {number} of '{path}' cannot be read: {reason}.") from error
        run.lines += 1
    run.results = list(reader.results.values())


class _LineReader:
    """Takes the lines one after the other; remembers where each member's stages began."""

    def __init__(self, run: RunData) -> None:
        self.run = run
        self.results: dict[Member, Result] = {}
        self._place: dict[Member, tuple[str, int, int]] = {}

    def take(self, line: Mapping[str, Any]) -> None:
        moment = str(line.get("time", ""))
        self.run.started = self.run.started or moment
        self.run.ended = moment or self.run.ended
        event = line["event"]
        if event == "run":
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
                    metrics=dict(line["metrics"]),
                    elapsed=line.get("elapsed"),
                )
            )
        elif event == "result":
            per_class = line.get("per_class") or {}
            self.results[line["arm"], line["seed"]] = Result(
                arm=str(line["arm"]),
                seed=line["seed"],
                split=str(line["split"]),
                metrics=dict(line["metrics"]),
                cost=dict(line.get("cost") or {}),
                class_accuracy=tuple(per_class.get("accuracy") or ()),
                class_count=tuple(per_class.get("count") or ()),
                calibration=line.get("calibration"),
            )
        elif event == "member":
            self.run.states[line["arm"], line["seed"]] = str(line["state"])

    def _position(self, line: Mapping[str, Any]) -> int:
        """Return the step since the member began, also where a new stage counts from the start again."""
        member: Member = (line["arm"], line["seed"])
        stage, step = str(line.get("stage", "")), int(line["step"])
        known, offset, last = self._place.get(member, (stage, 0, 0))
        if stage != known and step + offset <= last:
            offset = last
        position = offset + step
        self._place[member] = (stage, offset, max(last, position))
        return position


def _load_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunDirectoryError(f"'{path}' is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise RunDirectoryError(f"'{path}' should hold a JSON object, not a {type(found).__name__}.")
    return found


def _load_yaml(text: str, path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RunDirectoryError(f"'{path}' cannot be read as YAML: {error}.") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise RunDirectoryError(f"'{path}' should hold a mapping, not a {type(found).__name__}.")
    return found


def _runs_inside(path: Path) -> str:
    inside = sorted(entry.parent.name for entry in path.glob("*/metrics.jsonl"))[:5]
    return f" Did you mean one of the runs in it: {', '.join(inside)}?" if inside else ""
