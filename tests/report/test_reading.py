"""Reading run directories: whole, in progress, and not one at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import RunDirectoryError
from understudy.report import read_run

MakeRun = Callable[..., Path]
LinesOf = Callable[[Path, str], list[dict[str, Any]]]


def test_everything_that_was_written_is_read(make_run: MakeRun, metrics_of: LinesOf) -> None:
    folder = make_run("first")
    run = read_run(folder)
    content = (folder / "metrics.jsonl").read_bytes()
    assert run.name == "first"
    assert run.arms == ["baseline", "kd", "fitnet"]
    assert run.seeds == [0, 1, 2] and run.classes == list("0123456789")
    assert run.counts == {"train": 1257, "labelled": 200, "validation": 180, "test": 360}
    assert (
        run.models["teacher"].name == "kd:resnet20" and run.models["student"].parameters == 19_322
    )
    assert run.lines == len(content.splitlines())
    assert run.digest == hashlib.sha256(content).hexdigest()
    assert run.recipe["methods"] == [{"name": "kd", "temperature": 4.0}]
    assert run.environment["machine"]["cores"] == 2
    assert run.missing == []
    written = metrics_of(folder, "result")
    assert len(run.results) == len(written) == 10
    for result, line in zip(run.results, written, strict=True):
        assert (result.arm, result.seed) == (line["arm"], line["seed"])
        assert result.value("accuracy") == line["metrics"]["accuracy"]
        assert result.value("latency_ms.64") == line["cost"]["latency_ms"]["64"]
        assert list(result.per_class["accuracy"]) == line["per_class"]["accuracy"]
    assert run.of_arm("teacher")[0].value("kl") is None
    assert len(run.steps) == len(metrics_of(folder, "step"))
    assert len(run.epochs) == len(metrics_of(folder, "epoch"))


def test_a_run_in_progress(make_run: MakeRun) -> None:
    run = read_run(make_run(unfinished=[("kd", 1), ("kd", 2)]))
    assert run.missing == [("kd", 1), ("kd", 2)]
    assert [result.seed for result in run.of_arm("kd")] == [0]
    assert run.states["kd", 1] == "started" and run.states["kd", 0] == "finished"


def test_a_line_that_is_being_written_is_left_out(make_run: MakeRun) -> None:
    folder = make_run()
    whole = read_run(folder)
    path = folder / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"event": "result", "arm": "kd", "se')
    assert read_run(folder).results == whole.results
    assert read_run(folder).lines == whole.lines
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(RunDirectoryError, match=rf"Line {whole.lines + 1} of .*metrics.jsonl"):
        read_run(folder)


def test_a_last_line_without_its_end_counts_when_it_is_whole(make_run: MakeRun) -> None:
    folder = make_run()
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read_run(folder).states["fitnet", 2] == "finished"


def test_what_a_line_lacks_is_named(make_run: MakeRun) -> None:
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "result", "arm": "kd"}\n')
    with pytest.raises(RunDirectoryError, match="'seed' is missing"):
        read_run(folder)


def test_before_the_first_measurement(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: early\n")
    run = read_run(tmp_path)
    assert run.results == [] and run.missing == [] and run.arms == []
    assert run.name == tmp_path.name


def test_a_repeated_result_and_a_resumed_member(make_run: MakeRun) -> None:
    """After a crash a member may be measured again; the last word counts."""
    folder = make_run(seeds=[0])
    path = folder / "metrics.jsonl"
    again = [
        line for line in map(json.loads, path.read_text().splitlines()) if line["event"] == "result"
    ][-1]
    again["metrics"]["accuracy"] = 0.5
    member = {"event": "member", "time": "", "arm": again["arm"], "seed": 0, "state": "resumed"}
    with path.open("a") as file:
        file.write(json.dumps(member) + "\n" + json.dumps(again) + "\n")
    run = read_run(folder)
    assert [result.value("accuracy") for result in run.of_arm("fitnet")] == [0.5]
    assert run.resumed == {("fitnet", 0): 1}


def test_steps_go_on_over_stages(make_run: MakeRun) -> None:
    """Whether a second stage counts its steps from the start or goes on, its position goes on."""
    folder = make_run(stages={"fitnet": ["hint", "train"]}, seeds=[0])
    own = [line for line in read_run(folder).steps if line.arm == "fitnet"]
    assert [line.position for line in own] == list(range(20, 401, 20))
    path = folder / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines:
        if line.get("stage") == "train" and line["arm"] == "fitnet":
            line["step"] += 200
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = [line for line in read_run(folder).steps if line.arm == "fitnet"]
    assert [line.position for line in own] == list(range(20, 401, 20))


def test_other_folders_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run directory"):
        read_run(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunDirectoryError, match="neither metrics.jsonl nor recipe.yaml"):
        read_run(tmp_path / "empty")
    folder = make_run("one")
    with pytest.raises(RunDirectoryError, match="Did you mean one of the runs in it: one"):
        read_run(folder.parent)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.yaml", "a: [1", "cannot be read as YAML"),
        ("recipe.yaml", "!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("recipe.yaml", "- a", "should hold a mapping"),
        ("environment.json", "{", "not valid JSON"),
        ("environment.json", "[]", "should hold a JSON object"),
    ],
)
def test_damaged_files_are_named(make_run: MakeRun, name: str, content: str, message: str) -> None:
    folder = make_run()
    (folder / name).write_text(content)
    with pytest.raises(RunDirectoryError, match=message) as caught:
        read_run(folder)
    assert name in str(caught.value)
