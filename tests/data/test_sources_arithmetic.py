import collections
import re

import pytest
import torch

from understudy.data.source import Source
from understudy.data.sources.arithmetic import arithmetic
from understudy.errors import DataError
from understudy.evaluation.verify import gsm8k_answer, reward


def pairs(source: Source) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for split in (source.train, source.test):
        found += split.fetch(torch.arange(len(split)))
    return found


def test_answers_are_right_and_numbers_have_their_digits():
    source = arithmetic(600, levels=3, operations="+-*")
    assert source.kind == "text" and source.classes == ("level 1", "level 2", "level 3")
    signs = collections.Counter()
    for split in (source.train, source.test):
        rows = split.fetch(torch.arange(len(split)))
        for (prompt, answer), label in zip(rows, split.labels.tolist(), strict=True):
            first, sign, second = re.fullmatch(r"(\d+)([-+*])(\d+)=", prompt).groups()
            assert reward(answer, str(eval(prompt[:-1])), "whole") == 1.0
            assert not answer.startswith("-")
            assert len(first) == label + 1
            assert len(second) == (1 if sign == "*" else label + 1)
            signs[sign] += 1
    # Level 1 has 100 sums, 55 differences and 100 products, so that differences are fewer.
    assert min(signs.values()) > 140


def test_pairs_are_different_and_levels_even():
    source = arithmetic(1000, levels=3)
    prompts = [prompt for prompt, _ in pairs(source)]
    assert len(set(prompts)) == 1000
    labels = torch.cat([source.train.labels, source.test.labels])
    assert labels.bincount().tolist() == [100, 450, 450], "level 1 has but 100 sums"
    assert len(source.test) == 200 and source.test.labels.bincount().tolist() == [20, 90, 90]


def test_the_seed_decides():
    first, again, other = arithmetic(50), arithmetic(50), arithmetic(50, seed=1)
    assert pairs(first) == pairs(again) and first.identity == again.identity
    assert pairs(first) != pairs(other) and first.identity != other.identity
    assert torch.equal(first.test.ids, other.test.ids)


def test_working_leads_to_the_answer():
    source = arithmetic(200, levels=3, working=True)
    for prompt, response in pairs(source):
        first, second = map(int, prompt[:-1].split("+"))
        assert gsm8k_answer(response) == str(first + second)
        steps = response.split(" #### ")[0].split(" ")
        assert len(steps) == max(len(str(first)), len(str(second)))
        values = [tuple(map(int, re.split(r"[+=]", step))) for step in steps]
        assert all(a + b == total for a, b, total in values)
        assert sum(a for a, _, _ in values) == first and sum(b for _, b, _ in values) == second


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"levels": 0}, "levels=0"),
        ({"levels": 7}, "levels=7"),
        ({"samples": 3}, "samples=3"),
        ({"test": 1.0}, "test=1.0"),
        ({"levels": 1, "samples": 101}, "only about 100 different tasks"),
        ({"operations": "+-", "working": True}, "sums only"),
    ],
)
def test_what_cannot_be_made_is_refused(wrong, said):
    with pytest.raises(DataError, match=said):
        arithmetic(**wrong)
