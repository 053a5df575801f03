"""A run as the report knows it: what the files of a run directory say, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from understudy.errors import RunDirectoryError
from understudy.report.measure import Measure, Words, measure_of, words_of

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
    """One `result` line: what a member is worth on the test split, and what it cost.

    `per_class` is metric -> its value for each class (domain of a language task), None where there is none.
    """

    arm: str
    seed: int | None
    split: str
    metrics: Mapping[str, float | None]
    cost: Mapping[str, Any]
    per_class: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
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


@dataclass(frozen=True)
class Written:
    """What a finished member wrote after a prompt; the reference is what the data has there, if anything."""

    id: int
    prompt: str
    reference: str | None
    text: str


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
        samples: member -> what it wrote after its training, the last line counts.
        states: member -> "started", "finished" or "resumed", the last that was said.
        resumed: member -> how often it was resumed.
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
    samples: dict[Member, tuple[Written, ...]] = field(default_factory=dict)
    states: dict[Member, str] = field(default_factory=dict)
    resumed: dict[Member, int] = field(default_factory=dict)
    started: str = ""
    ended: str = ""
    lines: int = 0
    digest: str = ""

    @property
    def name(self) -> str:
        """What the run is called."""
        return str(self.header.get("name") or self.folder.resolve().name)

    @property
    def measure(self) -> Measure:
        """The quantity by which members are compared and chosen."""
        return measure_of(self.header)

    @property
    def words(self) -> Words:
        """What things are called in the run's task."""
        return words_of(self.header)

    @property
    def vocabulary(self) -> int | None:
        """How many tokens a language task predicts among; None where the run does not say."""
        found = self.header.get("vocabulary")
        return None if found is None else int(found)

    @property
    def classes(self) -> list[str]:
        """Class names in label order; of a language task the names of the domains."""
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
        return [arm for arm in dict.fromkeys(ordered) if role_of(arm) != "teacher"]

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain values."""
        return parse_recipe(self.recipe_text, self.folder / "recipe.yaml")

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
        teachers: list[Member] = []
        for arm in self.teachers:
            started = [member for member in self.states if member[0] == arm]
            teachers += [] if self.of_arm(arm) else started or [(arm, None)]
        return teachers + absent

    @property
    def teachers(self) -> list[str]:
        """The teachers' arms: "teacher" for an only one, "teacher.NAME" for each of several."""
        seen = [
            *self.models,
            *(arm for arm, _ in self.states),
            *(line.arm for line in self.results),
        ]
        return [arm for arm in dict.fromkeys(seen) if role_of(arm) == "teacher"]


def role_of(arm: str) -> Role:
    """Return what an arm is: a teacher, the student without a teacher, or a student with one."""
    if arm == TEACHER or arm.startswith(f"{TEACHER}."):
        return "teacher"
    return "baseline" if arm == BASELINE else "student"


def parse_recipe(text: str, path: Path) -> dict[str, Any]:
    """Return the values of a recipe; `path` is where it came from, for the error."""
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
