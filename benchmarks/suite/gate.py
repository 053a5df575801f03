"""The gate: contenders that do not compute the same are not compared."""

from __future__ import annotations

import copy
from collections.abc import Callable

from benchmarks.suite.ours import Ours
from benchmarks.suite.peer import Peer
from benchmarks.suite.plain import Plain
from benchmarks.suite.task import Task

from understudy.training.precision import Precision

STEPS = 10
ALLOWED = {"float32": 1e-4, "bf16": 2e-2}
"""Largest relative difference of a loss to that of the plain loop, in ten steps from equal weights."""


def differences(
    task: Task, precision: Precision, peer: bool, steps: int = STEPS
) -> dict[str, float]:
    """Run the first batches through every contender; return its largest relative difference to the plain loop.

    Args:
        task: what is trained.
        precision: of understudy and the plain loop.
        peer: whether torchdistill takes part; it runs in float32.
        steps: how many batches.
    """
    ours = Ours(task, precision)
    projector: Callable[[], object] = ours.projector if task.objective == "hint" else lambda: None
    plain = Plain(task, precision, copy.deepcopy(projector()))
    others = {"torchdistill": Peer(task, copy.deepcopy(projector()))} if peer else {}
    batches = ours.batches(steps)
    expected = [float(plain.step(part.inputs["student"], part.labels)) for part in batches]
    found = {
        name: [float(other.step(part.inputs["student"], part.labels)) for part in batches]
        for name, other in others.items()
    }
    found["understudy"] = ours.losses_of(steps)
    ours.close()
    return {
        name: max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
        for name, losses in found.items()
    }
