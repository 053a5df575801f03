"""Runs with language models, from recipe to result."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from understudy.errors import PreflightError, UnderstudyError
from understudy.models.tokens import Tokens
from understudy.recipe.loading import from_values
from understudy.training.context import Context
from understudy.training.distribution import World
from understudy.training.loop import train
from understudy.training.recorder import Recorder
from understudy.training.run import run
from understudy.training.splits import make_splits

LLAMA = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
STUDENT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, **LLAMA}
TEACHER = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, **LLAMA}
BYTES = {"kind": "bytes"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two domains of regular text."""
    places = {}
    for name, words in (("animals", ["cat", "dog", "cow"]), ("numbers", ["one", "two", "six"])):
        place = tmp_path / f"{name}.txt"
        place.write_text(
            "\n".join(
                f"the {words[n % 3]} and the {words[n * 2 % 3]}" + " too" * (n % 4)
                for n in range(60)
            )
        )
        places[name] = str(place)
    return places


def recipe(files: dict[str, str], **changes: Any) -> dict[str, Any]:
    values = {
        "task": "causal_lm",
        "data": {
            "source": {"name": "text", "path": files, "unit": "line", "test": 0.2},
            "validation": 0.1,
        },
        "teacher": {
            "model": {"name": "hf:llama", "config": TEACHER, "tokenizer": BYTES},
            "train": {"epochs": 3},
        },
        "student": {"model": {"name": "hf:llama", "config": STUDENT, "tokenizer": BYTES}},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch_size": 16,
        "epochs": 2,
        "precision": "float32",
        "answer_tokens": 6,
        "samples": 2,
        "arms": {"token_kd": [{"name": "token_kd", "divergence": "jensen_shannon"}]},
    }
    return values | changes


def lines(place: Path, event: str) -> list[dict[str, Any]]:
    read = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    return [line for line in read if line["event"] == event]


def stage(values: dict[str, Any]) -> tuple[Context, Any]:
    """Return the context of a recipe and its first arm's stage, wired to a student and a teacher."""
    experiment = from_values(values).build(Path("run"))
    context = Context(experiment, make_splits(experiment), World(0, 1, torch.device("cpu")))
    torch.manual_seed(0)
    given = experiment.teachers["teacher"]
    assert given.build is not None
    made = context.stage_run(
        next(iter(experiment.arms.values()))()[0],
        student=context.build_student(0),
        teacher=given.build(),
        split=context.splits.train,
        seed=0,
        number=0,
    )
    return context, made


def test_a_run_measures_tokens_and_domains_and_writes(
    files: dict[str, str], tmp_path: Path
) -> None:
    place = tmp_path / "run"
    # More is to be written than a row holds; a prompt has its half all the same.
    run(from_values(recipe(files, name="run", answer_tokens=64)).build(place), place)
    header = lines(place, "run")[0]
    assert header["task"] == "causal_lm" and header["classes"] == ["animals", "numbers"]
    assert header["measure"] == {"name": "nll", "better": "lower"}
    results = {line["arm"]: line for line in lines(place, "result")}
    assert set(results) == {"teacher", "baseline", "token_kd"}
    for arm, line in results.items():
        metrics = line["metrics"]
        assert metrics["nll"] < math.log(header["vocabulary"]) - 1
        assert metrics["perplexity"] == pytest.approx(math.exp(metrics["nll"]))
        assert (metrics["kl"] is None) == (arm == "teacher")
        domains = line["per_class"]
        tokens = domains["count"]
        whole = sum(n * math.log(p) for n, p in zip(tokens, domains["perplexity"], strict=True))
        assert whole / sum(tokens) == pytest.approx(metrics["nll"])
        assert line["cost"]["tokens"] > 16 * line["cost"]["steps"]
    assert results["token_kd"]["metrics"]["kl"] < results["baseline"]["metrics"]["kl"]
    written = lines(place, "samples")
    assert len(written) == 3 and all(len(line["samples"]) == 2 for line in written)
    assert len({line["samples"][0]["prompt"] for line in written}) == 1
    # The saved student answers as the one that was measured.
    assert (place / "student" / "token_kd" / "seed-0" / "model.safetensors").is_file()


def test_answers_are_compared_where_documents_are_pairs(tmp_path: Path) -> None:
    table = tmp_path / "sums.jsonl"
    table.write_text(
        "".join(json.dumps({"q": f"{n % 4}+{n % 3}=", "a": "yes"}) + "\n" for n in range(80))
    )
    source = {"name": "table", "path": str(table), "text": "q", "text_pair": "a", "label": None}
    values = recipe({}, data={"source": source}, arms={"alone": ["supervised"]}, baseline=False)
    values = {key: value for key, value in values.items() if key != "teacher"} | {"epochs": 20}
    place = tmp_path / "run"
    run(from_values(values | {"name": "run"}).build(place), place)
    metrics = lines(place, "result")[0]["metrics"]
    # One answer to everything is learnt by heart.
    assert metrics["exact_match"] == 1 and metrics["rouge_l"] == 1
    sample = lines(place, "samples")[0]["samples"][0]
    assert sample["reference"] == sample["text"] == "yes" and sample["prompt"].endswith("=")


def test_parts_of_a_batch_give_the_gradient_of_the_whole(files: dict[str, str]) -> None:
    gradients = []
    for accumulate in (1, 4):
        arms = {"a": {"methods": ["token_kd", "kd", "supervised"], "accumulate": accumulate}}
        _, made = stage(recipe(files, arms=arms, baseline=False))
        parts = next(iter(made.loader.steps(0, 1)))
        assert len(parts) == accumulate
        counts = [len(part.inputs["student"].places) for part in parts]
        assert accumulate == 1 or len(set(counts)) > 1, "parts of equal size would hide a mistake"
        made.train_mode()
        for part, shares, _ in made.plan_parts(parts):
            made.module(part, 0.5, shares)[0].backward()
        gradients.append([p.grad.clone() for p in made.trained])
        made.close()
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


def test_word_level_kd_equals_kd_on_all_logits(files: dict[str, str]) -> None:
    token_kd = {"name": "token_kd", "temperature": 2.0}
    arms = {"a": {"methods": [token_kd, {"name": "kd", "temperature": 2.0}]}}
    _, made = stage(recipe(files, arms=arms, baseline=False))
    batch = next(iter(made.loader.steps(0, 1)))[0]
    _, terms = made.module(batch, 0.5)
    assert float(terms["token_kd"]) == pytest.approx(float(terms["kd"]), rel=1e-5)
    assert made.tapped.stop is not None, "logits of all tokens are never made"
    made.close()


def test_how_documents_are_packed_changes_no_loss(files: dict[str, str]) -> None:
    losses = []
    for packing in ("auto", False):
        model = {"name": "hf:llama", "tokenizer": BYTES, "preprocess": {"packing": packing}}
        values = recipe(files, student={"model": {**model, "config": STUDENT}}, baseline=False)
        _, made = stage(values)
        batch = next(iter(made.loader.steps(0, 1)))[0]
        tokens = batch.inputs["student"]
        assert isinstance(tokens, Tokens)
        losses.append((float(made.module(batch, 0.5)[1]["token_kd"]), tokens.grid[0]))
        made.close()
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0][1] < losses[1][1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes_bit_for_bit(
    files: dict[str, str], tmp_path: Path, how: signal.Signals
) -> None:
    values = recipe(files, checkpoint_every=3, log_every=1)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))

    def launch(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "understudy", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert launch("run", str(file), "name=whole").wait(timeout=300) == 0
    broken = launch("run", str(file), "name=broken")
    metrics = tmp_path / "runs" / "broken" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"arm": "token_kd"' in metrics.read_text()):
        assert broken.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    broken.send_signal(how)
    broken.wait(timeout=60)
    assert launch("resume", str(metrics.parent)).wait(timeout=300) == 0
    student = Path("student", "token_kd", "seed-0", "model.safetensors")
    whole = load_file(tmp_path / "runs" / "whole" / student)
    again = load_file(metrics.parent / student)
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_geometry_of_documents_crosses_tokenizers(files: dict[str, str], tmp_path: Path) -> None:
    other = {
        "name": "hf:llama",
        "config": TEACHER,
        "tokenizer": {"train": {"size": 300, "kind": "bpe"}},
    }
    values = recipe(
        files,
        name="run",
        teacher={"model": other, "train": {"epochs": 2}},
        arms={"pooled": ["supervised", {"name": "procrustes", "rows": "pooled"}]},
    )
    place = tmp_path / "run"
    run(from_values(values).build(place), place)
    result = next(line for line in lines(place, "result") if line["arm"] == "pooled")
    assert result["metrics"]["kl"] is None and result["metrics"]["procrustes"] < 1
    terms = [
        line["terms"]["procrustes"] for line in lines(place, "step") if line["arm"] == "pooled"
    ]
    assert terms and all(0 < term < 2 for term in terms)
    values["arms"] = {"tokens": ["supervised", {"name": "procrustes", "rows": "elements"}]}
    with pytest.raises(PreflightError, match="procrustes would compare different tokens"):
        run(from_values(values).build(tmp_path / "again"), tmp_path / "again")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"teacher": {"tokenizer": {"train": {"size": 300, "kind": "bpe"}}}},
            "different tokenizers",
        ),
        ({"arms": {"a": ["uskd"]}}, "one answer for every sample"),
        ({"task": "classification"}, "tokenizer|causal_lm"),
        ({"data": {"source": "digits"}}, "models texts, and .* holds images"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    files: dict[str, str], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    values = recipe(files, name="run")
    if "teacher" in changes:
        values["teacher"]["model"] = {**values["teacher"]["model"], **changes["teacher"]}
    else:
        values |= changes
    with pytest.raises(UnderstudyError, match=says):
        run(from_values(values).build(tmp_path / "run"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_method_for_language_models_is_refused_elsewhere(tmp_path: Path) -> None:
    values = {
        "data": "digits",
        "student": {"name": "kd:resnet8", "width": 0.25},
        "teacher": {"model": {"name": "kd:resnet8", "width": 0.25}, "train": {"epochs": 1}},
        "arms": {"a": ["token_kd"]},
        "epochs": 1,
    }
    with pytest.raises(PreflightError, match="token_kd, which is for language models"):
        run(from_values(values).build(tmp_path / "run"), tmp_path / "run")


def test_a_step_leaves_no_trace_of_a_weight_of_0(files: dict[str, str]) -> None:
    found = []
    for methods in (["supervised"], ["supervised", {"name": "token_kd", "weight": 0.0}]):
        arms = {"a": {"methods": methods, "steps": 4}}
        changes = {"arms": arms, "baseline": False, "epochs": None}
        _, made = stage({k: v for k, v in recipe(files, **changes).items() if v is not None})
        train(
            made,
            Recorder(lambda **_: None, 100, lambda: "", World(0, 1, torch.device("cpu"))),
            save=lambda: None,
            validate=lambda: False,
            stop=lambda: False,
            checkpoint_every=1000,
        )
        found.append([p.detach().clone() for p in made.trained])
        made.close()
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("masked_lm", {**SMALL, "max_position_embeddings": 66}),
    "t5": ("seq2seq", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}),
    "gpt2": ("causal_lm", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}),
    "mamba": ("causal_lm", {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}),
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_tasks_and_families_learn_from_a_teacher(
    files: dict[str, str], tmp_path: Path, family: str
) -> None:
    task, config = OTHERS[family]
    source = {"name": "text", "path": files, "unit": "line", "test": 0.2}
    if task == "seq2seq":
        source["prompt_characters"] = 6
    model = {"name": f"hf:{family}", "config": config, "tokenizer": BYTES}
    # A causal student of any family learns from a Llama.
    teacher = {"name": "hf:llama", "config": TEACHER} if task == "causal_lm" else model
    values = recipe(
        files,
        name="run",
        task=task,
        data={"source": source, "validation": 0.1},
        student={"model": model},
        teacher={"model": {**model, **teacher}, "train": {"epochs": 2}},
        arms={"a": ["token_kd", "kd", {"name": "procrustes", "rows": "elements"}]},
    )
    place = tmp_path / "run"
    run(from_values(values).build(place), place)
    results = {line["arm"]: line["metrics"] for line in lines(place, "result")}
    assert results["a"]["nll"] < math.log(260) and results["a"]["kl"] > 0
