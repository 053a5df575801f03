"""A method wired to two small models, and a step on made images or letters; for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.data.source import Split
from understudy.data.sources.python import from_tensors
from understudy.methods import Method, Step
from understudy.methods.wiring import Side, Wiring
from understudy.models import kd
from understudy.models.taps import Tapped
from understudy.tasks.classification import Classification
from understudy.teachers.live import LiveTeacher
from understudy.training.precision import Precision

CLASSES = 3


class Reader(nn.Module):
    """Letters with an attention mask, one linear block after the other, the mean of the tokens into a classifier."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)
        )
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.embedding(input_ids)
        for block in self.blocks:
            tokens = block(tokens)
        mask = attention_mask.unsqueeze(2)
        return self.classifier((tokens * mask).sum(dim=1) / mask.sum(dim=1))


@dataclass
class Wired:
    """A method that is wired, and what it is wired to."""

    method: Any
    wiring: Wiring
    student: nn.Module
    teacher: nn.Module
    inputs: Any
    train: Split

    @cached_property
    def tapped(self) -> Tapped:
        """The student with its taps."""
        return Tapped(self.student, self.wiring.student.taps, self.wiring.student.copied)

    @cached_property
    def live(self) -> LiveTeacher:
        """The teacher with its taps."""
        side = self.wiring.teacher
        return LiveTeacher(
            self.teacher,
            role="teacher",
            task=Classification(),
            taps=side.taps,
            copied=side.copied,
            precision=Precision().context,
        )

    def step(
        self, index: list[int] | None = None, weight: torch.Tensor | None = None, **changes: Any
    ) -> Step:
        """Return a step on the samples at `index` of the inputs (all of them, in order)."""
        chosen = torch.arange(len(self.train)) if index is None else torch.tensor(index)
        part = (
            {key: value[chosen] for key, value in self.inputs.items()}
            if isinstance(self.inputs, dict)
            else self.inputs[chosen]
        )
        part = changes.get("inputs", part)
        task = Classification()
        batch = Batch(
            {"student": part, "teacher": part},
            labels=self.train.labels[chosen],
            index=self.train.ids[chosen],
            view=torch.zeros_like(chosen),
            weight=weight,
        )
        return Step(
            batch,
            task=task,
            student=lambda given: task.forward_tapped(self.tapped, given, "student"),
            teachers={"teacher": self.live.targets},
            progress=0.5,
        )


def wired(
    method: Method,
    *,
    count: int = 8,
    labels: list[int] | None = None,
    text: bool = False,
    student: str = "resnet8",
    teacher: str = "resnet14",
    train: bool = True,
    model: nn.Module | None = None,
) -> Wired:
    """Wire a method to a small student, or to `model`, and a teacher twice as wide."""
    torch.manual_seed(3)
    inputs: Any = torch.randn(count, 1, 16, 16)
    models: tuple[nn.Module, nn.Module]
    if text:
        length = torch.arange(count) % 4 + 2
        mask = (torch.arange(5) < length.unsqueeze(1)).long()
        inputs = {"input_ids": torch.randint(1, 9, (count, 5)), "attention_mask": mask}
        models = Reader(6, 2), Reader(8, 4)
    else:
        models = (
            kd.build(student, classes=CLASSES, in_channels=1, width=0.25),
            kd.build(teacher, classes=CLASSES, in_channels=1, width=0.5),
        )
    models = models if model is None else (model, models[1])
    given = torch.tensor(labels) if labels is not None else torch.arange(count) % CLASSES
    source = from_tensors(
        torch.zeros(len(given), 2),
        given,
        test_inputs=torch.zeros(1, 2),
        test_labels=torch.zeros(1, dtype=torch.int64),
        classes=[str(number) for number in range(CLASSES)],
    )
    height = None if text else 16
    wiring = Wiring(
        Side("student", models[0], inputs, training=True, input_height=height),
        {"teacher": Side("teacher", models[1], inputs, training=False, input_height=height)},
        classes=CLASSES,
        train=source.train if train else None,
    )
    wiring.seed = 11
    method.wire(wiring)
    return Wired(method, wiring, *models, inputs, source.train)


def features(wired: Wired, step: Step, pair: int | None = None) -> tuple[torch.Tensor, ...]:
    """Return the features that the method reads, of one of several pairs of taps."""
    place = wired.method.places if pair is None else wired.method.places[pair]
    return step.features(*place)


def reached(module: nn.Module) -> set[str]:
    """Return the parameters that have a gradient other than 0."""
    return {
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
