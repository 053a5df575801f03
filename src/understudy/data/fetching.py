"""Where a loader gets raw samples from: this process, worker processes, or a copy on the device."""

from __future__ import annotations

import signal
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from understudy.data.placement import place
from understudy.data.source import Raw, Split
from understudy.errors import UnderstudyError

RESIDENT_BYTES = 2 * 2**30
FILLING_BATCH = 4096
AUTOMATIC_WORKERS = 2


class Wanted(Protocol):
    """Something that needs samples."""

    @property
    def indices(self) -> torch.Tensor:
        """Positions in the split, int64 [B]."""


W = TypeVar("W", bound=Wanted)


class Fetcher(Protocol):
    """Raw samples for a sequence of wants, in its order."""

    def stream(self, wants: Iterable[W]) -> Iterator[tuple[W, Raw]]:
        """Yield each want with its samples."""

    def close(self) -> None:
        """Give back what is held."""


def fetcher(split: Split, device: torch.device, workers: int | Literal["auto"]) -> Fetcher:
    """Choose how the samples of `split` are fetched.

    Args:
        split: the samples.
        device: where the batches go.
        workers: number of worker processes; 0 for none; "auto" for none when the samples are in
            memory, else two. In-memory tensors that are small beside the device's free memory are
            kept on a CUDA device as a whole when no workers are asked for.
    """
    if workers == "auto":
        workers = 0 if split.samples.in_memory else AUTOMATIC_WORKERS
    if workers < 0:
        raise UnderstudyError(f"workers must be 0 or more, or 'auto', not {workers}.")
    if workers > 0:
        return WorkerFetcher(split, device, workers)
    if device.type == "cuda" and split.samples.in_memory and _fits(split, device):
        return ResidentFetcher(split, device)
    return LocalFetcher(split)


def _fits(split: Split, device: torch.device) -> bool:
    first = split.fetch(torch.zeros(1, dtype=torch.int64))
    if not isinstance(first, torch.Tensor):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return first.nbytes * len(split) <= min(RESIDENT_BYTES, free // 8)


class LocalFetcher:
    """Fetches when asked, in this process."""

    def __init__(self, split: Split) -> None:
        """Fetch from `split`."""
        self._split = split

    def stream(self, wants: Iterable[W]) -> Iterator[tuple[W, Raw]]:
        """Yield each want with its samples."""
        for want in wants:
            yield want, self._split.fetch(want.indices)

    def close(self) -> None:
        """Hold nothing."""


class ResidentFetcher:
    """Keeps all samples on the device, so that a batch is a look-up there."""

    def __init__(self, split: Split, device: torch.device) -> None:
        """Copy the samples of `split`, which are tensors, to `device`."""
        kept: torch.Tensor | None = None
        for indices in torch.split(torch.arange(len(split)), FILLING_BATCH):
            part = split.fetch(indices)
            assert isinstance(part, torch.Tensor)
            if kept is None:
                kept = part.new_empty((len(split), *part.shape[1:]), device=device)
            kept[indices[0] : indices[-1] + 1] = place(part, device)
        assert kept is not None
        self._samples = kept

    def stream(self, wants: Iterable[W]) -> Iterator[tuple[W, Raw]]:
        """Yield each want with its samples."""
        for want in wants:
            yield want, self._samples.index_select(0, place(want.indices, self._samples.device))

    def close(self) -> None:
        """Free the copy."""
        self._samples = self._samples.new_empty(0)


class WorkerFetcher:
    """Fetches ahead in worker processes, which live until `close`."""

    def __init__(self, split: Split, device: torch.device, workers: int) -> None:
        """Start nothing yet; workers start with the first stream."""
        self._queue = _Queue()
        self._turn = 0
        self._loader: DataLoader[Raw] | None = DataLoader(
            _Positions(split),
            sampler=self._queue,
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_ignore_interrupts,
            pin_memory=device.type == "cuda",
            persistent_workers=True,
            # Without one of its own the loader would draw from torch's global generator.
            generator=torch.Generator(),
        )

    def stream(self, wants: Iterable[W]) -> Iterator[tuple[W, Raw]]:
        """Yield each want with its samples; one stream at a time."""
        if self._loader is None:
            raise UnderstudyError("This loader was closed.")
        self._turn += 1
        turn = self._turn
        asked: deque[W] = deque()
        self._queue.refill(wants, asked)
        for raw in self._loader:
            if isinstance(raw, _Failure):
                raise raw.error
            yield asked.popleft(), raw
            if turn != self._turn:
                raise UnderstudyError(
                    "A second iteration over a loader with workers began while the first was still "
                    "in use. Finish one first, or make two loaders."
                )

    def close(self) -> None:
        """Stop the workers."""
        self._loader = None


class _Queue:
    """The sampler of a `WorkerFetcher`: notes what is asked for; answers come in that order."""

    def __init__(self) -> None:
        self._indices: Iterator[torch.Tensor] = iter(())

    def refill(self, wants: Iterable[W], asked: deque[W]) -> None:
        def indices() -> Iterator[torch.Tensor]:
            for want in wants:
                asked.append(want)
                yield want.indices

        self._indices = indices()

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self._indices


class _Positions(Dataset[Raw]):
    """A split as what worker processes read: many positions at a time."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __getitem__(self, indices: torch.Tensor) -> Raw | _Failure:  # type: ignore[override]
        try:
            return self._split.fetch(indices)
        except UnderstudyError as error:
            # Sent as a value: torch would bury the sentence under the worker's traceback, and takes
            # seconds to stop a worker that raised.
            return _Failure(error)
        except Exception:
            story = traceback.format_exc()
            return _Failure(RuntimeError(f"Samples could not be read in a worker:\n{story}"))


class _Failure:
    """An error on its way from a worker."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _unchanged(raw: Raw) -> Raw:
    return raw


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the process that trains.

    It may want to finish a step and write a checkpoint first; then it stops its workers itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
