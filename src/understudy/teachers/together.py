"""Several processes of one run: the first does the work, the others wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from understudy.errors import UnderstudyError

BEAT_SECONDS = 0.25
"""Seconds between two signs of life that the working process gives the waiting ones."""


class Peers(Protocol):
    """This process among those of its run."""

    @property
    def size(self) -> int:
        """Number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this is the first one."""

    def gather(self, value: Any) -> list[Any]:
        """Return a plain value of every process, in order of rank."""


class Alone:
    """A process without others."""

    size = 1
    is_main = True

    def gather(self, value: Any) -> list[Any]:
        """Return the value."""
        return [value]


class Together:
    """Lets the first of several processes work while the others wait.

    They wait in short exchanges, so that they notice a request to stop and no time-out of the process group runs. What
    the first made reaches the others through files, which all of them have to see.

    Args:
        peers: this process among the others.
        stop: called again and again by all processes, equally often; raises when the run is to stop.
    """

    def __init__(self, peers: Peers, stop: Callable[[], None]) -> None:
        """Nothing is exchanged yet."""
        self.peers, self._stop = peers, stop
        self._last = time.monotonic()
        self._works = False

    def tick(self) -> None:
        """Give a sign of life from within the work; raises when the run is to stop."""
        if self.peers.size == 1:
            self._stop()
            return
        now = time.monotonic()
        if self._works and now - self._last >= BEAT_SECONDS:
            self._last = now
            self.peers.gather("works")
            self._ask()

    def agree(self, ask: Callable[[], bool]) -> bool:
        """Return the first process's answer; only it is asked."""
        if self.peers.size == 1 or self._works:
            return ask()
        return bool(self.peers.gather(self.peers.is_main and ask())[0])

    def do(self, work: Callable[[], None]) -> None:
        """Let the first process do some work, from within which it calls `tick`; return when it is done.

        Raises:
            UnderstudyError: the work failed; in all processes.
        """
        if self.peers.size == 1 or self._works:
            work()
            return
        if not self.peers.is_main:
            self._wait()
            return
        self._works = True
        try:
            work()
        except Exception as error:
            if self._works:
                self.peers.gather(f"failed: {error}")
            raise
        else:
            self.peers.gather("done")
        finally:
            self._works = False

    def _wait(self) -> None:
        while True:
            said = self.peers.gather(None)[0]
            if said == "done":
                return
            if said != "works":
                raise UnderstudyError(f"The first process {said}")
            self._stop()

    def _ask(self) -> None:
        try:
            self._stop()
        except BaseException:
            # The others raise in the same moment and wait for nothing more.
            self._works = False
            raise
