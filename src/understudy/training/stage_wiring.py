"""Wiring a stage: its methods learn the shapes of student and teachers, and ask for what they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from understudy import seeding
from understudy.data.batch import Batch
from understudy.data.source import Split
from understudy.methods import Method
from understudy.methods.wiring import Side, Wiring
from understudy.models.model import Model
from understudy.teachers.stored import StoredTeacher
from understudy.training.stored_side import StoredSide


def make_wiring(
    student: Model,
    teachers: Mapping[str, Model | StoredTeacher],
    methods: Sequence[Method],
    *,
    example: Batch,
    split: Split,
    classes: int,
    seed: int,
    earlier: Mapping[str, Mapping[str, torch.Tensor]],
    device: torch.device,
) -> Wiring:
    """Wire the methods of a stage, which may put grafts or another head into the student.

    Args:
        student: the student, on the device already.
        teachers: the teachers that the methods listen to, by name.
        methods: the methods; what they build is put on the device.
        example: a small batch by which shapes are measured.
        split: the samples that the batches are drawn from.
        classes: number of classes.
        seed: the stage's seed.
        earlier: method name -> its state at the end of an earlier stage of the same arm.
        device: where the student runs.
    """
    sides: dict[str, Side] = {}
    for name, teacher in teachers.items():
        if isinstance(teacher, StoredTeacher):
            sides[name] = StoredSide(name, teacher.model)
            continue
        sides[name] = Side(
            name,
            teacher.module,
            example.inputs[name],
            training=False,
            input_height=_height(example, name),
        )
    own = Side(
        "student",
        student.module,
        example.inputs["student"],
        training=True,
        input_height=_height(example, "student"),
    )
    wiring = Wiring(own, sides, classes=classes, train=split, earlier=earlier)
    for number, method in enumerate(methods):
        heard = wiring.heard_by(
            method.name, method.hears, seeding.derive(seed, "method", number, method.name)
        )
        with seeding.isolated(seed, "wire", number, method.name):
            method.to(device)
            method.wired_to(heard)
            heard.check_owner(method)
            method.to(device)
    return wiring


def _height(batch: Batch, role: str) -> int | None:
    """Return the height of the images that a role sees, None when they are no images."""
    inputs = batch.inputs[role]
    if isinstance(inputs, torch.Tensor) and inputs.dim() == 4:
        return int(inputs.shape[2])
    return None
