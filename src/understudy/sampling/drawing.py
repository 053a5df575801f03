"""Drawing the next token of every row: what stands between a model's logits and `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from understudy.sampling.mixture import Mixture
from understudy.sampling.settings import Sampling
from understudy.seeding import uniform_on_device

_STRIDE = 2**32  # more steps than a response can have


class Draw:
    """Draws the next token of every row, and leaves it as the only one that `generate` can choose.

    A row draws from the distribution's inverse with one uniform number, which is a hash of (seed, key of its prompt,
    number of the sample, number of the token). So global random state is neither read nor changed, and what other rows
    a batch holds does not matter, but for what it does to the logits of this one.

    Args:
        settings: how to draw.
        keys: int64 [B], a key for each row's prompt.
        numbers: int64 [B], which sample of its prompt each row is.
        prompts: int64 [B, T], the tokens of the prompts.
        mask: [B, T], which of them are no padding.
        vocabulary: tokens beyond this are padding of the output layer and never drawn; None for all.
        mixture: a second model that is drawn from as well; None for none.
    """

    def __init__(
        self,
        settings: Sampling,
        keys: torch.Tensor,
        numbers: torch.Tensor,
        prompts: torch.Tensor,
        mask: torch.Tensor,
        vocabulary: int | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        """Start at the first token."""
        self.settings, self.vocabulary, self.mixture = settings, vocabulary, mixture
        self._keys, self._numbers = keys, numbers
        self._prompts, self._mask = prompts, mask
        self._seen: torch.Tensor | None = None
        self._step = 0
        self.log_probs: list[torch.Tensor] = []
        """[B] for each token drawn so far, where they are wanted."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return [B, V] with 0 at the drawn token and -inf elsewhere, from logits [B, V]."""
        scores = scores.float()
        if self.vocabulary is not None and self.vocabulary < scores.shape[1]:
            scores = scores.index_fill(
                1, torch.arange(self.vocabulary, scores.shape[1], device=scores.device), -torch.inf
            )
        if self.settings.repetition_penalty != 1:
            scores = self._penalised(input_ids, scores)
        if self.settings.temperature == 0:
            log_probs = scores.log_softmax(dim=1)
            tokens = scores.argmax(dim=1, keepdim=True)
        else:
            scores = scores / self.settings.temperature
            if self.mixture is not None:
                scores = self.mixture.mixed(
                    scores.log_softmax(dim=1), input_ids, self.settings.temperature
                )
            scores = truncated(scores, self.settings.top_k, self.settings.top_p)
            log_probs = scores.log_softmax(dim=1)
            tokens = drawn(log_probs, self._uniform()).unsqueeze(1)
        if self.settings.log_probs:
            self.log_probs.append(log_probs.gather(1, tokens).squeeze(1))
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)

    def _uniform(self) -> torch.Tensor:
        """Return float64 [B] in [0, 1), of 48 random bits: 24 would never reach tokens of small probability."""
        views = self._numbers * _STRIDE + self._step
        parts = uniform_on_device(self.settings.seed, self._keys, views, "sampling", 2)
        high, low = parts.to(_exact(parts.device)).unbind(dim=1)
        return high + low * 2.0**-24

    def _penalised(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return logits in which tokens that occurred are less likely. Padding did not occur."""
        if self._seen is None:
            counts = torch.zeros_like(scores).scatter_add_(
                1, self._prompts, self._mask.to(scores.dtype)
            )
            self._seen = counts > 0
        else:
            self._seen.scatter_(1, input_ids[:, -1:], True)
        penalty = self.settings.repetition_penalty
        return torch.where(
            self._seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores
        )


class Stops:
    """Tells which rows have written a stop text, and after how many tokens.

    Args:
        tokenizer: what decodes tokens.
        stop: the texts.
        start: where responses begin in the rows.
        rows: how many there are.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], start: int, rows: int) -> None:
        """Nothing has stopped yet."""
        self._tokenizer, self._stop, self._start = tokenizer, stop, start
        # Where every token is a part of one character, a character has at most four.
        self._tail = 4 * max(map(len, stop)) + 4
        self.lengths: list[int | None] = [None] * rows
        """How many tokens each row had when it stopped."""

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor | None, **_: Any
    ) -> torch.Tensor:
        """Return bool [B], which rows have stopped."""
        for row, ids in enumerate(input_ids[:, self._start :].tolist()):
            if self.lengths[row] is None:
                text = self._tokenizer.decode(ids[-self._tail :])
                if any(stop in text for stop in self._stop):
                    self.lengths[row] = len(ids)
        return torch.tensor(
            [length is not None for length in self.lengths], device=input_ids.device
        )


def truncated(scores: torch.Tensor, top_k: int | None, top_p: float) -> torch.Tensor:
    """Return logits [B, V] with -inf at what is not among the k most probable, and then not among the first p of them.

    Tokens as probable as the last that belongs to them stay.
    """
    if top_k is not None and top_k < scores.shape[1]:
        least = scores.topk(top_k, dim=1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if top_p < 1:
        ordered = scores.sort(dim=1, descending=True).values
        before = ordered.softmax(dim=1).cumsum(dim=1).roll(1, dims=1)
        before[:, 0] = 0.0
        # The last token before which less than p is gathered.
        count = (before < top_p).sum(dim=1, keepdim=True)
        scores = scores.masked_fill(scores < ordered.gather(1, count - 1), -torch.inf)
    return scores


def drawn(log_probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return int64 [B], the token in which each row's cumulative probability passes a number in [0, 1).

    Args:
        log_probs: [B, V]; -inf is never drawn.
        uniform: float64 [B].
    """
    cumulative = log_probs.to(_exact(log_probs.device)).exp().cumsum(dim=1)
    place = uniform.unsqueeze(1) * cumulative[:, -1:]
    found: torch.Tensor = torch.searchsorted(cumulative, place, right=True).squeeze(1)
    return found.clamp_max(log_probs.shape[1] - 1)


def _exact(device: torch.device) -> torch.dtype:
    """Return float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
