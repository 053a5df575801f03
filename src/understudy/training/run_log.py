"""The log of a run: kept in memory until there is a run directory, then in its `log.txt`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

logger = logging.getLogger("understudy")
NEVER = logging.CRITICAL + 1


class RunLog:
    """The package's log of one run.

    Args:
        writes: whether this process writes files.
    """

    def __init__(self, *, writes: bool) -> None:
        """Start keeping records in memory."""
        self.memory = MemoryHandler(capacity=100_000, flushLevel=NEVER, flushOnClose=False)
        self._writes = writes

    def write_to(self, path: Path) -> None:
        """Write what was kept, and everything from now on, to the end of a file."""
        if not self._writes:
            return
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.memory.setTarget(file)
        self.memory.flush()
        self.memory.capacity = 1

    def close(self) -> None:
        """Close the file, if there is one."""
        if self.memory.target is not None:
            self.memory.target.close()
        self.memory.close()


@contextlib.contextmanager
def run_log(writes: bool) -> Iterator[RunLog]:
    """Collect the package's log for the block, from level INFO on."""
    log = RunLog(writes=writes)
    level = logger.level
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    logger.addHandler(log.memory)
    try:
        yield log
    finally:
        logger.removeHandler(log.memory)
        logger.setLevel(level)
        log.close()
