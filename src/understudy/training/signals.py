"""Signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from understudy.training.distribution import World

logger = logging.getLogger("understudy")
RANKS_AGREE_EVERY = 10
"""Steps between two times that several processes ask each other whether to stop."""


@contextlib.contextmanager
def stop_on_signal(world: World) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a flag that the loop looks at between two steps; a second Ctrl-C stops at once."""
    asked = threading.Event()

    def ask(number: int, _frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()
        logger.warning("Asked to stop: finishing the step and writing a checkpoint.")

    calls = itertools.count(1)

    def stop() -> bool:
        # Ranks have to agree, which costs an exchange; all count alike, so all ask at the same steps.
        if world.size > 1 and next(calls) % RANKS_AGREE_EVERY:
            return False
        return world.any(asked.is_set())

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
