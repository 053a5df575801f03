"""The machine: what it is, and how much of it others use while something is timed."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

STAT = Path("/proc/stat")
PACKAGES = ("torch", "torchvision", "numpy", "understudy")


def facts() -> dict[str, Any]:
    """Return processor, threads and versions, as JSON values."""
    return {
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "load_at_start": os.getloadavg()[0],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


class Others:
    """How many cores other processes kept busy since this object was made."""

    def __init__(self) -> None:
        self._begin, self._all, self._own = time.perf_counter(), _busy(), _own()

    def cores(self) -> float | None:
        """Return the mean number of cores, None where the system does not say."""
        busy = _busy()
        if busy is None or self._all is None:
            return None
        wall = max(1e-3, time.perf_counter() - self._begin)
        return max(0.0, (busy - self._all - (_own() - self._own)) / wall)


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy() -> float | None:
    """Return the seconds that all cores together were busy since the machine started."""
    if not STAT.exists():
        return None
    fields = [int(field) for field in STAT.read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")
