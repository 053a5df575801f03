"""The step of torch's fused SGD, Adam and AdamW, from their state to the kernel with nothing between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Tensors = list[torch.Tensor]
Kernel = Callable[[Mapping[str, Any], Tensors, Tensors, list[Tensors]], None]
"""Changes parameters by their gradients, and the columns of their state, as a group of an optimiser says."""


class FusedStep:
    """Takes the step of a fused optimiser: the same kernel on the same state as in torch's own `step`.

    Torch looks in every step anew for what may have changed since the last: the kind of each tensor, which form of the
    rule to take. For a small model that costs several times as much as the step.

    Args:
        optimizer: one that `takes` allows.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Choose the kernel."""
        self._optimizer = optimizer
        self._names, self._kernel = _KERNELS[type(optimizer)]
        self._ready: list[tuple[dict[str, Any], Tensors, list[Tensors]]] | None = None
        self._no_grad = torch.no_grad()
        optimizer.register_load_state_dict_post_hook(self._look_again)

    @staticmethod
    def takes(optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether there is a kernel for the optimiser as it is set, on parameters of one type in each group."""
        return type(optimizer) in _KERNELS and all(
            group["fused"]
            and len({(p.dtype, p.device) for p in group["params"]}) == 1
            and not any(group.get(name) for name in ("amsgrad", "capturable", "differentiable"))
            and not any(isinstance(beta, torch.Tensor) for beta in group.get("betas", ()))
            for group in optimizer.param_groups
        )

    def __call__(self) -> bool:
        """Take the step, or return False with nothing done, where only torch knows how.

        It makes the state of what was never trained before, passes over what has no gradient, refuses sparse ones.
        """
        if self._ready is None:
            self._ready = self._complete()
            if self._ready is None:
                return False
        work = []
        for group, parameters, columns in self._ready:
            gradients = []
            for parameter in parameters:
                gradient = parameter.grad
                if gradient is None or gradient.is_sparse:
                    return False
                gradients.append(gradient)
            work.append((group, parameters, gradients, columns))
        with self._no_grad:
            for group, parameters, gradients, columns in work:
                self._kernel(group, parameters, gradients, columns)
        return True

    def _complete(self) -> list[tuple[dict[str, Any], Tensors, list[Tensors]]] | None:
        """Return each group with its parameters and the columns of their state, None where some of it is not there."""
        state = self._optimizer.state
        found = []
        for group in self._optimizer.param_groups:
            names = () if group.get("momentum") == 0 else self._names
            columns = [[state[p].get(name) for p in group["params"]] for name in names]
            missing = any(value is None for column in columns for value in column)
            if missing or not group["fused"]:
                return None
            found.append((group, group["params"], columns))
        return found

    def _look_again(self, _optimizer: torch.optim.Optimizer) -> None:
        """Forget the state: another was loaded."""
        self._ready = None


def _sgd(
    group: Mapping[str, Any], parameters: Tensors, gradients: Tensors, columns: list[Tensors]
) -> None:
    torch._fused_sgd_(
        parameters,
        gradients,
        columns[0] if columns else [],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=group["lr"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        is_first_step=False,
    )


def _adam(
    group: Mapping[str, Any], parameters: Tensors, gradients: Tensors, columns: list[Tensors]
) -> None:
    averages, squares, steps = columns
    torch._foreach_add_(steps, 1)
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    kernel(
        parameters,
        gradients,
        averages,
        squares,
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
    )


_KERNELS: dict[type[torch.optim.Optimizer], tuple[tuple[str, ...], Kernel]] = {
    torch.optim.SGD: (("momentum_buffer",), _sgd),
    torch.optim.Adam: (("exp_avg", "exp_avg_sq", "step"), _adam),
    torch.optim.AdamW: (("exp_avg", "exp_avg_sq", "step"), _adam),
}
