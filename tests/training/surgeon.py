"""Methods that operate on the student, in the experiment of `toy`; a program like that one, too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

import torch
import toy
from spare_parts import Convolved, Templates

from understudy.methods import Method, Step, Wiring
from understudy.models.build import build
from understudy.models.heads import LinearChain, MarginalHead
from understudy.models.model import Model
from understudy.teachers.study import Study
from understudy.training.experiment import Experiment
from understudy.training.run import RunResult, run

SURGEON_FILE = Path(__file__)


class Grafted(Method):
    """Splices templates into the student and pulls their raw scores towards one."""

    needs_teacher = False

    def __init__(self, path: str = "layer2.0", kind: str = "templates") -> None:
        super().__init__()
        self.path, self.kind = path, kind

    def wire(self, wiring: Wiring) -> None:
        made = Templates if self.kind == "templates" else Convolved
        self.graft = wiring.graft(self.path, lambda shape: made(shape[0]))
        inner = "scores" if self.kind == "templates" else "map"
        self.scores = self.graft.tap(inner).name

    def loss(self, step: Step) -> torch.Tensor:
        return (step.student.features[self.scores] - 1).square().mean()


class SubClasses(Method):
    """Two sub-classes for each class; the first is to have the larger logit."""

    needs_teacher = False

    def wire(self, wiring: Wiring) -> None:
        self.head = wiring.head(lambda width, classes: MarginalHead(width, classes, 2))
        self.inner = self.head.tap("subclasses").name

    def loss(self, step: Step) -> torch.Tensor:
        logits = step.student.features[self.inner]
        assert logits.shape[1] == 2 * toy.CLASSES
        assert step.student.logits is not None and step.student.logits.shape[1] == toy.CLASSES
        return (logits[:, 1::2] - logits[:, ::2]).exp().log1p().mean()


class Coordinates(Method):
    """A classifier of linear parts, some of them fixed; the coordinates are to be small."""

    needs_teacher = False

    def wire(self, wiring: Wiring) -> None:
        def head(width: int, classes: int) -> LinearChain:
            chain = LinearChain(
                width,
                [
                    {"name": "align", "kind": "linear", "size": 9},
                    {"name": "centre", "kind": "shift", "frozen": True},
                    {"name": "basis", "kind": "linear", "size": 5, "bias": False, "frozen": True},
                    {"name": "mask", "kind": "scale"},
                    {"name": "classify", "kind": "linear", "size": classes},
                ],
            )
            chain.assign("centre", bias=torch.linspace(-1, 1, 9))
            chain.assign("basis", weight=torch.eye(9)[:5])
            return chain

        self.head = wiring.head(head)
        self.inner = self.head.tap("basis").name

    def loss(self, step: Step) -> torch.Tensor:
        return step.student.features[self.inner].square().mean()


class Fitted(Coordinates):
    """Learns where the centre is before the stage."""

    def fit(self, study: Study) -> None:
        self.head.module.assign("centre", bias=torch.full((9,), 2.0))


toy.METHODS |= {
    "graft": Grafted,
    "graft_relu": lambda: Grafted("relu", "convolved"),
    "subclasses": SubClasses,
    "linear_chain": Coordinates,
    "fitted": Fitted,
}


def named_student(width: float = 0.25) -> Model:
    """Return a student that a fresh process can build by name."""
    return build(
        "kd:resnet8",
        classes=toy.CLASSES,
        kind="image",
        input_shape=(1, 8, 8),
        statistics=((0.25,), (0.2,)),
        width=width,
    )


def experiment(arms: dict[str, list[dict[str, Any]]], **options: Any) -> Experiment:
    """Return the toy experiment; without a `student` asked for, that one can be built by name."""
    built = toy.experiment(arms, **options)
    if "student" not in options:
        built.student = named_student
    return built


def start(directory: Path, resume: bool, options: dict[str, Any]) -> RunResult:
    """Run the experiment of these options."""
    return run(experiment(**options), directory, resume=resume)


if __name__ == "__main__":
    start(Path(sys.argv[1]), sys.argv[2] == "resume", json.loads(sys.argv[3]))
