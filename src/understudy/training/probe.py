"""The probe: which precision and memory format run fastest, tried on the run's own models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.errors import PreflightError
from understudy.models.model import Model
from understudy.models.tokens import Tokens
from understudy.teachers.live import LiveTeacher
from understudy.training.context import Context, Teachers
from understudy.training.precision import Precision, choose, unsound_channels_last
from understudy.training.stage import Stage
from understudy.training.stage_run import Earlier

PROBE_BATCH = 64
"""Samples in the batch that precision is probed with, at most."""


def choose_precision(context: Context, teachers: Teachers) -> tuple[Precision, dict[str, float]]:
    """Return the precision that the settings ask for, or the one that a short probe finds fastest."""
    settings = context.experiment.settings
    device = context.world.device.type
    images = context.experiment.data.source.kind == "image"
    dtypes = ["float32", "bf16"] if settings.precision == "auto" else [settings.precision]
    formats = [settings.channels_last is True and images]
    if settings.channels_last == "auto" and images:
        formats = [False, True]
    if True in formats or settings.compile:
        models = {"student": context.build_student(settings.seeds[0]), **teachers}
        unsound = unsound_channels_last(
            {role: model.module for role, model in models.items() if isinstance(model, Model)},
            device,
        )
        if unsound and settings.compile:
            raise PreflightError(f"{unsound} `compile: true` lays them out so. Use compile: false.")
        if unsound and settings.channels_last is True:
            raise PreflightError(f"{unsound} Use channels_last: false.")
        formats = [False] if unsound else formats
    candidates = [Precision(dtype, last, device) for last in formats for dtype in dtypes]
    if len(candidates) == 1:
        return candidates[0], {}
    stages = _costliest_stage(context)
    student = context.build_student(settings.seeds[0])
    split = context.splits.train
    earlier: Earlier = {}
    for number, stage in enumerate(stages):
        run = context.stage_run(
            dataclasses.replace(stage, accumulate=1),
            student=student,
            teacher=teachers,
            split=split,
            seed=settings.seeds[0],
            number=number,
            earlier=earlier,
        )
        if number < len(stages) - 1:
            earlier = run.learnt()
            run.close()
    batch = next(iter(run.loader.steps(0, 1)))[0]

    def prepare(candidate: Precision) -> Callable[[], None]:
        for model in (student, *teachers.values()):
            if isinstance(model, Model):
                _to_format(model.module, candidate.channels_last)
        ready = _in_format(batch, candidate.channels_last)
        run.precision = candidate
        for name, live in run.teachers.items():
            if context.experiment.teachers[name].precision is None:
                there = live.device if isinstance(live, LiveTeacher) else None
                at = candidate.device if there is None else there.type
                live.precision = dataclasses.replace(candidate, device=at).context

        def step() -> None:
            run.trial(candidate, ready)

        return step

    try:
        return choose(candidates, prepare)
    finally:
        run.close()
        for teacher in teachers.values():
            if isinstance(teacher, Model):
                _to_format(teacher.module, False)


def _costliest_stage(context: Context) -> list[Stage]:
    """Return the stages of an arm up to the first one in which student and teacher run, else the first one of all."""
    arms = [make() for make in context.experiment.arms.values()]
    for stages in arms:
        for number, stage in enumerate(stages):
            if any(
                method.needs_teacher and method.trains_student for method in stage.active_methods
            ):
                return stages[: number + 1]
    return arms[0][:1]


def _to_format(module: nn.Module, channels_last: bool) -> None:
    form = torch.channels_last if channels_last else torch.contiguous_format
    module.to(memory_format=form)


def _in_format(batch: Batch, channels_last: bool) -> Batch:
    """Return at most `PROBE_BATCH` samples of a batch with images in the given memory format."""
    if any(isinstance(value, Tokens) for value in batch.inputs.values()):
        # Rows of tokens are no samples, and have no memory format.
        return batch
    form = torch.channels_last if channels_last else torch.contiguous_format
    size = min(len(batch), PROBE_BATCH)

    def cut(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            part = value[:size]
            return part.contiguous(memory_format=form) if part.dim() == 4 else part
        return {name: cut(tensor) for name, tensor in value.items()}

    labels = None if batch.labels is None else batch.labels[:size]
    return Batch(
        inputs={role: cut(value) for role, value in batch.inputs.items()},
        labels=labels,
        index=batch.index[:size],
        view=batch.view[:size],
        weight=None if batch.weight is None else batch.weight[:size],
        mask=None if batch.mask is None else batch.mask[:size],
        complete=labels if batch.all_labelled else None,
    )
