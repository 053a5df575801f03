"""A task that every contender trains on: two models, samples, an objective."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from understudy.data.source import Source
from understudy.data.sources.python import from_tensors
from understudy.methods import KD, FitNet, Method, Supervised
from understudy.models import kd
from understudy.models.build import build
from understudy.models.model import Model
from understudy.models.preprocess import AnyPreprocess, ImagePreprocess, TensorPreprocess

TEMPERATURE, ALPHA = 4.0, 0.9
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
TAP = "layer2"
"""Where the hint is read: the second of the four stages of `deep_pair`."""


@dataclass
class Task:
    """What is trained.

    Attributes:
        source: the samples, in memory.
        student: the student with its first weights; `copy_of` gives each contender its own.
        teacher: the teacher.
        batch: samples in a step.
        objective: "kd" for ALPHA * KD + (1 - ALPHA) * cross-entropy, "hint" for a FitNet hint alone, "labels" for
            cross-entropy alone.
    """

    source: Source
    student: Model
    teacher: Model
    batch: int
    objective: str = "kd"

    @property
    def inputs(self) -> torch.Tensor:
        """All training inputs as they are stored."""
        found = self.source.train.fetch(torch.arange(len(self.source.train)))
        assert isinstance(found, torch.Tensor)
        return found

    def methods(self) -> list[Method]:
        """Return the objective as understudy's methods."""
        if self.objective == "hint":
            return [FitNet(TAP, TAP)]
        if self.objective == "labels":
            return [Supervised()]
        return [KD(TEMPERATURE).weighted(ALPHA), Supervised().weighted(1 - ALPHA)]


def copy_of(model: Model) -> Model:
    """Return a model of the same weights, for one contender."""
    return Model(copy.deepcopy(model.module), copy.deepcopy(model.preprocess), model.name)


def linear_pair(batch: int = 64, samples: int = 6400) -> Task:
    """Return two linear layers on 32 numbers: next to no work, so that what a loop costs is seen."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(samples, 32, generator=generator), torch.arange(samples) % 10
    source = from_tensors(inputs, labels, test_inputs=inputs[:10], test_labels=labels[:10])
    student, teacher = (
        _made(lambda: nn.Linear(32, 10), TensorPreprocess(), "linear", seed) for seed in (1, 2)
    )
    return Task(source, student, teacher, batch)


def image_pair(
    student: str, teacher: str, *, batch: int, samples: int = 2048, objective: str = "kd"
) -> Task:
    """Return two networks of the CIFAR family on made images of 100 classes."""
    made = [
        _made(
            lambda n=name: kd.build(n, classes=100), ImagePreprocess(MEAN, STD), f"kd:{name}", seed
        )
        for name, seed in ((student, 1), (teacher, 2))
    ]
    return Task(_images(samples), made[0], made[1], batch, objective)


def deep_pair(*, batch: int, samples: int = 2048) -> Task:
    """Return a ResNet18 and a ResNet34, four stages of equal cost a block, on made images of 100 classes, for a hint.

    They are timm's with the stem that small images call for: a 3x3 convolution and no pooling.
    """
    source = _images(samples)
    made = [
        _made(lambda n=name: _small_stem(n), ImagePreprocess(MEAN, STD), f"timm:{name}", seed)
        for name, seed in (("resnet18", 1), ("resnet34", 2))
    ]
    return Task(source, made[0], made[1], batch, "hint")


def _small_stem(name: str) -> nn.Module:
    module = build(f"timm:{name}", classes=100, kind="image", input_shape=(3, 32, 32)).module
    module.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    module.maxpool = nn.Identity()
    return module


def _images(samples: int) -> Source:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (samples, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(samples) % 100
    return from_tensors(images, labels, test_inputs=images[:100], test_labels=labels[:100])


def _made(build: Callable[[], nn.Module], preprocess: AnyPreprocess, name: str, seed: int) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Model(build(), preprocess, name)
