"""What was fitted, said for the log, the metrics and the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.teachers.accumulating import Statistic


@dataclass
class Note:
    """What was fitted, or would be.

    Attributes:
        method: which method.
        what: what it fits.
        samples: samples that a teacher has to be run on; 0 without a pass of its own.
        size: bytes on disk.
        seconds: measured or expected time; None when not known.
        found: whether it was in the cache.
    """

    method: str
    what: str
    samples: int
    size: int
    seconds: float | None = None
    found: bool = False


def named(statistics: Sequence[Statistic]) -> str:
    """Return what a log calls some statistics."""
    return ", ".join(f"{one.kind} of {one.readings[0].tap}" for one in statistics)


def shown(kind: str, settings: Mapping[str, Any]) -> str:
    """Return what a log calls an artefact."""
    kept = (f"{name} {value}" for name, value in settings.items() if name not in ("of", "version"))
    return ", ".join([kind, *kept])
