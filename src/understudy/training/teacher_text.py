"""A teacher writes the texts that students learn from: sequence-level distillation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from understudy.data.source import Split
from understudy.errors import ModelError, SamplingError
from understudy.models.model import Model
from understudy.models.tokens import TokenSequence
from understudy.sampling import Filter, ModelSampler, Prompt, Sampler, Sampling, write
from understudy.sampling.written import Report
from understudy.tasks import CausalLM
from understudy.training.context import Context
from understudy.training.distribution import join_world
from understudy.training.experiment import Experiment
from understudy.training.labelling import teacher_to_label
from understudy.training.splits import make_splits

logger = logging.getLogger("understudy")


@dataclass(frozen=True)
class Order:
    """What a teacher is to write.

    Attributes:
        sampling: how it draws.
        filters: what a response has to be like.
        prompts: how many training documents give a prompt; None for all.
        prompt_tokens: how many tokens of a text without a prompt of its own stand for one.
        batch_size: responses that are written at the same time.
        shard_size: prompts whose responses share a file.
    """

    sampling: Sampling
    filters: Sequence[Filter] = ()
    prompts: int | None = None
    prompt_tokens: int = 16
    batch_size: int = 64
    shard_size: int = 256


def write_texts(
    experiment: Experiment,
    folder: str | Path,
    order: Order,
    *,
    teacher: str = "teacher",
    sampler: Sampler | None = None,
) -> Report:
    """Let a teacher of an experiment answer the prompts of its training documents; go on where it was interrupted.

    A pair gives its first text as the prompt, another document its beginning. The student's split for validation and
    the test documents are not used.

    Args:
        experiment: a causal language model's; its teacher has trained weights.
        folder: where the texts go; `pairs.jsonl` in it is a table of prompts and responses.
        order: what to write.
        teacher: the teacher's name.
        sampler: writes in the teacher's place, such as a server.

    Raises:
        SamplingError: the task is another, or the sampler stopped; what is finished stays.
        DataError: the folder holds something else.
    """
    if not isinstance(experiment.task, CausalLM):
        raise SamplingError(
            f"Texts are written by causal language models, and the task is {experiment.task.name}. Set "
            "`task: causal_lm`."
        )
    context = Context(
        experiment,
        make_splits(experiment),
        join_world("cpu" if sampler else experiment.settings.device),
    )
    try:
        if teacher not in experiment.teachers:
            raise ModelError("The recipe has no teacher to write texts.")
        if experiment.teachers[teacher].stages:
            raise ModelError(
                "The recipe trains its teacher in the run. Do that once, and name it: teacher.train=null "
                "teacher.model=saved:runs/NAME/models/teacher."
            )
        model = teacher_to_label(context, teacher)
        prompts = _prompts(model, context.splits.train, order, in_text=sampler is not None)
        tokenizer = model.preprocess.tokenizer  # type: ignore[attr-defined]
        if sampler is None:
            sampler = ModelSampler(model.module, tokenizer=tokenizer, batch_size=order.batch_size)

        def progress(done: int, count: int) -> None:
            logger.info("Written: %d of %d shards", done, count)

        return write(
            folder,
            prompts,
            sampler,
            order.sampling,
            filters=order.filters,
            shard_size=order.shard_size,
            progress=progress,
        )
    finally:
        context.close()


def _prompts(model: Model, split: Split, order: Order, *, in_text: bool) -> list[Prompt]:
    """Return the prompts of a split: as the teacher reads them, or as text for a server."""
    count = len(split) if order.prompts is None else min(order.prompts, len(split))
    preprocess: Any = model.preprocess
    part = split.subset(torch.arange(count))
    raw = part.fetch(torch.arange(count))
    firsts: dict[int, TokenSequence] = {}
    for sequence in preprocess.sequences_of(raw):
        firsts.setdefault(sequence.document, sequence)
    room = preprocess.max_length - order.sampling.max_new_tokens
    if room < 1:
        raise SamplingError(
            f"max_new_tokens is {order.sampling.max_new_tokens}, and the teacher's rows hold {preprocess.max_length} "
            "tokens, which leaves none for a prompt."
        )
    found = []
    for number, (document, name) in enumerate(zip(raw, part.ids.tolist(), strict=True)):
        sequence = firsts.get(number)
        if sequence is None:
            continue  # an empty document
        pair = isinstance(document, tuple)
        ids = sequence.prompt if pair else sequence.ids[: order.prompt_tokens]
        ids = ids[-room:]
        text = document[0] if pair else preprocess.decode(ids)
        expected = document[1] if pair else None
        found.append(Prompt(name, text, expected, None if in_text else ids))
    return found
