"""What a run does with a method that has a `fit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from toy import experiment

from understudy.methods import Method, Step
from understudy.teachers.features import Features
from understudy.teachers.statistics import Moments
from understudy.teachers.study import Study
from understudy.training.run import run


def student(directory: Path, arm: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return load_file(directory / "student" / arm / f"seed-{seed}" / "model.safetensors")


def lines(directory: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(text) for text in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


class Coordinates(Method):
    """Regress the cached teacher feature of the un-augmented sample in its principal coordinates."""

    def __init__(self, count: int = 20) -> None:
        super().__init__()
        self.count = count

    needs_teacher = False

    def wire(self, wiring: Any) -> None:
        self.tap = f"{wiring.teacher.description.classifier}@input"
        width = wiring.teacher.tap(self.tap).shape[0]
        self.linear = torch.nn.Linear(wiring.classes, self.count)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, self.count))

    def fit(self, study: Study) -> None:
        moments, self.cached = Moments(self.tap), Features(self.tap)
        study.collect(moments, self.cached)
        found = moments.principal(self.count)
        self.mean.copy_(found.mean)
        self.basis.copy_(found.basis)

    def loss(self, step: Step) -> torch.Tensor:
        target = (self.cached.rows_for(step.batch.index) - self.mean) @ self.basis
        assert step.student.logits is not None
        return (self.linear(step.student.logits) - target).square().mean()


def test_end_to_end(tmp_path: Path) -> None:
    run(experiment({"pca": [{"methods": [Coordinates()]}]}, seeds=(0, 1)), tmp_path / "r")
    first, second = lines(tmp_path / "r", "fit")
    assert [note["samples"] for note in first["fitted"]] == [84, 84]
    assert [note["samples"] for note in second["fitted"]] == [0, 0]
