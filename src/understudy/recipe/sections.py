"""The sections of a recipe: stages, arms, data, teacher, student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from understudy.errors import UnderstudyError
from understudy.methods import Method, Supervised
from understudy.recipe.components import Component
from understudy.recipe.hints import derived
from understudy.recipe.kinds import KNOWN, METHOD, MODEL, OPTIMIZER, SCHEDULE, component_of, merged
from understudy.recipe.problems import Section, found, gather, problem, problem_at
from understudy.teachers.listening import RESERVED
from understudy.training.experiment import (
    REFERENCE,
    TEACHER,
    ExperimentData,
    ExperimentReference,
    ExperimentTeacher,
)
from understudy.training.stage import Stage

_StageFields: Any = derived("StageFields", Stage, known=KNOWN, convert=component_of)
_DefaultFields: Any = derived(
    "StageDefaults",
    Stage,
    known=KNOWN,
    convert=component_of,
    leave_out=("methods", "name", "select", "mixture"),
)
_DataFields: Any = derived("DataFields", ExperimentData, known=KNOWN)
_ReferenceFields: Any = derived(
    "ReferenceFields", ExperimentReference, leave_out=("build", "stages")
)
_TeacherFields: Any = derived("TeacherFields", ExperimentTeacher, leave_out=("build", "stages"))

_LENGTHS = ("epochs", "steps")

Defaults = Mapping[str, Any]
"""Values of the stage defaults that could be read: field -> value."""


class StageSection(_StageFields):  # type: ignore[misc]
    """One stage, complete: what it leaves out was filled in from the recipe's defaults."""

    def build(self) -> Stage:
        """Return the stage with fresh methods."""
        given = {name: getattr(self, name) for name in type(self).model_fields}
        given["methods"] = [METHOD.make(method) for method in self.methods]
        given["optimizer"] = OPTIMIZER.make(self.optimizer)
        given["schedule"] = SCHEDULE.make(self.schedule)
        return Stage(**given)


class StageDefaults(_DefaultFields):  # type: ignore[misc]
    """What holds for every stage that does not say otherwise."""


class Arm(Section):
    """A list of stages, one after the other."""

    stages: list[StageSection]

    def build(self) -> list[Stage]:
        """Return the stages with fresh methods."""
        return [stage.build() for stage in self.stages]

    @property
    def needs_teacher(self) -> bool:
        """Whether any method asks for a teacher, or data are chosen or mixed by one."""
        mixtures = [stage.mixture for stage in self.stages]
        mixed = any(each is not None and each.name == "ddk" for each in mixtures)
        return mixed or self.selects_by_difference or bool(self.listening)

    @property
    def selects_by_difference(self) -> bool:
        """Whether documents are scored by a teacher and a reference model."""
        selections = [stage.select for stage in self.stages]
        return any(each is not None and each.name == "difference" for each in selections)

    @property
    def listening(self) -> list[Method]:
        """The methods that ask for a teacher, fresh ones."""
        return [
            method
            for stage in self.build()
            for method in stage.active_methods
            if method.uses_teacher
        ]


_ModelField = MODEL.field


class TeacherSection(_TeacherFields):  # type: ignore[misc]
    """The teacher."""

    model: _ModelField | None = Field(  # type: ignore[valid-type]
        None, description="the teacher's model; not needed where there is a store of its outputs"
    )
    train: Arm | None = Field(
        None, description="how it is trained; nothing when its weights are loaded"
    )


class ReferenceSection(_ReferenceFields):  # type: ignore[misc]
    """The small model against which documents are scored."""

    model: _ModelField = Field(description="the reference model")  # type: ignore[valid-type]
    train: Arm | None = Field(
        None, description="how it is trained; nothing when its weights are loaded"
    )


class StudentSection(Section):
    """The student."""

    model: _ModelField = Field(description="the student's model")  # type: ignore[valid-type]


class DataSection(_DataFields):  # type: ignore[misc]
    """The data."""


def read_stage(
    value: Mapping[str, Any],
    defaults: Defaults,
    *,
    name: str,
    methods: Sequence[Component] | None = None,
) -> StageSection:
    """Return a complete stage.

    Args:
        value: what the recipe says about it.
        defaults: what holds where it says nothing.
        name: its name if it has none.
        methods: its methods if it names none; None when it must.
    """
    given = dict(value)
    filled: dict[str, Any] = {"name": name, **defaults, **given}
    lengths = {key: given.get(key) for key in _LENGTHS}
    if lengths["epochs"] is None and lengths["steps"] is None:
        lengths = {key: defaults.get(key) for key in _LENGTHS}
        if not set(_LENGTHS) <= set(defaults):
            # A length that could not be read is reported already; any other will do to look for more problems.
            lengths = {"epochs": 1, "steps": None}
    filled |= lengths
    for key, kind in (("optimizer", OPTIMIZER), ("schedule", SCHEDULE)):
        if key in given and key in defaults:
            filled[key] = merged(kind, given[key], defaults[key])
        elif isinstance(given.get(key), Mapping) and "name" not in given[key]:
            # It completes a default that could not be read; that problem is reported already.
            del filled[key]
    if methods is not None:
        filled.setdefault("methods", list(methods))
    stage: StageSection = StageSection.model_validate(filled)
    try:
        stage.build()
    except (ValueError, UnderstudyError) as error:
        raise problem(str(error)) from None
    return stage


def read_arm(
    value: Any,
    defaults: Defaults,
    *,
    name: str = "distil",
    methods: Sequence[Component] | None = None,
) -> Arm:
    """Return an arm from a list of methods, a stage, or `{stages: [...]}`.

    Args:
        value: what the recipe says.
        defaults: the stage defaults.
        name: what an only stage is called that has no name; several are numbered.
        methods: what a stage learns from that names no methods; None when it must.
    """
    if isinstance(value, Arm):
        return value
    if isinstance(value, list | tuple):
        read = gather(
            "methods", [((i,), partial(METHOD.read, item)) for i, item in enumerate(value)]
        )
        return Arm(stages=[read_stage({"methods": read}, defaults, name=name)])
    if not isinstance(value, Mapping):
        raise problem(
            f"expected a list of methods, a stage (a mapping with `methods`), or `stages`; found {found(value)}"
        )
    if "stages" not in value:
        return Arm(stages=[read_stage(value, defaults, name=name, methods=methods)])
    extra = [key for key in value if key != "stages"]
    if extra:
        text = "stands beside `stages`; write it into the stage that it is for, or at the top of the recipe for all"
        raise problem_at((extra[0],), text, value[extra[0]])
    items = value["stages"]
    if not isinstance(items, list | tuple) or not items:
        raise problem_at(("stages",), f"expected a list of stages, found {found(items)}", items)

    def one(number: int, item: Any) -> StageSection:
        if not isinstance(item, Mapping):
            raise problem(f"expected a stage (a mapping with `methods`), found {found(item)}")
        called = name if len(items) == 1 else f"{name}-{number + 1}"
        return read_stage(item, defaults, name=called, methods=methods)

    stages = gather(
        "stages", [(("stages", i), partial(one, i, item)) for i, item in enumerate(items)]
    )
    names = [stage.name for stage in stages]
    twice = [stage for stage in names if names.count(stage) > 1]
    if twice:
        raise problem_at(("stages",), f"two stages are called '{twice[0]}'", names)
    return Arm(stages=stages)


def read_arms(value: Any, defaults: Defaults) -> dict[str, Arm]:
    """Return the arms by name."""
    if not isinstance(value, Mapping) or not value:
        raise problem(f"expected a mapping from names to lists of methods, found {found(value)}")

    def one(name: Any, item: Any) -> Arm:
        if name == TEACHER:
            raise problem(
                "an arm cannot be called 'teacher', the name of the teacher's own results"
            )
        if str(name).startswith(f"{TEACHER}."):
            raise problem(f"an arm cannot be called '{name}', as a teacher's own results are")
        check_name(name)
        return read_arm(item, defaults)

    arms = gather("arms", [((name,), partial(one, name, item)) for name, item in value.items()])
    return dict(zip(value, arms, strict=True))


def read_teacher(value: Any, defaults: Defaults) -> TeacherSection | None:
    """Return the teacher from its section, or from its model alone."""
    if value is None or isinstance(value, TeacherSection):
        return value
    known = is_section(value, "model") or is_section(value, "store")
    given = dict(value) if known else {"model": value}
    training = given.pop("train", None)
    if isinstance(given.get("store"), str | Path):
        given["store"] = {"path": str(given["store"])}

    def train() -> Arm | None:
        if training is None:
            return None
        return read_arm(
            training, defaults, name=TEACHER, methods=[METHOD.from_object(Supervised())]
        )

    teacher, arm = gather(
        "teacher", [((), partial(TeacherSection.model_validate, given)), (("train",), train)]
    )
    if arm is not None and arm.needs_teacher:
        raise problem_at(
            ("train",), "the teacher itself has no teacher; train it with `supervised`", training
        )
    if teacher.model is None and teacher.store is None:
        raise problem_at(("model",), "is missing; name a model, or a `store` of its outputs", value)
    if arm is not None and teacher.store is not None:
        text = (
            "stands beside `store`, which holds the outputs of a teacher that was trained before; train it in a run "
            "of its own and name it `saved:runs/NAME/models/teacher`"
        )
        raise problem_at(("train",), text, training)
    completed: TeacherSection = teacher.model_copy(update={"train": arm})
    return completed


def read_reference(value: Any, defaults: Defaults) -> ReferenceSection | None:
    """Return the reference model from its section, or from its model alone."""
    if value is None or isinstance(value, ReferenceSection):
        return value
    given = dict(value) if is_section(value, "model") else {"model": value}
    training = given.pop("train", None)

    def train() -> Arm | None:
        if training is None:
            return None
        return read_arm(
            training, defaults, name=REFERENCE, methods=[METHOD.from_object(Supervised())]
        )

    reference, arm = gather(
        REFERENCE, [((), partial(ReferenceSection.model_validate, given)), (("train",), train)]
    )
    if arm is not None and arm.needs_teacher:
        raise problem_at(
            ("train",), "the reference has no teacher; train it with `supervised`", training
        )
    completed: ReferenceSection = reference.model_copy(update={"train": arm})
    return completed


def read_teachers(value: Any, defaults: Defaults) -> dict[str, TeacherSection] | None:
    """Return several teachers by name."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise problem(f"expected a mapping from names to teachers, found {found(value)}")

    def one(name: Any, item: Any) -> TeacherSection:
        check_name(name)
        if name in RESERVED:
            raise problem(f"a teacher cannot be called '{name}', which means something else")
        read = read_teacher(item, defaults)
        if read is None:
            raise problem(f"expected a teacher, found {found(item)}")
        return read

    teachers = gather(
        "teachers", [((name,), partial(one, name, item)) for name, item in value.items()]
    )
    return dict(zip(value, teachers, strict=True))


def is_section(value: Any, key: str) -> bool:
    """Tell a section from a component in its place: a mapping without `name`, or with `key`."""
    return isinstance(value, Mapping) and (key in value or not {"name", "object"} & set(value))


def check_name(name: Any) -> None:
    """Refuse a name that cannot be a folder."""
    if not isinstance(name, str) or not name or name[0] in ".-" or not set(name) <= _SAFE:
        raise problem(
            f"'{name}' becomes the name of a folder; use letters, digits, '-', '_' and '.'"
        )


_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
