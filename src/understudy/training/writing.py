"""What a finished language model writes after the prompts of the test split, and how good its answers are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from understudy.data.source import Split
from understudy.evaluation.text import exact_match, rouge_l, words
from understudy.models.model import Model
from understudy.models.tokens import TokenSequence
from understudy.sampling import ModelSampler, Sampling
from understudy.tasks import CausalLM
from understudy.training.context import Context

PROMPT_TOKENS = 16
"""Tokens of a text without a prompt of its own that stand for one."""


@dataclass(frozen=True)
class Written:
    """What a model wrote.

    Attributes:
        metrics: exact_match and rouge_l in [0, 1] of answers; empty where texts have no answers.
        samples: id, prompt, reference and text of the first few.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


def write_answers(context: Context, model: Model) -> Written:
    """Let a causal language model write after the first prompts of the test split, the most likely token each time.

    Of a pair the first text is the prompt, and what is written is compared with the second. Of a text the beginning is
    the prompt. Other models write nothing.

    Args:
        context: the run; its settings say how much.
        model: the finished model.
    """
    settings = context.experiment.settings
    test = context.splits.test
    able = isinstance(context.experiment.task, CausalLM) and hasattr(model.module, "generate")
    if not able or settings.answer_tokens < 1:
        return Written()
    pairs = isinstance(_first(test), tuple)
    count = min(max(settings.samples, settings.answers if pairs else 0), len(test))
    if count == 0:
        return Written()
    part = test.subset(torch.arange(count))
    # A prompt gets at least half of a row.
    room = min(settings.answer_tokens, model.preprocess.max_length // 2)  # type: ignore[attr-defined]
    prompts = _prompts(model, part, room)
    sampling = Sampling(max_new_tokens=room, temperature=0.0)
    tokenizer = model.preprocess.tokenizer  # type: ignore[attr-defined]
    sampler = ModelSampler(model.module, tokenizer=tokenizer)
    found = sampler.sample([prompt.ids for prompt in prompts], sampling)
    texts = [sampler.text_of(sample, sampling) for sample in found]
    references = [prompt.reference for prompt in prompts]
    metrics = {}
    if pairs and settings.answers:
        answers = slice(0, settings.answers)
        metrics["exact_match"] = exact_match(texts[answers], references[answers])
        scores = [
            rouge_l(words(text), words(reference)).f1
            for text, reference in zip(texts[answers], references[answers], strict=True)
        ]
        metrics["rouge_l"] = sum(scores) / len(scores)
    samples = [
        {"id": number, "prompt": prompt.text, "reference": prompt.reference, "text": text}
        for number, prompt, text in zip(part.ids.tolist(), prompts, texts, strict=True)
    ]
    return Written(metrics, samples[: settings.samples])


@dataclass(frozen=True)
class _Prompt:
    ids: torch.Tensor
    text: str
    reference: str


def _prompts(model: Model, part: Split, room: int) -> list[_Prompt]:
    """Return the prompts of a split as the model reads them, cut from the left where an answer would not fit."""
    preprocess: Any = model.preprocess
    raw = part.fetch(torch.arange(len(part)))
    firsts: dict[int, TokenSequence] = {}
    for sequence in preprocess.sequences_of(raw):
        firsts.setdefault(sequence.document, sequence)
    prompts = []
    for number, document in enumerate(raw):
        sequence = firsts.get(number)
        ids = torch.empty(0, dtype=torch.int64) if sequence is None else sequence.ids
        if isinstance(document, tuple):
            assert sequence is not None
            prompt = sequence.prompt
            text, reference = document
        else:
            prompt = ids[: min(PROMPT_TOKENS, max(1, len(ids) // 2))]
            text = preprocess.decode(prompt)
            reference = preprocess.decode(ids[len(prompt) : len(prompt) + room])
        prompts.append(_Prompt(prompt[-max(1, preprocess.max_length - room) :], text, reference))
    return prompts


def _first(split: Split) -> Any:
    return split.fetch(torch.zeros(1, dtype=torch.int64))[0]
