"""A teacher writes the texts that students learn from: sequence-level distillation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.data.source import Split
from understudy.errors import ModelError, SamplingError
from understudy.models.model import Model
from understudy.sampling import Filter, ModelSampler, Prompt, Sampler, Sampling, write
from understudy.sampling.written import Report
from understudy.tasks import CausalLM
from understudy.training.context import Context
from understudy.training.distribution import join_world
from understudy.training.experiment import Experiment
from understudy.training.labelling import teacher_to_label
from understudy.training.prompts import prompts_of
from understudy.training.splits import make_splits

logger = logging.getLogger("understudy")


@dataclass(frozen=True)
class WritingSettings:
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
    wanted: WritingSettings,
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
        wanted: what to write.
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
        prompts = _prompts(model, context.splits.train, wanted, in_text=sampler is not None)
        tokenizer = model.preprocess.tokenizer  # type: ignore[attr-defined]
        if sampler is None:
            sampler = ModelSampler(model.module, tokenizer=tokenizer, batch_size=wanted.batch_size)

        def progress(done: int, count: int) -> None:
            logger.info("Written: %d of %d shards", done, count)

        return write(
            folder,
            prompts,
            sampler,
            wanted.sampling,
            filters=wanted.filters,
            shard_size=wanted.shard_size,
            progress=progress,
        )
    finally:
        context.close()


def _prompts(model: Model, split: Split, wanted: WritingSettings, *, in_text: bool) -> list[Prompt]:
    """Return the prompts of a split: as the teacher reads them, or as text for a server."""
    length: int = model.preprocess.max_length  # type: ignore[attr-defined]
    room = wanted.sampling.max_new_tokens
    if room >= length:
        raise SamplingError(
            f"max_new_tokens is {room}, and the teacher's rows hold {length} tokens, which leaves none for a prompt."
        )
    count = len(split) if wanted.prompts is None else wanted.prompts
    found = prompts_of(model, split, count, beginning=wanted.prompt_tokens, room=room)
    return [
        Prompt(
            each.id,
            each.text,
            each.response if each.pair else None,
            None if in_text else each.ids,
        )
        for each in found
    ]
