"""What a stage's parts cost, measured on a batch: the teacher, and the methods beside the models."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.evaluation import cost
from understudy.models.outputs import call
from understudy.models.taps import unchanged
from understudy.teachers.live import LiveTeacher
from understudy.training.stage_run import StageRun
from understudy.training.store_plan import TeacherUse


def teacher_uses(run: StageRun, batch: Batch) -> dict[str, TeacherUse]:
    """Time each teacher that the stage asks for on a batch that it has seen before; by name."""
    uses = {}
    rows = run.total_steps * len(batch) * run.stage.accumulate
    for name, teacher in run.teachers.items():
        begin = time.perf_counter()
        teacher.targets(batch)
        seconds = (time.perf_counter() - begin) / len(batch)
        taps = {tap.name: tap.shape for tap in run.wiring.teachers[name].taps.values()}
        uses[name] = TeacherUse(rows, seconds, taps)
    return uses


def loss_flops(run: StageRun) -> int:
    """Return the FLOPs per sample of a forward pass that are neither the student's nor a teacher's."""
    example = run.example
    whole = _count(run, lambda: run.module(example, 0.5))
    model = run.tapped.module if run.module.stop is None else run.tapped
    student = _count(run, lambda: call(model, example.inputs["student"]))
    teachers = sum(
        _count(run, lambda live=live: live.targets(example))  # type: ignore[misc]
        for live in run.teachers.values()
    )
    return max(0, whole - student - teachers) // len(example)


def saving_notes(run: StageRun) -> list[str]:
    """Say of each model whose pass ends early which share of its FLOPs that saves."""
    notes = []
    if run.module.stop is not None:
        saved = _saved(run.tapped.module, run.tapped, run.example.inputs["student"])
        notes.append(f"the student's forward pass is spared {saved}")
    for name, live in run.teachers.items():
        if not isinstance(live, LiveTeacher) or live.stop is None:
            continue
        inputs = live.received(run.example.inputs[name])
        notes.append(
            f"the {run.wiring.teachers[name].called} is spared {_saved(live.module, live.tapped, inputs)}"
        )
    return notes


def _saved(whole: nn.Module, stopped: nn.Module, inputs: Any) -> str:
    before, after = cost.flops(whole, inputs), cost.flops(stopped, inputs)
    share = f"{1 - after / before:.0%} of its FLOPs" if before else "nothing that is counted"
    return f"{share} ({after:,} instead of {before:,} per sample)"


def _count(run: StageRun, action: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with unchanged(run.module), torch.no_grad(), counter:
        run.train_mode()
        action()
    return int(counter.get_total_flops())
