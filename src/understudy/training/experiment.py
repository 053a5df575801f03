"""An experiment: everything that a run needs, as objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from understudy.data.curation import Dropped, Filter, curated
from understudy.data.source import Source
from understudy.data.views import Mixing, Transform
from understudy.errors import TrainingError
from understudy.models.model import Model
from understudy.tasks import Classification, Task
from understudy.teachers.listening import RESERVED
from understudy.teachers.store.settings import StoreSettings
from understudy.training.settings import Settings
from understudy.training.stage import Stage

BASELINE = "baseline"
"""The arm that every run has unless it is told not to: the student without a teacher."""
TEACHER = "teacher"
"""The role of an only teacher, and the name under which its own training and results are logged."""

REFERENCE = "reference"
"""The role of the model against which documents are scored. It is logged like a teacher of this name."""


@dataclass
class ExperimentData:
    """What a run learns from.

    Attributes:
        source: the loaded data.
        labels: how many training labels the students may see (a count, or a fraction below 1); None for all.
        validation: how much of the training split is kept for selection (count or fraction) when the source brings
            no validation split; None or 0 for none.
        transforms: random views of a training sample, in order.
        views: how many different views a sample has (epoch e shows view e mod views); None for ever new ones.
        filters: which training documents are left out, one filter after the other. What they leave is the source.
    """

    source: Source
    labels: int | float | None = None
    validation: int | float | None = 0.1
    transforms: Sequence[Transform | Mixing] = ()
    views: int | None = None
    filters: Sequence[Filter] = ()

    def __post_init__(self) -> None:
        """Leave out what the filters leave out, and remember how much that was."""
        self.source, dropped = curated(self.source, self.filters)
        self.dropped: list[Dropped] = dropped


@dataclass
class ExperimentTeacher:
    """The teacher of a run.

    Attributes:
        build: makes the model; called once. None where there is only a store.
        stages: how it is trained; empty when its weights are loaded.
        labels: how many training labels it may see (as in `ExperimentData.labels`); None for all.
        store: where its outputs are kept, and what `label` writes there; None when it runs as the student trains.
        precision: how it runs beside the student: "float32", "bf16" (autocast), or "int8" (linear layers, on a CPU);
            None for as the student does. It is evaluated in float32 all the same.
        ahead: whether it works on the next batch while the student trains on this one.
        device: where it runs beside the student, such as "cuda:1", on a copy of its weights; None for the student's
            device, on which it is trained and evaluated in any case.
    """

    build: Callable[[], Model] | None
    stages: Sequence[Stage] = ()
    labels: int | float | None = None
    store: StoreSettings | None = None
    precision: Literal["float32", "bf16", "int8"] | None = None
    ahead: bool = False
    device: str | None = None


@dataclass
class ExperimentReference:
    """The small model against which documents are scored, where a stage selects by difference.

    Attributes:
        build: makes the model; called once. It has to read the same tokens as the teacher.
        stages: how it is trained; empty when its weights are loaded.
        share: how many training documents it is trained on (a count, or a fraction below 1). Nobody else sees them:
            what it learnt by heart would be scored too low. Without stages nothing is set aside.
    """

    build: Callable[[], Model]
    stages: Sequence[Stage] = ()
    share: int | float = 0.1


@dataclass
class Experiment:
    """Everything that a run needs.

    Attributes:
        name: the run directory's name.
        data: what is learned from.
        student: makes a fresh student; called once per member with torch seeded for it, so that all arms of a seed
            start from the same weights.
        teacher: an only teacher; None when nothing needs one, or there are several.
        arms: arm name -> makes its stages, with fresh methods. `baseline` among them.
        settings: what all members share.
        task: what a batch means.
        recipe: the resolved recipe as plain values, for the run directory.
        teachers: teacher name -> teacher, of an only one, whose name is `TEACHER`, too.
        reference: what documents are scored against; None where no stage selects by difference.
    """

    name: str
    data: ExperimentData
    student: Callable[[], Model]
    teacher: ExperimentTeacher | None
    arms: Mapping[str, Callable[[], list[Stage]]]
    settings: Settings
    task: Task = field(default_factory=Classification)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    teachers: Mapping[str, ExperimentTeacher] = field(default_factory=dict)
    reference: ExperimentReference | None = None

    def __post_init__(self) -> None:
        """Name an only teacher."""
        if self.teacher is not None and set(self.teachers) - {TEACHER}:
            raise TrainingError("An experiment has either a teacher or several by name, not both.")
        if self.teacher is not None:
            self.teachers = {TEACHER: self.teacher}
        for name in self.teachers:
            if name in RESERVED:
                raise TrainingError(
                    f"A teacher cannot be called '{name}'; {', '.join(RESERVED)} have another meaning."
                )
        if self.reference is not None and REFERENCE in self.teachers:
            raise TrainingError(
                f"A teacher cannot be called '{REFERENCE}' beside a reference model."
            )


def arm_of(teacher: str) -> str:
    """Return the name under which a teacher's own training and results are logged: "teacher", or "teacher.NAME"."""
    return TEACHER if teacher == TEACHER else f"{TEACHER}.{teacher}"


def place_of(teacher: str) -> str:
    """Return where a recipe speaks of a teacher: "teacher", or "teachers.NAME"."""
    return TEACHER if teacher == TEACHER else f"{TEACHER}s.{teacher}"
