"""A server with OpenAI's interface over real HTTP, that can be made to misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Misbehave = Callable[[int, BaseHTTPRequestHandler], bool]


class Stub:
    """What the server was asked, and how it answers.

    Attributes:
        requests: bodies in the order of their arrival.
        headers: the `Authorization` of each.
        misbehave: called with the number of the request and its handler; True where it has answered (or not) itself.
        together: most requests that were open at the same time.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.misbehave: Misbehave = lambda number, handler: False
        self.with_ids = True
        self.delay = 0.0
        self.together = self._open = 0
        self._lock = threading.Lock()
        self.url = ""

    def answer(self, body: dict[str, Any], path: str) -> dict[str, Any]:
        """Return an answer that depends on the prompt and the seed alone."""
        choices = []
        for number in range(body["n"]):
            if path.endswith("chat/completions"):
                text = f"chat {body['messages'][-1]['content']} {number}"
                choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
                if body.get("logprobs"):
                    choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}]}
            else:
                prompt = body["prompt"]
                text = f"answer to {prompt} {number}"
                choice = {"text": text}
                if body.get("logprobs") is not None:
                    choice["logprobs"] = {"token_logprobs": [-0.25, -1.0]}
                if body.get("return_token_ids") and self.with_ids:
                    choice["token_ids"] = [*prompt, 40 + number]
            choices.append(
                {**choice, "index": number, "finish_reason": "stop" if number == 0 else "length"}
            )
        return {"choices": list(reversed(choices))}

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return the class that answers for this stub."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub._lock:
                    number = len(stub.requests)
                    stub.requests.append(body)
                    stub.headers.append(self.headers.get("Authorization"))
                    stub._open += 1
                    stub.together = max(stub.together, stub._open)
                try:
                    time.sleep(stub.delay)
                    if not stub.misbehave(number, self):
                        reply(self, 200, json.dumps(stub.answer(body, self.path)).encode())
                finally:
                    with stub._lock:
                        stub._open -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    """Send a whole answer."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def half(handler: BaseHTTPRequestHandler) -> None:
    """Promise a body, send half of it and close the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"text": "bro')
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """Run a stub for the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), stub.handler())
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
