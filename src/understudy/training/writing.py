"""What a finished language model writes after the prompts of the test split, and how good its answers are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from understudy.evaluation.text import exact_match, rouge_l, words
from understudy.models.model import Model
from understudy.sampling import ModelSampler, Sampling
from understudy.tasks import CausalLM
from understudy.training.context import Context
from understudy.training.prompts import prompts_of

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
    # A prompt gets at least half of a row.
    room = min(settings.answer_tokens, model.preprocess.max_length // 2)  # type: ignore[attr-defined]
    count = max(settings.samples, settings.answers)
    prompts = prompts_of(model, test, count, beginning=PROMPT_TOKENS, room=room)
    answered = [prompt.pair for prompt in prompts].count(True)
    prompts = prompts[: max(settings.samples, min(answered, settings.answers))]
    if not prompts:
        return Written()
    sampling = Sampling(max_new_tokens=room, temperature=0.0)
    tokenizer = model.preprocess.tokenizer  # type: ignore[attr-defined]
    sampler = ModelSampler(model.module, tokenizer=tokenizer)
    found = sampler.sample([prompt.ids for prompt in prompts], sampling)
    texts = [sampler.text_of(sample, sampling) for sample in found]
    metrics = {}
    if answered and settings.answers:
        asked = slice(0, settings.answers)
        references = [prompt.response for prompt in prompts[asked]]
        metrics["exact_match"] = exact_match(texts[asked], references)
        scores = [
            rouge_l(words(text), words(reference)).f1
            for text, reference in zip(texts[asked], references, strict=True)
        ]
        metrics["rouge_l"] = sum(scores) / len(scores)
    samples = [
        {"id": prompt.id, "prompt": prompt.text, "reference": prompt.response, "text": text}
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    return Written(metrics, samples[: settings.samples])
