"""The backward pass of a step's loss."""

from __future__ import annotations

import torch
from torch.autograd.graph import _engine_run_backward


def backward(loss: torch.Tensor) -> None:
    """Add the gradients of a loss to those of the parameters, as `loss.backward()` does.

    Torch first looks for what a loss of the loop never is: several of them, only some of the inputs. Beside a small
    model that takes as long as its forward pass. What surrounds the engine in torch stays around it here.

    Args:
        loss: a single number.
    """
    if type(loss) is not torch.Tensor:
        # A subclass may have a backward pass of its own.
        loss.backward()
        return
    _engine_run_backward(
        (loss,),
        (torch.ones_like(loss),),
        False,
        False,
        (),
        allow_unreachable=True,
        accumulate_grad=True,
    )
