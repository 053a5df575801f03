"""Optimisers: every one that torch has, by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from understudy.errors import UnderstudyError, UnknownName, suggestion, unknown_name
from understudy.registry import import_entry
from understudy.training.fused_step import FusedStep


def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Return the optimisers of torch that the loop can step, by lower-case name: "sgd", "adamw", ..."""
    return {name: cls for name, cls in _torch_optimizers().items() if not _wants_closure(cls)}


def _torch_optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    found = {
        name.lower(): member
        for name, member in vars(torch.optim).items()
        if inspect.isclass(member)
        and issubclass(member, torch.optim.Optimizer)
        and member is not torch.optim.Optimizer
    }
    return dict(sorted(found.items()))


def _wants_closure(cls: type[torch.optim.Optimizer]) -> bool:
    closure = inspect.signature(cls.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


class Optimizer:
    """A torch optimiser to be: its name and keywords, before there are parameters.

    Args:
        name: "sgd", "adamw" or any other of `torch.optim` in lower case, or `py:module:Class`.
        keywords: what the class's constructor takes, `lr` first.
    """

    def __init__(self, name: str, **keywords: Any) -> None:
        """Check the name and the keywords."""
        self.name, self.keywords = name, keywords
        valid = list(inspect.signature(optimizer_class(name).__init__).parameters)[2:]
        for keyword in keywords:
            if keyword not in valid:
                raise UnknownName(
                    f"Optimiser '{name}' has no keyword '{keyword}'. {suggestion(keyword, valid)}"
                )

    def build(
        self, parameters: Iterable[nn.Parameter], undecayed: Iterable[nn.Parameter] = ()
    ) -> torch.optim.Optimizer:
        """Return the torch optimiser over `parameters`, fused where torch can.

        Args:
            parameters: what is trained.
            undecayed: those of them that are trained without weight decay, as a group of their own.
        """
        cls = optimizer_class(self.name)
        keywords = dict(self.keywords)
        listed = list(parameters)
        apart = {id(parameter) for parameter in undecayed}
        accepted = inspect.signature(cls.__init__).parameters
        if "fused" in accepted and not {"fused", "foreach"} & set(keywords):
            keywords["fused"] = all(p.device.type in ("cpu", "cuda") for p in listed)
        without = [parameter for parameter in listed if id(parameter) in apart]
        groups: list[Any] = listed
        if without and "weight_decay" in accepted:
            decayed = [parameter for parameter in listed if id(parameter) not in apart]
            groups = [{"params": decayed}] if decayed else []
            groups.append({"params": without, "weight_decay": 0.0})
        built = cls(groups, **keywords)
        if isinstance(built, torch.optim.SGD):
            start = _StartMomentum()
            built.register_step_pre_hook(start)
            built.register_load_state_dict_post_hook(start.look_again)
        return built


class _StartMomentum:
    """Gives momentum to parameters whose first gradient comes later than that of others, as a ramp's from 0 does.

    The fused SGD wants it of all or of none. From 0 the first step gives what it would give without one, the gradient;
    not so with dampening, for which the fused form is left. Once every parameter has its momentum there is nothing to
    look for: in a model of many small parameters the search would cost as much as the step.

    Attributes:
        over: whether there is nothing to look for any more.
    """

    def __init__(self) -> None:
        self.over = False

    def look_again(self, _optimizer: torch.optim.Optimizer) -> None:
        """Search in the next step: another state was loaded."""
        self.over = False

    def __call__(self, optimizer: torch.optim.Optimizer, _args: Any, _keywords: Any) -> None:
        if self.over:
            return
        groups = [group for group in optimizer.param_groups if group["momentum"] and group["fused"]]
        for group in groups:
            states = [(p, optimizer.state[p]) for p in group["params"] if p.grad is not None]
            missing = [(p, state) for p, state in states if state.get("momentum_buffer") is None]
            if not 0 < len(missing) < len(states):
                continue
            if group["dampening"]:
                group["fused"] = False
                continue
            for parameter, state in missing:
                state["momentum_buffer"] = torch.zeros_like(parameter)
        self.over = all(
            optimizer.state.get(p, {}).get("momentum_buffer") is not None
            for group in groups
            for p in group["params"]
        )


def quick_step(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return what takes the optimiser's step without what PyTorch puts around it: a profiler's mark, and hooks.

    The mark costs more than the step of a small model. Where anybody listens, a profiler or a hook, it is set. Fused
    optimisers go straight to their kernel once torch's own step has made their state (see `FusedStep`).
    """
    framed = type(optimizer).step
    bare = getattr(framed, "__wrapped__", None) if getattr(framed, "hooked", False) else None
    own = optimizer._optimizer_step_pre_hooks
    fused = FusedStep(optimizer) if FusedStep.takes(optimizer) else None

    def step() -> None:
        heard = (
            optimizer._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or "step" in vars(optimizer)
            or torch._C._autograd._profiler_enabled()
            or not all(isinstance(hook, _StartMomentum) and hook.over for hook in own.values())
        )
        if bare is None or heard:
            optimizer.step()
        elif fused is None or not fused():
            bare(optimizer)

    return step


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the class called `name`."""
    if name.startswith("py:"):
        cls: type[torch.optim.Optimizer] = import_entry(name)  # type: ignore[assignment]
    elif name in _torch_optimizers():
        cls = _torch_optimizers()[name]
    else:
        raise unknown_name("optimiser", name, optimizer_classes())
    if _wants_closure(cls):
        raise UnderstudyError(
            f"Optimiser '{name}' evaluates the loss several times per step, which the training loop "
            "does not do. Choose another, such as 'sgd' or 'adamw'."
        )
    return cls
