"""Asking a server over real HTTP: what is sent, what is read, and every way in which it may fail."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("httpx")
sys.path.insert(0, str(Path(__file__).parent))
from stub_server import Stub, half, hang_up, reply, serving

from understudy.errors import SamplingError
from understudy.sampling import Sampling, ServerSampler

KEY = "sk-very-secret"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Stub()) as found:
        yield found


def sampler(stub: Stub, **settings: Any) -> ServerSampler:
    return ServerSampler(
        stub.url, "teacher", **{"timeout": 2.0, "retries": 3, "pause": 0.01, **settings}
    )


def test_texts_and_tokens(stub: Stub) -> None:
    found = sampler(stub).sample(["one", "two"], Sampling(samples=2))
    assert [(each.prompt, each.text, each.finished) for each in found] == [
        (0, "answer to one 0", True),
        (0, "answer to one 1", False),
        (1, "answer to two 0", True),
        (1, "answer to two 1", False),
    ]
    with pytest.raises(SamplingError, match="only its text"):
        _ = found[0].tokens
    by_ids = sampler(stub).sample([torch.tensor([7, 8])], Sampling(log_probs=True))
    assert by_ids[0].tokens.tolist() == [7, 8, 40]
    assert by_ids[0].log_probs is not None and by_ids[0].log_probs.tolist() == [-0.25, -1.0]
    stub.with_ids = False
    assert sampler(stub).sample([torch.tensor([7, 8])], Sampling())[0].ids is None


def test_what_is_sent(stub: Stub) -> None:
    settings = Sampling(
        max_new_tokens=9, temperature=0.5, top_p=0.9, top_k=5, repetition_penalty=1.1, stop=("\n",)
    )
    sampler(stub, extra={"min_p": 0.1}).sample([torch.tensor([7, 8])], settings)
    sent = stub.requests[0]
    seed = sent.pop("seed")
    assert sent == {
        "model": "teacher",
        "prompt": [7, 8],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "repetition_penalty": 1.1,
        "n": 1,
        "stop": ["\n"],
        "min_p": 0.1,
        "return_token_ids": True,
    }
    sampler(stub).sample(["a", "b"], Sampling(), keys=[5, 6])
    sampler(stub).sample(["b"], Sampling(), keys=[6])
    seeds = {(body["prompt"], body["seed"]) for body in stub.requests[1:]}
    assert len(seeds) == 2 and seed not in {value for _, value in seeds}, (
        "the seed depends on the key alone"
    )


def test_chat(stub: Stub) -> None:
    found = sampler(stub, api="chat").sample(["hello"], Sampling(log_probs=True))
    assert found[0].text == "chat hello 0" and found[0].log_probs is not None
    assert found[0].log_probs.tolist() == [-0.5]
    assert stub.requests[0]["messages"] == [{"role": "user", "content": "hello"}]
    with pytest.raises(SamplingError, match="chat server takes texts"):
        sampler(stub, api="chat").sample([torch.tensor([1])], Sampling())


def test_a_stop_text_is_cut_off_where_a_server_leaves_it(stub: Stub) -> None:
    settings = Sampling(stop=(" to",))
    asked = sampler(stub)
    assert asked.text_of(asked.sample(["x"], settings)[0], settings) == "answer"


@pytest.mark.parametrize(
    "trouble",
    [
        lambda handler: reply(handler, 429, b"slow down", Retry_After="0"),
        lambda handler: reply(handler, 503, b"starting"),
        lambda handler: reply(handler, 200, b'{"choices": [{"te'),
        lambda handler: reply(handler, 200, b"[1, 2]"),
        half,
        hang_up,
        lambda handler: time.sleep(2.5),
    ],
    ids=["429", "503", "half JSON", "a list", "half a body", "hang up", "silence"],
)
def test_what_passes_is_tried_again(stub: Stub, trouble: Any) -> None:
    def twice(number: int, handler: BaseHTTPRequestHandler) -> bool:
        if number < 2:
            trouble(handler)
        return number < 2

    stub.misbehave = twice
    found = sampler(stub, timeout=0.5).sample(["one"], Sampling())
    assert found[0].text == "answer to one 0"
    assert len(stub.requests) == 3
    assert stub.requests[0] == stub.requests[2], "the same request, with the same seed"


def test_a_server_that_asks_for_time_gets_it(stub: Stub) -> None:
    def busy(number: int, handler: BaseHTTPRequestHandler) -> bool:
        if number == 0:
            reply(handler, 429, b"", Retry_After="0.4")
        return number == 0

    stub.misbehave = busy
    begin = time.monotonic()
    sampler(stub).sample(["one"], Sampling())
    assert time.monotonic() - begin >= 0.4


def test_a_server_that_stops_in_the_middle_stops_the_call(stub: Stub) -> None:
    def dead_from_five(number: int, handler: BaseHTTPRequestHandler) -> bool:
        if number >= 5:
            hang_up(handler)
        return number >= 5

    stub.misbehave = dead_from_five
    with pytest.raises(SamplingError) as error:
        sampler(stub, concurrency=1).sample([str(k) for k in range(50)], Sampling())
    said = str(error.value)
    assert f"{stub.url}/completions does not answer" in said
    assert "after 4 attempts" in said and "5 of 50 prompts" in said
    assert len(stub.requests) == 9, "nothing is sent after the failure"


def test_a_server_that_is_not_there() -> None:
    with serving(Stub()) as stub:
        pass
    with pytest.raises(SamplingError, match=r"ConnectError.* 0 of 1 prompts"):
        sampler(stub, retries=1).sample(["one"], Sampling())


def test_a_refusal_is_final(stub: Stub) -> None:
    stub.misbehave = lambda number, handler: bool(
        reply(handler, 400, b'{"error": "prompt too long"}') or True
    )
    with pytest.raises(SamplingError, match=r"refuses .* status 400: .*prompt too long"):
        sampler(stub, concurrency=1).sample(["one", "two"], Sampling())
    assert len(stub.requests) == 1


def test_requests_at_the_same_time_are_bounded(stub: Stub) -> None:
    stub.delay = 0.02
    found = sampler(stub, concurrency=3).sample([str(k) for k in range(20)], Sampling())
    assert [each.text for each in found] == [f"answer to {k} 0" for k in range(20)]
    assert 2 <= stub.together <= 3


def test_the_key_is_sent_and_told_to_nobody(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    asked = sampler(stub, key_variable="TEACHER_KEY")
    asked.sample(["one"], Sampling())
    assert stub.headers == [f"Bearer {KEY}"]
    stub.misbehave = lambda number, handler: bool(
        reply(handler, 401, f"no such key {KEY}".encode()) or True
    )
    with pytest.raises(SamplingError, match=r"401.*\*\*\*") as error:
        asked.sample(["one"], Sampling())
    assert KEY not in str(error.value) and KEY not in str(asked.describe())
    assert KEY not in caplog.text
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(SamplingError, match="TEACHER_KEY, which is not set"):
        sampler(stub, key_variable="TEACHER_KEY")


@pytest.mark.parametrize(
    "body", [b"{}", b'{"choices": [{}]}', b'{"choices": [{"text": null}]}', b'{"choices": []}']
)
def test_an_answer_that_says_nothing(stub: Stub, body: bytes) -> None:
    stub.misbehave = lambda number, handler: bool(reply(handler, 200, body) or True)
    with pytest.raises(SamplingError, match=r"cannot be read|gave 0 responses"):
        sampler(stub).sample(["one"], Sampling())


def test_wrong_settings() -> None:
    with pytest.raises(SamplingError, match="must begin with http"):
        ServerSampler("localhost:8000/v1", "m")
    for wrong in ({"timeout": 0}, {"retries": -1}, {"concurrency": 0}, {"api": "other"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ServerSampler("http://localhost/v1", "m", **wrong)  # type: ignore[arg-type]
