"""Responses from a module on this machine, by transformers' `generate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError, SamplingError
from understudy.models.model import fingerprint
from understudy.models.optional import require
from understudy.models.taps import unwrap
from understudy.models.tokenizer import tokenizer_fingerprint
from understudy.sampling.drawing import Draw, Stops
from understudy.sampling.mixture import Mixture
from understudy.sampling.settings import PromptTokens, Sample, Sampling, keys_of, until_stop


class ModelSampler:
    """Writes with a causal language model, in evaluation mode and without gradient; the module is left as it was.

    Draws depend on the seed, the key of a prompt and the number of the sample alone (see `Draw`). So in one batch or
    another, at any batch size, a prompt is answered alike as far as its logits are: bit for bit in the same batch, and
    otherwise up to rounding, which seldom and then in low precision changes a token.

    Args:
        module: a transformers model with `generate`, with or without a PEFT adapter. Wrappers are taken off.
        tokenizer: encodes prompts that are texts, decodes, and finds stop texts.
        ends: tokens that end a text; None for those of the model's generation settings and the tokenizer.
        vocabulary: tokens beyond this are padding of the output layer; None for the tokenizer's length.
        batch_size: responses that are written at the same time.
        mixed_with: a second model of the same vocabulary; each token is drawn from a mixture of both distributions, at
            the same temperature, before truncation. At temperature 0 it is not asked.
        share: the second model's share, in [0, 1).

    Raises:
        ModelError: the module cannot generate, or has an encoder.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        tokenizer: Any = None,
        ends: Sequence[int] | None = None,
        vocabulary: int | None = None,
        batch_size: int = 32,
        mixed_with: nn.Module | None = None,
        share: float = 0.0,
    ) -> None:
        """Find out what ends a text."""
        self.module = unwrap(module)
        self._inner: Any = base_of(self.module)
        if not callable(getattr(self._inner, "generate", None)):
            raise ModelError(
                f"{type(self._inner).__name__} cannot write text: it has no `generate`. It has to be a causal language "
                "model of transformers (`task: causal_lm`)."
            )
        if getattr(self._inner.config, "is_encoder_decoder", False):
            raise ModelError(
                f"{type(self._inner).__name__} has an encoder and a decoder; responses are written by models with a "
                "decoder only."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if not 0 <= share < 1:
            raise ValueError(f"share is {share}; it must be at least 0 and below 1")
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.mixed_with = unwrap(mixed_with) if mixed_with is not None and share else None
        self.share = share
        self.ends = tuple(ends) if ends is not None else ends_of(self._inner, tokenizer)
        self.vocabulary = (
            vocabulary if vocabulary is not None or tokenizer is None else len(tokenizer)
        )

    def sample(
        self,
        prompts: Sequence[PromptTokens],
        settings: Sampling,
        keys: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """Return `settings.samples` responses to each prompt, prompt by prompt.

        Args:
            prompts: int64 [L] each, or texts.
            settings: how to draw.
            keys: see `Sampler.sample`.
            progress: called after each batch with the number of responses in it.

        Raises:
            SamplingError: a prompt has no token, or leaves no room for a response; a text, or stop texts, without a
                tokenizer.
        """
        if settings.stop and self.tokenizer is None:
            raise SamplingError("Stop texts need a tokenizer, and this sampler was given none.")
        encoded = [self._tokens(prompt) for prompt in prompts]
        self._check_room([len(ids) for ids in encoded], settings)
        names = keys_of(prompts, keys)
        rows = [
            (number, sample) for number in range(len(encoded)) for sample in range(settings.samples)
        ]
        # Prompts of about the same length share a batch; the longest first, so that a lack of memory shows at once.
        order = sorted(range(len(rows)), key=lambda row: -len(encoded[rows[row][0]]))
        found: dict[int, Sample] = {}
        with contextlib.ExitStack() as held:
            for module in (self.module, self.mixed_with):
                if module is not None:
                    held.enter_context(_writing(module, base_of(module)))
            for begin in range(0, len(order), self.batch_size):
                chosen = order[begin : begin + self.batch_size]
                batch = [(*rows[row], encoded[rows[row][0]], names[rows[row][0]]) for row in chosen]
                found.update(zip(chosen, self._batch(batch, settings), strict=True))
                if progress is not None:
                    progress(len(chosen))
        return [found[row] for row in range(len(rows))]

    def text_of(self, sample: Sample, settings: Sampling) -> str:
        """Return a response as text, without special tokens and without a stop text.

        Raises:
            SamplingError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise SamplingError("Tokens cannot be decoded: this sampler was given no tokenizer.")
        text: str = self.tokenizer.decode(sample.tokens.tolist(), skip_special_tokens=True)
        return until_stop(text, settings.stop)

    def describe(self) -> dict[str, Any]:
        """Return what responses depend on: the weights, the tokenizer, what ends a text."""
        return {
            "kind": "model",
            "class": type(self._inner).__name__,
            "weights": fingerprint(self.module),
            "tokenizer": None if self.tokenizer is None else tokenizer_fingerprint(self.tokenizer),
            "ends": list(self.ends),
            "vocabulary": self.vocabulary,
            "mixed_with": None if self.mixed_with is None else fingerprint(self.mixed_with),
            "share": self.share,
        }

    def _tokens(self, prompt: PromptTokens) -> torch.Tensor:
        if isinstance(prompt, torch.Tensor):
            return prompt.detach().cpu().long()
        if self.tokenizer is None:
            raise SamplingError("A prompt is a text, and this sampler was given no tokenizer.")
        return prompt_tokens(self.tokenizer, prompt)

    def _check_room(self, lengths: Sequence[int], settings: Sampling) -> None:
        config = self._inner.config
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        for number, length in enumerate(lengths):
            if length == 0:
                raise SamplingError(f"Prompt {number} has no token.")
            if limit is not None and length + settings.max_new_tokens > limit:
                raise SamplingError(
                    f"Prompt {number} has {length} tokens and its response may have {settings.max_new_tokens} "
                    f"(max_new_tokens), but the model has positions for {limit}. Shorten either."
                )

    def _batch(
        self, rows: Sequence[tuple[int, int, torch.Tensor, int]], settings: Sampling
    ) -> list[Sample]:
        """Write one batch of (number of the prompt, number of the sample, tokens, key)."""
        transformers = require("transformers", "text")
        device = next(self.module.parameters()).device
        numbers, samples, prompts, keys = zip(*rows, strict=True)
        width = max(map(len, prompts))
        pad = self.ends[0] if self.ends else 0
        ids = torch.full((len(rows), width), pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        draw = Draw(
            settings,
            torch.tensor(keys, device=device),
            torch.tensor(samples, device=device),
            ids,
            mask,
            self.vocabulary,
            None if self.mixed_with is None else Mixture(self.mixed_with, self.share, mask),
        )
        stops = (
            Stops(self.tokenizer, settings.stop, width, len(rows))
            if settings.stop and self.tokenizer is not None
            else None
        )
        written = self.module.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=transformers.GenerationConfig(
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,  # `Draw` draws
                eos_token_id=list(self.ends) or None,
                pad_token_id=pad,
                use_cache=True,
            ),
            logits_processor=transformers.LogitsProcessorList([draw]),
            stopping_criteria=transformers.StoppingCriteriaList([] if stops is None else [stops]),
        )
        responses = written[:, width:].cpu()
        log_probs = torch.stack(draw.log_probs, dim=1).cpu() if settings.log_probs else None
        found = []
        for row, number in enumerate(numbers):
            length, finished = self._length(responses[row], None if stops is None else stops, row)
            found.append(
                Sample(
                    number,
                    finished,
                    responses[row, :length].clone(),
                    log_probs=None if log_probs is None else log_probs[row, :length].clone(),
                )
            )
        return found

    def _length(self, ids: torch.Tensor, stops: Stops | None, row: int) -> tuple[int, bool]:
        """Return how many tokens of a row are its response, and whether it ended by itself."""
        ended = torch.isin(ids, torch.tensor(self.ends, dtype=torch.int64)).nonzero()
        lengths = [int(ended[0]) + 1] if len(ended) else []
        stopped = None if stops is None else stops.lengths[row]
        lengths += [] if stopped is None else [stopped]
        return (min(lengths), True) if lengths else (len(ids), False)


def prompt_tokens(tokenizer: Any, text: str) -> torch.Tensor:
    """Return a prompt's tokens, int64 [L]: with what the tokenizer puts before a text, without what it puts behind."""
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    # An empty text would not tell before from behind.
    probe = tokenizer(text or "a", add_special_tokens=False)["input_ids"]
    whole = tokenizer(text or "a")["input_ids"]
    places = range(len(whole) - len(probe) + 1)
    before = next((k for k in places if whole[k : k + len(probe)] == probe), 0)
    return torch.tensor([*whole[:before], *plain], dtype=torch.int64)


def base_of(module: nn.Module) -> nn.Module:
    """Return the transformers model inside a PEFT adapter; any other module as it is."""
    inner = getattr(module, "get_base_model", None)
    return inner() if callable(inner) else module


def ends_of(module: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end a text: those of a model's generation settings, and the tokenizer's."""
    found = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    ends = [] if found is None else [found] if isinstance(found, int) else list(found)
    own = getattr(tokenizer, "eos_token_id", None)
    if own is not None and own not in ends:
        ends.append(own)
    return tuple(ends)


@contextmanager
def _writing(module: nn.Module, inner: Any) -> Iterator[None]:
    """Hold a model in evaluation mode, without gradient and without generation settings of its own, for the block.

    What a model's settings do not leave open would be filled in by `generate`: a published model may come with a
    repetition penalty or suppressed tokens that nobody asked for here.
    """
    modes = [(part, part.training) for part in module.modules()]
    # An adapter may hold settings of its own, and hands them to the model inside.
    holders = {
        id(part): part for part in (module, inner) if "generation_config" in part.__dict__
    }.values()
    settings = [(part, part.generation_config) for part in holders]
    module.eval()
    for part, _ in settings:
        part.generation_config = require("transformers", "text").GenerationConfig()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, own in settings:
            part.generation_config = own
        for part, mode in modes:
            part.training = mode
        # Under autocast, weights that were converted without gradient must not serve a pass with gradient.
        torch.clear_autocast_cache()
