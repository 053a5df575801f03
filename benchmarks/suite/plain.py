"""The loop that a good engineer writes by hand for one task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from benchmarks.suite.task import (
    ALPHA,
    DECAY,
    MEAN,
    MOMENTUM,
    RATE,
    STD,
    TAP,
    TEMPERATURE,
    Task,
    copy_of,
)
from torch import nn

from understudy.training.precision import Precision


class Batches:
    """Shuffled batches out of memory, gathered as a whole and normalised."""

    def __init__(self, task: Task, channels_last: bool = False) -> None:
        """Keep the samples as they are."""
        self.inputs, self.labels, self.batch = task.inputs, task.source.train.labels, task.batch
        self.images = self.inputs.dim() == 4
        self.form = torch.channels_last if channels_last else torch.contiguous_format
        self.scale = 1 / (255 * torch.tensor(STD)).view(1, 3, 1, 1)
        self.shift = (-torch.tensor(MEAN) / torch.tensor(STD)).view(1, 3, 1, 1)
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Give batches without end."""
        while True:
            order = torch.randperm(len(self.inputs), generator=self.generator)
            for chosen in order.split(self.batch)[: len(order) // self.batch]:
                inputs = self.inputs.index_select(0, chosen)
                if self.images:
                    values = torch.addcmul(self.shift, inputs.float(), self.scale)
                    inputs = values.contiguous(memory_format=self.form)
                yield inputs, self.labels.index_select(0, chosen)


class Plain:
    """Plain PyTorch: the teacher in evaluation mode without gradient, fused SGD, nothing that waits.

    Args:
        task: what is trained.
        precision: float32, or bf16 by autocast, and the memory format.
        projector: for a hint: the learned map, with its first weights.

    Attributes:
        seconds: spent in steps so far.
        behind: for a hint: "student" and "teacher" -> seconds of those, in forward passes behind the tap.
    """

    def __init__(
        self, task: Task, precision: Precision, projector: nn.Module | None = None
    ) -> None:
        """Copy the models."""
        form = torch.channels_last if precision.channels_last else torch.contiguous_format
        self.objective, self.projector = task.objective, projector
        self.student = copy_of(task.student).module.to(memory_format=form).train()
        self.teacher = copy_of(task.teacher).module.to(memory_format=form).eval()
        self.context: Callable[[], AbstractContextManager[object]] = nullcontext
        if precision.dtype == "bf16":
            self.context = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
        trained = [*self.student.parameters(), *(projector.parameters() if projector else ())]
        self.optimizer = torch.optim.SGD(
            trained, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=True
        )
        self.seconds, self.behind = 0.0, {"student": 0.0, "teacher": 0.0}
        self.taps: dict[str, torch.Tensor] = {}
        self._reached = 0.0
        if projector is not None:
            for role, model in (("student", self.student), ("teacher", self.teacher)):
                model.get_submodule(TAP).register_forward_hook(
                    lambda _module, _args, output, role=role: self._reach(role, output)
                )
        self.batches = iter(Batches(task, precision.channels_last))
        self.total = torch.zeros(())

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch."""
        if self.objective != "labels":
            with torch.no_grad():
                target = self._forward("teacher", self.teacher, inputs)
        logits = self._forward("student", self.student, inputs)
        if self.projector is not None:
            student, teacher = self.projector(self.taps["student"], self.taps["teacher"])
            return F.mse_loss(student.float(), teacher.float())
        supervised = F.cross_entropy(logits.float(), labels)
        if self.objective == "labels":
            return supervised
        divergence = F.kl_div(
            F.log_softmax(logits.float() / TEMPERATURE, 1),
            F.log_softmax(target.float() / TEMPERATURE, 1),
            reduction="batchmean",
            log_target=True,
        )
        return ALPHA * TEMPERATURE**2 * divergence + (1 - ALPHA) * supervised

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Take one optimiser step and return its loss."""
        begin = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with self.context():
            loss = self.loss(inputs, labels)
        loss.backward()
        self.optimizer.step()
        self.seconds += time.perf_counter() - begin
        return loss.detach()

    def run(self, steps: int) -> None:
        """Take `steps` steps; the sum of their losses is kept, as a log would want it."""
        for _ in range(steps):
            self.total += self.step(*next(self.batches))

    def _forward(self, role: str, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model(inputs)
        if self.projector is not None:
            self.behind[role] += time.perf_counter() - self._reached
        return output

    def _reach(self, role: str, output: torch.Tensor) -> None:
        self.taps[role], self._reached = output, time.perf_counter()
