"""A small experiment on made data, for tests in this process and in others.

As a program: `python toy.py DIRECTORY fresh|resume|label [OPTIONS as JSON]`; `label` fills the store of the options.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from understudy.data.source import Source
from understudy.data.sources.python import from_tensors
from understudy.data.transforms.horizontal_flip import HorizontalFlip
from understudy.data.transforms.random_crop import RandomCrop
from understudy.methods import KD, FitNet, Method, Step, Study, Supervised, Wiring
from understudy.models import kd
from understudy.models.model import Model
from understudy.models.preprocess import ImagePreprocess
from understudy.teachers.features import Features
from understudy.teachers.listening import Route
from understudy.teachers.statistics import Moments
from understudy.teachers.store.settings import StoreSettings
from understudy.training.experiment import Experiment, ExperimentData, ExperimentTeacher
from understudy.training.labelling import label
from understudy.training.optimizers import Optimizer
from understudy.training.run import RunResult, run
from understudy.training.settings import Settings
from understudy.training.stage import Stage

CLASSES = 3
TOY_FILE = Path(__file__)


class Dropped(nn.Module):
    """A student with dropout and no batch statistics."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.relu(self.norm(self.conv(x)))
        return self.fc(self.dropout(maps.mean(dim=(2, 3))))


def source(count: int = 96, missing: int = 0) -> Source:
    """Return images of bright bars whose place tells the class."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count + 60) % CLASSES
    images = torch.randint(0, 90, (count + 60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for number, place in enumerate(labels.tolist()):
        images[number, 0, 2 * place + 1] += 120
    train_labels = labels[:count].clone()
    if missing:
        train_labels[-missing:] = -1
    return from_tensors(
        images[:count],
        train_labels,
        test_inputs=images[count:],
        test_labels=labels[count:],
        classes=["low", "middle", "high"],
    )


def model(kind: str = "resnet8", width: float = 0.25) -> Model:
    """Return a small network on one channel."""
    preprocess = ImagePreprocess([0.25], [0.2])
    if kind in ("dropped", "steady"):
        module = Dropped()
        module.dropout.p = 0.0 if kind == "steady" else module.dropout.p
        return Model(module, preprocess, kind)
    return Model(
        kd.build(kind, classes=CLASSES, in_channels=1, width=width), preprocess, f"kd:{kind}"
    )


class Coordinates(Method):
    """Regress the teacher's feature of the sample as it is, kept on disk, in its principal coordinates."""

    needs_teacher = False

    def __init__(self, count: int = 20, cached: bool = True) -> None:
        super().__init__()
        self.count, self.cached = count, cached

    def wire(self, wiring: Wiring) -> None:
        self.tap = f"{wiring.teacher.description.classifier}@input"
        (width,) = wiring.teacher.tap(self.tap).shape
        self.linear = nn.Linear(wiring.classes, self.count)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, self.count))
        self.register_buffer("rotation", torch.zeros(self.count, self.count))

    def fit(self, study: Study) -> None:
        moments, self.features = Moments(self.tap), Features(self.tap)
        study.collect(moments, *[self.features] if self.cached else [])
        found = moments.principal(self.count)
        self.mean.copy_(found.mean)
        self.basis.copy_(found.basis)
        drawn = torch.randn(self.count, self.count, generator=study.stream("rotation"))
        self.rotation.copy_(torch.linalg.qr(drawn).Q)

    def loss(self, step: Step) -> torch.Tensor:
        assert step.student.logits is not None
        given = self.linear(step.student.logits)
        if not self.cached:
            return ((self.basis.T @ self.basis - 0.5) @ given.T).square().mean()
        target = (self.features.rows_for(step.batch.index) - self.mean) @ self.basis
        return (given - target @ self.rotation).square().mean()


METHODS: dict[str, Callable[[], Method]] = {
    "supervised": Supervised,
    "kd": KD,
    "fitnet": FitNet,
    "coordinates": Coordinates,
    "narrow": lambda: Coordinates(3),
}


def experiment(
    arms: dict[str, list[dict[str, Any]]] | None = None,
    *,
    student: str = "resnet8",
    teacher: str | None = "resnet14",
    missing: int = 0,
    labels: int | None = None,
    augment: bool = False,
    teacher_epochs: int = 3,
    source_override: Source | None = None,
    teacher_file: str | None = None,
    teacher_mean: float = 0.25,
    store: dict[str, Any] | None = None,
    views: int | None = None,
    teacher_precision: Any = None,
    ahead: bool = False,
    transforms: list[Any] | None = None,
    teachers: dict[str, dict[str, Any]] | None = None,
    **settings: Any,
) -> Experiment:
    """Return an experiment; each arm is a list of stages, whose methods are names or (name, weight[, teacher]).

    With `teachers` there are several by name, each with its own `kind`, `mean`, `file`, `epochs` and `store`.
    With `teacher_file` the teacher has those weights and is not trained; with `store` its outputs are stored; with a
    store and `teacher=None` there is no teacher beside.
    """
    settings = {"batch_size": 16, "precision": "float32", "channels_last": False, **settings}
    settings["seeds"] = tuple(settings.get("seeds", (0,)))

    def stages(given: list[dict[str, Any]]) -> list[Stage]:
        made = []
        for keywords in given:
            methods = []
            for entry in keywords["methods"]:
                if isinstance(entry, Method):
                    methods.append(entry)
                    continue
                name, weight, hears, features = (
                    (entry, 1.0, None, None) if isinstance(entry, str) else (*entry, None, None)[:4]
                )
                hears = Route(**hears) if isinstance(hears, dict) and "by" in hears else hears
                methods.append(
                    METHODS[name]().weighted(weight).listening_to(hears, features=features)
                )
            rest = {key: value for key, value in keywords.items() if key != "methods"}
            rest.setdefault("epochs", None if "steps" in rest else 3)
            rest["optimizer"] = Optimizer("sgd", lr=rest.pop("lr", 0.05), momentum=0.9)
            made.append(Stage(methods, **rest))
        return made

    def build_teacher() -> Model:
        assert teacher is not None
        made = model(teacher, 0.5)
        made.preprocess = ImagePreprocess([teacher_mean], [0.2])
        if teacher_file is not None:
            made.module.load_state_dict(load_file(teacher_file))
        return made

    def build_named(kind: str, mean: float, file: str | None) -> Model:
        made = model(kind, 0.5)
        made.preprocess = ImagePreprocess([mean], [0.2])
        if file is not None:
            made.module.load_state_dict(load_file(file))
        return made

    several = {}
    for name, given in (teachers or {}).items():
        kind, mean, file = given.get("kind", "resnet14"), given.get("mean", 0.25), given.get("file")
        train = stages([{"methods": ["supervised"], "epochs": given.get("epochs", teacher_epochs)}])
        several[name] = ExperimentTeacher(
            partial(build_named, kind, mean, file),
            [] if file is not None else train,
            labels=given.get("labels"),
            store=StoreSettings(**given["store"]) if "store" in given else None,
        )
    given_teacher = None
    if several:
        teacher = store = None
    if teacher is not None or store is not None:
        train = stages([{"methods": ["supervised"], "epochs": teacher_epochs}])
        given_teacher = ExperimentTeacher(
            build_teacher if teacher is not None else None,
            [] if teacher_file is not None or store is not None else train,
            store=None if store is None else StoreSettings(**store),
            precision=teacher_precision,
            ahead=ahead,
        )
    arms = arms or {"kd": [{"methods": ["kd", "supervised"]}]}
    return Experiment(
        name="toy",
        data=ExperimentData(
            source_override or source(missing=missing),
            labels=labels,
            validation=0.125,
            transforms=transforms or ([RandomCrop(padding=1), HorizontalFlip()] if augment else []),
            views=views,
        ),
        student=lambda: model(student),
        teacher=given_teacher,
        teachers=several,
        arms={name: (lambda given=given: stages(given)) for name, given in arms.items()},  # type: ignore[misc]
        settings=Settings(**settings),
        recipe={"toy": True},
    )


def start(directory: Path, resume: bool, options: dict[str, Any]) -> RunResult:
    """Run the experiment of these options."""
    return run(experiment(**options), directory, resume=resume)


if __name__ == "__main__":
    given = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    if sys.argv[2] == "label":
        label(experiment(**given))
    else:
        start(Path(sys.argv[1]), sys.argv[2] == "resume", given)
