"""Data sets that a teacher writes: resumable to the byte, filtered as said, refused where they are another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import killed_writer
import small_writers as kit
from stub_server import Stub, hang_up, serving

from understudy.data.source import sources
from understudy.errors import DataError, SamplingError
from understudy.sampling import (
    Finished,
    Length,
    ModelSampler,
    Prompt,
    RightAnswer,
    Sample,
    Sampling,
    ServerSampler,
    Unlike,
    Unseen,
    Written,
    write,
)
from understudy.sampling.records import Kept
from understudy.sampling.settings import PromptTokens

PROMPTS = [Prompt(k, f"{k}+{k}=", expected=str(2 * k)) for k in range(10)]


class Scripted:
    """Answers from a table; for filters."""

    def __init__(self, answers: dict[str, list[tuple[str, bool]]]) -> None:
        self.answers = answers
        self.calls = 0

    def sample(
        self,
        prompts: Sequence[PromptTokens],
        settings: Sampling,
        keys: Sequence[int] | None = None,
    ) -> list[Sample]:
        self.calls += 1
        return [
            Sample(number, finished, None, text)
            for number, prompt in enumerate(prompts)
            for text, finished in self.answers[str(prompt)]
        ]

    def text_of(self, sample: Sample, settings: Sampling) -> str:
        assert sample.text is not None
        return sample.text

    def describe(self) -> dict[str, Any]:
        return {"kind": "scripted"}


def record(response: str, **fields: Any) -> Written:
    return Written(
        **{"id": 0, "sample": 0, "prompt": "p", "response": response, "finished": True, **fields}
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_writes_and_the_table_source_reads(tmp_path: Path, tokenizer: Any) -> None:
    sampler = ModelSampler(kit.llama(), tokenizer=tokenizer)
    settings = Sampling(max_new_tokens=8, samples=2, log_probs=True)
    report = write(tmp_path / "a", PROMPTS, sampler, settings, shard_size=4)
    assert (report.written, report.kept, report.new, report.dropped) == (20, 20, 3, {})
    assert sorted(bytes_of(tmp_path / "a")) == [
        "manifest.json",
        "pairs.jsonl",
        "shard-00000.jsonl",
        "shard-00001.jsonl",
        "shard-00002.jsonl",
    ]
    shard = lines(tmp_path / "a" / "shard-00001.jsonl")
    assert [(each["id"], each["sample"]) for each in shard] == [
        (k, n) for k in range(4, 8) for n in (0, 1)
    ]
    assert all(
        each["response"] == tokenizer.decode(each["tokens"], skip_special_tokens=True)
        for each in shard
    ), "tokens as they were drawn"
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["sampler"]["weights"] and manifest["sampler"]["tokenizer"]
    assert manifest["sampling"]["temperature"] == 1.0
    source = sources.get("table")(
        str(tmp_path / "a" / "pairs.jsonl"),
        text="response",
        label="prompt",
        id="id",
    )
    assert len(source.train) + len(source.test) == 20
    other = write(tmp_path / "b", PROMPTS, sampler, settings, shard_size=3)
    assert other.new == 4
    assert bytes_of(tmp_path / "a")["pairs.jsonl"] == bytes_of(tmp_path / "b")["pairs.jsonl"], (
        "draws depend on the prompts, not on shards"
    )


def test_a_killed_call_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, killed_writer.__file__, str(folder), "600"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 120
    while not (folder / "shard-00000.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sorted(bytes_of(folder)) == ["manifest.json", "shard-00000.jsonl"]
    (folder / "shard-00001.jsonl.77.partial").write_text("half")
    first = (folder / "shard-00000.jsonl").stat().st_mtime_ns
    assert killed_writer.compose(folder) == 5, "finished shards are not written again"
    assert (folder / "shard-00000.jsonl").stat().st_mtime_ns == first
    assert killed_writer.compose(tmp_path / "whole") == 6
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")


def test_a_server_that_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def dead_from_five(number: int, handler: BaseHTTPRequestHandler) -> bool:
        if number >= 5:
            hang_up(handler)
        return number >= 5

    with serving(Stub()) as stub:
        stub.misbehave = dead_from_five
        asked = ServerSampler(stub.url, "teacher", retries=1, pause=0.01, concurrency=1)
        with pytest.raises(
            SamplingError, match=r"does not answer .* 2 of 5 shards .* goes on there"
        ):
            write(tmp_path / "a", PROMPTS, asked, Sampling(), shard_size=2)
        assert "pairs.jsonl" not in bytes_of(tmp_path / "a")
    with serving(Stub()) as stub:
        asked = ServerSampler(stub.url, "teacher", retries=1, pause=0.01, concurrency=1)
        assert write(tmp_path / "a", PROMPTS, asked, Sampling(), shard_size=2).new == 3
        assert len(stub.requests) == 6, "another address, the same model"
        write(tmp_path / "b", PROMPTS, asked, Sampling(), shard_size=2)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_filters_and_how_many_each_dropped(tmp_path: Path) -> None:
    answers = {
        "0+0=": [("it is \\boxed{0}", True), ("it is \\boxed{0} ", True)],
        "1+1=": [("", True), ("\\boxed{2", False)],
        "2+2=": [("\\boxed{5}", True), ("we get \\boxed{4}", True)],
    }
    filters = [Length(), Finished(), RightAnswer(), Unseen()]
    scripted = Scripted(answers)
    settings = Sampling(samples=2)
    report = write(tmp_path, PROMPTS[:3], scripted, settings, filters=filters, shard_size=1)
    assert list(report.dropped.values()) == [1, 1, 1, 1]
    assert lines(tmp_path / "pairs.jsonl") == [
        {"prompt": "0+0=", "response": "it is \\boxed{0}", "id": "0/0"},
        {"prompt": "2+2=", "response": "we get \\boxed{4}", "id": "2/1"},
    ]
    result = json.loads((tmp_path / "manifest.json").read_text())["result"]
    assert (result["written"], result["kept"], result["dropped"]) == (6, 2, report.dropped)
    calls = scripted.calls
    assert write(tmp_path, PROMPTS[:3], scripted, settings, shard_size=1).kept == 6
    assert scripted.calls == calls, "other filters cost no new response"


def test_unlike() -> None:
    kept = Kept()
    kept.add(record("police killed the gunman"))
    unlike = Unlike()
    assert not unlike.keeps(record("police kill the gunman"), kept), "3 of 4 words"
    assert Unlike(0.8).keeps(record("police kill the gunman"), kept)
    assert unlike.keeps(record("the gunman killed police"), kept), "the order counts"
    assert unlike.keeps(record("a"), kept) and unlike.keeps(record(""), kept)
    assert not Unlike(1.0).keeps(record("Police killed the gunman!"), kept)


def test_unseen_looks_at_prompt_and_response() -> None:
    kept = Kept()
    kept.add(record("four"))
    assert not Unseen().keeps(record(" four\n"), kept)
    assert Unseen().keeps(record("four", prompt="other"), kept)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": Sampling(temperature=0.5)}, "sampling.temperature was 1.0 and is 0.5"),
        ({"prompts": PROMPTS[:9]}, "prompts.count was 10 and is 9"),
        ({"shard_size": 5}, "shard_size was 256 and is 5"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    answers = {prompt.text: [("x", True)] for prompt in PROMPTS}
    call: dict[str, Any] = {"prompts": PROMPTS, "settings": Sampling()}
    write(tmp_path, sampler=Scripted(answers), **call)
    before = bytes_of(tmp_path)
    with pytest.raises(DataError, match=said):
        write(tmp_path, sampler=Scripted(answers), **{**call, **change})
    assert bytes_of(tmp_path) == before


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    scripted = Scripted({"a": [("x", True)], "b": [("x", True)]})
    with pytest.raises(DataError, match="no prompt"):
        write(tmp_path, [], scripted, Sampling())
    with pytest.raises(DataError, match="Two prompts have the id '1'"):
        write(tmp_path, [Prompt(1, "a"), Prompt("1", "b")], scripted, Sampling())
    with pytest.raises(DataError, match="no expected answer"):
        write(tmp_path, [Prompt(1, "a")], scripted, Sampling(), filters=[RightAnswer()])
    with pytest.raises(DataError, match="same filter"):
        write(tmp_path, [Prompt(1, "a")], scripted, Sampling(), filters=[Unseen(), Unseen()])
    assert scripted.calls == 0 and not bytes_of(tmp_path)
    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds files, but no manifest\.json"):
        write(tmp_path, [Prompt(1, "a")], scripted, Sampling())


def test_a_folder_that_another_call_writes_into(tmp_path: Path) -> None:
    scripted = Scripted({"a": [("x", True)]})
    refused = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(DataError, match="Another process is writing") as error:
            write(tmp_path, [Prompt(1, "a")], scripted, Sampling())
        refused.append(error)

    write(tmp_path, [Prompt(1, "a")], scripted, Sampling(), progress=meanwhile)
    assert len(refused) == 1
    assert write(tmp_path, [Prompt(1, "a")], scripted, Sampling()).kept == 1


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    scripted = Scripted({"a": [("x", True)]})
    write(tmp_path, [Prompt(1, "a")], scripted, Sampling())
    shard = tmp_path / "shard-00000.jsonl"
    shard.write_text('{"id": 1}\n')
    with pytest.raises(DataError, match=r"shard-00000\.jsonl, line 1, is damaged"):
        write(tmp_path, [Prompt(1, "a")], scripted, Sampling())
    shard.unlink()
    assert write(tmp_path, [Prompt(1, "a")], scripted, Sampling()).new == 1


def test_a_response_that_is_no_text_of_unicode(tmp_path: Path) -> None:
    write(tmp_path, [Prompt(1, "a")], Scripted({"a": [("x\ud800\u2028y\r\n", True)]}), Sampling())
    assert lines_of_json(tmp_path / "pairs.jsonl")[0]["response"] == "x?\u2028y\r\n"


def lines_of_json(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_wrong_settings_of_filters() -> None:
    for make in (lambda: Length(3, 2), lambda: Unlike(0.0), lambda: RightAnswer("other")):
        with pytest.raises(ValueError):
            make()
