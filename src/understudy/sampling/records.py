"""What a data set of written responses is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from understudy.errors import DataError
from understudy.evaluation.text import words


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt that a response is written to.

    Attributes:
        id: names the prompt, in every run.
        text: the prompt.
        expected: the right answer alone, where there is one.
        ids: the prompt as the model reads it, int64 [L]; None for the sampler to encode the text.
    """

    id: int | str
    text: str
    expected: str | None = None
    ids: torch.Tensor | None = None


@dataclass(frozen=True)
class Written:
    """One response to a prompt.

    Attributes:
        id: the prompt's.
        sample: which of the prompt's responses this is.
        prompt: the prompt's text.
        response: the response's text.
        finished: whether it ended by itself.
        expected: the right answer alone, where there is one.
        tokens: the response's token ids; None where a server gave text only.
    """

    id: int | str
    sample: int
    prompt: str
    response: str
    finished: bool
    expected: str | None = None
    tokens: tuple[int, ...] | None = None

    @cached_property
    def words(self) -> list[str]:
        """The response's words, as Rouge splits them."""
        return words(self.response)

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each word is in the response."""
        return Counter(self.words)

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        found: dict[str, Any] = {
            "id": self.id,
            "sample": self.sample,
            "prompt": self.prompt,
            "response": self.response,
            "finished": self.finished,
        }
        if self.expected is not None:
            found["expected"] = self.expected
        if self.tokens is not None:
            found["tokens"] = list(self.tokens)
        return found

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Written:
        """Return the record that `as_json` gave."""
        tokens = found.get("tokens")
        return Written(
            id=found["id"],
            sample=found["sample"],
            prompt=found["prompt"],
            response=found["response"],
            finished=found["finished"],
            expected=found.get("expected"),
            tokens=None if tokens is None else tuple(tokens),
        )


class Kept:
    """The records that were kept so far, in order."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._records: list[Written] = []
        self._pairs: set[tuple[str, str]] = set()

    def add(self, record: Written) -> None:
        """Keep a record."""
        self._records.append(record)
        self._pairs.add((record.prompt, record.response.strip()))

    def __iter__(self) -> Iterator[Written]:
        """Iterate over the records."""
        return iter(self._records)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._records)

    def has(self, record: Written) -> bool:
        """Tell whether the same response to the same prompt, outer spaces aside, was kept."""
        return (record.prompt, record.response.strip()) in self._pairs


def check_prompts(prompts: list[Prompt]) -> None:
    """Check that there are prompts and that each has an id of its own.

    Raises:
        DataError: there is none, or an id occurs twice.
    """
    if not prompts:
        raise DataError("There is no prompt to write a response to.")
    seen: set[str] = set()
    for prompt in prompts:
        name = str(prompt.id)  # 1 and "1" would get the same name where there are several samples
        if name in seen:
            raise DataError(f"Two prompts have the id {prompt.id!r}; give each one of its own.")
        seen.add(name)
