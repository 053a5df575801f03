"""Filters of documents."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from understudy.data.curation import Dropped, Filter, curated, filters, name_of
from understudy.data.source import Source
from understudy.data.sources.python import from_tensors
from understudy.errors import DataError

WORDS = [f"word{number}" for number in range(500)]
TEXTS = ["The cat sat.", "the  cat sat.", "A dog.", "The cat sat.", "12 + 34 = 46", ""]


def kept(chosen: Filter, documents: Sequence[str]) -> list[int]:
    found = chosen.keep(documents)
    assert found.dtype == torch.bool and found.shape == (len(documents),)
    return found.nonzero().flatten().tolist()


def make(name: str, **keywords: object) -> Filter:
    return filters.get(name)(**keywords)


def test_every_filter_has_a_name_and_takes_an_empty_corpus() -> None:
    assert filters.names() == ["duplicates", "length", "letters", "near_duplicates", "repetition"]
    for name in filters.names():
        chosen = make(name)
        assert name_of(chosen) == name and kept(chosen, []) == []
        assert kept(chosen, TEXTS) == kept(chosen, TEXTS)


def test_the_first_of_equal_documents_is_kept() -> None:
    assert kept(make("duplicates"), TEXTS) == [0, 2, 4, 5]
    assert kept(make("duplicates", ignore_case=False), TEXTS) == [0, 1, 2, 4, 5]
    assert kept(make("duplicates"), ["Cafe\u0301", "café", "\ud800"]) == [0, 2]


def test_length_letters_and_repetition() -> None:
    assert kept(make("length", least=7), TEXTS) == [0, 1, 3, 4]
    assert kept(make("length", least=0, most=6), TEXTS) == [2, 5]
    assert kept(make("letters", least=0.7), TEXTS) == [0, 1, 2, 3]
    assert kept(make("letters", least=0.0), ["猫がいる", "...", " "]) == [0, 1]
    again = "buy now and save more " * 3
    once = " ".join(WORDS[:20])
    assert kept(make("repetition"), [again, once, "", f"{once} {WORDS[3]}"]) == [1, 2, 3]
    half = " ".join(WORDS[:10] + WORDS[10:15] + WORDS[15:20] + WORDS[10:15])  # 10 of 25 words
    assert kept(make("repetition", most=0.39), [half]) == []
    assert kept(make("repetition", most=0.41), [half]) == [0]


def similarity(first: str, second: str, words: int) -> float:
    one, two = (
        {tuple(text.split()[b : b + words]) for b in range(len(text.split()) - words + 1)}
        for text in (first, second)
    )
    return len(one & two) / len(one | two)


@pytest.mark.parametrize("limit", [0.7, 0.8, 0.95])
def test_near_duplicates_are_those_of_all_pairs(limit: float) -> None:
    draw = random.Random(1)
    documents: list[str] = []
    for _ in range(40):
        words = draw.choices(WORDS, k=60)
        documents.append(" ".join(words))
        for changed in (1, 2, 6):
            other = list(words)
            for place in draw.sample(range(60), changed):
                other[place] = draw.choice(WORDS)
            documents.append(" ".join(other))
    draw.shuffle(documents)
    expected: list[int] = []
    for number, document in enumerate(documents):
        if not any(similarity(document, documents[other], 3) >= limit for other in expected):
            expected.append(number)
    assert kept(make("near_duplicates", similarity=limit, words=3), documents) == expected
    assert len(expected) < len(documents)


def test_short_documents_are_no_near_duplicates() -> None:
    assert kept(make("near_duplicates"), ["a b", "a b"]) == [0, 1]


def source(documents: Sequence[object]) -> Source:
    labels = torch.zeros(len(documents), dtype=torch.int64)
    return from_tensors(
        list(documents), labels, test_inputs=[documents[0]], test_labels=labels[:1], classes=["a"]
    )


def test_filters_follow_each_other_and_only_training_documents_are_left_out() -> None:
    given = source(TEXTS)
    found, dropped = curated(given, [make("length", least=3), make("duplicates")])
    assert dropped == [Dropped("length", 1, 6), Dropped("duplicates", 2, 5)]
    assert found.train.ids.tolist() == given.train.ids[[0, 2, 4]].tolist()
    assert len(found.test) == 1 and found.identity != given.identity
    assert str(dropped[0]) == "length: 1 of 6 documents left out"
    assert curated(given, [])[0] is given


def test_pairs_are_prompt_and_response() -> None:
    found, _ = curated(source([("a", "b"), ("a", "c"), ("A", "B")]), [make("duplicates")])
    assert len(found.train) == 2


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="The filter length leaves none of the 6"):
        curated(source(TEXTS), [make("length", least=100)])
    images = from_tensors(
        torch.zeros(4, 1, 4, 4, dtype=torch.uint8),
        torch.tensor([0, 1, 0, 1]),
        test_inputs=torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        test_labels=torch.tensor([0, 1]),
    )
    with pytest.raises(DataError, match="Filters are for texts"):
        curated(images, [make("duplicates")])
    for name, keywords in (
        ("length", {"least": 5, "most": 4}),
        ("letters", {"least": 2}),
        ("repetition", {"most": -1}),
        ("repetition", {"words": 0}),
        ("near_duplicates", {"similarity": 0}),
        ("near_duplicates", {"words": 0}),
    ):
        with pytest.raises(DataError):
            make(name, **keywords)
