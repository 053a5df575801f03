"""A teacher writes, and a student learns from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from understudy.cli.commands import cli
from understudy.errors import UnderstudyError
from understudy.recipe.loading import from_values
from understudy.sampling import Finished, Sampling, Unseen
from understudy.training.run import run
from understudy.training.teacher_text import WritingSettings, write_texts

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA = {"name": "hf:llama", "config": SIZES, "tokenizer": {"kind": "bytes"}}


def recipe(table: Path, **changes: Any) -> dict[str, Any]:
    source = {"name": "table", "path": str(table), "text": "q", "text_pair": "a", "label": None}
    return {
        "task": "causal_lm",
        "data": {"source": source},
        "student": {"model": LLAMA},
        "teacher": {"model": LLAMA, "train": {"epochs": 25}},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch_size": 16,
        "epochs": 25,
        "precision": "float32",
        "arms": {"kd": ["token_kd"]},
        "baseline": False,
        "answer_tokens": 4,
        **changes,
    }


def test_a_student_learns_what_its_teacher_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = Path("sums.jsonl")
    table.write_text("".join(json.dumps({"q": f"say {n}:", "a": "yes"}) + "\n" for n in range(60)))
    whole = recipe(table)
    short = {**whole, "arms": {"alone": {"methods": ["supervised"], "epochs": 1}}}
    run(from_values({**short, "name": "first"}).build(Path("runs/first")), Path("runs/first"))

    with pytest.raises(UnderstudyError, match="trains its teacher in the run"):
        write_texts(from_values(whole).build(Path("x")), "texts", WritingSettings(Sampling()))

    trained = {**whole, "teacher": {"model": "saved:runs/first/models/teacher"}}
    experiment = from_values(trained).build(Path("x"))
    order = WritingSettings(
        Sampling(max_new_tokens=6, temperature=0.0), [Finished()], shard_size=16
    )
    report = write_texts(experiment, "texts", order)
    pairs = [json.loads(line) for line in Path("texts/pairs.jsonl").read_text().splitlines()]
    train = {json.loads(line)["q"] for line in table.read_text().splitlines()}
    assert report.kept == len(pairs) > 30 and {pair["prompt"] for pair in pairs} < train
    assert all(pair["response"] == "yes" for pair in pairs)

    # Other filters cost no new text; another way to draw is another folder.
    again = WritingSettings(order.sampling, [Finished(), Unseen()], shard_size=16)
    assert write_texts(experiment, "texts", again).new == 0
    with pytest.raises(UnderstudyError, match="was written for something else: sampling.seed"):
        write_texts(
            experiment,
            "texts",
            WritingSettings(Sampling(max_new_tokens=6, temperature=0.0, seed=1), shard_size=16),
        )

    source = {
        "name": "table",
        "path": "texts/pairs.jsonl",
        "text": "prompt",
        "text_pair": "response",
        "label": None,
        "id": "id",
    }
    values = {key: value for key, value in whole.items() if key != "teacher"}
    values |= {"data": {"source": source}, "arms": {"written": ["supervised"]}, "name": "second"}
    run(from_values(values).build(Path("runs/second")), Path("runs/second"))
    lines = list(map(json.loads, Path("runs/second/metrics.jsonl").read_text().splitlines()))
    result = next(line for line in lines if line["event"] == "result")
    assert result["metrics"]["exact_match"] == 1


def test_the_verb_writes_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = Path("sums.jsonl")
    table.write_text("".join(json.dumps({"q": f"say {n}:", "a": "no"}) + "\n" for n in range(30)))
    values = recipe(table, arms={"alone": ["supervised"]}, epochs=1)
    values["teacher"]["train"] = {"epochs": 1}
    run(from_values({**values, "name": "first"}).build(Path("runs/first")), Path("runs/first"))
    values["teacher"] = {"model": "saved:runs/first/models/teacher"}
    Path("recipe.json").write_text(json.dumps(values))
    arguments = ["write", "recipe.json", "--to", "texts", "--max-new-tokens", "5", "--prompts", "9"]
    done = CliRunner().invoke(cli, [*arguments, "--filter", "unseen"])
    assert done.exit_code == 0, done.output
    assert "texts holds 9 texts" in done.output and "text_pair: response" in done.output
    wrong = CliRunner().invoke(cli, [*arguments, "--filter", "unsen"])
    assert wrong.exit_code != 0 and "unseen" in wrong.output + str(wrong.exception)
    half = CliRunner().invoke(cli, [*arguments, "--server", "http://localhost:1/v1"])
    assert half.exit_code != 0 and "given together" in half.output
