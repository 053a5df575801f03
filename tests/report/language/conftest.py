"""Made-up runs of a language task."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

MakeRun = Callable[..., Path]

LEVELS = {"teacher": 2.90, "baseline": 3.40, "kd": 3.15, "reverse_kl": 3.22}
"""Arm -> NLL in nats per token about which its seeds scatter."""
DOMAINS = ("stories", "news", "code")
SHIFTS = (-0.4, 0.0, 0.3, 0.1)
PROMPTS = (
    (11, "Once upon a time", " there was a king.\nHe had three daughters."),
    (12, "def area(r):", None),
    (13, "The council decided on Monday\n\tto", " close the bridge."),
    (14, "Q: What is 2 + 2?\nA:", " 4"),
)


def write_language_run(
    folder: Path,
    *,
    levels: Mapping[str, float] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    domains: Sequence[str] = DOMAINS,
    noise: float = 0.012,
    written: Mapping[str, str] | None = None,
    validation: Mapping[str, float] | None = None,
    answers: bool = False,
    random_seed: int = 0,
    **header: Any,
) -> Path:
    """Write a run directory of a language task with made-up numbers.

    Args:
        folder: where to.
        levels: arm -> NLL; "teacher" is loaded, not trained.
        seeds: seeds of every arm but the teacher.
        domains: names of the domains; with none there are no measures by domain.
        noise: how far the seeds scatter.
        written: arm -> what its members wrote after every prompt; None: something for each arm.
        validation: arm -> NLL at the end of training on the validation split; that on the test split when not given.
        answers: whether written answers were compared with references.
        random_seed: for the numbers.
        header: other values of the `run` line.
    """
    found = dict(LEVELS if levels is None else levels)
    students = [arm for arm in found if arm != "teacher"]
    draw = random.Random(random_seed)
    lines: list[dict[str, Any]] = [
        {
            "event": "run",
            "name": folder.name,
            "task": "causal_lm",
            "kind": "text",
            "measure": {"name": "nll", "better": "lower"},
            "vocabulary": 4096,
            "classes": list(domains),
            "seeds": list(seeds),
            "arms": students,
            "counts": {"train": 5000, "validation": 200, "test": 400},
            "commit": "0123456789abcdef",
            "recipe_hash": "b7e1",
            "precision": "float32",
            **header,
        }
    ]
    for arm, level in found.items():
        members: Sequence[int | None] = [None] if arm == "teacher" else seeds
        for seed in members:
            where = {"arm": arm, "seed": seed}
            if seed is not None:
                end = level if validation is None else validation[arm]
                lines += _training(where, end, draw)
            nll = level + (draw.gauss(0, noise) if seed is not None else 0.0)
            lines.append(_result(where, nll, domains, answers, draw))
            text = f" ...and {arm} went on,\n  seed {seed}." if written is None else written[arm]
            samples = [
                {"id": key, "prompt": prompt, "reference": reference, "text": text}
                for key, prompt, reference in PROMPTS
            ]
            lines.append({"event": "samples", **where, "samples": samples})
            lines.append({"event": "member", **where, "state": "finished"})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(f"name: {folder.name}\ntask: causal_lm\n", encoding="utf-8")
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"time": "2026-03-14T09:00:00+00:00", **line}) + "\n" for line in lines),
        encoding="utf-8",
    )
    return folder


def _training(where: dict[str, Any], level: float, draw: random.Random) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(50, 1001, 50):
        nll = level + 5 * math.exp(-step / 150)
        place = {**where, "stage": "train", "epoch": 0, "step": step}
        lines.append(
            {
                "event": "step",
                **place,
                "progress": step / 1000,
                "lr": 3e-4,
                "terms": {"supervised": nll + draw.uniform(0, 0.1)},
                "loss": nll,
                "gradient_norm": 1.0,
                "samples_per_second": 80.0,
            }
        )
        if step % 100 == 0:
            lines.append(
                {
                    "event": "epoch",
                    **place,
                    "split": "validation",
                    "metrics": {
                        "accuracy": 1.2 / nll,
                        "nll": nll,
                        "perplexity": math.exp(nll),
                    },
                    "elapsed": step / 10,
                }
            )
    return lines


def _result(
    where: dict[str, Any], nll: float, domains: Sequence[str], answers: bool, draw: random.Random
) -> dict[str, Any]:
    teacher = where["arm"] == "teacher"
    size = 12_300_000 if teacher else 2_100_000
    by_domain = [
        nll + shift + draw.uniform(-0.05, 0.05)
        for shift in (SHIFTS[index % len(SHIFTS)] for index in range(len(domains)))
    ]
    middle = [(index + 0.5) / 15 for index in range(15)]
    metrics = {
        "accuracy": 1.2 / nll,
        "nll": nll,
        "perplexity": math.exp(nll),
        "bits_per_byte": nll / 3.1,
        "ece": 0.02 + draw.uniform(0, 0.01),
        "agreement": None if teacher else 0.9 - 0.1 * nll,
        "kl": None if teacher else nll - 2.7,
        "procrustes": None,
        "gram": None,
        "cka": None,
        "cosine_gap": None,
    }
    if answers:
        metrics |= {"exact_match": 0.6 - 0.1 * nll, "rouge_l": 0.9 - 0.1 * nll}
    per_domain = {
        "accuracy": [1.2 / value for value in by_domain],
        "count": [30_000 + 1000 * index for index in range(len(domains))],
        "perplexity": [math.exp(value) for value in by_domain],
    }
    return {
        "event": "result",
        **where,
        "split": "test",
        "metrics": metrics,
        "per_class": per_domain if domains else None,
        "calibration": {
            "confidence": middle,
            "accuracy": [value**1.1 for value in middle],
            "count": [900] * 15,
        },
        "cost": {
            "parameters": size,
            "flops": size * 2 * 256,
            "bytes": size * 4,
            "latency_ms": {"1": 40.0 if teacher else 9.0, "64": 900.0 if teacher else 210.0},
            "train_seconds": 0.0 if teacher else 300.0 + draw.uniform(0, 9),
            "peak_memory_bytes": 1_900_000_000,
            "steps": 0 if teacher else 1000,
            "samples": 0 if teacher else 64_000,
            "tokens": 0 if teacher else 8_192_000,
        },
    }


@pytest.fixture
def make_language_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a made-up run under a name; keywords as for `write_language_run`."""

    def make(name: str = "tales", **options: Any) -> Path:
        return write_language_run(tmp_path / "runs" / name, **options)

    return make
