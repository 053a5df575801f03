"""By which quantity the members of a run are judged, and what things are called in its task.

This is the only place that knows what accuracy, perplexity or any other main measure means for a report: which way
is better, how a value and a difference are written, which axis suits them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

LANGUAGE_TASKS = {
    "causal_lm": "causal language model",
    "masked_lm": "masked language model",
    "seq2seq": "sequence to sequence",
}
"""Tasks whose elements are tokens -> what they are called."""


@dataclass(frozen=True)
class Form:
    """How a number is written.

    Attributes:
        scale: what a stored value is multiplied by.
        decimals: in sentences; tables and figures show one more.
        unit: "" where there is none.
    """

    scale: float
    decimals: int
    unit: str = ""

    @property
    def suffix(self) -> str:
        """Return the unit as it stands behind a number."""
        return f" {self.unit}" if self.unit else ""

    @property
    def heading(self) -> str:
        """Return the unit as it stands behind a title."""
        return f", {self.unit}" if self.unit else ""


@dataclass(frozen=True)
class Measure:
    """The main measure of a run: everything that is chosen, compared or tested goes by it.

    Attributes:
        name: its key in `metrics.jsonl`; differences and tests are of this quantity.
        better: which way is better.
        noun: what it is called where a difference is spoken of.
        change: how a difference is written.
        level_name: the metric in which the value itself is shown; perplexity for the likelihood of tokens.
        level_noun: what that is called, as in "test perplexity".
        level: how it is written.
        logarithmic: whether the level is the exponential of the measure; figures show it on a logarithmic axis.
        collapse: a seed that is worse than the median of its arm by more than this is pointed out; None: none is.
    """

    name: str
    better: Literal["higher", "lower"]
    noun: str
    change: Form
    level_name: str
    level_noun: str
    level: Form
    logarithmic: bool = False
    collapse: float | None = None

    def improves(self, difference: float) -> bool:
        """Tell whether a difference of this sign is an improvement."""
        return difference > 0 if self.better == "higher" else difference < 0

    def rank(self, value: float | None) -> float:
        """Return a number that is larger the better the value; a value that is missing comes last."""
        if value is None or math.isnan(value):
            return -math.inf
        return value if self.better == "higher" else -value

    def of_level(self, level: float) -> float:
        """Return the measure that belongs to a level; of a perplexity its logarithm."""
        if not self.logarithmic:
            return level
        return math.log(level) if level > 0 else -math.inf

    @property
    def titled(self) -> str:
        """Return the noun as the first word of a sentence."""
        return capital(self.noun)

    @property
    def named_level(self) -> str:
        """Return what stands before a level in a sentence; a percentage of right answers needs nothing."""
        return "" if self == ACCURACY else f"{self.level_noun} "


ACCURACY = Measure(
    "accuracy",
    "higher",
    "accuracy",
    Form(100, 1, "points"),
    "accuracy",
    "accuracy",
    Form(100, 1, "%"),
    collapse=0.2,
)
TOKEN_LIKELIHOOD = Measure(
    "nll",
    "lower",
    "NLL",
    Form(1, 2, "nats/token"),
    "perplexity",
    "perplexity",
    Form(1, 2),
    logarithmic=True,
    collapse=0.5,
)


@dataclass(frozen=True)
class Words:
    """What things are called in a task.

    Attributes:
        task: the task.
        sample, samples: one raw item of the data, and several.
        pass_of: what one row of a forward pass is.
        element: what a metric is a mean over, in the plural.
        group, groups: what a label stands for.
        head: what embeddings go into.
        language: whether the elements are tokens.
    """

    task: str
    sample: str = "sample"
    samples: str = "samples"
    pass_of: str = "sample"
    elements: str = "samples"
    group: str = "class"
    groups: str = "classes"
    head: str = "classifier"
    language: bool = False


def measure_of(header: Mapping[str, Any]) -> Measure:
    """Return the main measure that a `run` line names; accuracy where it names none.

    Raises:
        ValueError: the entry has no name, or another direction than "higher" and "lower".
    """
    given = header.get("measure")
    if given is None:
        return ACCURACY
    name, better = given.get("name"), given.get("better")
    if not name or better not in ("higher", "lower"):
        raise ValueError(
            f'"measure" should be like {{"name": "nll", "better": "lower"}}, with "higher" or "lower", not {given}'
        )
    known = [ACCURACY, *([TOKEN_LIKELIHOOD] if header.get("task") in LANGUAGE_TASKS else [])]
    for measure in known:
        if (measure.name, measure.better) == (name, better):
            return measure
    noun = str(name).replace("_", " ")
    return Measure(str(name), better, noun, Form(1, 3), str(name), noun, Form(1, 3))


def words_of(header: Mapping[str, Any]) -> Words:
    """Return what things are called in the task of a `run` line."""
    task = str(header.get("task") or "")
    if task not in LANGUAGE_TASKS:
        return Words(task)
    return Words(
        LANGUAGE_TASKS[task],
        sample="document",
        samples="documents",
        pass_of="sequence",
        elements="tokens",
        group="domain",
        groups="domains",
        head="output layer",
        language=True,
    )


def capital(text: str) -> str:
    """Return the text with its first letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]
