"""The teachers of a stage: which of them run, and which begin a step early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from understudy.errors import called
from understudy.methods import Method
from understudy.methods.wiring import Side
from understudy.models.model import Model
from understudy.tasks import Task
from understudy.teachers.ahead import Ahead, Steps, Targets
from understudy.teachers.listening import heard
from understudy.teachers.live import LiveTeacher
from understudy.teachers.stored import StoredTeacher
from understudy.training.live_side import live_teacher
from understudy.training.precision import Precision


def start_teachers(
    sides: Mapping[str, Side],
    teachers: Mapping[str, Model | StoredTeacher],
    methods: Sequence[Method],
    *,
    task: Task,
    precision: Precision,
    compile: bool,
    precisions: Mapping[str, str | None],
    devices: Mapping[str, str | None],
    home: torch.device,
    notes: list[str],
) -> dict[str, LiveTeacher | StoredTeacher]:
    """Return the teachers that any method asks, by name, ready to give targets.

    Args:
        sides: what was wired to each.
        teachers: the models or stores.
        methods: the methods of the stage.
        task: what a batch means.
        precision: how models run.
        compile: whether to compile them.
        precisions: teacher name -> how it runs where that is otherwise.
        devices: teacher name -> the name of the device that it runs on; None for the student's.
        home: the student's device.
        notes: how they run and where their passes end is added here.
    """
    found: dict[str, LiveTeacher | StoredTeacher] = {}
    for name, side in sides.items():
        asking = [m for m in methods if m.needs_teacher and name in heard(m.hears, list(sides))]
        teacher = teachers[name]
        if asking and isinstance(teacher, StoredTeacher):
            teacher.taps = tuple(side.taps)
            found[name] = teacher
        elif asking:
            found[name] = live_teacher(
                side,
                asking,
                task=task,
                precision=precision,
                compile=compile,
                own=precisions.get(name),
                home=home,
                device=devices.get(name),
                notes=notes,
            )
    return found


def look_ahead(
    loader: Steps,
    early: Sequence[str],
    teachers: Mapping[str, LiveTeacher | StoredTeacher],
    targets: Mapping[str, Targets],
    methods: Sequence[Method],
    *,
    steps: int,
    home: torch.device,
    notes: list[str],
) -> Ahead | None:
    """Have teachers begin a step early, unless their inputs are only known in the step itself: then return None.

    Args:
        loader: gives the batches.
        early: the names of these teachers.
        teachers: all teachers by name.
        targets: name -> what gives a teacher's outputs for a batch.
        methods: the methods of the stage.
        steps: length of the stage.
        home: the student's device.
        notes: what is done is added here.
    """
    who = " and ".join(called(name) for name in early)
    changing = [m.name for m in methods if type(m).inputs is not Method.inputs]
    if changing:
        names = ", ".join(changing)
        notes.append(f"the {who} cannot run ahead: {names} changes in every step what it sees")
        return None
    notes.append(f"ahead of the student by one batch: the {who}")
    known = list(teachers)

    def wanted(name: str, step: int) -> bool:
        return any(
            m.needs_teacher and name in heard(m.hears, known) and m.weight_at(step / steps)
            for m in methods
        )

    places = [home]
    for live in (teachers[name] for name in early):
        if isinstance(live, LiveTeacher) and live.device is not None:
            places.append(live.device)
    return Ahead(loader, {name: targets[name] for name in early}, wanted, places)
