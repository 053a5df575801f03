"""What a distillation method is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.errors import UnderstudyError, unknown_name
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.models.tokens import Tokens
from understudy.registry import Registry
from understudy.teachers.listening import Hears, check_hears
from understudy.teachers.phi_s import Standardised
from understudy.teachers.study import Study

TeacherFeatures = Literal["phi_s"]
"""How a teacher's features are standardised."""
Family = Literal[
    "labels", "response", "feature", "relation", "information", "self-supervision", "structure"
]

methods: Registry[type[Method]] = Registry("method", "understudy.methods")
"""All methods by name; one file each in `methods/`."""


@dataclass(frozen=True)
class Ramp:
    """A weight that changes over a stage.

    It is `start` until progress `begin`, `end` from progress `finish`, and linear between.
    """

    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0

    def __post_init__(self) -> None:
        """Check the two points."""
        if not 0 <= self.begin < self.finish <= 1:
            raise ValueError(
                f"a ramp needs 0 <= begin < finish <= 1; got begin={self.begin}, finish={self.finish}"
            )

    def __call__(self, progress: float) -> float:
        """Return the weight at `progress` in [0, 1]."""
        share = min(1.0, max(0.0, (progress - self.begin) / (self.finish - self.begin)))
        return self.start + share * (self.end - self.start)


class Method(nn.Module):
    """Base of every method. A method overrides only what it needs.

    The constructor's typed keywords are the method's configuration: each is kept as an attribute of
    the same name, from which
    `config` reads it. `class KD(Method, name="kd")` enters the class into the registry.
    """

    name: ClassVar[str] = "method"
    needs_labels: bool = False
    """Whether samples without a label are of no use to the method. A constructor may set it for its instance."""
    needs_teacher: bool = True
    """Whether `loss` asks for a teacher. Those that it listens to then run before the student, unless the weight is 0.
    A constructor may set it for its instance."""
    needs_tokens: ClassVar[bool] = False
    """Whether it works on language models only."""
    needs_classes: ClassVar[bool] = False
    """Whether every sample has to have one answer, as in classification, because its logits are read together with its
    features or stand for classes of the data."""
    crosses_tokenizers: bool = False
    """Whether it compares models that read different tokens. Else a teacher with another tokenizer is refused. A
    constructor may set it for its instance."""
    reads_logits: ClassVar[bool] = True
    """Whether `loss` or `fit` reads the teacher's logits, where the method uses a teacher. Where no method of a stage
    does, the teacher stops at the last tap; where none of a run does, it is not refused for a classifier that was never
    trained."""
    reads_student_logits: bool = True
    """Whether `loss` or `after_step` reads the student's logits, or a language model's last hidden states. Where no
    method of a stage does, the student's pass ends at the last tap. A constructor may set it for its instance."""
    trains_student: ClassVar[bool] = True
    """Whether the loss reaches the student. A stage whose methods all say no leaves the student as it is."""
    follows: ClassVar[tuple[str, ...]] = ()
    """Methods that need an earlier stage of the same arm, in order: this one goes on from what they learnt."""
    family: ClassVar[Family] = "response"
    """What the method compares; the documentation is sorted by it."""

    weight: float | Ramp
    hears: Hears | None
    """To which of several teachers it listens (see `listening_to`); None for the only one, or the average of all."""
    teacher_features: TeacherFeatures | None
    """What becomes of the teacher's features before it reads them (see `listening_to`)."""
    standardised: Standardised | None
    """What does that in a stage, once the method is wired."""

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        """Enter the class into the registry under `name`."""
        super().__init_subclass__(**kwargs)
        cls.name = name or cls.__name__.lower()
        if name is not None:
            methods.add(name, cls)

    def __init__(self) -> None:
        """Start with weight 1."""
        super().__init__()
        self.weight = 1.0
        self.hears = None
        self.teacher_features = None
        self.standardised = None

    def weighted(self, weight: float | Ramp) -> Self:
        """Set the factor of this method's loss in the stage's sum, and return the method."""
        self.weight = weight
        return self

    def listening_to(
        self, teacher: Hears | None = None, *, features: TeacherFeatures | None = None
    ) -> Self:
        """Set to which of several teachers this method listens, and how; return the method.

        What it is wired and fitted to, and what `step.teacher` gives, is then that teacher's. Logits, but nothing else,
        can also come from several at once.

        Args:
            teacher: a name; the names of those whose probabilities are averaged, or name -> weight in the average; a
                `Route`, which chooses one for each sample; None for the only teacher, or the average of all.
            features: "phi_s" for features that are standardised (`teachers.phi_s.PhiS`), fitted before the stage;
                None for features as they are.

        Raises:
            UnderstudyError: an average of nobody, or with weights that are not greater than 0; a method that fits to
                the features itself, which would fit to others than it reads.
        """
        if teacher is not None:
            check_hears(teacher)
        if features not in (None, "phi_s"):
            raise unknown_name("standardisation of features", str(features), ["phi_s"])
        if features is not None and self.fits:
            raise UnderstudyError(
                f"Method '{self.name}' is fitted to the teacher's features as they are; they cannot be standardised "
                "for it."
            )
        self.hears, self.teacher_features = teacher, features
        return self

    @property
    def averaging_temperature(self) -> float:
        """The temperature at which the probabilities of several teachers are averaged for this method.

        softmax(logits / T) of what it is given is then the mean of the teachers' softmax(z / T). It is the method's
        `temperature` where it has one, since the logits are divided by it, and 1 otherwise.
        """
        found = getattr(self, "temperature", 1.0)
        return float(found) if isinstance(found, int | float) else 1.0

    def weight_at(self, progress: float) -> float:
        """Return the weight at `progress` in [0, 1]."""
        return self.weight(progress) if isinstance(self.weight, Ramp) else float(self.weight)

    @property
    def never_active(self) -> bool:
        """Whether the weight is 0 throughout, which means the same as leaving the method out."""
        if isinstance(self.weight, Ramp):
            return self.weight.start == 0 and self.weight.end == 0
        return self.weight == 0

    @property
    def config(self) -> dict[str, Any]:
        """Return the constructor's keywords with their values."""
        parameters = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in list(parameters)[1:]}

    @property
    def fits(self) -> bool:
        """Whether the method has a `fit` of its own."""
        return type(self).fit is not Method.fit

    @property
    def needs_study(self) -> bool:
        """Whether anything of it is fitted to the teacher: the method itself, or how features are standardised."""
        return self.fits or self.teacher_features is not None

    @property
    def uses_teacher(self) -> bool:
        """Whether there has to be a teacher: for the loss, or to fit to."""
        return self.needs_teacher or self.fits

    def wired_to(self, wiring: Wiring) -> None:
        """Wire the method, and set up what stands between it and the teacher's features.

        Raises:
            UnderstudyError: features are to be standardised and none are read.
        """
        if self.teacher_features is None:
            self.wire(wiring)
            return
        with wiring.recorded() as taps:
            self.wire(wiring)
        if not taps:
            raise UnderstudyError(
                f"Method '{self.name}' reads no features of the teacher, so there is nothing to standardise. Leave "
                "teacher_features out."
            )
        self.standardised = Standardised([(tap.name, tap.width) for tap in taps.values()])
        wiring.notes.append(
            f"{self.name}: teacher's features standardised by PHI-S at {', '.join(taps)}"
        )

    def wire(self, wiring: Wiring) -> None:
        """Ask for taps and size projectors. Called once per stage, when the shapes are known."""

    def fit(self, study: Study) -> None:
        """Learn from passes of the teacher over the training samples. Called once per stage, after `wire`.

        In a plan the study is provisional: shapes count then, values don't. What was learned belongs into buffers,
        which a checkpoint brings back.
        """

    def inputs(self, batch: Batch) -> Batch:
        """Change what both models see."""
        return batch

    def loss(self, step: Step) -> torch.Tensor | Mapping[str, torch.Tensor]:
        """Return the loss, or named terms that are summed and logged one by one.

        Each is a mean over the valid elements that `valid` counts.
        """
        raise UnderstudyError(f"Method '{self.name}' defines no loss.")

    def after_step(self, step: Step) -> None:
        """Update what follows the student: momentum copies, banks.

        Called after the optimiser's step, without gradient: once for every part of the batch where it was split. Under
        several processes each has its own part; `step.gather` gives the rows of all.
        """

    def valid(self, batch: Batch) -> torch.Tensor:
        """Return over how many elements of the batch the loss is a mean: the labelled samples, or all.

        Of a language model, what compares logits is a mean over predicted tokens, anything else over documents.
        """
        tokens = batch.inputs.get("student")
        if isinstance(tokens, Tokens) and self.family in ("labels", "response"):
            return torch.tensor(float(len(tokens.places)), device=batch.index.device)
        if self.needs_labels:
            return batch.labelled.sum()
        if batch.weight is not None:
            return batch.weight.sum()
        return torch.tensor(float(len(batch)), device=batch.index.device)
