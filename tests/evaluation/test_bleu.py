"""BLEU against numbers of sacreBLEU 2.6.0 and values worked out by hand."""

from __future__ import annotations

import math

import pytest

from understudy.errors import DataError
from understudy.evaluation.bleu import corpus_bleu, sentence_bleu, tokens_13a

CANDIDATES = [
    "She has 3.5 apples, so 2 x 3.5 = 7 (not 8).",
    "The answer's 12-4 &amp; that is 8.",
    "I don't know.",
]
REFERENCES = [
    "She has 3.5 apples; 2 x 3.5 = 7.",
    "The answer is 12-4, and that is 8.",
    "Nobody knows.",
]


# Smoothing, corpus, first and last sentence; made with sacreBLEU 2.6.0.
SACREBLEU = [
    ("exp", 36.56304167745341, 39.375553105513404, 15.97357760615681),
    ("floor", 36.56304167745341, 39.375553105513404, 8.034284189446518),
    ("add-k", 39.38373248964907, 43.47208719449914, 31.947155212313625),
    ("none", 36.56304167745341, 39.375553105513404, 0.0),
]


def both() -> tuple[list[list[str]], list[list[str]]]:
    return [tokens_13a(text) for text in CANDIDATES], [tokens_13a(text) for text in REFERENCES]


def test_tokens_are_those_of_the_wmt_script() -> None:
    assert tokens_13a(CANDIDATES[0])[2:6] == ["3.5", "apples", ",", "so"]
    assert tokens_13a(CANDIDATES[1]) == [
        "The",
        "answer's",
        "12",
        "-",
        "4",
        "&",
        "that",
        "is",
        "8",
        ".",
    ]
    assert tokens_13a("$3,000 a-b\nU.S. [x]") == [
        "$",
        "3,000",
        "a-b",
        "U",
        ".",
        "S",
        ".",
        "[",
        "x",
        "]",
    ]
    assert tokens_13a(" ") == []


@pytest.mark.parametrize(("smoothing", "corpus", "first", "last"), SACREBLEU)
def test_scores_are_those_of_sacrebleu(
    smoothing: str, corpus: float, first: float, last: float
) -> None:
    candidates, references = both()
    found = corpus_bleu(candidates, references, smoothing=smoothing)
    assert 100 * found.score == pytest.approx(corpus, rel=1e-9)
    for place, expected in ((0, first), (2, last)):
        one = sentence_bleu(candidates[place], references[place], smoothing=smoothing)
        assert 100 * one.score == pytest.approx(expected, rel=1e-9)


def test_bleu_by_hand() -> None:
    found = corpus_bleu([list("abcd")], [list("abce")])
    # 3 of 4, 2 of 3, 1 of 2, and half an n-gram of 1.
    assert found.precisions == pytest.approx((3 / 4, 2 / 3, 1 / 2, 1 / 2))
    assert found.score == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    assert (found.brevity, found.candidate_tokens, found.reference_tokens) == (1.0, 4, 4)
    short = corpus_bleu([list("abc")], [list("abcdef")], order=2)
    assert short.brevity == pytest.approx(math.exp(-1))
    assert short.score == pytest.approx(math.exp(-1))
    # A word that is repeated counts as often as it is in the reference.
    assert corpus_bleu([["a"] * 4], [["a", "a", "b"]], order=1).score == pytest.approx(0.5)


def test_equal_texts_have_1_and_different_ones_0() -> None:
    _, references = both()
    assert corpus_bleu(references, references).score == pytest.approx(1.0)
    assert sentence_bleu(["yes"], ["yes"]).score == pytest.approx(1.0)  # three orders left out
    assert corpus_bleu([["yes"]], [["yes"]]).score == 0.0  # and not left out
    for smoothing in ("exp", "floor", "add-k", "none"):
        assert corpus_bleu([["a", "b"]], [["c", "d"]], smoothing=smoothing).score == 0.0
        assert sentence_bleu([], ["c"], smoothing=smoothing).score == 0.0


def test_settings_say_what_was_computed() -> None:
    assert corpus_bleu([["a"]], [["a"]]).settings == "BLEU-4, smoothing exp, full order"
    found = sentence_bleu(["a"], ["a"], order=2, smoothing="none")
    assert found.settings == "BLEU-2, smoothing none, effective order"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: corpus_bleu([], []), "0 and 0 texts"),
        (lambda: corpus_bleu([["a"]], []), "1 and 0 texts"),
        (lambda: corpus_bleu([["a"]], [["a"]], smoothing="x"), "smoothing is 'x'"),
        (lambda: sentence_bleu(["a"], ["a"], order=0), "order is 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(call: object, said: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=said):
        call()
