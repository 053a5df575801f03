"""The student as a stage runs it: how far its forward pass has to go."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.methods import Method, Ramp
from understudy.methods.wiring import Side
from understudy.models.outputs import call
from understudy.models.stopping import find_stop
from understudy.models.taps import Stop


def student_stop(
    side: Side, methods: Sequence[Method], *, compile: bool, notes: list[str]
) -> Stop | None:
    """Return where the student's pass may end in a stage, None where it has to go to its end.

    What lies behind the last tap gets no gradient either way.

    Args:
        side: the student, with the taps that the methods asked for.
        methods: the stage's active methods.
        compile: whether the student runs through `torch.compile`.
        notes: gets a sentence on where the pass ends, or why it does not where no method reads the logits.
    """
    if any(method.reads_student_logits for method in methods):
        return None
    if not any(method.trains_student for method in methods):
        return None  # nothing of the loss asks for it
    stop, reason = None, _hindrance(methods, compile=compile)
    if not reason:
        stop, reason = find_stop(
            side.module, side.taps, lambda tapped: call(tapped, side.inputs), training=True
        )
    if stop is None:
        notes.append(f"the student runs to its end, though no method reads its logits: {reason}")
    else:
        notes.append(f"the student ends {stop}: nothing reads what lies behind it")
    return stop


def _hindrance(methods: Sequence[Method], *, compile: bool) -> str:
    """Return why the student may not end early, "" when it may."""
    if compile:
        # The statistics of batch norms behind the tap are outputs of the graph, so that it holds what makes them.
        return "a compiled student is one graph, which moves the statistics of all batch norms"
    if all(_may_be_0(method.weight) for method in methods):
        # Such a step gives every parameter a gradient of 0, by which weight decay and momentum move it.
        return "the weights of all methods may be 0 in one step, which then reaches every parameter"
    return ""


def _may_be_0(weight: float | Ramp) -> bool:
    if isinstance(weight, Ramp):
        return min(weight.start, weight.end) <= 0 <= max(weight.start, weight.end)
    return weight == 0
