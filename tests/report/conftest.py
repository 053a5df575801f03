"""A factory of made-up run directories, and a browser."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

MakeRun = Callable[..., Path]
ARMS = {"teacher": 0.97, "baseline": 0.88, "kd": 0.93, "fitnet": 0.915}
SIZES = {"teacher": 272_474, "student": 19_322}
STEPS, EVERY, BATCH = 400, 20, 64


class RunWriter:
    """Writes `metrics.jsonl` line by line, as training does."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.draw = random.Random(seed)
        self.clock = 0
        folder.mkdir(parents=True, exist_ok=True)

    def line(self, event: str, **values: Any) -> None:
        self.clock += 1
        time = f"2026-03-14T09:{self.clock // 60 % 60:02d}:{self.clock % 60:02d}+00:00"
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time, **values}) + "\n")

    def training(
        self, arm: str, seed: int | None, level: float, stages: Sequence[str], until: int
    ) -> None:
        """Write steps and epochs of one member up to step `until`."""
        terms = {"baseline": ["supervised"], "teacher": ["supervised"], "fitnet": ["hint", "kd"]}
        each = STEPS // len(stages)
        for stage in stages:
            for step in range(EVERY, each + 1, EVERY):
                whole = stages.index(stage) * each + step
                if whole > until:
                    return
                drawn = {
                    name: (2.3 if index == 0 else 0.7) * math.exp(-whole / 120)
                    + 0.05
                    + self.draw.uniform(0, 0.15)
                    for index, name in enumerate(terms.get(arm, ["kd", "supervised"]))
                }
                where = {
                    "arm": arm,
                    "seed": seed,
                    "stage": stage,
                    "epoch": step // 40,
                    "step": step,
                }
                self.line(
                    "step",
                    **where,
                    progress=step / each,
                    lr=0.1,
                    terms=drawn,
                    loss=sum(drawn.values()),
                    gradient_norm=1.0,
                    samples_per_second=9000.0,
                )
                if step % 40 == 0:
                    accuracy = level * (1 - 0.8 * math.exp(-whole / 90)) + self.draw.uniform(
                        -0.03, 0.03
                    )
                    metrics = {"accuracy": accuracy, "nll": 2 * (1 - accuracy) + 0.05}
                    self.line(
                        "epoch", **where, split="validation", metrics=metrics, elapsed=whole / 10
                    )

    def result(
        self, arm: str, seed: int | None, accuracy: float, classes: int, calibration: bool
    ) -> None:
        """Write the result of one member."""
        teacher = arm == "teacher"
        per_class = [
            min(1.0, max(0.0, accuracy + self.draw.uniform(-0.06, 0.06))) for _ in range(classes)
        ]
        size = SIZES["teacher" if teacher else "student"]
        extra: dict[str, Any] = {}
        if calibration:
            middle = [(index + 0.5) / 15 for index in range(15)]
            extra["calibration"] = {
                "confidence": [None, *middle[1:]],
                "accuracy": [None, *(value ** (6 - 5 * accuracy) for value in middle[1:])],
                "count": [0, *(2 * index for index in range(1, 15))],
            }
        self.line(
            "result",
            arm=arm,
            seed=seed,
            split="test",
            metrics={
                "accuracy": accuracy,
                "macro_f1": accuracy - 0.004,
                "nll": 2.2 * (1 - accuracy) + self.draw.uniform(0, 0.02),
                "ece": 0.2 * (1 - accuracy) + self.draw.uniform(0, 0.01),
                "agreement": None if teacher else accuracy - 0.01,
                "kl": None if teacher else 1.9 * (1 - accuracy) + self.draw.uniform(0, 0.02),
                "procrustes": None if teacher else 1.2 * (1 - accuracy),
                "gram": None if teacher else 0.4 * (1 - accuracy),
                "cka": None if teacher else 0.9 * accuracy,
                "cosine_gap": None if teacher else 0.5 * (1 - accuracy),
            },
            per_class={"accuracy": per_class, "count": [36] * classes},
            cost={
                "parameters": size,
                "flops": size * 25,
                "bytes": size * 4 + 1200,
                "latency_ms": {
                    "1": 2.1 if teacher else 0.62 + self.draw.uniform(0, 0.03),
                    "64": 31.0 if teacher else 4.4 + self.draw.uniform(0, 0.2),
                },
                "train_seconds": 21.0 if teacher else 12.5 + self.draw.uniform(0, 1),
                "peak_memory_bytes": 612_000_000,
                "steps": STEPS,
                "samples": STEPS * BATCH,
            },
            **extra,
        )


def write_run(
    folder: Path,
    *,
    arms: dict[str, float] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    classes: Sequence[str] = tuple("0123456789"),
    noise: float = 0.008,
    unfinished: Sequence[tuple[str, int]] = (),
    stages: dict[str, Sequence[str]] | None = None,
    calibration: bool = True,
    random_seed: int = 0,
    **header: Any,
) -> Path:
    """Write a run directory with made-up numbers.

    Args:
        folder: where to.
        arms: arm -> test accuracy about which the seeds scatter; "teacher" is loaded, not trained.
        seeds: seeds of every arm but the teacher.
        classes: class names.
        noise: how far the seeds scatter.
        unfinished: (arm, seed) of members that stop half-way and have no result.
        stages: arm -> names of its stages.
        calibration: whether results hold a reliability diagram.
        random_seed: for the numbers.
        header: other values of the `run` line.
    """
    levels = ARMS if arms is None else arms
    students = [arm for arm in levels if arm != "teacher"]
    writer = RunWriter(folder, random_seed)
    (folder / "recipe.yaml").write_text(
        f"name: {folder.name}\ndata: {{source: digits, labels: 200}}\nmodels:\n  teacher: kd:resnet20\n"
        f"  student: kd:resnet8\nseeds: {list(seeds)}\nmethods:\n  - {{name: kd, temperature: 4.0}}\n"
        "optimizer: {name: sgd, lr: 0.1}\n",
        encoding="utf-8",
    )
    environment = {"python": "3.11.7", "torch": "2.15.0", "machine": {"cpu": "made up", "cores": 2}}
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    values: dict[str, Any] = {
        "name": folder.name,
        "task": "classification",
        "kind": "image",
        "classes": list(classes),
        "seeds": list(seeds),
        "arms": students,
        "counts": {"train": 1257, "labelled": 200, "validation": 180, "test": 360},
        "commit": "0123456789abcdef",
        "recipe_hash": "b7e1",
        "precision": "float32",
    }
    writer.line("run", **(values | header))
    names = {"teacher": ("kd:resnet20", "RepDistiller"), "student": ("kd:resnet8", "random")}
    for role, (name, weights) in names.items():
        if role == "teacher" and "teacher" not in levels:
            continue
        writer.line(
            "model",
            role=role,
            name=name,
            parameters=SIZES[role],
            weights=weights,
            fingerprint=f"{len(name):032x}",
        )
    for arm, level in levels.items():
        for seed in [None] if arm == "teacher" else seeds:
            cut_off = (arm, seed) in unfinished
            writer.line("member", arm=arm, seed=seed, state="started")
            if arm != "teacher":
                own = (stages or {}).get(arm, ["train"])
                writer.training(arm, seed, level, own, STEPS // 2 if cut_off else STEPS)
            if not cut_off:
                scatter = 0.0 if arm == "teacher" else writer.draw.gauss(0, noise)
                writer.result(arm, seed, level + scatter, len(classes), calibration)
                writer.line("member", arm=arm, seed=seed, state="finished")
    return folder


def lines_of(folder: Path, event: str) -> list[dict[str, Any]]:
    """Return the lines of one kind of a run's `metrics.jsonl`, read without the package."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a made-up run under a name; keywords as for `write_run`."""

    def make(name: str = "demo", **options: Any) -> Path:
        return write_run(tmp_path / "runs" / name, **options)

    return make


@pytest.fixture
def metrics_of() -> Callable[[Path, str], list[dict[str, Any]]]:
    """Return `lines_of`, for tests that check against the file itself."""
    return lines_of


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a headless Chromium that records what goes wrong on a page; skips where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    options.binary_location = program
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = selenium.Chrome(
        options=options, service=selenium.ChromeService(executable_path=driver)
    )
    yield opened
    opened.quit()
