"""A teacher that works on the next batch while the student trains on this one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from understudy.data.batch import Batch
from understudy.models.outputs import Outputs

Targets = Callable[[Batch], Outputs]


class Steps(Protocol):
    """Gives the parts of the batch of each optimiser step."""

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Iterate over the steps from `start` up to, not including, `stop`."""

    def close(self) -> None:
        """Stop workers."""


@dataclass(slots=True)
class _Running:
    """Outputs that are being computed: on a CUDA stream of their own, with the event of their end, or by a thread."""

    batch: Batch
    outputs: Outputs | Future[Outputs]
    end: torch.cuda.Event | None = None


class Ahead:
    """Stands before a loader and in place of teachers' `targets`: what a step asks for was begun one step earlier.

    A teacher is frozen, so what it says of the next batch does not depend on the step in between. On CUDA the pass
    runs on a stream of its own, elsewhere in a thread of its own; copies to and from a teacher on another CUDA device
    wait for that stream, and it for them. It pays where one model alone leaves processors idle, or where there are two
    devices, and holds a teacher's outputs and working memory beside the student's.

    Args:
        loader: gives the batches.
        targets: name -> that teacher's.
        wanted: whether a teacher, by name, is asked in a step, by number.
        devices: where the batches lie, and where the teachers run. A stream serves CUDA devices alone: a teacher that
            computes on the host would hold up who queues work for the others.

    Attributes:
        targets: name -> what gives that teacher's outputs for a batch: those that were begun, or else made now.
    """

    def __init__(
        self,
        loader: Steps,
        targets: Mapping[str, Targets],
        wanted: Callable[[str, int], bool],
        devices: Sequence[torch.device],
    ) -> None:
        """Start nothing yet."""
        self._loader, self._compute, self._wanted = loader, dict(targets), wanted
        self.targets: dict[str, Targets] = {
            name: functools.partial(self._outputs, name) for name in targets
        }
        streams = all(device.type == "cuda" for device in devices)
        self._stream = torch.cuda.Stream(devices[0]) if streams else None
        self._thread = ThreadPoolExecutor(1, "teacher") if self._stream is None else None
        self._running: dict[tuple[str, int], _Running] = {}

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Iterate as the loader does, one step behind it."""
        held: list[Batch] | None = None
        try:
            for number, parts in enumerate(self._loader.steps(start, stop), start):
                for name in self._compute:
                    if self._wanted(name, number):
                        for part in parts:
                            self._running[name, id(part)] = self._begin(name, part)
                if held is not None:
                    yield held
                    self._forget(held)
                held = parts
            if held is not None:
                yield held
        finally:
            self._settle()

    def _outputs(self, name: str, batch: Batch) -> Outputs:
        running = self._running.pop((name, id(batch)), None) or self._begin(name, batch)
        outputs = running.outputs
        if isinstance(outputs, Future):
            return outputs.result()
        assert running.end is not None
        current = torch.cuda.current_stream()
        current.wait_event(running.end)
        for tensor in outputs.tensors():
            # Their memory must not be given away before this stream is done with it.
            tensor.record_stream(current)
        return outputs

    def close(self) -> None:
        """End what is running, and the loader."""
        self._settle()
        if self._thread is not None:
            self._thread.shutdown()
        self._loader.close()

    def _begin(self, name: str, batch: Batch) -> _Running:
        if self._stream is None:
            assert self._thread is not None
            return _Running(batch, self._thread.submit(self._compute[name], batch))
        self._stream.wait_stream(torch.cuda.current_stream())  # the batch has to be there
        with torch.cuda.stream(self._stream):
            outputs = self._compute[name](batch)
            return _Running(batch, outputs, self._stream.record_event())

    def _forget(self, parts: list[Batch]) -> None:
        """Drop what nobody asked for."""
        for name in self._compute:
            for part in parts:
                self._running.pop((name, id(part)), None)

    def _settle(self) -> None:
        """Wait for what is running: the models must be at rest when somebody else wants them."""
        running, self._running = list(self._running.values()), {}
        for each in running:
            if isinstance(each.outputs, Future):
                if not each.outputs.cancel():
                    each.outputs.exception()
            elif each.end is not None:
                each.end.synchronize()
