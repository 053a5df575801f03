"""Sums, differences and products, made here, with answers that can be checked."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from understudy.data.labels import carve
from understudy.data.samples import TextSamples
from understudy.data.source import Source, Split, sources
from understudy.errors import DataError
from understudy.seeding import derive

_MOST = 6
_ROUNDS = 100
"""How often tasks are drawn anew where too many of them occurred before."""


@sources.register("arithmetic")
def arithmetic(
    samples: int = 2000,
    levels: int = 2,
    operations: Literal["+", "+-", "+-*"] = "+",
    test: float = 0.2,
    working: bool = False,
    seed: int = 0,
) -> Source:
    """Make pairs such as ("12+35=", "47"); nothing is downloaded.

    Args:
        samples: how many pairs, no two alike, as equal a number of each level as can be. A level without so many
            different tasks gives those that it has to the next.
        levels: the hardest level, from 1 to 6. A task of level n has two numbers of n digits, a product one of n
            and one of one.
        operations: which occur, as often as each other: sums, differences (not below 0), products.
        test: fraction of the pairs to test on, in (0, 1), stratified by level. The split depends on neither the run's
            seed nor `seed`.
        working: write the sum of each place before the answer, from the right, as in "5+7=12 30+10=40 #### 52". The
            answer stands behind "####", as in GSM8K. For sums only.
        seed: which pairs are drawn; independent of the run's seed.

    Labels are the levels, so that a report can show each. A pair's id is its number in the order of generation.

    Raises:
        DataError: a number is out of its range, there are not so many different tasks, or `working` without sums only.
    """
    if not 1 <= levels <= _MOST:
        raise DataError(f"arithmetic: levels={levels}; it must lie between 1 and {_MOST}.")
    if samples < 2 * levels:
        raise DataError(
            f"arithmetic: samples={samples}; it must be at least {2 * levels}, two for each level."
        )
    if not 0 < test < 1:
        raise DataError(
            f"arithmetic: test={test} is no fraction of the pairs; it must lie between 0 and 1."
        )
    if working and operations != "+":
        raise DataError("arithmetic: `working` is written for sums only; take operations='+'.")
    pairs: list[tuple[str, str]] = []
    labels: list[int] = []
    for level in range(1, levels + 1):
        wanted = (samples - len(pairs)) // (levels - level + 1)
        found = _tasks(level, wanted, operations, seed)
        pairs += [_pair(*task, working) for task in found]
        labels += [level - 1] * len(found)
    if len(pairs) < samples:
        raise DataError(
            f"arithmetic: there are only about {len(pairs)} different tasks up to level {levels}, and "
            f"samples={samples} were asked for. Take more levels or fewer samples."
        )
    rows = torch.arange(len(pairs))
    whole = Split(TextSamples(pairs), rows, torch.tensor(labels), rows.clone())
    train, held_out = carve(whole, test, seed=0)
    names = tuple(f"level {level}" for level in range(1, levels + 1))
    return Source("arithmetic", "text", train, held_out, None, names)


Task = tuple[int, str, int]


def _tasks(level: int, count: int, operations: str, seed: int) -> list[Task]:
    """Return up to so many different tasks of a level, in the order in which they are drawn."""
    random = np.random.default_rng(derive(seed, "arithmetic", level, operations))
    found: dict[Task, None] = {}
    low, high = (0 if level == 1 else 10 ** (level - 1)), 10**level
    for _ in range(_ROUNDS):
        if len(found) >= count:
            break
        first = random.integers(low, high, 2 * count).tolist()
        second = random.integers(low, high, 2 * count).tolist()
        digit = random.integers(0, 10, 2 * count).tolist()
        chosen = random.integers(0, len(operations), 2 * count).tolist()
        for a, b, small, place in zip(first, second, digit, chosen, strict=True):
            sign = operations[place]
            if sign == "*":
                task = (a, sign, small)
            elif sign == "-":
                task = (max(a, b), sign, min(a, b))
            else:
                task = (a, sign, b)
            found[task] = None
    return list(found)[:count]


def _pair(first: int, sign: str, second: int, working: bool) -> tuple[str, str]:
    """Return prompt and response."""
    answer = {"+": first + second, "-": first - second, "*": first * second}[sign]
    prompt = f"{first}{sign}{second}="
    return (prompt, f"{_steps(first, second)} #### {answer}" if working else str(answer))


def _steps(first: int, second: int) -> str:
    """Return the sums of all places, from the right."""
    steps = []
    for place in range(max(len(str(first)), len(str(second)))):
        unit = 10**place
        above, below = first // unit % 10 * unit, second // unit % 10 * unit
        steps.append(f"{above}+{below}={above + below}")
    return " ".join(steps)
