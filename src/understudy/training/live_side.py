"""A teacher that is a model as a stage runs it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from understudy.methods import Method
from understudy.methods.wiring import Side
from understudy.models.language_head import head_of
from understudy.models.outputs import call
from understudy.models.stopping import find_stop
from understudy.tasks import LanguageModelling, Task
from understudy.teachers.elsewhere import copied_to, find_device
from understudy.teachers.live import LiveTeacher
from understudy.teachers.quantized import quantized
from understudy.training.precision import Precision


def live_teacher(
    side: Side,
    methods: Sequence[Method],
    *,
    task: Task,
    precision: Precision,
    compile: bool,
    own: str | None,
    home: torch.device,
    device: str | None = None,
    notes: list[str],
) -> LiveTeacher:
    """Return the teacher for the steps of a stage: at the taps that were asked for, and no further than it has to run.

    Args:
        side: the teacher, with the taps that the methods asked for.
        methods: those that listen to it.
        task: what a batch means.
        precision: how the student runs.
        own: "float32", "bf16" or "int8" where the teacher runs otherwise.
        compile: whether to compile it.
        home: the student's device.
        device: where the teacher runs, by name; None for the student's device.
        notes: gets a sentence on where its pass ends.

    Raises:
        PreflightError: the device is not there, or cannot do what is asked for.
    """
    there = None if device is None else find_device(device, side.called)
    module, head = side.module, None
    stop = None
    if not any(method.needs_teacher and method.reads_logits for method in methods):
        stop, reason = find_stop(side.module, side.taps, lambda tapped: call(tapped, side.inputs))
        if stop is None:
            notes.append(
                f"the {side.called} runs to its end, though no method reads its logits: {reason}"
            )
        else:
            logits = "the teacher's logits"
            if side.role != "teacher":
                logits = f"the logits of the {side.called}"
            how = ", by leaving the rest out of the compiled graph" if compile else ""
            notes.append(f"no method reads {logits}: it stops {stop}{how}")
    if own is not None:
        dtype = "float32" if own == "int8" else own
        precision = Precision(dtype, precision.channels_last, precision.device)
        notes.append(f"the {side.called} runs in {own}")
    if there is not None and there != home:
        precision = Precision(precision.dtype, precision.channels_last, there.type)
        module = copied_to(module, there)
        head = head_of(side.module) if isinstance(task, LanguageModelling) else None
        notes.append(f"the {side.called} runs on {there}, on a copy of its weights there")
    else:
        there = None
    if own == "int8":
        module = quantized(module)
    return LiveTeacher(
        module,
        role=side.role,
        task=task,
        taps=side.taps,
        copied=side.copied,
        precision=precision.context,
        compile=compile,
        stop=stop,
        device=there,
        original=None if module is side.module else side.module,
        head=head,
    )
