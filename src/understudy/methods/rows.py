"""What methods share that compare the geometry of features: which vectors of a batch make the rows of a matrix."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch.nn import functional

from understudy.errors import UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import TapShape, Wiring

Rows = Literal["pooled", "first", "elements"]


class FeatureRows(Method):
    """Base of the methods that compare one feature of student and teacher as two matrices with the same rows.

    Args:
        student_tap: module path in the student, or "auto" for what goes into its classifier.
        teacher_tap: the same for the teacher.
        rows: what a row is: "pooled" (one per sample: the vector, the mean over a map's places, over the tokens that
            are no padding), "first" (one per sample: the first token, such as BERT's [CLS]), or "elements" (every token
            that is no padding, every place of a map).
        gather: compare the rows of all processes instead of each process's own; every process then computes the whole.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_tap: str = "auto",
        teacher_tap: str = "auto",
        rows: Rows = "pooled",
        gather: bool = False,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if rows not in ("pooled", "first", "elements"):
            raise ValueError(f"rows is '{rows}'; it must be 'pooled', 'first' or 'elements'")
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.rows, self.gather = rows, gather
        # One vector a document is one whatever its tokens are.
        self.crosses_tokenizers = rows == "pooled"

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and see whether they can give such rows."""
        student, teacher = wiring.embeddings(self.student_tap, self.teacher_tap)
        self.places = (student.name, teacher.name)
        for role, tap in (("student", student), ("teacher", teacher)):
            self._check(role, tap)
        wiring.notes.append(
            f"{self.name}: rows are {self.rows}, widths {width_of(student)} and {width_of(teacher)}, taps "
            f"'{student.name}' and '{teacher.name}'"
        )

    def _check(self, role: str, tap: TapShape) -> None:
        fits = {"first": len(tap.shape) == 2, "elements": len(tap.shape) in (2, 3)}
        if not fits.get(self.rows, len(tap.shape) in (1, 2, 3)):
            wanted = {"first": "tokens (T, D)", "elements": "tokens (T, D) or a map (C, H, W)"}
            raise UnderstudyError(
                f"Method '{self.name}' with rows '{self.rows}' needs "
                f"{wanted.get(self.rows, 'a vector, tokens or a map')}, but the {role}'s tap '{tap.name}' gives "
                f"{tap.shape} per sample. Name another tap, or use rows: pooled."
            )

    def matrices(self, step: Step) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return student [n, D_s], teacher [n, D_t] and the rows' weights [n] (None for all ones)."""
        student, teacher = step.features(*self.places)
        weight = step.batch.weight
        if self.rows == "pooled":
            student, teacher = step.pooled(student), step.pooled(teacher, "teacher")
        elif self.rows == "first":
            student, teacher = student[:, 0], teacher[:, 0]
        elif student.dim() != teacher.dim():
            raise UnderstudyError(
                f"Method '{self.name}' with rows 'elements' compares tokens with tokens and maps with maps; the taps "
                f"give {tuple(student.shape)} and {tuple(teacher.shape)}."
            )
        else:
            mask = step.token_mask(student)
            student, teacher = _elements(student, teacher)
            if mask is not None or weight is not None:
                counted = (
                    torch.ones(len(step.batch), device=student.device) if weight is None else weight
                )
                each = len(student) // len(step.batch)
                weight = counted.repeat_interleave(each)
                weight = weight if mask is None else weight * mask.flatten()
        if self.gather:
            present = torch.ones(len(student), device=student.device) if weight is None else weight
            return gathered(student), Step.gather(teacher), Step.gather(present)
        return student, teacher, weight


def width_of(tap: TapShape) -> int:
    """Return the width of a vector, of tokens, or the channels of a map."""
    return tap.shape[0] if len(tap.shape) == 3 else tap.shape[-1]


def _elements(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all tokens, or all places of two maps after the larger was averaged to the smaller's size, as rows."""
    if student.dim() == 4:
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        student, teacher = (
            (found if found.shape[2:] == size else functional.adaptive_avg_pool2d(found, size))
            .flatten(2)
            .transpose(1, 2)
            for found in (student, teacher)
        )
    elif student.shape[1] != teacher.shape[1]:
        raise UnderstudyError(
            f"Student and teacher split the same samples into {student.shape[1]} and {teacher.shape[1]} tokens, so "
            "tokens cannot be compared one by one. Use rows: pooled."
        )
    return student.flatten(0, 1), teacher.flatten(0, 1)


class _Gathered(torch.autograd.Function):
    """The rows of all processes; the gradient of a process's rows is the sum over what all processes computed."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        """Put the rows of all processes one after the other."""
        counts = Step.gather(torch.full((1,), len(rows), device=rows.device))
        ctx.begin = int(counts[: dist.get_rank()].sum())
        ctx.count = len(rows)
        return Step.gather(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Sum over the processes and take this one's part."""
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.begin : ctx.begin + ctx.count]


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows [B, ...] of all processes with their gradient; alone, `rows` itself.

    The shares by which the loop weights the parts of a batch sum to the number of processes, and gradients are averaged
    over processes: together that gives the gradient of the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    return cast(torch.Tensor, _Gathered.apply(rows))
