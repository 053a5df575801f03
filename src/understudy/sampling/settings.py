"""How text is drawn from a model, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from understudy.errors import SamplingError

PromptTokens = torch.Tensor | str
"""A prompt: its tokens, int64 [L], or its text, which the sampler encodes."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        max_new_tokens: most tokens of a response. One that has not ended by then is cut there and not `finished`.
        temperature: what logits are divided by; 0 takes the most probable token.
        top_p: the smallest set of most probable tokens that together have this probability is drawn from; 1 for all.
        top_k: how many most probable tokens are drawn from; None for all.
        repetition_penalty: what positive logits of tokens that occurred (in the prompt too) are divided by, and
            negative ones multiplied with; 1 for none.
        samples: responses to each prompt.
        seed: of all draws.
        stop: texts that end a response.
        log_probs: whether the log-probability of each drawn token is wanted.

    Raises:
        ValueError: a number is out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float = 1.0
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    log_probs: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or greater")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or None")
        if not self.repetition_penalty > 0:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must be greater than 0"
            )
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; it must be at least 1")
        object.__setattr__(self, "stop", tuple(self.stop))
        if not all(self.stop):
            raise ValueError("a text in stop is empty; it would end every response at once")

    def config(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "stop": list(self.stop)}


@dataclass(frozen=True, eq=False)
class Sample:
    """One response.

    Attributes:
        prompt: number of the prompt in the call that it answers.
        finished: whether it ended by itself, by a token that ends texts or at a stop text; False where it was cut at
            `max_new_tokens`.
        ids: int64 [L], on the CPU, as they were drawn, with the token that ends the text where there was one. None
            where a server gives text only.
        text: the response as text where a server gave it; a module's tokens are decoded on demand.
        log_probs: float32 [L] in nats, of each drawn token; None where not asked for. Those of a `ModelSampler`
            are under the distribution that was drawn from (with temperature and truncation), at temperature 0 under
            the model's own. Servers may leave temperature and truncation out of what they report.
    """

    prompt: int
    finished: bool
    ids: torch.Tensor | None
    text: str | None = None
    log_probs: torch.Tensor | None = None

    @property
    def tokens(self) -> torch.Tensor:
        """The ids.

        Raises:
            SamplingError: there is only text. It is not encoded again: that may give other tokens than were drawn.
        """
        if self.ids is None:
            raise SamplingError(
                "The tokens of a response are needed, and the server gave only its text. Use one that returns token "
                "ids (vLLM does for prompts that are sent as token ids)."
            )
        return self.ids


class Sampler(Protocol):
    """What writes responses to prompts."""

    def sample(
        self,
        prompts: Sequence[PromptTokens],
        settings: Sampling,
        keys: Sequence[int] | None = None,
    ) -> list[Sample]:
        """Return `settings.samples` responses to each prompt, prompt by prompt.

        Args:
            prompts: tokens or texts.
            settings: how to draw.
            keys: an integer for each prompt that its draws depend on, beside the seed; None for its number in the call.
                With stable keys a prompt is answered alike in whichever call it comes.

        Raises:
            SamplingError: it cannot be done.
        """

    def text_of(self, sample: Sample, settings: Sampling) -> str:
        """Return a response as text, without a stop text that ended it and what follows."""

    def describe(self) -> dict[str, Any]:
        """Return what its responses depend on, as JSON values."""


def keys_of(prompts: Sequence[PromptTokens], keys: Sequence[int] | None) -> list[int]:
    """Return a key for each prompt.

    Raises:
        SamplingError: there are not as many keys as prompts.
    """
    if keys is None:
        return list(range(len(prompts)))
    if len(keys) != len(prompts):
        raise SamplingError(f"There are {len(prompts)} prompts and {len(keys)} keys.")
    return [int(key) for key in keys]


def until_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text up to the first of the stop texts in it."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(places)] if places else text
