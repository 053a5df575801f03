"""Responses from a server with OpenAI's interface, such as vLLM."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Literal

import torch

from understudy.errors import SamplingError
from understudy.sampling.exchange import CalledOff, Exchange, Send
from understudy.sampling.settings import PromptTokens, Sample, Sampling, keys_of, until_stop
from understudy.seeding import derive


class ServerSampler:
    """Asks a server for responses, several prompts at a time. How to draw is the server's own; the seed is sent.

    A prompt of token ids is sent as such, and the ids of the response are asked for, as vLLM gives them. Servers that
    take only texts refuse it. With `api="chat"` a prompt is a text, sent as the user's message.

    A busy or failing server (429, 5xx, a connection that is refused, broken or silent, a body that ends in the middle)
    is asked again after a pause that doubles; then it is over, with an error that says how far it came.

    Args:
        url: the server's address up to and including "/v1".
        model: what the server calls the model.
        api: "completions" or "chat".
        key_variable: the environment variable that holds the API key; None for a server without. The key is in no log,
            error or file.
        timeout: seconds without an answer after which a request has failed.
        retries: how often a request is sent again.
        pause: seconds before the first time; doubled each time, at most a minute. A server that says how long to wait
            is given that time, at most a minute.
        concurrency: most requests at the same time.
        extra: other fields of a request, such as {"min_p": 0.1}.
        tokenizer_fingerprint: of the tokenizer whose ids are sent, for what is written down.

    Raises:
        SamplingError: the environment variable is not set.
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api: Literal["completions", "chat"] = "completions",
        key_variable: str | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        pause: float = 1.0,
        concurrency: int = 8,
        extra: dict[str, Any] | None = None,
        tokenizer_fingerprint: str | None = None,
    ) -> None:
        """Keep how to ask; nothing is sent yet."""
        if api not in ("completions", "chat"):
            raise ValueError(f"api is '{api}'; it must be 'completions' or 'chat'")
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
        self.url, self.model, self.api = url.rstrip("/"), model, api
        self.concurrency, self.extra = concurrency, dict(extra or {})
        self.tokenizer_fingerprint = tokenizer_fingerprint
        path = "completions" if api == "completions" else "chat/completions"
        self._exchange = Exchange(
            f"{self.url}/{path}",
            key_variable=key_variable,
            timeout=timeout,
            retries=retries,
            pause=pause,
        )

    def sample(
        self,
        prompts: Sequence[PromptTokens],
        settings: Sampling,
        keys: Sequence[int] | None = None,
    ) -> list[Sample]:
        """Return `settings.samples` responses to each prompt, prompt by prompt.

        Raises:
            SamplingError: the server refuses a request, cannot be reached, or answers what cannot be understood.
        """
        names = keys_of(prompts, keys)
        requests = [
            self._request(prompt, settings, key) for prompt, key in zip(prompts, names, strict=True)
        ]
        stop = threading.Event()
        with (
            self._exchange.open(self.concurrency) as send,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            answers = [pool.submit(_until_failure, send, request, stop) for request in requests]
            try:
                wait(answers, return_when=FIRST_EXCEPTION)
            finally:
                # After a failure, or Ctrl-C, nobody sits out a pause.
                stop.set()
                for answer in answers:
                    answer.cancel()
        errors = [
            answer.exception() for answer in answers if answer.done() and not answer.cancelled()
        ]
        failed = [error for error in errors if error is not None]
        if failed:
            good = len(errors) - len(failed)
            # The others may only say that they were called off.
            first = next((each for each in failed if not isinstance(each, CalledOff)), failed[0])
            raise SamplingError(
                f"{first} {good} of {len(prompts)} prompts of this call were answered."
            ) from first
        return [
            sample
            for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            for sample in self._samples(number, prompt, answer.result(), settings)
        ]

    def text_of(self, sample: Sample, settings: Sampling) -> str:
        """Return the text that the server gave, without a stop text."""
        assert sample.text is not None, "a server's response always has its text"
        return until_stop(sample.text, settings.stop)

    def describe(self) -> dict[str, Any]:
        """Return the model's name and how it is asked. The address is not in it: a model may move to another server."""
        return {
            "kind": "server",
            "model": self.model,
            "api": self.api,
            "extra": self.extra,
            "tokenizer": self.tokenizer_fingerprint,
        }

    def _request(self, prompt: PromptTokens, settings: Sampling, key: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model": self.model,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "n": settings.samples,
            "seed": derive(settings.seed, "server", key) % 2**31,
        }
        if settings.top_k is not None:
            found["top_k"] = settings.top_k
        if settings.repetition_penalty != 1:
            found["repetition_penalty"] = settings.repetition_penalty
        if settings.stop:
            found["stop"] = list(settings.stop)
        if self.api == "chat":
            if isinstance(prompt, torch.Tensor):
                raise SamplingError(
                    "A chat server takes texts, and a prompt is given as token ids. Use api='completions', or give "
                    "the text."
                )
            found["messages"] = [{"role": "user", "content": prompt}]
            if settings.log_probs:
                found["logprobs"] = True
        else:
            if settings.log_probs:
                found["logprobs"] = 1
            if isinstance(prompt, torch.Tensor):
                found["prompt"] = prompt.tolist()
                found["return_token_ids"] = True
            else:
                found["prompt"] = prompt
        return {**found, **self.extra}

    def _samples(
        self, number: int, prompt: PromptTokens, answer: dict[str, Any], settings: Sampling
    ) -> list[Sample]:
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
            samples = [self._sample(number, prompt, choice, settings) for choice in choices]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SamplingError(
                f"{self.url} gave an answer to prompt {number} that cannot be read ({error!r})."
            ) from error
        if len(samples) != settings.samples:
            raise SamplingError(
                f"{self.url} gave {len(samples)} responses to prompt {number} and was asked for {settings.samples}. "
                "A server that gives one at a time needs samples=1 and several seeds."
            )
        return samples

    def _sample(
        self, number: int, prompt: PromptTokens, choice: dict[str, Any], settings: Sampling
    ) -> Sample:
        chat = self.api == "chat"
        text = choice["message"]["content"] if chat else choice["text"]
        if not isinstance(text, str):
            raise TypeError(f"the response is {type(text).__name__}, not a text")
        ids = None
        if isinstance(prompt, torch.Tensor) and choice.get("token_ids") is not None:
            ids = torch.tensor(choice["token_ids"], dtype=torch.int64)
        log_probs = None
        if settings.log_probs:
            given = choice["logprobs"]
            values = (
                [token["logprob"] for token in given["content"]]
                if chat
                else given["token_logprobs"]
            )
            log_probs = torch.tensor(values, dtype=torch.float32)
        return Sample(number, choice.get("finish_reason") == "stop", ids, text, log_probs)


def _until_failure(send: Send, request: dict[str, Any], stop: threading.Event) -> dict[str, Any]:
    """Send a request; after one that fails for good nothing more is sent."""
    try:
        return send(request, stop)
    except BaseException:
        stop.set()
        raise
