"""Methods between models that read the same text in different tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

from understudy.data.batch import Batch
from understudy.errors import ModelError, UnderstudyError
from understudy.methods import GOLD, ULD, Method, Step
from understudy.methods._answers import side_by_side
from understudy.methods.gold import _ends, _shared
from understudy.models import Model, build
from understudy.models.language_tokenizer import byte_tokenizer, train_language_tokenizer
from understudy.models.token_bytes import begins_with_space, token_bytes
from understudy.tasks import make_task

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
from corpora import go, lines, recipe
from corpora import model as tiny

TEXTS = [
    "the king saw the cat and the cat saw the sea",
    "one and two are three",
    "Zürich ist größer als ein Dorf; the cat knows",
    "",
    "the cat",
]
CPU = torch.device("cpu")


def model(seed: int, **tokenizer: Any) -> Model:
    torch.manual_seed(seed)
    given = tiny(16, **tokenizer)
    return build(
        given.pop("name"), kind="text", classes=1, task="causal_lm", texts=lambda: TEXTS, **given
    )


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Model]:
    """A student on bytes and a teacher with 280 pieces."""
    return model(0), model(1, train={"size": 280})


def started(method: Method, pair: tuple[Model, Model], texts: list[Any]) -> Step:
    """Wire a method to two models, and return its step on texts."""
    student, teacher = pair
    task = make_task("causal_lm")
    batch = batch_of(pair, texts)
    if isinstance(method, GOLD):
        method._bytes = [token_bytes(each.preprocess.tokenizer) for each in pair]
        method._strips = [False, False]
        ends = [each.preprocess.tokenizer.eos_token_id for each in pair]
        pairs = [*_shared(*method._bytes), (ends[0], ends[1])]
        method.register_buffer("shared", torch.tensor(pairs), persistent=False)
    method._teacher = "teacher"  # type: ignore[attr-defined]
    return Step(
        batch,
        task=task,
        student=lambda batch: task.forward(student.module, batch, "student"),
        teachers={"teacher": lambda batch: task.forward(teacher.module, batch, "teacher")},
        progress=0.5,
    )


def batch_of(pair: tuple[Model, Model], texts: list[Any]) -> Batch:
    student, teacher = pair
    count = torch.arange(len(texts))
    inputs = {"student": student.preprocess(texts, CPU), "teacher": teacher.preprocess(texts, CPU)}
    return Batch(inputs, None, count, count * 0)


def by_document(step: Step) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the logits of each document's predicted tokens, of both models."""
    found = []
    student, teacher = step.logits()
    ours, theirs = (step.batch.inputs[role] for role in ("student", "teacher"))
    for number in range(ours.documents):
        found.append((student[ours.owners == number], teacher[theirs.owners == number]))
    return found


@pytest.mark.parametrize("first", [0, 1, 3])
def test_uld_compares_the_first_tokens_of_every_document(
    pair: tuple[Model, Model], first: int
) -> None:
    method = ULD(temperature=2.0, first=first)
    step = started(method, pair, TEXTS)
    terms = []
    for student, teacher in by_document(step):
        shorter = min(len(student), len(teacher))
        for place in range(first, shorter):
            q, p = (
                (row[place] / 2).softmax(0).sort(descending=True).values
                for row in (student, teacher)
            )
            wide = max(len(q), len(p))
            q, p = (torch.cat([each, torch.zeros(wide - len(each))]) for each in (q, p))
            terms.append((q - p).abs().sum())
    loss = method.loss(step)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert method.valid(step.batch) == len(terms)
    loss.backward()
    gradients = [parameter.grad for parameter in pair[0].module.parameters()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in gradients)
    assert all(parameter.grad is None for parameter in pair[1].module.parameters())
    pair[0].module.zero_grad()


def test_tokens_stand_side_by_side_by_document_also_in_windows(pair: tuple[Model, Model]) -> None:
    long = ["the cat saw the king " * 20, "the sea"]
    ours, theirs = (each.preprocess(long, CPU) for each in pair)
    assert len(ours.sequences) > 2  # the first document is cut into windows
    rows, valid = side_by_side(ours, theirs)
    for number in range(2):
        own = ((ours.owners == number) & valid).nonzero().flatten()
        other = (theirs.owners == number).nonzero().flatten()
        assert rows[own].tolist() == other[: len(own)].tolist()
        assert len(own) == min(int((ours.owners == number).sum()), len(other))


@pytest.mark.parametrize("made", [lambda: ULD(), lambda: GOLD(), lambda: GOLD(merge="bayesian")])
def test_parts_of_a_batch_add_up(made: Any, pair: tuple[Model, Model]) -> None:
    method = made()
    step = started(method, pair, TEXTS)
    whole, count = method.loss(step), method.valid(step.batch)
    total = 0.0
    for part in (TEXTS[:2], TEXTS[2:]):
        step = started(method, pair, part)
        total = total + method.loss(step) * method.valid(step.batch) / count
    torch.testing.assert_close(whole, total)


def test_gold_with_equal_tokenizers_is_jensen_shannon() -> None:
    pair = model(0), model(1)
    method = GOLD(beta=0.3)
    step = started(method, pair, TEXTS)
    student, teacher = step.logits()
    # Special tokens but for the end are in neither part that counts: they are not shared, and weigh nothing.
    kept = method.shared[:, 0]
    log_q, log_p = student.log_softmax(1)[:, kept], teacher.log_softmax(1)[:, kept]
    log_m = torch.logaddexp(log_p + torch.tensor(0.3).log(), log_q + torch.tensor(0.7).log())
    alike = 0.3 * (log_p.exp() * (log_p - log_m)).sum(1)
    alike = alike + 0.7 * (log_q.exp() * (log_q - log_m)).sum(1)
    share = len(kept) / teacher.shape[1]
    rest = [
        rows.softmax(1).index_fill(1, kept, 0.0).sort(1, descending=True).values
        for rows in (student, teacher)
    ]
    others = (rest[0] - rest[1]).abs().sum(1)
    torch.testing.assert_close(
        method.loss(step), (share * alike + (1 - share) * others).mean(), rtol=1e-4, atol=1e-6
    )
    assert float(method.valid(step.batch)) == len(student)


def test_gold_of_a_model_with_itself_is_nothing() -> None:
    same = model(0)
    method = GOLD()
    step = started(method, (same, same), TEXTS)
    assert float(method.loss(step).detach()) == pytest.approx(0, abs=1e-6)


def test_spans_end_where_tokens_of_both_end(pair: tuple[Model, Model]) -> None:
    method = GOLD()
    step = started(method, pair, TEXTS)
    ours, theirs, count = method._groups(step.batch)
    found = 0
    for text, own, other in zip(
        TEXTS,
        *(
            _ends(step.batch.inputs[role], known, False)
            for role, known in zip(("student", "teacher"), method._bytes, strict=True)
        ),
        strict=True,
    ):
        if not text:
            assert not own and not other
            continue
        assert own[-1] == other[-1] == len(text.encode())
        # The end token is a span of its own.
        found += len(set(own[:-1]) & set(other[:-1])) + 1
    assert count == found
    assert ours == sorted(ours) and theirs == sorted(theirs) and set(ours) == set(range(count))
    assert sum(1 for _ in ours) > sum(1 for _ in theirs)
    loss = method.loss(step)
    loss.backward()
    assert bool(loss.isfinite()) and float(loss.detach()) > 0
    pair[0].module.zero_grad()


def pieces() -> PreTrainedTokenizerFast:
    """A tokenizer of the SentencePiece kind with bytes to fall back on."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "▁": 3, "▁the": 4, "t": 5, "h": 6, "e": 7}
    vocabulary |= {"▁t": 8, "▁th": 9, "c": 10, "a": 11, "▁c": 12, "at": 13}
    vocabulary |= {f"<0x{byte:02X}>": 14 + byte for byte in range(256)}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "c"), ("a", "t")]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, byte_fallback=True, unk_token=None)
    )
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize("kind", ["bytes", "bpe", "pieces"])
def test_tokens_stand_for_the_bytes_of_the_text(kind: str) -> None:
    made = {
        "bytes": byte_tokenizer,
        "bpe": lambda: train_language_tokenizer(TEXTS, 290),
        "pieces": pieces,
    }[kind]()
    known = token_bytes(made)
    for text in ("the cat", "größer 猫", "t  a"):
        found = b"".join(known[number] for number in made(text, add_special_tokens=False).input_ids)
        assert found == (b" " if begins_with_space(made) else b"") + text.encode()
    assert known[made.eos_token_id] == b""
    assert begins_with_space(made) == (kind == "pieces")


def test_a_tokenizer_that_changes_texts_is_refused() -> None:
    with pytest.raises(ModelError, match="is neither"):
        token_bytes(train_language_tokenizer(TEXTS, 200, "wordpiece"))


def test_what_cannot_be_is_refused(pair: tuple[Model, Model]) -> None:
    for wrong in ({"temperature": 0}, {"first": -1}):
        with pytest.raises(ValueError, match="must be"):
            ULD(**wrong)
    for wrong in ({"beta": 1}, {"temperature": 0}, {"merge": "other"}):
        with pytest.raises(ValueError, match="must"):
            GOLD(**wrong)  # type: ignore[arg-type]
    method = ULD()
    step = started(method, pair, TEXTS)
    step.task = make_task("masked_lm")
    with pytest.raises(UnderstudyError, match="only `task: causal_lm`"):
        method.loss(step)
    bare = Batch({"student": torch.zeros(1), "teacher": torch.zeros(1)}, None, torch.zeros(1), None)
    with pytest.raises(UnderstudyError, match="which tokens the student reads"):
        method.valid(bare)


def test_a_run_between_tokenizers(tmp_path: Path) -> None:
    arms = {"uld": ["supervised", "uld"], "gold": ["supervised", "gold"]}
    teacher = {"model": tiny(24, train={"size": 300}), "train": {"steps": 8}}
    go(recipe(tmp_path, arms, teacher=teacher, steps=3), tmp_path / "run")
    results = {line["arm"]: line for line in lines(tmp_path / "run", "result")}
    assert results["uld"]["metrics"]["agreement"] is None
    terms = [line["terms"] for line in lines(tmp_path / "run", "step") if line["arm"] != "teacher"]
    assert all(0 < line.get("uld", line.get("gold")) < 2 for line in terms)
    with pytest.raises(UnderstudyError, match="different tokenizers"):
        go(recipe(tmp_path, {"kd": ["kd"]}, teacher=teacher), tmp_path / "refused")


def test_a_batch_with_nothing_to_compare_gives_nothing(pair: tuple[Model, Model]) -> None:
    method = ULD(first=50)
    step = started(method, pair, ["the cat"])
    loss = method.loss(step)
    assert float(loss.detach()) == 0 and float(method.valid(step.batch)) == 0
