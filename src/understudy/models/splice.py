"""Splicing a graft into a model: where it is possible, how it is done, and the check that it runs.

A graft becomes a child of the module that it stands behind, the host. So every path and every weight of the model keeps
its name, and the graft's own are `HOST.graft...`. A hook on the host hands its output on to the graft; a plain
`nn.Sequential` runs its new last child by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError, nearest
from understudy.models.grafts.graft import Graft
from understudy.models.heads import Head
from understudy.models.optional import first_line
from understudy.models.taps import find_module, unchanged, unwrap

Run = Callable[[nn.Module], Any]
"""Calls a model on example inputs."""

WHAT_TORCH_RAISES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError)


def grafts_of(host: nn.Module) -> dict[str, Graft]:
    """Return the grafts that stand behind a module, by child name, in the order in which they run."""
    return {
        name: child
        for name, child in host._modules.items()
        if isinstance(child, Graft) and child.spliced
    }


def inside_grafts(module: nn.Module) -> set[str]:
    """Return the paths of all grafts below a module and of everything in them."""
    tops = [
        path
        for path, part in module.named_modules()
        if path and isinstance(part, Graft) and part.spliced
    ]
    return {
        path
        for path, _ in module.named_modules()
        if any(path == top or path.startswith(f"{top}.") for top in tops)
    }


def splice(model: nn.Module, path: str, graft: Graft, *, name: str | None = None) -> str:
    """Put a graft behind the module at `path` and return its child name.

    Args:
        model: the model; changed.
        path: the host's path.
        graft: the graft; it is brought to the model's device, precision and memory format.
        name: its child name; None for the first free one of "graft", "graft2", ...

    Raises:
        UnknownName: no such path.
        ModelError: the graft sits in a model already, or the name is taken.
    """
    root = unwrap(model)
    host = find_module(root, path)
    if graft.spliced:
        raise ModelError(f"This {type(graft).__name__} sits in a model already; make another one.")
    if name is None:
        name = next(free for free in _names() if not hasattr(host, free))
    elif hasattr(host, name):
        raise ModelError(
            f"'{path}' has an attribute '{name}' already; nothing can be grafted under that name."
        )
    settle(graft, root)
    host.add_module(name, graft)
    graft.spliced = True
    if not _runs_its_children(host) and _run_grafts not in host._forward_hooks.values():
        # Before any tap on the host, so that a tap always sees what the model goes on with.
        host.register_forward_hook(_run_grafts, prepend=True)
    return name


def unsplice(model: nn.Module, path: str, name: str) -> None:
    """Take the graft `name` behind the module at `path` out again."""
    host = find_module(unwrap(model), path)
    graft = host._modules.pop(name)
    assert isinstance(graft, Graft)
    graft.spliced = False
    if not grafts_of(host):
        remove_hook(host)


def remove_hook(host: nn.Module) -> None:
    """Remove the hook that runs a host's grafts, where there is one."""
    for key, hook in list(host._forward_hooks.items()):
        if hook is _run_grafts:
            del host._forward_hooks[key]


def settle(part: nn.Module, model: nn.Module) -> None:
    """Bring a new part to the device, precision, memory format and mode of the model that it goes into."""
    own = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if own:
        part.to(device=own[0].device, dtype=own[0].dtype)
    if any(
        parameter.is_contiguous(memory_format=torch.channels_last) and not parameter.is_contiguous()
        for parameter in own
        if parameter.dim() == 4
    ):
        part.to(memory_format=torch.channels_last)
    part.train(model.training)


def output_at(model: nn.Module, path: str, run: Run) -> torch.Tensor:
    """Return the tensor that the module at `path` gives in evaluation mode, where a graft can replace it.

    Args:
        model: the model; left as it was.
        path: a module path.
        run: calls the model on example inputs.

    Raises:
        UnknownName: no such path.
        ModelError: the output cannot be replaced; says why.
    """
    root = unwrap(model)
    if getattr(root, "black_box", False) or isinstance(root, torch.jit.ScriptModule):
        raise ModelError(
            "The student is an exported program: what is inside cannot be cut. Give the network itself."
        )
    target = find_module(root, path)
    names = [name for name, part in root.named_modules(remove_duplicate=False) if part is target]
    if len(names) > 1:
        shown = " and ".join(f"'{name}'" for name in names)
        raise ModelError(
            f"{shown} are one module: what would replace the output of one would replace that of the other, too. "
            "Choose a module that stands in one place."
        )
    enclosing = [
        name
        for name, part in root.named_modules()
        if isinstance(part, Head) and (path == name or path.startswith(f"{name}."))
    ]
    if enclosing:
        raise ModelError(
            f"'{path}' belongs to the head '{enclosing[0]}', which may be folded away; choose a module before it."
        )
    outputs = {mode: _outputs(root, target, run, training=mode) for mode in (False, True)}
    counts = {mode: len(given) for mode, given in outputs.items()}
    if not any(counts.values()):
        raise ModelError(_never_called(root, path, target, run))
    if not all(counts.values()):
        mode = "training" if counts[True] else "evaluation"
        raise ModelError(f"'{path}' runs in {mode} mode only; choose a module that always runs.")
    if max(counts.values()) > 1:
        raise ModelError(
            f"'{path}' is called {max(counts.values())} times in one forward, and what replaces its output would be "
            "called each time. Choose a module that is called once."
        )
    tensor = _single(outputs[False][0])
    if tensor is None:
        raise ModelError(
            f"'{path}' returns {_described(outputs[False][0])}; only a single tensor can be replaced. "
            "Choose a module inside or around it that returns one."
        )
    return tensor


def check_spliced(model: nn.Module, path: str, name: str, run: Run) -> None:
    """Run the model in both modes and check that it runs the graft once; take the graft out again when it does not.

    Raises:
        ModelError: the model fails with the graft, or its own code runs the graft, too.
    """
    root = unwrap(model)
    graft = find_module(root, f"{path}.{name}")
    problem = ""
    cause: Exception | None = None
    for training in (False, True):
        try:
            calls = len(_outputs(root, graft, run, training=training))
        except WHAT_TORCH_RAISES as error:
            mode = "training" if training else "evaluation"
            problem = f"the student cannot run with it in {mode} mode: {first_line(error)}"
            cause = error
            break
        if calls != 1:
            problem = (
                f"the code of '{path}' runs all its children, so the graft would run {calls} times; "
                "choose the module before or after it"
            )
            break
    if problem:
        unsplice(root, path, name)
        raise ModelError(
            f"{type(graft).__name__} cannot be grafted at '{path}': {problem}."
        ) from cause


def _names() -> Iterator[str]:
    yield "graft"
    yield from (f"graft{number}" for number in itertools.count(2))


def _run_grafts(host: nn.Module, _arguments: Any, output: Any) -> Any:
    """Hand the host's output through its grafts."""
    for graft in host._modules.values():
        if isinstance(graft, Graft) and graft.spliced:
            output = _replaced(output, graft)
    return output


def _replaced(output: Any, graft: Graft) -> Any:
    if isinstance(output, torch.Tensor):
        return graft(output)
    return type(output)(graft(item) if item is not None else None for item in output)


def _single(output: Any) -> torch.Tensor | None:
    """Return the one tensor of an output: the output itself, or a tuple's only item beside None."""
    if isinstance(output, torch.Tensor):
        return output
    if type(output) in (tuple, list):
        items = [item for item in output if item is not None]
        if len(items) == 1 and isinstance(items[0], torch.Tensor):
            return items[0]
    return None


def _described(output: Any) -> str:
    if type(output) in (tuple, list):
        return f"a {type(output).__name__} of {len(output)} items"
    return "nothing" if output is None else f"a {type(output).__name__}"


def _runs_its_children(host: nn.Module) -> bool:
    """Tell whether a module is a plain sequence, which runs a new last child without being told."""
    return isinstance(host, nn.Sequential) and type(host).forward is nn.Sequential.forward


def _outputs(root: nn.Module, target: nn.Module, run: Run, *, training: bool) -> list[Any]:
    """Run the model once, leaving no trace, and return what `target` gave in each of its calls."""
    found: list[Any] = []
    handle = target.register_forward_hook(lambda _module, _arguments, output: found.append(output))
    try:
        with unchanged(root), torch.no_grad():
            root.train(training)
            run(root)
    finally:
        handle.remove()
    return found


def _never_called(root: nn.Module, path: str, target: nn.Module, run: Run) -> str:
    """Say why a module's output cannot be replaced, with the nearest modules whose output can."""
    ran: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, part in root.named_modules()
        if name and _related(name, path)
    ]
    try:
        _outputs(root, target, run, training=False)
    finally:
        for handle in handles:
            handle.remove()
    near = nearest(path, ran) or ran[:3]
    hint = f" Modules near it that run: {', '.join(repr(name) for name in near)}." if near else ""
    return (
        f"The student does not call '{path}' ({type(target).__name__}) in its forward: its code reads the parts or "
        f"the weights of that module itself, so there is no output that could be replaced.{hint}"
    )


def _related(name: str, path: str) -> bool:
    """Tell whether one module lies in the other, or both in the same one."""
    around = path.rpartition(".")[0]
    return (
        name.startswith(f"{path}.")
        or path.startswith(f"{name}.")
        or name.rpartition(".")[0] == around
    )
