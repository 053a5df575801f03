"""A store of what a language model predicts: addressed by document, as robust as any, and as good as the teacher."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from language_toy import LANGUAGE_TOY_FILE, experiment, model, source, teacher_model
from safetensors.torch import load_file
from toy import experiment as classification

from understudy.errors import DataError, PreflightError, StoreError
from understudy.evaluation import geometry
from understudy.evaluation.tokens import ScoredTokens
from understudy.methods.token_kd import TokenKD
from understudy.teachers.store import Store
from understudy.teachers.store.maintenance import convert, merge
from understudy.teachers.store.ragged import COUNTS
from understudy.teachers.stored import StoredModel
from understudy.training.labelling import label
from understudy.training.plan import make_plan
from understudy.training.run import run
from understudy.training.splits import make_splits
from understudy.training.store_check import verify
from understudy.training.stored_tokens import stored_tokens

CPU = torch.device("cpu")


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "student" / "kd" / "seed-0" / "model.safetensors")


def metrics(directory: Path) -> dict[str, dict[str, Any]]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    # A store has no embeddings to compare geometries with.
    return {
        line["arm"]: {k: v for k, v in line["metrics"].items() if k not in geometry.METRICS}
        for line in lines
        if line["event"] == "result"
    }


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def apart(directory: Path) -> float:
    """Return how far the two students are from each other, as a share of the way that training went."""
    live, alone = weights(directory / "live"), weights(directory / "alone")
    start = {name: value for name, value in model().module.state_dict().items() if name in live}
    moved = max(float((live[name] - value).abs().max()) for name, value in start.items())
    assert moved > 1e-3
    return max(float((live[name] - alone[name]).abs().max()) for name in start) / moved


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm", "seq2seq"])
def test_training_from_hidden_states_is_training_with_the_teacher(
    tmp_path: Path, task: str
) -> None:
    # All documents in a batch: in other rows T5's last bits differ (and on some processors those of others).
    size = {"batch_size": 18}
    store = {"path": str(tmp_path / "store")}
    made = label(experiment(task, store=store))
    assert made.deviation("train", "hidden").maximum == 0
    run(experiment(task, **size), tmp_path / "live")
    run(experiment(task, store=store, live=False, **size), tmp_path / "alone")
    live, alone = weights(tmp_path / "live"), weights(tmp_path / "alone")
    start = model(task, 0).module.state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in live.items() if name in start)
    for name, value in live.items():
        assert torch.equal(value, alone[name]), name
    found, expected = metrics(tmp_path / "alone"), metrics(tmp_path / "live")
    assert found == expected
    assert found["kd"]["kl"] is not None and found["teacher"]["nll"] is not None


def test_rows_are_found_by_document_whatever_the_batch(tmp_path: Path) -> None:
    label(experiment(store={"path": str(tmp_path / "s"), "shard_samples": 5, "batch_size": 3}))
    store, splits = Store(tmp_path / "s"), make_splits(experiment())
    teacher = teacher_model(packing=False)  # other rows than those that were labelled
    teacher.module.eval()
    ids = splits.train.ids[torch.randperm(18, generator=torch.Generator().manual_seed(0))]
    positions = [int((splits.train.ids == each).nonzero()) for each in ids]
    found = store.lookup(ids, torch.zeros(18, dtype=torch.int64))
    head = store.head(CPU)
    begin = 0
    for position, count in zip(positions, found[COUNTS].tolist(), strict=True):
        raw = splits.train.fetch(torch.tensor([position]))
        tokens = teacher.preprocess(raw, CPU)
        assert count == len(tokens.labels)
        own = found["hidden/values"][begin : begin + count]
        begin += count
        if count:
            with torch.no_grad():
                logits = tokens.predicting(teacher.module(**tokens).logits)
            torch.testing.assert_close(
                head.logits(own), logits[:, : head.size], atol=1e-5, rtol=1e-5
            )
    assert begin == len(found["hidden/values"]) == store.manifest.parts["train"].rows
    assert len(store.manifest.parts["train"].shards) == 4


def test_killed_labelling_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    settings = {"shard_samples": 1, "batch_size": 2, "top_k": 6}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    label(experiment(store={"path": str(whole), **settings}, count=60))
    expected = contents(whole)
    words = json.dumps({"store": {"path": str(broken), **settings}, "count": 60})
    chooser = random.Random(3)
    process = subprocess.Popen([sys.executable, str(LANGUAGE_TOY_FILE), words])
    target = chooser.randint(5, 12)
    while process.poll() is None and len(list(broken.glob("*.json"))) < target:
        time.sleep(0.001)
    assert process.poll() is None, "labelling was over before it could be killed"
    process.kill()
    process.wait(timeout=60)
    finished = [path for path in broken.glob("*.json") if path.name != "manifest.json"]
    for path in finished:
        assert path.read_bytes() == expected[path.name]
    arrays = [broken / f"{path.stem}.offsets.npy" for path in finished]
    stamps = [path.stat().st_mtime_ns for path in arrays]
    assert 0 < len(arrays) < len(expected) // 5
    label(experiment(store={"path": str(broken), **settings}, count=60))
    assert contents(broken) == expected
    assert [path.stat().st_mtime_ns for path in arrays] == stamps, "a finished shard was redone"


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    one, two = ({"path": str(tmp_path / name), "shard_samples": 4} for name in "12")
    label(experiment("masked_lm", store=one))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(LANGUAGE_TOY_FILE), json.dumps({"task": "masked_lm", "store": two})],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert "head.safetensors" in contents(tmp_path / "1")


def test_parts_make_the_same_store_with_its_head(tmp_path: Path) -> None:
    def store(name: str) -> dict[str, Any]:
        return {"path": str(tmp_path / name), "shard_samples": 6}

    label(experiment(store=store("whole")))
    for number in (1, 2):
        label(experiment(store=store(str(number))), part=(number, 2))
    merge(tmp_path / "merged", [tmp_path / "1", tmp_path / "2"])
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_a_damaged_head_or_offsets_are_named_and_made_again(tmp_path: Path) -> None:
    place = tmp_path / "s"
    given = experiment(store={"path": str(place)})
    label(given)
    before = contents(place)
    for name in ("head.safetensors", next(n for n in before if n.endswith(".offsets.npy"))):
        (place / name).write_bytes(before[name][:-1] + bytes([before[name][-1] ^ 1]))
        shown = name if name.startswith("head") else name.removesuffix(".offsets.npy")
        with pytest.raises(StoreError, match=shown.replace(".", r"\.")) as error:
            run(given, tmp_path / "r")
        assert "--repair" in str(error.value)
        label(given, repair=True)
        assert contents(place) == before
    (place / "head.safetensors").unlink()
    with pytest.raises(StoreError, match=r"head\.safetensors .* it has no bytes"):
        Store(place)


def test_top_k_teaches_without_the_teacher(tmp_path: Path) -> None:
    store = {"path": str(tmp_path / "s"), "top_k": 250}
    label(experiment(store=store, methods=("token_kd",)))
    run(experiment(methods=("token_kd",)), tmp_path / "live")
    run(experiment(methods=("token_kd",), store=store, live=False), tmp_path / "alone")
    assert apart(tmp_path) < 0.02
    found, expected = metrics(tmp_path / "alone"), metrics(tmp_path / "live")
    for name in ("accuracy", "nll", "perplexity", "ece"):
        assert found["teacher"][name] == pytest.approx(expected["teacher"][name], rel=1e-6)
    # What the teacher's most likely tokens are is known, how it spreads the rest is not.
    assert found["kd"]["agreement"] == expected["kd"]["agreement"]
    assert found["kd"]["kl"] is None and expected["kd"]["kl"] is not None


@pytest.mark.parametrize(
    "settings", [{"dtype": "bf16"}, {"dtype": "float16"}, {"dtype": "int8"}, {"keep": "logits"}]
)
def test_other_forms_train_to_their_error(tmp_path: Path, settings: dict[str, Any]) -> None:
    methods = ("kd",) if "keep" in settings else ("token_kd",)
    store = {"path": str(tmp_path / "s"), **settings}
    made = label(experiment(store=store, methods=methods))
    column = "logits" if "keep" in settings else "hidden"
    assert (made.deviation("train", column).maximum > 0) == ("dtype" in settings)
    run(experiment(methods=methods), tmp_path / "live")
    run(experiment(methods=methods, store=store, live=False), tmp_path / "alone")
    assert apart(tmp_path) < 0.02


def test_every_divergence_works_from_hidden_states(tmp_path: Path) -> None:
    store = {"path": str(tmp_path / "s")}
    label(experiment(store=store))
    names = ("reverse_kl", "jensen_shannon", "total_variation", "skewed_forward_kl")
    methods = tuple(TokenKD(divergence=name) for name in names)  # type: ignore[arg-type]
    run(experiment(methods=methods, steps=2), tmp_path / "live")
    run(experiment(methods=methods, steps=2, store=store, live=False), tmp_path / "alone")
    live, alone = weights(tmp_path / "live"), weights(tmp_path / "alone")
    assert all(torch.equal(value, alone[name]) for name, value in live.items())


def test_rows_do_not_matter_but_tokens_do(tmp_path: Path) -> None:
    store = {"path": str(tmp_path / "s")}
    label(experiment(store=store))
    packed = experiment(store=store, teacher_rows={"packing": False}, steps=1)
    run(packed, tmp_path / "rows")
    other = experiment(store=store, teacher_rows={"max_length": 16}, steps=1)
    with pytest.raises(StoreError, match="preprocessing: max_length is 32 in the store, here 16"):
        run(other, tmp_path / "r")
    cut = {"max_length": 24, "long": "cut"}
    with pytest.raises(StoreError, match=r"Document 1 has \d+ predicted tokens .* and 23 as the"):
        run(
            experiment(store=store, live=False, student_rows=cut, batch_size=18, steps=1),
            tmp_path / "r",
        )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("stored", [True, False])
def test_students_that_are_asked_for_other_tokens_are_refused(tmp_path: Path, stored: bool) -> None:
    store = {"path": str(tmp_path / "s")} if stored else None
    if stored:
        label(experiment("masked_lm", store=store))
    given = {"store": store, "live": not stored, "preflight": "refuse"}
    with pytest.raises(PreflightError, match=r"other tokens .*'share': 0.3.*Give both the same"):
        run(experiment("masked_lm", student_rows={"share": 0.3}, **given), tmp_path / "r")
    tokenizer = model("masked_lm").preprocess.tokenizer  # type: ignore[attr-defined]
    tokenizer.add_tokens(["the cat"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    other = {"tokenizer": str(tmp_path / "tokenizer")}
    with pytest.raises(PreflightError, match="have different tokenizers"):
        run(experiment("masked_lm", student_rows=other, **given), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_teacher_is_compared_with_what_it_said(tmp_path: Path) -> None:
    forms = ({}, {"top_k": 8, "dtype": "float16"}, {"keep": "logits", "dtype": "bf16"})
    for number, settings in enumerate(forms):
        store = {"path": str(tmp_path / str(number)), **settings}
        given = experiment(store=store, methods=("kd",))
        label(given)
        checks = verify(given, samples=10)
        assert all(check.sound and check.found.count for check in checks)
        assert {check.column.partition("/")[0] for check in checks} == {
            "hidden" if not settings else "logits"
        }


def test_scores_alone_are_not_taken_for_more(tmp_path: Path) -> None:
    label(experiment(store={"path": str(tmp_path / "s"), "top_k": 4}))
    predictions = stored_tokens(StoredModel(Store(tmp_path / "s")), source().test, CPU)
    assert isinstance(predictions, ScoredTokens) and predictions.vocabulary == 260
    assert len(predictions) == len(predictions.scores.nats) == len(predictions.domains)
    with pytest.raises(DataError, match="no logits"):
        list(predictions.parts())


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    place = str(tmp_path / "s")
    with pytest.raises(StoreError, match="keep of the store is 'hidden', which is for language"):
        label(classification(store={"path": place, "keep": "hidden"}))
    with pytest.raises(StoreError, match="the 4 largest logits, not both"):
        experiment(store={"path": place, "keep": "hidden", "top_k": 4})
    with pytest.raises(StoreError, match=r"Features of a language model's tokens are not kept"):
        label(experiment(store={"path": place, "taps": ["model.layers.0"]}))
    with pytest.raises(StoreError, match="top_k of the store is 999, .* has 260 tokens"):
        label(experiment(store={"path": place, "top_k": 999}))


def test_hidden_states_become_other_forms_without_the_teacher(tmp_path: Path) -> None:
    label(experiment(store={"path": str(tmp_path / "s"), "shard_samples": 7}))
    store = {"path": str(tmp_path / "direct"), "top_k": 8, "shard_samples": 7, "dtype": "float16"}
    direct = label(experiment(store=store, methods=("token_kd",)))
    made = convert(tmp_path / "s", tmp_path / "made", top_k=8)
    assert made.deviation("train", "logits") == direct.deviation("train", "logits")
    for path in (tmp_path / "direct").glob("train-*.npy"):
        assert (tmp_path / "made" / path.name).read_bytes() == path.read_bytes(), path.name
    run(experiment(methods=("token_kd",), live=False, store=store), tmp_path / "one")
    store["path"] = str(tmp_path / "made")
    run(experiment(methods=("token_kd",), live=False, store=store), tmp_path / "other")
    first, second = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert metrics(tmp_path / "other")["kd"]["kl"] is not None
    small = convert(tmp_path / "s", tmp_path / "int8", dtype="int8")
    assert small.bytes < made.bytes < Store(tmp_path / "s").manifest.bytes
    with pytest.raises(StoreError, match="only the 8 largest logits"):
        convert(tmp_path / "made", tmp_path / "other-form", dtype="int8")


def test_features_are_not_looked_for_in_a_store_of_tokens(tmp_path: Path) -> None:
    store = {"path": str(tmp_path / "s")}
    label(experiment(store=store))
    with pytest.raises(StoreError, match="of a language model holds no features"):
        run(experiment(store=store, live=False, methods=("fitnet",)), tmp_path / "r")
    with pytest.raises(StoreError, match="Features of a language model's tokens are not kept"):
        label(experiment(store=store, methods=("fitnet",)))


def test_a_plan_says_what_a_store_of_tokens_costs(tmp_path: Path) -> None:
    plan = make_plan(experiment(steps=40)).stores["teacher"]
    made = label(experiment(store={"path": str(tmp_path / "s")}))
    rows, head = made.parts["train"].rows, made.extra["head.safetensors"][0]
    assert plan.tokens == rows
    assert plan.sizes["hidden states in float32"] == rows * 16 * 4 + head
    assert plan.sizes["all logits in float16"] == rows * 260 * 2
    assert list(plan.sizes)[3] == "top 64 in float16"
    assert "would pay: 8.89 passes" in plan.sentence
    used = make_plan(experiment(store={"path": str(tmp_path / "s")}, live=False))
    assert used.stores["teacher"].used and used.stores["teacher"].tokens == rows
