"""torchdistill as a contender, when its package can be found; it is no part of this repository."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.suite.plain import Batches
from benchmarks.suite.task import ALPHA, DECAY, MOMENTUM, RATE, TAP, TEMPERATURE, Task, copy_of
from torch import nn

VERSION = "1.1.4"
"""The version that the suite was written for."""
MODULES = (
    "core.distillation",
    "core.interfaces.forward_proc",
    "losses.mid_level",
    "datasets.wrapper",
)
"""What is used of it; its registries know what was imported."""


def missing(folder: str | None) -> str | None:
    """Return why torchdistill cannot take part, None when it can.

    Args:
        folder: where its unpacked package lies; None to look among the installed ones.
    """
    if folder is not None:
        if not (Path(folder) / "torchdistill").is_dir():
            return f"{folder} holds no package 'torchdistill'"
        sys.path.insert(0, folder)
    try:
        for module in MODULES:
            importlib.import_module(f"torchdistill.{module}")
    except ImportError as error:
        return f"torchdistill cannot be imported: {error}"
    logging.getLogger("torchdistill").setLevel(logging.WARNING)
    return None


class Peer:
    """torchdistill's `DistillationBox` on the task, fed with the batches of the hand-written loop.

    Two things are done for it: the teacher is put into evaluation mode, which it does not do itself, and its
    optimiser is the fused one. It has no mixed precision; it stops no model early unless its user cuts it.

    Args:
        task: what is trained.
        projector: for a hint: the learned map, with its first weights.
    """

    def __init__(self, task: Task, projector: nn.Module | None = None) -> None:
        """Build the box."""
        distillation: Any = importlib.import_module("torchdistill.core.distillation")
        student: nn.Module = _WithProjector(copy_of(task.student).module, projector)
        teacher = copy_of(task.teacher).module
        kd = {
            "student_module_path": ".",
            "student_module_io": "output",
            "teacher_module_path": ".",
            "teacher_module_io": "output",
            "temperature": TEMPERATURE,
            "alpha": 1 - ALPHA,
            "beta": ALPHA,
        }
        criterion: Any = {"key": "KDLoss", "kwargs": kd}
        taps: tuple[list[str], list[str]] = ([], [])
        if projector is not None:
            criterion = _Hint(projector)
            taps = ([f"net.{TAP}"], [TAP])
        config = {
            "num_epochs": 1,
            "teacher": {
                "requires_grad": False,
                "forward_hook": {"output": taps[1]},
                "forward_proc": "forward_batch_only",
            },
            "student": {
                "forward_hook": {"output": taps[0]},
                "forward_proc": "forward_batch_only",
            },
            "optimizer": {
                "key": "SGD",
                "kwargs": {"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY, "fused": True},
            },
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {"sub_terms": {"term": {"criterion": criterion, "weight": 1.0}}},
            },
        }
        self.box = distillation.DistillationBox(
            teacher, student, {}, config, torch.device("cpu"), None, False, 1
        )
        self.student = student
        self.box.pre_epoch_process(epoch=0)
        self.box.teacher_model.eval()
        self.batches = iter(Batches(task))
        self.total = torch.zeros(())

    def step(
        self, inputs: torch.Tensor, labels: torch.Tensor, extra: Mapping[str, Any] | None = None
    ) -> torch.Tensor:
        """Take one optimiser step and return its loss; `extra` is what its cache passes along."""
        loss = self.box.forward_process(inputs, labels, extra)
        self.box.post_forward_process(loss)
        found: torch.Tensor = loss.detach()
        return found

    def run(self, steps: int) -> None:
        """Take `steps` steps."""
        for _ in range(steps):
            self.total += self.step(*next(self.batches))


class _WithProjector(nn.Module):
    """A student that owns the map of a hint, so that the map is trained."""

    def __init__(self, net: nn.Module, projector: nn.Module | None) -> None:
        super().__init__()
        self.net, self.projector = net, projector

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(inputs)
        return found


class _Hint(nn.Module):
    """The hint as one of torchdistill's losses."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self._projector = [projector]

    def forward(self, student: Any, teacher: Any, *_: Any, **__: Any) -> torch.Tensor:
        pair = self._projector[0](student[f"net.{TAP}"]["output"], teacher[TAP]["output"])
        return F.mse_loss(*pair)
