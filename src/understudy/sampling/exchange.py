"""One request to a server, sent again where that can help."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from understudy.errors import SamplingError
from understudy.models.optional import require

_LONGEST_PAUSE = 60.0
_BUSY = (408, 409, 425, 429)

Send = Callable[[dict[str, Any], threading.Event], dict[str, Any]]


class CalledOff(SamplingError):
    """A request that was not sent because another one had failed for good."""


class Exchange:
    """Sends JSON to one address of a server and gives the JSON that comes back.

    Args:
        url: the address.
        key_variable: the environment variable that holds the key; None for none. It is read here and only sent.
        timeout: seconds without an answer after which a request has failed.
        retries: how often a request is sent again.
        pause: seconds before the first time, doubled each time.

    Raises:
        SamplingError: the environment variable is not set.
        ValueError: a number is out of its range.
    """

    def __init__(
        self, url: str, *, key_variable: str | None, timeout: float, retries: int, pause: float
    ) -> None:
        """Read the key; nothing is sent yet."""
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}; it must be greater than 0")
        if retries < 0 or pause < 0:
            raise ValueError(f"retries is {retries} and pause {pause}; neither may be negative")
        if not url.startswith(("http://", "https://")):
            raise SamplingError(
                f"The server's address is '{url}'; it must begin with http:// or https://."
            )
        self.url = url
        self._timeout, self._retries, self._pause = timeout, retries, pause
        self._key = None if key_variable is None else os.environ.get(key_variable)
        if key_variable is not None and not self._key:
            raise SamplingError(
                f"The API key is to be read from the environment variable {key_variable}, which is not set."
            )

    @contextmanager
    def open(self, connections: int) -> Iterator[Send]:
        """Open up to so many connections for the block, and give a function that sends one request.

        It takes the request and an event; where that is set, nothing is sent any more. It raises `SamplingError` where
        the server refuses, or still fails after the last attempt, and may be called by several threads.
        """
        httpx = require("httpx", "server")
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        with httpx.Client(headers=headers, timeout=self._timeout, limits=limits) as client:
            yield lambda request, stop: self._send(client, request, stop)

    def _send(self, client: Any, request: dict[str, Any], stop: threading.Event) -> dict[str, Any]:
        httpx = require("httpx", "server")
        trouble, wait = "", 0.0
        for attempt in range(self._retries + 1):
            if stop.wait(wait):
                raise CalledOff(f"{self.url} was not asked any more.")
            wait = min(self._pause * 2**attempt, _LONGEST_PAUSE)
            try:
                response = client.post(self.url, json=request)
                if response.status_code < 300:
                    found = response.json()
                    if isinstance(found, dict):
                        return found
                    trouble = "its answer is no JSON object"
                    continue
            except httpx.InvalidURL as error:
                raise SamplingError(f"{self.url} is no address of a server: {error}.") from error
            except httpx.RequestError as error:
                trouble = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                continue
            except (json.JSONDecodeError, UnicodeDecodeError):
                trouble = "its answer is no JSON, or breaks off"
                continue
            trouble = f"status {response.status_code}: {self._said(response.text)}"
            if response.status_code < 500 and response.status_code not in _BUSY:
                raise SamplingError(f"{self.url} refuses the request, {trouble}.")
            wait = max(wait, min(_seconds(response.headers.get("retry-after")), _LONGEST_PAUSE))
        raise SamplingError(
            f"{self.url} does not answer ({trouble}), after {self._retries + 1} attempts."
        )

    def _said(self, text: str) -> str:
        """Return the beginning of what a server said, on one line, without the key."""
        if self._key is not None:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:200] or "nothing said"


def _seconds(header: str | None) -> float:
    """Return the seconds of a Retry-After header; 0 where it has none, or gives a date."""
    try:
        return max(0.0, float(header)) if header else 0.0
    except ValueError:
        return 0.0
