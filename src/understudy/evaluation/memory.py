"""The peak of memory over a block of code."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import TracebackType

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
_INTERVAL_SECONDS = 0.01


class PeakMemory:
    """Measures the peak of memory between entering and leaving.

    On CUDA this is what the caching allocator handed out at most (`max_memory_allocated`), on a CPU
    the peak resident set of the whole process: the kernel's own high-water mark, which Linux resets
    through `/proc/self/clear_refs`. Where that file cannot be written (some containers), a thread
    samples the resident set every 10 ms; where there is no `/proc`, the mark since the process
    began is all that is known. `method` says which it was. One at a time: an inner block would
    reset the mark of an outer one.

    Attributes:
        bytes: the peak, None before the block ends or where the system does not tell.
        method: how it was measured, for the log.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Measure on `device`: "cuda" (with or without an index), or the process for any other."""
        self.device = torch.device(device)
        self.bytes: int | None = None
        self.method = ""
        self._sampler: _Sampler | None = None

    def __enter__(self) -> PeakMemory:
        """Reset the mark."""
        self.bytes = None
        if self.device.type == "cuda":
            # Starts CUDA if nothing has yet; resetting needs that.
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.method = "peak of memory allocated by torch on the CUDA device"
        elif _reset_high_water_mark():
            self.method = "peak resident set of the process (kernel high-water mark, reset)"
        elif _STATUS.exists():
            self._sampler = _Sampler()
            self._sampler.start()
            self.method = "peak resident set of the process (sampled every 10 ms)"
        else:
            self.method = "peak resident set since the process began"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Read the mark."""
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._sampler is not None:
            self.bytes = self._sampler.stop()
            self._sampler = None
        elif _STATUS.exists():
            self.bytes = _status_bytes("VmHWM")
        else:
            self.bytes, self.method = _lifetime_peak(self.method)


class _Sampler(threading.Thread):
    """Reads the resident set again and again and keeps the largest."""

    def __init__(self) -> None:
        super().__init__(name="understudy-peak-memory", daemon=True)
        self._end = threading.Event()
        self._peak = _status_bytes("VmRSS")

    def run(self) -> None:
        while not self._end.wait(_INTERVAL_SECONDS):
            self._peak = max(self._peak, _status_bytes("VmRSS"))

    def stop(self) -> int:
        self._end.set()
        self.join()
        return max(self._peak, _status_bytes("VmRSS"))


def _reset_high_water_mark() -> bool:
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    """Read a line such as `VmHWM:   123 kB` of the process's status."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return 0


def _lifetime_peak(method: str) -> tuple[int | None, str]:
    try:
        import resource
    except ImportError:
        return None, "not known on this system"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, the other systems in kilobytes.
    return (peak if sys.platform == "darwin" else peak * 1024), method
