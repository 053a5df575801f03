"""How written answers compare: exact match, Rouge-L, agreement of tokens, perplexity of domains."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from understudy.errors import DataError


class RougeL(NamedTuple):
    """Shares of the longest common subsequence: of the candidate, of the reference, and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def words(text: str) -> list[str]:
    """Return runs of a-z and 0-9 of the text in lower case, as Rouge is customarily split, without stemming."""
    return re.findall(r"[a-z0-9]+", text.lower())


def longest_common_subsequence(first: Sequence[object], second: Sequence[object]) -> int:
    """Return the length of the longest sequence that is in both, in order but with gaps."""
    row = [0] * (len(second) + 1)
    for one in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = row[place]
            row[place] = diagonal + 1 if one == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def rouge_l(candidate: Sequence[object], reference: Sequence[object]) -> RougeL:
    """Return Rouge-L of two token sequences; all 0 where one is empty. `words` splits a text.

    Source: Lin, "ROUGE", 2004, with equal weights of precision and recall.
    """
    if not candidate or not reference:
        return RougeL(0.0, 0.0, 0.0)
    common = longest_common_subsequence(candidate, reference)
    return RougeL(
        common / len(candidate),
        common / len(reference),
        2 * common / (len(candidate) + len(reference)),
    )


def exact_match(candidates: Sequence[str], references: Sequence[str]) -> float:
    """Return the fraction of texts that equal their reference, outer spaces aside.

    Raises:
        DataError: there is none, or the counts differ.
    """
    _paired(len(candidates), len(references), "texts")
    pairs = zip(candidates, references, strict=True)
    return sum(ours.strip() == theirs.strip() for ours, theirs in pairs) / len(candidates)


def token_agreement(student: Sequence[Sequence[int]], teacher: Sequence[Sequence[int]]) -> float:
    """Return the fraction of positions at which two models' tokens are the same, over all positions of all sequences.

    Raises:
        DataError: there is no token, or the lengths differ; names the sequence.
    """
    _paired(len(student), len(teacher), "sequences")
    same = total = 0
    for row, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        if len(ours) != len(theirs):
            raise DataError(
                f"In sequence {row} the student has {len(ours)} tokens and the teacher {len(theirs)}."
            )
        same += sum(one == other for one, other in zip(ours, theirs, strict=True))
        total += len(ours)
    if total == 0:
        raise DataError("There are no tokens on which to compare student and teacher.")
    return same / total


def perplexities(nats: Mapping[str, float], tokens: Mapping[str, int]) -> dict[str, float]:
    """Return exp(nats / tokens) of each domain; infinite where it is beyond float64.

    Args:
        nats: summed negative log-likelihood of each domain's tokens, in nats.
        tokens: how many were summed.

    Raises:
        DataError: domains differ, one has no token, or its nats are not a number.
    """
    if nats.keys() != tokens.keys():
        raise DataError(
            f"There are nats for the domains {sorted(nats)} and token counts for {sorted(tokens)}."
        )
    found = {}
    for domain, total in nats.items():
        if tokens[domain] < 1 or math.isnan(total):
            raise DataError(
                f"Domain '{domain}' has {total} nats on {tokens[domain]} tokens; it needs a number and a token."
            )
        mean = total / tokens[domain]
        found[domain] = math.exp(mean) if mean < 709 else math.inf
    return found


def _paired(ours: int, theirs: int, what: str) -> None:
    if ours != theirs or ours == 0:
        raise DataError(
            f"There are {ours} and {theirs} {what}; both counts must be equal and not 0."
        )
