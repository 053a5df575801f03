"""The recipe: everything that a run is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from understudy.errors import UnderstudyError, UnknownName
from understudy.recipe.components import Component
from understudy.recipe.hints import derived
from understudy.recipe.kinds import METHOD, OPTIMIZER, SCHEDULE, merged
from understudy.recipe.problems import Place, Section, dotted, gather, problem, problem_at
from understudy.recipe.sections import (
    Arm,
    DataSection,
    ReferenceSection,
    StageDefaults,
    StudentSection,
    TeacherSection,
    check_name,
    is_section,
    read_arm,
    read_arms,
    read_reference,
    read_teacher,
    read_teachers,
)
from understudy.tasks import Classification
from understudy.tasks import Name as TaskName
from understudy.teachers.listening import heard
from understudy.training.experiment import BASELINE, REFERENCE, TEACHER
from understudy.training.settings import Settings

if TYPE_CHECKING:
    from understudy.training.experiment import Experiment

ONLY_ARM = "student"
"""What the arm is called that `methods` describes."""

_SettingFields: Any = derived("SettingFields", Settings)


class Recipe(_SettingFields, StageDefaults):  # type: ignore[misc]
    """A recipe, checked and complete.

    Make one with `load` or `from_values`. Stages have taken over the recipe's defaults; `methods` has become an arm.
    """

    name: str = Field("run", description="what the run is called; its directory is runs/NAME")
    task: TaskName = Field(
        "classification",
        description="what a sample means: a class (classification), or text to model: causal_lm, masked_lm, seq2seq",
    )
    data: DataSection = Field(description="what is learned from")
    teacher: TeacherSection | None = Field(
        None, description="the teacher; leave it out when no arm needs one"
    )
    teachers: dict[str, TeacherSection] | None = Field(
        None,
        description="several teachers by name, instead of `teacher`; a method says to which it listens",
    )
    reference: ReferenceSection | None = Field(
        None,
        description="the small model against which documents are scored, where a stage selects by difference",
    )
    student: StudentSection = Field(description="the student")
    baseline: bool = Field(
        True,
        description="whether to add the arm `baseline`: the student learns from labels alone, for as many steps as "
        "the longest arm",
    )
    arms: dict[str, Arm] | None = Field(
        None,
        description="arm name -> list of methods, a stage, or a list of stages; each is trained for every seed",
    )
    methods: list[METHOD.field] | None = Field(  # type: ignore[name-defined]
        None, description="short for a single arm called `student`"
    )

    @model_validator(mode="before")
    @classmethod
    def _complete_components(cls, values: Any) -> Any:
        """Let `optimizer: {lr: 0.1}` mean the default optimiser at another rate."""
        if not isinstance(values, Mapping):
            return values
        completed = dict(values)
        for key, kind in (("optimizer", OPTIMIZER), ("schedule", SCHEDULE)):
            if key in completed:
                default = cls.model_fields[key].get_default(call_default_factory=True)
                completed[key] = merged(kind, completed[key], default)
        return completed

    @field_validator("steps")
    @classmethod
    def _one_length(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("epochs") is not None:
            raise problem("stands beside `epochs`; give one of the two")
        return value

    @field_validator("name")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        check_name(value)
        return value

    @field_validator("data", mode="before")
    @classmethod
    def _short_data(cls, value: Any) -> Any:
        return (
            value
            if isinstance(value, DataSection) or is_section(value, "source")
            else {"source": value}
        )

    @field_validator("student", mode="before")
    @classmethod
    def _short_student(cls, value: Any) -> Any:
        return (
            value
            if isinstance(value, StudentSection) or is_section(value, "model")
            else {"model": value}
        )

    @field_validator("teacher", mode="before")
    @classmethod
    def _read_teacher(cls, value: Any, info: ValidationInfo) -> Any:
        return read_teacher(value, _defaults(info.data))

    @field_validator("teachers", mode="before")
    @classmethod
    def _read_teachers(cls, value: Any, info: ValidationInfo) -> Any:
        return read_teachers(value, _defaults(info.data))

    @field_validator("reference", mode="before")
    @classmethod
    def _read_reference(cls, value: Any, info: ValidationInfo) -> Any:
        return read_reference(value, _defaults(info.data))

    @field_validator("arms", mode="before")
    @classmethod
    def _read_arms(cls, value: Any, info: ValidationInfo) -> Any:
        return None if value is None else read_arms(value, _defaults(info.data))

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        try:
            self.settings()
        except (ValueError, UnderstudyError) as error:
            raise problem(str(error)) from None
        if self.methods is not None and self.arms is not None:
            raise problem_at(
                ("methods",), "stands beside `arms`; `methods` is short for an only arm", None
            )
        if self.methods is not None:
            defaults = {key: getattr(self, key) for key in StageDefaults.model_fields}
            arms = gather("methods", [(("methods",), lambda: read_arm(self.methods, defaults))])
            self.arms, self.methods = {ONLY_ARM: arms[0]}, None
        if self.arms is None:
            raise problem_at(
                ("arms",),
                "is missing; name at least one arm, or give `methods` for an only one",
                None,
            )
        if self.baseline and BASELINE in self.arms:
            text = (
                "is the arm that `baseline: true` adds; set `baseline: false` to define it yourself"
            )
            raise problem_at(("arms", BASELINE), text, None)
        needing = [name for name, arm in self.arms.items() if arm.needs_teacher]
        if self.teacher is not None and self.teachers is not None:
            raise problem_at(("teachers",), "stands beside `teacher`; give one of the two", None)
        self._check_names()
        if needing and not self.named_teachers:
            raise problem_at(
                ("teacher",), f"is missing; the arms {', '.join(needing)} learn from one", None
            )
        self._check_reference()
        return self

    def _check_reference(self) -> None:
        """Refuse a selection by difference without a reference, and the reverse."""
        scoring = [name for name, arm in (self.arms or {}).items() if arm.selects_by_difference]
        if scoring and self.reference is None:
            text = f"is missing; the arms {', '.join(scoring)} select by difference from such a small model"
            raise problem_at((REFERENCE,), text, None)
        if self.reference is not None and not scoring:
            text = "is given, and no stage selects by difference (`select: {name: difference}`)"
            raise problem_at((REFERENCE,), text, None)
        if self.reference is not None and REFERENCE in self.named_teachers:
            text = "a teacher cannot be called 'reference' beside the reference model"
            raise problem_at(("teachers", REFERENCE), text, None)

    def _check_names(self) -> None:
        """Refuse a method that listens to a teacher that there is not."""
        known = list(self.named_teachers)
        for arm in self.arms or {}:
            for method in (self.arms or {})[arm].listening:
                try:
                    heard(method.hears, known)
                except UnknownName as error:
                    text = f"method '{method.name}' listens to nobody: {error}"
                    raise problem_at(("arms", arm), text, None) from None

    @property
    def named_teachers(self) -> dict[str, TeacherSection]:
        """The teachers by name, of an only one too."""
        return {TEACHER: self.teacher} if self.teacher is not None else self.teachers or {}

    def settings(self) -> Settings:
        """Return the settings that all members of the run share."""
        return Settings(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        )

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain values, complete with defaults. Read again, they give an equal recipe.

        Objects that were given from Python are described by the key `object`, and cannot be read again.
        """
        # A key that is nearly always empty is left out.
        several = ["teachers"] if self.teachers is not None else []
        task = ["task"] if self.task != Classification.name else []
        reference = [REFERENCE] if self.reference is not None else []
        first = ["name", *task, "seeds", "data", "teacher", *several, *reference, "student"]
        first += ["baseline", "arms"]
        rest = [
            key
            for key in type(self).model_fields
            if key not in (*first, "methods", "teachers", "task", REFERENCE)
        ]
        return {key: _plain(getattr(self, key)) for key in (*first, *rest)}

    def components(self) -> Iterator[tuple[Place, Component]]:
        """Iterate over everything that the recipe names, with its place."""
        return _components(self, ())

    def python_entries(self) -> list[str]:
        """Return the code that the recipe brings along, as `place: py:module:attribute`."""
        found = [
            f"{dotted(place)}: {component.name}"
            for place, component in self.components()
            if component.live is None and component.name.startswith("py:")
        ]
        return list(dict.fromkeys(found))

    def live_objects(self) -> list[str]:
        """Return the objects that were given from Python, as `place: module.Class`."""
        return [
            f"{dotted(place)}: {c.name}" for place, c in self.components() if c.live is not None
        ]

    def build(self, directory: Path) -> Experiment:
        """Load the data and return the experiment; models are built when it runs.

        Args:
            directory: the run directory, whose name the experiment takes.

        Raises:
            DataError: the data cannot be loaded.
        """
        from understudy.recipe.building import build

        return build(self, directory)


def _defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stage defaults among the fields that were read so far."""
    return {key: data[key] for key in StageDefaults.model_fields if key in data}


_QUIET = ("select", "mixture", "filters")
"""Keys that are nearly always empty, and left out then."""


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return _plain(value.values())
    if isinstance(value, Section):
        said = {key: getattr(value, key) for key in type(value).model_fields}
        return {key: _plain(each) for key, each in said.items() if each or key not in _QUIET}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _components(value: Any, place: Place) -> Iterator[tuple[Place, Component]]:
    if isinstance(value, Component):
        yield place, value
    elif isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _components(getattr(value, key), (*place, key))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _components(item, (*place, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _components(item, (*place, number))
