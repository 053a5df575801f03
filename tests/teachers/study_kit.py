"""A small teacher on made data, and studies of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.data.samples import TensorSamples
from understudy.data.source import Split
from understudy.data.transforms.horizontal_flip import HorizontalFlip
from understudy.data.views import Views
from understudy.models.model import Model
from understudy.models.outputs import Outputs
from understudy.models.preprocess import ImagePreprocess
from understudy.tasks.classification import Classification
from understudy.teachers.accumulating import Statistic
from understudy.teachers.features import Features
from understudy.teachers.readings import Reading, Seen
from understudy.teachers.statistics import ClassMoments, Moments
from understudy.teachers.study import Study

COUNT = 50
CLASSES = ("low", "middle", "high")


class Counted(nn.Module):
    """A convolutional teacher with batch statistics, and an in-place activation, that counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(5, len(CLASSES))
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        maps = self.relu(self.norm(self.conv(x)))
        return self.fc(maps.mean(dim=(2, 3)))


def teacher(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    module = Counted()
    module.norm.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
    module.norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return Model(module, ImagePreprocess([0.4], [0.3]), "counted")


def split(count: int = COUNT, unlabelled: int = 0, seed: int = 1) -> Split:
    """Return images of 4 x 6 whose ids are in no order."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 4, 6), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % len(CLASSES)
    labels[count - unlabelled :] = -1
    ids = torch.randperm(10 * count, generator=generator)[:count]
    return Split(TensorSamples(images, "image"), torch.arange(count), labels, ids)


def study(folder: Path | None, **changes: Any) -> Study:
    keywords: dict[str, Any] = {
        "split": split(),
        "teachers": {"teacher": teacher()},
        "classes": CLASSES,
        "task": Classification(),
        "device": torch.device("cpu"),
        "views": Views([HorizontalFlip()], seed=3),
        "folder": folder,
        "mode": "provisional" if folder is None else "real",
        "batch_size": 8,
    }
    return Study(**{**keywords, **changes})


def seen(
    feature: torch.Tensor,
    labels: torch.Tensor | None = None,
    logits: torch.Tensor | None = None,
    classes: int = len(CLASSES),
    inputs: Any = None,
) -> Seen:
    """Return one batch whose teacher has `feature` at the tap "f"."""
    count = len(feature)
    batch = Batch({"teacher": inputs}, labels, torch.arange(count), torch.zeros(count))
    return Seen(batch, {"teacher": Outputs(logits, {"f": feature})}, classes)


def counted(made: Study) -> int:
    module = made.teacher()
    assert isinstance(module, Counted)
    # Two samples are looked at before a pass, to see which taps the model changes afterwards.
    return module.seen


def everything() -> list[Statistic]:
    return [
        Moments("norm"),
        ClassMoments("fc@input", by="teacher"),
        Features(Reading("norm", pool=2)),
    ]
