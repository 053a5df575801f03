"""Text metrics and rewards against values worked out by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from understudy.errors import DataError
from understudy.evaluation.text import (
    exact_match,
    longest_common_subsequence,
    perplexities,
    rouge_l,
    token_agreement,
    words,
)
from understudy.evaluation.verify import (
    boxed_answer,
    gsm8k_answer,
    last_choice,
    last_number,
    number,
    reward,
    same_answer,
)


def test_rouge_l_by_hand() -> None:
    # Common: police the gunman -> 3 of 4 and 3 of 4 in the first; "the gunman" or "police" in the second.
    reference = words("police killed the gunman")
    assert rouge_l(words("Police kill the gunman."), reference) == (0.75, 0.75, 0.75)
    assert rouge_l(words("the gunman kill police"), reference) == (0.5, 0.5, 0.5)
    found = rouge_l(words("the gunman"), reference)
    assert found.precision == 1.0 and found.recall == 0.5 and found.f1 == pytest.approx(2 / 3)
    assert rouge_l([], reference) == rouge_l(reference, []) == (0, 0, 0)


def test_longest_common_subsequence_has_gaps_and_an_order() -> None:
    assert longest_common_subsequence("ABCBDAB", "BDCABA") == 4
    assert longest_common_subsequence("aa", "a") == 1
    assert longest_common_subsequence("", "a") == 0


def test_words_are_letters_and_digits() -> None:
    assert words("It's 3.5, OK?") == ["it", "s", "3", "5", "ok"]


def test_matches_and_agreement_are_fractions() -> None:
    assert exact_match([" a", "b", "C"], ["a ", "x", "c"]) == pytest.approx(1 / 3)
    assert token_agreement([[1, 2, 3], [4]], [[1, 0, 3], [5]]) == 0.5


def test_perplexity_is_per_token() -> None:
    found = perplexities({"code": 4 * math.log(8), "far": 1e6}, {"code": 4, "far": 2})
    assert found == {"code": pytest.approx(8.0), "far": math.inf}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: exact_match([], []), "0 and 0 texts"),
        (lambda: exact_match(["a"], []), "1 and 0 texts"),
        (lambda: token_agreement([[1]], [[1, 2]]), "sequence 0 .* 1 tokens .* 2"),
        (lambda: token_agreement([[]], [[]]), "no tokens"),
        (lambda: perplexities({"a": 1.0}, {"b": 1}), r"\['a'\].*\['b'\]"),
        (lambda: perplexities({"a": 1.0}, {"a": 0}), "'a' has 1.0 nats on 0"),
        (lambda: perplexities({"a": math.nan}, {"a": 3}), "'a' has nan"),
    ],
)
def test_what_cannot_be_compared_is_refused(call: object, said: str) -> None:
    assert callable(call)
    with pytest.raises(DataError, match=said):
        call()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("#### 5\nno:\n####  1,234 \nand more", "1,234"),
        ("the answer is 7", None),
        ("####", None),
        ("### 7", None),
    ],
)
def test_gsm8k_answers(text: str, expected: str | None) -> None:
    assert gsm8k_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{7}", "7"),
        (r"first \boxed{1}, then \boxed{\frac{3}{4}}.", r"\frac{3}{4}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{7", None),
        (r"\boxed 7", None),
        (r"\boxed{ }", None),
        ("7", None),
    ],
)
def test_boxed_answers(text: str, expected: str | None) -> None:
    assert boxed_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 1,234.50 ", Fraction(2469, 2)),
        ("-3", Fraction(-3)),
        ("$5.", Fraction(5)),
        ("-$5", Fraction(-5)),
        ("3/4", Fraction(3, 4)),
        ("1e3", Fraction(1000)),
        ("12%", Fraction(12)),
        (".5", Fraction(1, 2)),
        ("1/0", None),
        ("1,23", None),
        ("5 apples", None),
        ("", None),
        (".", None),
        ("-", None),
        ("1/2/3", None),
        ("nan", None),
    ],
)
def test_numbers(text: str, expected: Fraction | None) -> None:
    assert number(text) == expected


def test_a_reward_needs_the_format_and_the_answer() -> None:
    assert reward(r"so \boxed{1,000.0}", "1000") == 1.0
    assert reward(r"so \boxed{1001}", "1000") == 0.0
    assert reward("so 1000", "1000") == 0.0
    assert reward("#### 1000", "1000") == 0.0
    assert reward("#### 1000", "1000", style="gsm8k") == 1.0
    assert reward(" 0.1 ", "1/10", style="whole") == 1.0
    assert reward(r"\boxed{x + 1}", "x + 1") == 1.0
    assert reward(r"\boxed{x}", "1") == 0.0
    with pytest.raises(ValueError, match="style is 'letter'"):
        reward("a", "a", style="letter")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 4 = 7. So it is 1,234.50.", "1,234.50"),
        ("between 5 and -3", "-3"),
        ("it costs $5", "5"),
        ("that is 12%", "12"),
        ("5 - 2 = 3, or 3-2", "2"),
        ("1,23", "23"),
        ("in v1.2.3 of x2", None),
        ("none", None),
    ],
)
def test_last_numbers(text: str, expected: str | None) -> None:
    assert last_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Not (A) but (B).", "B"),
        ("the answer is C", "C"),
        ("Answer: D.", "D"),
        ("A good one is E's", "A"),
        ("ABC", None),
        ("(F)", None),
        ("b", None),
    ],
)
def test_last_choices(text: str, expected: str | None) -> None:
    assert last_choice(text) == expected


def test_numbers_may_be_as_far_apart_as_the_tolerance() -> None:
    assert same_answer("0.333", "1/3", tolerance=0.001)
    assert not same_answer("0.333", "1/3")
    assert same_answer("7.001", "7", tolerance=0.001)
    assert not same_answer("7.0011", "7", tolerance=0.001)
    assert not same_answer(None, "7", tolerance=1.0)
