"""One training step as a module: the student, the methods and their sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.errors import StoreError, TrainingError
from understudy.methods import Method, Step
from understudy.models.outputs import Outputs
from understudy.models.stopping import StoppedOutputs
from understudy.models.taps import Stop, Tapped
from understudy.tasks import Task
from understudy.teachers.listening import heard

Targets = Callable[[Batch], Outputs]


class TrainingStep(nn.Module):
    """Everything that is trained in a stage, with the loss as its output.

    That the student and the methods' own modules sit in one module is what lets a distributed
    wrapper synchronise all of them.

    Args:
        student: the tapped student.
        methods: the stage's active methods.
        teachers: teacher name -> its targets for a batch. Held outside of the module tree, so that a teacher is
            in no state dict and no optimiser.
        task: what a batch means.
        compile: whether to run the student through `torch.compile`.
        stop: where the student's pass ends, as no method reads its logits; None for the end of the model.
    """

    def __init__(
        self,
        student: Tapped,
        methods: Sequence[Method],
        teachers: Mapping[str, Targets],
        task: Task,
        *,
        compile: bool = False,
        stop: Stop | None = None,
    ) -> None:
        """Put the parts together."""
        super().__init__()
        self.student, self.stop = student, stop
        self.methods = nn.ModuleList(methods)
        self._teachers, self._task = dict(teachers), task
        run = torch.compile(student) if compile else student
        # In a list, so that the compiled wrapper is not registered as a second student.
        self._run = [run]
        self.active: tuple[Method, ...] = tuple(methods)
        self._labels = _labels(methods)
        names = list(teachers)
        self._asks = [heard(m.hears, names) if m.needs_teacher else () for m in methods]
        self._follows = any(type(method).after_step is not Method.after_step for method in methods)
        self._taken: list[Step] = []

    def forward(
        self, batch: Batch, progress: float, shares: Sequence[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the weighted sum of all terms, and each term by name, detached and unweighted, with what is noted.

        Args:
            batch: the batch, or a part of one.
            progress: how much of the stage is done, in [0, 1].
            shares: for each method this part's share of the whole batch's valid elements; None for a whole batch.
        """
        weighted = [
            (index, method, weight)
            for index, method in enumerate(self.active)
            if (weight := method.weight_at(progress))
        ]
        for _, method, _ in weighted:
            batch = method.inputs(batch)
        step = Step(
            batch,
            task=self._task,
            student=self._student_outputs,
            teachers=self._teachers,
            progress=progress,
        )
        total: torch.Tensor | None = None
        terms: dict[str, torch.Tensor] = {}
        # Teachers go first: the memory that they free serves the student, whose activations are then still in the
        # caches when the backward pass wants them. The other order costs a tenth of a step on a CPU.
        for index, _, _ in weighted:
            for name in self._asks[index]:
                _ = step.teachers[name]
        for index, method, weight in weighted:
            try:
                given = method.loss(step.heard_by(method))
            except (StoreError, TrainingError) as error:
                raise type(error)(f"Method '{method.name}': {error}") from error
            named = {"": given} if isinstance(given, torch.Tensor) else given
            for name, term in named.items():
                if term.dim():
                    raise TrainingError(
                        f"Method '{method.name}' returned a loss of shape {tuple(term.shape)}; "
                        "it must be a single number."
                    )
                if shares is not None:
                    term = term * shares[index]
                label = self._labels[index]
                terms[f"{label}.{name}" if name else label] = term.detach()
                if total is None:
                    total = term if weight == 1 else term * weight
                else:
                    total = torch.add(total, term, alpha=weight)
            if step.noted:
                share = 1.0 if shares is None else shares[index]
                terms |= {f"{self._labels[index]}.{n}": v * share for n, v in step.noted.items()}
                step.noted.clear()
        if self._follows and self.training:
            self._taken.append(step)
        if total is None:
            assert step.student.logits is not None
            total = step.student.logits.sum() * 0.0
        return total, terms

    def after_step(self) -> None:
        """Let the methods update what follows the student."""
        if not self._taken:
            return
        steps, self._taken = self._taken, []
        with torch.no_grad():
            for step in steps:
                for method in self.active:
                    method.after_step(step.heard_by(method))

    def forget(self) -> None:
        """Drop the steps that were taken: the optimiser does not follow them."""
        self._taken.clear()

    def _student_outputs(self, batch: Batch) -> Outputs:
        outputs = self._task.forward_tapped(self._run[0], batch, "student")
        if self.stop is None:
            return outputs
        return StoppedOutputs("student", "reads_student_logits", self.stop, outputs.features)


def _labels(methods: Sequence[Method]) -> list[str]:
    """Name the methods in logs: by their names, numbered where a stage has a method twice."""
    names = [method.name for method in methods]
    return [
        f"{name}-{names[: index + 1].count(name)}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def shares_of(methods: Sequence[Method], parts: Sequence[Batch]) -> list[torch.Tensor]:
    """Return [parts, methods]: how many valid elements each part has for each method."""
    return [torch.stack([method.valid(part).float() for method in methods]) for part in parts]
