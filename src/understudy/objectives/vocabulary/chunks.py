"""The loop over chunks of tokens: logits, loss, and gradients of everything that made the logits.

No logits outlive their chunk. Matrix products run over a whole chunk; what happens to single logits runs over groups
of rows small enough for a processor's cache, since there every pass over memory costs more than its arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

from understudy.objectives.vocabulary.rows import Loss, TopK, dense_rows, label_rows, top_k_rows

# Numbers in a group of rows: about three float32 tensors of this size should fit into a core's cache.
GROUP = 2**17
# Columns of the weight's gradient that are added at once, for the same reason.
COLUMNS = 2048
# Rows of the teacher's logits that a processor computes at once. The student's are kept for its head's gradient, which
# wants long chunks; the teacher's are not, and new memory is slow.
TEACHER_ROWS = 512


@dataclass(frozen=True, slots=True)
class Side:
    """Hidden states and the parts of a head, ready to multiply.

    Attributes:
        inputs: [N, H] hidden states, and [N, r] those that went through the first half of a low rank pair.
        matrices: [V, H] and [V, r]; they may have rows of padding after the first `size`.
        bias: [V] or None.
        scale, soft_cap, size: as in `Head`.
    """

    inputs: tuple[torch.Tensor, ...]
    matrices: tuple[torch.Tensor, ...]
    bias: torch.Tensor | None
    scale: float
    soft_cap: float | None
    size: int

    def products(self, rows: slice, out: torch.Tensor) -> torch.Tensor:
        """Write the products with the matrices, [n, V] without bias, scale and cap, into the first n rows of `out`."""
        out = out[: rows.stop - rows.start]
        for number, (given, matrix) in enumerate(zip(self.inputs, self.matrices, strict=True)):
            columns = matrix[: self.size].to(given.dtype).mT
            torch.addmm(out, given[rows], columns, beta=int(number > 0), out=out)
        return out

    def finish(self, products: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return logits in `dtype`: a new tensor made from products."""
        logits = products.to(dtype, copy=True)
        if self.bias is not None:
            logits.add_(self.bias[: self.size])
        if self.scale != 1:
            logits.mul_(self.scale)
        if self.soft_cap is not None:
            logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits


@dataclass(frozen=True, slots=True)
class Work:
    """All that a pass needs besides the student's side.

    Attributes:
        loss: what is computed for each token.
        teacher: the teacher's side, the rows of a top-k target, or None where there are labels alone.
        temperature: T, a number or [N, 1].
        labels: int64 [N] or None.
        chunk: tokens in a chunk.
        compiled: whether what happens to single logits is one kernel that `torch.compile` makes.
    """

    loss: Loss
    teacher: Side | TopK | None
    temperature: float | torch.Tensor
    labels: torch.Tensor | None
    chunk: int
    compiled: bool = False


@dataclass(slots=True)
class Gradients:
    """Gradients in the order of the student's inputs and matrices, None where not wanted."""

    inputs: list[torch.Tensor | None]
    matrices: list[torch.Tensor | None]
    bias: torch.Tensor | None


def losses_and_gradients(
    work: Work,
    student: Side,
    factor: torch.Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[torch.Tensor, Gradients]:
    """Return the loss of each token [N], and the gradients of sum(factor * loss).

    Args:
        work: the loss and the teacher.
        student: the student's side.
        factor: [N], or None for no gradients.
        wanted: which gradients: of inputs, of matrices, of the bias.
    """
    count, parts = student.inputs[0].shape[0], len(student.inputs)
    exact = _float_dtype(student.inputs[0].dtype)
    losses = torch.empty(count, dtype=exact, device=student.inputs[0].device)
    wanted = wanted if factor is not None else (False,) * len(wanted)
    single = count <= work.chunk
    gradients = Gradients(
        [torch.empty_like(x) if w else None for x, w in zip(student.inputs, wanted, strict=False)],
        [
            _room(matrix, matrix.dtype if single else _float_dtype(matrix.dtype), student.size)
            if w
            else None
            for matrix, w in zip(student.matrices, wanted[parts:], strict=False)
        ],
        torch.zeros_like(student.bias, dtype=exact)
        if wanted[-1] and student.bias is not None
        else None,
    )
    if count == 0:
        for matrix in gradients.matrices:
            if matrix is not None:
                matrix.zero_()
    buffers = _buffers(work, student)
    for rows in _slices(count, work.chunk):
        slope = _chunk(work, student, factor, rows, buffers, losses)
        if factor is not None:
            _accumulate(student, slope, rows, gradients)
    gradients.matrices = [
        None if found is None else found.to(matrix.dtype)
        for found, matrix in zip(gradients.matrices, student.matrices, strict=True)
    ]
    if gradients.bias is not None and student.bias is not None:
        gradients.bias = gradients.bias.to(student.bias.dtype)
    return losses, gradients


def _chunk(
    work: Work,
    student: Side,
    factor: torch.Tensor | None,
    rows: slice,
    buffers: list[torch.Tensor],
    losses: torch.Tensor,
) -> torch.Tensor:
    """Write the losses of a chunk; return the gradient [n, V] with respect to the student's products, in a buffer."""
    products = student.products(rows, buffers[0])
    # On an accelerator a launch costs more than memory, and a compiled kernel goes row by row: all is one group.
    grouped = products.device.type == "cpu" and not work.compiled
    group = max(1, GROUP // student.size) if grouped else work.chunk
    compute = _compiled_group() if work.compiled else _group
    for part in _slices(rows.stop - rows.start, len(buffers[-1])):
        theirs = None
        if isinstance(work.teacher, Side):
            of_part = slice(rows.start + part.start, rows.start + part.stop)
            theirs = work.teacher.products(of_part, buffers[1])
        for inner in _slices(part.stop - part.start, group):
            mine = products[part][inner]
            first = rows.start + part.start
            at = slice(first + inner.start, first + inner.stop)
            losses[at] = compute(
                work, student, mine, None if theirs is None else theirs[inner], at, factor
            )
    return products


def _group(
    work: Work,
    student: Side,
    products: torch.Tensor,
    theirs: torch.Tensor | None,
    at: slice,
    factor: torch.Tensor | None,
) -> torch.Tensor:
    """Return the losses of a few rows; where gradients are wanted they take the place of the student's products.

    Args:
        work: as in `losses_and_gradients`.
        student: as in `losses_and_gradients`.
        products: the student's, [n, V].
        theirs: the teacher's, [n, V], where it is dense.
        at: which rows these are.
        factor: as in `losses_and_gradients`.
    """
    exact = _float_dtype(products.dtype)
    logits = student.finish(products, exact)
    bend = None
    if student.soft_cap is not None and factor is not None:
        bend = (logits / student.soft_cap).square_().neg_().add_(1.0)
    temperature = work.temperature
    if isinstance(temperature, torch.Tensor):
        temperature = temperature[at]
    labels = None if work.labels is None else work.labels[at]
    share = logits.new_ones(len(logits)) if factor is None else factor[at]
    share = student.scale * share.unsqueeze(-1)
    if isinstance(work.teacher, Side):
        assert theirs is not None
        target = work.teacher.finish(theirs, exact)
        value, slope = dense_rows(work.loss, logits, target, temperature, labels, share)
    elif work.teacher is None:
        assert labels is not None
        value, slope = label_rows(work.loss, logits, labels, share)
    else:
        given = work.teacher
        sparse = TopK(given.values[at].clone(), given.indices[at], given.tail[at])
        value, slope = top_k_rows(work.loss, logits, sparse, temperature, labels, share)
    if factor is not None:
        products.copy_(slope if bend is None else slope.mul_(bend))
    return value


@cache
def _compiled_group() -> Callable[..., torch.Tensor]:
    return torch.compile(_group, dynamic=True, fullgraph=True)


def _accumulate(side: Side, slope: torch.Tensor, rows: slice, gradients: Gradients) -> None:
    """Add what a chunk gives to the gradients."""
    if gradients.bias is not None:
        gradients.bias[: side.size] += slope.sum(dim=0, dtype=gradients.bias.dtype)
    for given, matrix, of_input, of_matrix in zip(
        side.inputs, side.matrices, gradients.inputs, gradients.matrices, strict=True
    ):
        if of_input is not None:
            torch.mm(slope, matrix[: side.size].to(slope.dtype), out=of_input[rows])
        if of_matrix is not None:
            _add_product(of_matrix[: side.size], slope, given[rows], first=rows.start == 0)


def _add_product(
    total: torch.Tensor, slope: torch.Tensor, given: torch.Tensor, first: bool
) -> None:
    """Add slope^T @ given to the total, or write it there."""
    if total.dtype == slope.dtype:
        total.addmm_(slope.mT, given, beta=0 if first else 1)
        return
    # There is no product of bfloat16 numbers into float32 everywhere, so it is rounded once a chunk and then added.
    for columns in _slices(total.shape[0], COLUMNS):
        product = slope[:, columns].mT @ given
        if first:
            total[columns] = product
        else:
            total[columns] += product


def _buffers(work: Work, student: Side) -> list[torch.Tensor]:
    """Return memory for a chunk of the student's logits, and for some of the teacher's where they are dense."""
    given = student.inputs[0]
    rows = min(work.chunk, given.shape[0])
    found = [given.new_empty(rows, student.size)]
    if isinstance(work.teacher, Side):
        rows = min(rows, TEACHER_ROWS) if given.device.type == "cpu" else rows
        found.append(work.teacher.inputs[0].new_empty(rows, work.teacher.size))
    return found


def _room(like: torch.Tensor, dtype: torch.dtype, size: int) -> torch.Tensor:
    """Return memory for a matrix's gradient, to be written by the first chunk; rows of padding are 0."""
    found = torch.empty(like.shape, dtype=dtype, device=like.device)
    found[size:] = 0
    return found


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _float_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
