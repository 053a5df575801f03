"""BLEU of texts, with the choices of sacreBLEU: how much of a rationale's wording is the teacher's."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.errors import DataError

ORDER = 4
SMOOTHINGS = ("exp", "floor", "add-k", "none")
_ESCAPED = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SPLIT = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),  # ASCII marks but ' , - .
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),  # a stop or comma behind anything but a digit
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),  # or before it
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a dash behind a digit
)


@dataclass(frozen=True)
class Bleu:
    """A score and what it is made of.

    Attributes:
        score: in [0, 1]; published numbers are often 100 times that.
        precisions: of n-grams of each order, in [0, 1], smoothed.
        brevity: the penalty for being shorter than the references, in (0, 1].
        candidate_tokens: number of the candidates' tokens.
        reference_tokens: number of the references' tokens.
        settings: how it was computed, to be reported with it.
    """

    score: float
    precisions: tuple[float, ...]
    brevity: float
    candidate_tokens: int
    reference_tokens: int
    settings: str


def tokens_13a(text: str) -> list[str]:
    """Return the tokens of the WMT evaluation script mteval-v13a, the default of sacreBLEU; upper case is kept."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for escaped, plain in _ESCAPED:
        text = text.replace(escaped, plain)
    text = f" {text} "
    for pattern, spaced in _SPLIT:
        text = pattern.sub(spaced, text)
    return text.split()


def corpus_bleu(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    order: int = ORDER,
    smoothing: str = "exp",
) -> Bleu:
    """Return BLEU over a corpus: n-grams are counted over all texts before they are divided.

    Args:
        candidates: tokens of each text (`tokens_13a` splits one), such as the student's rationales.
        references: tokens of the text that each is compared with, such as the teacher's.
        order: longest n-grams.
        smoothing: what an order without any match counts as: "exp" 1 / 2^k of one n-gram, k counting such orders;
            "floor" 0.1 n-grams; "add-k" adds 1 to matches and totals of orders above 1; "none" makes the score 0.

    Source: Papineni et al., "BLEU", ACL 2002; choices of Post, "A Call for Clarity in Reporting BLEU Scores", WMT 2018.

    Raises:
        DataError: there is no text, counts differ, or a keyword is out of its range.
    """
    if len(candidates) != len(references) or len(candidates) == 0:
        raise DataError(
            f"There are {len(candidates)} and {len(references)} texts; both counts must be equal and not 0."
        )
    return _bleu(list(zip(candidates, references, strict=True)), order, smoothing, effective=False)


def sentence_bleu(
    candidate: Sequence[str],
    reference: Sequence[str],
    *,
    order: int = ORDER,
    smoothing: str = "exp",
) -> Bleu:
    """Return BLEU of one text. Orders for which it is too short are left out of the mean ("effective order").

    Args and errors are those of `corpus_bleu`. The mean over texts is not the BLEU of the corpus.
    """
    return _bleu([(candidate, reference)], order, smoothing, effective=True)


def _bleu(
    pairs: Sequence[tuple[Sequence[str], Sequence[str]]],
    order: int,
    smoothing: str,
    effective: bool,
) -> Bleu:
    if order < 1:
        raise DataError(f"order is {order}; it must be at least 1.")
    if smoothing not in SMOOTHINGS:
        raise DataError(f"smoothing is '{smoothing}'; it must be one of {SMOOTHINGS}.")
    matches, totals = [0] * order, [0] * order
    for candidate, reference in pairs:
        for n in range(1, order + 1):
            ours, theirs = _ngrams(candidate, n), _ngrams(reference, n)
            matches[n - 1] += (ours & theirs).total()
            totals[n - 1] += ours.total()
    if smoothing == "add-k" and totals[0]:
        matches[1:], totals[1:] = ([count + 1 for count in each[1:]] for each in (matches, totals))
    length = sum(len(candidate) for candidate, _ in pairs)
    wanted = sum(len(reference) for _, reference in pairs)
    brevity = 1.0 if length >= wanted else math.exp(1 - wanted / length) if length else 0.0
    precisions = _precisions(matches, totals, smoothing)
    counted = sum(total > 0 for total in totals) if effective else order
    score = 0.0
    if matches[0] and all(precisions[:counted]):
        logarithms = math.fsum(math.log(precision) for precision in precisions[:counted])
        score = brevity * math.exp(logarithms / counted)
    settings = f"BLEU-{order}, smoothing {smoothing}, {'effective' if effective else 'full'} order"
    return Bleu(score, tuple(precisions), brevity, length, wanted, settings)


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def _precisions(matches: Sequence[int], totals: Sequence[int], smoothing: str) -> list[float]:
    found, unmatched = [], 0
    for match, total in zip(matches, totals, strict=True):
        if match or total == 0:
            found.append(match / max(total, 1))
        elif smoothing == "exp":
            unmatched += 1
            found.append(1 / (2**unmatched * total))
        else:
            found.append(0.1 / total if smoothing == "floor" else 0.0)
    return found
