"""Taps: tensors read out of any module by path, without editing it.

A tap is written `path` (what the module returns), `path@input` (what goes into it) or `path#2` (its third call in one
forward; without a number the last call counts). The empty path of a whole model is its own output and needs no tap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError, UnknownName, unknown_name


@dataclass(frozen=True)
class Tap:
    """A place in a model: module path, side ("output" or "input") and call number (None: the last)."""

    path: str
    side: str = "output"
    call: int | None = None

    @classmethod
    def parse(cls, text: str) -> Tap:
        """Read `path[@input|@output][#call]`."""
        path, _, call = text.partition("#")
        path, _, side = path.partition("@")
        if side not in ("", "input", "output"):
            raise UnknownName(
                f"Tap '{text}' asks for the side '{side}'; a tap has '@input' and '@output'."
            )
        if call and not call.isdigit():
            raise UnknownName(
                f"Tap '{text}' asks for call '{call}'; after '#' stands a number from 0."
            )
        return cls(path, side or "output", int(call) if call else None)


@dataclass(frozen=True)
class Stop:
    """Where a forward pass may end: at one run of one module, whose input or output is the last that is asked for.

    Attributes:
        path: the module.
        side: "output" or "input".
        call: which of its runs in one forward, counted from 0.
    """

    path: str
    side: str = "output"
    call: int = 0

    def __str__(self) -> str:
        """Return what a plan calls it."""
        where = f"{'after' if self.side == 'output' else 'before'} '{self.path}'"
        return f"{where}, run {self.call + 1}" if self.call else where


class StopReached(Exception):
    """Ends the forward pass of a model at its last tap; never leaves `Tapped.forward`."""


def unwrap(module: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, DataParallel and compiled wrappers."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(
            module, nn.parallel.DistributedDataParallel | nn.DataParallel
        ):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def find_module(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted `path`; a wrong path is refused with the nearest ones."""
    modules: dict[str, nn.Module] = dict(unwrap(model).named_modules())
    if not path or path not in modules:
        raise unknown_name("module (tap)", path, [name for name in modules if name])
    return modules[path]


class Tapped(nn.Module):
    """A model that returns its output together with the tensors at its taps.

    The taps are forward hooks that write into a table which lives for one call only; nothing stays
    on the side, so that a compiled
    or distributed wrapper around this module sees them as plain outputs. A recomputation by activation checkpointing
    happens outside of the call and is not recorded.

    Args:
        module: the model; its own code is not changed. Wrappers of it are taken off.
        taps: what to read, as `Tap.parse` understands it.
        copied: taps whose tensor is modified in place by the model after the tap, and has to be copied.
            `probe_taps` finds them.
        stop: where the pass ends, for a model whose output nobody reads: an exception leaves the model there. Under
            `torch.compile` none is raised; what lies behind the last tap is no part of any output of the graph, and the
            compiler leaves it out. `find_stop` finds it.
    """

    def __init__(
        self,
        module: nn.Module,
        taps: Iterable[str] = (),
        copied: Iterable[str] = (),
        stop: Stop | None = None,
    ) -> None:
        """Resolve the taps and set the hooks."""
        super().__init__()
        self.module, self.stop = unwrap(module), stop
        self.taps = {name: Tap.parse(name) for name in dict.fromkeys(taps)}
        self._captured: dict[tuple[str, str], list[torch.Tensor]] | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        copied_places = {(tap.path, tap.side) for tap in map(Tap.parse, copied)}
        for path, side in dict.fromkeys((tap.path, tap.side) for tap in self.taps.values()):
            target = find_module(self.module, path)
            clone = (path, side) in copied_places
            if side == "output":
                self._handles.append(target.register_forward_hook(self._output_hook(path, clone)))
            else:
                hook = self._input_hook(path, clone)
                self._handles.append(target.register_forward_pre_hook(hook, with_kwargs=True))

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return (what the model returns, {tap: tensor}); None in place of the former with a `stop`."""
        if not self.taps and self.stop is None:
            return self.module(*args, **kwargs), {}
        captured: dict[tuple[str, str], list[torch.Tensor]] = {}
        self._captured = captured
        try:
            output = self.module(*args, **kwargs)
        except StopReached:
            output = None
        finally:
            self._captured = None
        if self.stop is not None:
            output = None
        return output, {name: self._pick(name, tap, captured) for name, tap in self.taps.items()}

    def close(self) -> None:
        """Remove the hooks. The model is as it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _output_hook(self, path: str, clone: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._record((path, "output"), output, clone)

        return hook

    def _input_hook(self, path: str, clone: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self._record((path, "input"), args or tuple(kwargs.values()), clone)

        return hook

    def _record(self, place: tuple[str, str], value: Any, clone: bool) -> None:
        if self._captured is None:
            return
        tensor = first_tensor(value)
        if tensor is None:
            raise ModelError(
                f"The {place[1]} of '{place[0]}' is a {type(value).__name__} without a tensor; tap another module."
            )
        calls = self._captured.setdefault(place, [])
        calls.append(tensor.clone() if clone else tensor)
        stop = self.stop
        if stop is None or torch.compiler.is_compiling():
            return
        if place == (stop.path, stop.side) and len(calls) == stop.call + 1:
            raise StopReached

    def _pick(
        self, name: str, tap: Tap, captured: Mapping[tuple[str, str], list[torch.Tensor]]
    ) -> torch.Tensor:
        calls = captured.get((tap.path, tap.side), [])
        if not calls:
            raise ModelError(
                f"Tap '{name}': the model did not call that module in its forward. Tap a module that runs "
                "(`understudy plan` lists them)."
            )
        if tap.call is not None and tap.call >= len(calls):
            raise ModelError(
                f"Tap '{name}' asks for call {tap.call}, but the module ran {len(calls)} time(s) in one forward."
            )
        return calls[-1 if tap.call is None else tap.call]


def first_tensor(value: Any) -> torch.Tensor | None:
    """Return `value` when it is a tensor, else the first tensor inside a tuple, list, mapping or model output."""
    if isinstance(value, torch.Tensor):
        return value
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, tuple | list):
        parts = value
    for part in parts:
        tensor = first_tensor(part)
        if tensor is not None:
            return tensor
    return None


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Run a block that may call `module`; leave its buffers, flags and torch's random state as they were."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    flags = {part: part.training for part in module.modules()}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    buffer.copy_(buffers[name])
            for part, training in flags.items():
                part.training = training


def probe_taps(
    module: nn.Module, taps: Iterable[str], run: Callable[[nn.Module], Any], *, training: bool
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Run the model once and look at its taps.

    Args:
        module: the model.
        taps: the taps to read.
        run: calls the tapped module on example inputs and returns what it returned.
        training: whether to run in training mode, as a student does.

    Returns:
        The tensors by tap name (detached), and the names of those that the model modified in place after the tap,
        which have to be copied when they are read.

    The module's buffers, flags and torch's random state are left as they were.
    """
    module = unwrap(module)
    names = list(dict.fromkeys(taps))
    with unchanged(module):
        module.train(training)
        watched = Tapped(module, names)
        versions: dict[tuple[str, str], list[tuple[torch.Tensor, int]]] = {}
        record = watched._record

        def watch(place: tuple[str, str], value: Any, clone: bool) -> None:
            record(place, value, clone)
            tensor = first_tensor(value)
            if watched._captured is not None and tensor is not None:
                versions.setdefault(place, []).append((tensor, tensor._version))

        watched._record = watch  # type: ignore[method-assign]
        try:
            with torch.enable_grad():
                _, captured = run(watched)
        finally:
            watched.close()
    changed = {
        name
        for name, tap in watched.taps.items()
        if any(tensor._version != before for tensor, before in versions[(tap.path, tap.side)])
    }
    return {name: tensor.detach() for name, tensor in captured.items()}, changed
