"""The fused loss as an operation of autograd, whose forward pass has already computed the gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from understudy.objectives.vocabulary.chunks import (
    Gradients,
    Side,
    Work,
    losses_and_gradients,
)


def fused(work: Work, student: Side, factor: torch.Tensor, each: bool) -> torch.Tensor:
    """Return sum(factor * loss), or with `each` the products [N] themselves.

    Args:
        work: the loss and the teacher, detached.
        student: its inputs, matrices and bias may ask for gradients.
        factor: [N], detached.
        each: whether the losses stay apart. What each is multiplied with is known in the backward pass only, so there
            the logits are computed again.
    """
    tensors = (*student.inputs, *student.matrices, student.bias)
    wanted = tuple(
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in tensors
    )
    found: torch.Tensor = _Fused.apply(work, student, factor, each, wanted, *tensors)
    return found


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        work: Work,
        student: Side,
        factor: torch.Tensor,
        each: bool,
        wanted: tuple[bool, ...],
        *tensors: torch.Tensor | None,
    ) -> torch.Tensor:
        student = _with_tensors(student, tensors)
        ctx.each, ctx.wanted = each, wanted
        if each:
            ctx.work, ctx.student = work, _with_tensors(student, (None,) * len(tensors))
            ctx.save_for_backward(factor, *tensors)
            return factor * losses_and_gradients(work, student, None, wanted)[0]
        losses, gradients = losses_and_gradients(
            work, student, factor if any(wanted) else None, wanted
        )
        # Saved, not kept as an attribute: so they go as soon as they were used, and a parameter can take one over as
        # its gradient without a copy.
        ctx.save_for_backward(*_flat(gradients))
        return (factor * losses).sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Autograd would take gradients that are computed already for constants, without a word.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "vocabulary_divergence has no second derivative, which create_graph=True asks for; use the objective "
                "of the same name on head.logits(hidden)"
            )
        nothing = (None,) * 5
        if ctx.each:
            factor, *tensors = ctx.saved_tensors
            student = _with_tensors(ctx.student, tuple(tensors))
            _, gradients = losses_and_gradients(ctx.work, student, factor * upstream, ctx.wanted)
            return (*nothing, *_flat(gradients))
        found = ctx.saved_tensors
        # Reading the number is free on a processor, and multiplying by 1 is another pass over the head's gradient.
        if upstream.device.type == "cpu" and upstream.item() == 1:
            return (*nothing, *found)
        return (*nothing, *(None if one is None else one * upstream.to(one.dtype) for one in found))


def _with_tensors(side: Side, tensors: tuple[Any, ...]) -> Side:
    """Return the side with inputs, matrices and bias replaced: tensors in a row, all None to hold none of them."""
    parts = len(tensors) // 2
    return replace(
        side,
        inputs=tensors[:parts],
        matrices=tensors[parts : 2 * parts],
        bias=tensors[-1],
    )


def _flat(gradients: Gradients) -> tuple[torch.Tensor | None, ...]:
    return (*gradients.inputs, *gradients.matrices, gradients.bias)
