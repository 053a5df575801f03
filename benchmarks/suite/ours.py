"""understudy as a contender: its own stage, loader, recorder and loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.suite.task import DECAY, MOMENTUM, RATE, Task, copy_of
from torch import nn

from understudy.data.batch import Batch
from understudy.teachers.ahead import Steps
from understudy.teachers.store.settings import Dtype, StoreSettings
from understudy.teachers.stored import StoredModel
from understudy.training.context import Context
from understudy.training.distribution import join_world
from understudy.training.experiment import TEACHER, Experiment, ExperimentData, ExperimentTeacher
from understudy.training.loop import train
from understudy.training.optimizers import Optimizer
from understudy.training.precision import Precision
from understudy.training.probe import choose_precision
from understudy.training.recorder import Recorder
from understudy.training.schedules import Constant
from understudy.training.settings import Settings
from understudy.training.splits import make_splits
from understudy.training.stage import Stage
from understudy.training.stage_run import StageRun

ENDLESS = 10**7
"""Steps of a stage that is stopped from outside."""


class Portions:
    """A loader that ends after as many batches as one turn has steps."""

    def __init__(self, loader: Steps) -> None:
        """Wrap a stage's own loader."""
        self.loader, self.steps_in_turn = loader, 1

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Give the batches of the turn."""
        return self.loader.steps(start, min(stop, start + self.steps_in_turn))

    def close(self) -> None:
        """Close the loader."""
        self.loader.close()


def experiment(
    task: Task, store: Path | None = None, ahead: bool = False, dtype: Dtype = "float32"
) -> Experiment:
    """Return the task as an experiment; with `store` its teacher's 16 largest logits are kept there as `dtype`."""
    settings = None
    if store is not None:
        settings = StoreSettings(path=str(store), top_k=16, dtype=dtype, temperatures=(4.0,))
    teacher = copy_of(task.teacher)
    return Experiment(
        "benchmark",
        ExperimentData(task.source, validation=None),
        lambda: copy_of(task.student),
        ExperimentTeacher(lambda: teacher, store=settings, ahead=ahead),
        {"distil": lambda: [Stage(task.methods(), steps=ENDLESS)]},
        Settings(batch_size=task.batch, device="cpu"),
    )


def automatic(task: Task) -> Precision:
    """Return what `precision: auto` chooses for the task on this machine."""
    given = experiment(task)
    context = Context(given, make_splits(given), join_world("cpu"))
    try:
        teacher = context.place(copy_of(task.teacher))
        return choose_precision(context, {TEACHER: teacher})[0]
    finally:
        context.close()


class Ours:
    """The task through the package.

    Its stage has the process keep freed memory, from which whoever else runs in the process gains as much.

    Args:
        task: what is trained.
        precision: how models run.
        store: a labelled store to learn from; None for the teacher itself.
        steps: length of the stage.
        ahead: whether the teacher begins the next batch while the student trains.
    """

    def __init__(
        self,
        task: Task,
        precision: Precision,
        *,
        store: Path | None = None,
        steps: int = ENDLESS,
        ahead: bool = False,
    ) -> None:
        """Build the stage."""
        given = experiment(task, ahead=ahead)
        self.context = Context(given, make_splits(given), join_world("cpu"), precision=precision)
        teacher = (
            self.context.place(copy_of(task.teacher))
            if store is None
            else StoredModel(self.context.open_store(str(store)))
        )
        optimizer = Optimizer("sgd", lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
        self.student = self.context.place(copy_of(task.student))
        self.stage: StageRun = self.context.stage_run(
            Stage(task.methods(), steps=steps, optimizer=optimizer, schedule=Constant()),
            student=self.student,
            teacher=None if task.objective == "labels" else teacher,
            split=self.context.splits.train,
            seed=0,
            number=0,
        )
        self.losses: list[float] = []
        self._recorder = self._writing(20, lambda **line: self.losses.append(line["loss"]))
        self._portions = Portions(self.stage.loader)
        self.stage.loader = self._portions

    def projector(self) -> nn.Module:
        """Return a copy of a hint's learned map, for the other contenders."""
        method = self.stage.module.active[0]
        found = method.get_submodule("projector")
        return copy.deepcopy(found)

    def batches(self, steps: int) -> list[Batch]:
        """Return the first batches, in the form that the models take."""
        return [parts[0] for parts in self._portions.loader.steps(0, steps)]

    def losses_of(self, steps: int) -> list[float]:
        """Take the first steps and return the loss of each."""
        found: list[float] = []
        self._turn(steps, self._writing(1, lambda **line: found.append(line["loss"])))
        return found

    def run(self, steps: int) -> None:
        """Take `steps` steps."""
        self._turn(steps, self._recorder)

    def close(self) -> None:
        """Leave the models without hooks."""
        self.stage.close()
        self.context.close()

    def _writing(self, every: int, write: Callable[..., None]) -> Recorder:
        return Recorder(write, every, str, self.context.world)

    def _turn(self, steps: int, recorder: Recorder) -> None:
        self._portions.steps_in_turn = steps
        train(
            self.stage,
            recorder,
            save=lambda: None,
            validate=lambda: False,
            stop=lambda: False,
            checkpoint_every=None,
        )
