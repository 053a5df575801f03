"""What a written response has to be like to be learnt from. Each filter is a pure function of it and of those kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from understudy.errors import DataError
from understudy.evaluation.text import rouge_l
from understudy.evaluation.verify import reward
from understudy.sampling.records import Kept, Prompt, Written


@dataclass(frozen=True)
class Filter:
    """Base of the filters; their fields are their configuration."""

    def keeps(self, record: Written, kept: Kept) -> bool:
        """Tell whether a response stays.

        Args:
            record: the response.
            kept: the responses before it that all filters kept.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it keeps.")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Check, before anything is written, that responses to these prompts can be judged."""

    def config(self) -> dict[str, Any]:
        """Return name and fields as JSON values."""
        return {"name": type(self).__name__.lower(), **asdict(self)}


@dataclass(frozen=True)
class Length(Filter):
    """Keep responses of at least and at most so many characters, outer spaces aside.

    Attributes:
        least: fewest characters.
        most: most characters; None for no limit.
    """

    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        """Check the two limits."""
        if self.least < 0 or (self.most is not None and self.most < self.least):
            raise ValueError(
                f"least is {self.least} and most {self.most}; it must be 0 <= least <= most"
            )

    def keeps(self, record: Written, kept: Kept) -> bool:
        """Count the characters."""
        length = len(record.response.strip())
        return length >= self.least and (self.most is None or length <= self.most)


@dataclass(frozen=True)
class Finished(Filter):
    """Drop responses that were cut before they ended."""

    def keeps(self, record: Written, kept: Kept) -> bool:
        """Look at how it ended."""
        return record.finished


@dataclass(frozen=True)
class Unseen(Filter):
    """Drop the same response to the same prompt, outer spaces aside."""

    def keeps(self, record: Written, kept: Kept) -> bool:
        """Look it up."""
        return not kept.has(record)


@dataclass(frozen=True)
class RightAnswer(Filter):
    """Keep responses whose answer is the expected one (rejection sampling).

    Attributes:
        style: where the answer stands, see `evaluation.verify.reward`.
    """

    style: str = "boxed"

    def __post_init__(self) -> None:
        """Check the style."""
        reward("", "", self.style)

    def keeps(self, record: Written, kept: Kept) -> bool:
        """Compare the answers; where none is expected, none is right."""
        expected = record.expected
        return expected is not None and reward(record.response, expected, self.style) == 1.0

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Check that there are answers.

        Raises:
            DataError: a prompt has no expected answer.
        """
        for prompt in prompts:
            if prompt.expected is None:
                raise DataError(
                    f"Prompt {prompt.id!r} has no expected answer, so no response to it can be told to be right."
                )


@dataclass(frozen=True)
class Unlike(Filter):
    """Keep responses whose Rouge-L (F1) with every one kept before is below a limit.

    Every response is compared with all kept ones, so the time grows with the square of their number; pairs that have
    too few words in common to reach the limit are passed over.

    Attributes:
        limit: 0.7 is the customary value (Wang et al., "Self-Instruct", ACL 2023, for prompts).
    """

    limit: float = 0.7

    def __post_init__(self) -> None:
        """Check the limit."""
        if not 0 < self.limit <= 1:
            raise ValueError(f"limit is {self.limit}; it must lie in (0, 1]")

    def keeps(self, record: Written, kept: Kept) -> bool:
        """Compare with all."""
        return not any(self._alike(record, other) for other in kept)

    def _alike(self, one: Written, other: Written) -> bool:
        total = len(one.words) + len(other.words)
        # What two texts have in common in order is at most what they have in common at all.
        common = min(len(one.words), len(other.words))
        if total == 0 or 2 * common < self.limit * total:
            return False
        if 2 * (one.counts & other.counts).total() < self.limit * total:
            return False
        return rouge_l(one.words, other.words).f1 >= self.limit
