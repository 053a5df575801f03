"""Selection in a run: which training samples a stage learns from, and what it takes to know."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from understudy import seeding
from understudy.data.batch import UNLABELLED
from understudy.data.selection import difference_scores, keep_random, keep_top
from understudy.data.source import Split
from understudy.errors import PreflightError, TrainingError, called, unknown_name
from understudy.evaluation import cost
from understudy.models.model import Model
from understudy.tasks import LanguageModelling, MaskedLM
from understudy.tasks.language import tokens_of
from understudy.teachers.stored import StoredModel
from understudy.training.experiment import REFERENCE, Experiment
from understudy.training.likelihoods import is_complete, likelihood_file, measure_likelihoods
from understudy.training.stage import Stage
from understudy.training.verdict import Verdict

if TYPE_CHECKING:
    from understudy.training.context import Context

logger = logging.getLogger("understudy")
COUNTED = 500
"""Documents whose tokens are counted for a plan, at most."""


def chosen(context: Context, stage: Stage, split: Split, seed: int) -> torch.Tensor | None:
    """Return the positions in the split that a stage learns from, int64 ascending; None for all.

    Before documents are scored, as in a plan, as many of the first ones stand for those that will be kept.

    Raises:
        PreflightError: they cannot be selected so; says why.
    """
    select = stage.select
    if select is None:
        return None
    if select.name == "random":
        return keep_random(len(split), select.ratio, seeding.derive(seed, "select"))
    teacher = scoring_teacher(context.experiment, stage)
    if teacher not in context.scores:
        return torch.arange(len(split))[: max(1, int(select.ratio * len(split)))]
    teachers, reference = context.scores[teacher]
    scored = teachers.tokens > 0
    scores = difference_scores(
        teachers.nats[scored],
        reference.nats[scored],
        teachers.tokens[scored],
        per_token=select.per_token,
    )
    kept = keep_top(scores, select.ratio)
    return scored.nonzero().flatten()[kept]


def scoring_teacher(experiment: Experiment, stage: Stage) -> str:
    """Return the name of the teacher whose likelihood a stage selects by.

    Raises:
        PreflightError: there is none, or several and none is named, or no reference; or the task gives no likelihoods.
    """
    assert stage.select is not None
    what = f"Stage '{stage.name}' selects by difference"
    task = experiment.task
    if not isinstance(task, LanguageModelling) or isinstance(task, MaskedLM):
        raise PreflightError(
            f"{what}, which needs the likelihood of a text; a model of task {task.name} gives none. Use `causal_lm` or "
            "`seq2seq`, or select at random."
        )
    if experiment.reference is None:
        raise PreflightError(
            f"{what}, which needs a small model to compare the teacher with. Give a `reference`: its model, and how to "
            "train it."
        )
    return one_teacher(experiment, stage.select.teacher, what)


def one_teacher(experiment: Experiment, wanted: str | None, what: str) -> str:
    """Return the name of the one teacher that is meant, which has to be a model.

    Args:
        experiment: the run.
        wanted: the name that was given; None for the only teacher.
        what: who asks, as the beginning of a sentence.

    Raises:
        PreflightError: there is no such teacher, or it is only stored.
    """
    names = list(experiment.teachers)
    if wanted is None and len(names) != 1:
        text = f"has the teachers {', '.join(names)}; name one" if names else "has no teacher"
        raise PreflightError(f"{what}, which asks one teacher, and the run {text}.")
    name = names[0] if wanted is None else wanted
    if name not in names:
        raise PreflightError(f"{what}: {unknown_name('teacher', name, names)}")
    if experiment.teachers[name].store is not None:
        raise PreflightError(
            f"{what}, which runs the {called(name)} on texts of its own; a store of its outputs will not do."
        )
    return name


def scoring_teachers(experiment: Experiment) -> list[str]:
    """Return the names of the teachers that some stage selects by."""
    names = [
        scoring_teacher(experiment, stage)
        for make in experiment.arms.values()
        for stage in make()
        if stage.select is not None and stage.select.name == "difference"
    ]
    return list(dict.fromkeys(names))


def score(
    context: Context,
    teachers: Mapping[str, Model | StoredModel],
    reference: Model | None,
    stop: Callable[[], None],
) -> None:
    """Score the training documents by every teacher that some stage selects by, and tell the context.

    Raises:
        ModelError: a likelihood is not finite.
    """
    names, split = scoring_teachers(context.experiment), context.splits.train
    if not names or reference is None:
        return
    theirs = measure_likelihoods(context, reference, split, stop, whom=REFERENCE)
    for name in names:
        teacher = teachers[name]
        assert isinstance(teacher, Model)
        ours = measure_likelihoods(context, teacher, split, stop, whom=called(name))
        empty = int((ours.tokens == 0).sum())
        if empty:
            logger.info("%d documents have no token to score and are not selected.", empty)
        context.scores[name] = (ours, theirs)


def check_reference(
    context: Context, reference: Model | None, teachers: Mapping[str, Model | StoredModel]
) -> list[Verdict]:
    """Check that the reference reads the same tokens as the teachers that documents are scored by."""
    verdicts = []
    for name in scoring_teachers(context.experiment):
        teacher = teachers[name]
        assert isinstance(teacher, Model) and reference is not None
        check = f"tokenizer of the {REFERENCE}"
        if same_tokens(reference, teacher):
            verdicts.append(Verdict(check, "ok", f"the same as that of the {called(name)}"))
        else:
            text = (
                f"The reference and the {called(name)} read different tokens, so that their likelihoods per token "
                "cannot be compared. Give both the same `tokenizer`; the student's may be another one."
            )
            verdicts.append(Verdict(check, "refused", text))
    return verdicts


def same_tokens(first: Model, second: Model) -> bool:
    """Tell whether two language models cut texts into the same tokens, by content and not by size."""
    own, other = first.preprocess.config(), second.preprocess.config()
    return bool(own.get("tokenizer") == other.get("tokenizer"))


def selection_line(
    context: Context, stage: Stage, split: Split, seed: int
) -> dict[str, Any] | None:
    """Return what was selected for a stage, for a line of metrics; None where nothing is.

    Raises:
        TrainingError: the documents were not scored.
    """
    positions = chosen(context, stage, split, seed)
    if positions is None or stage.select is None:
        return None
    if stage.select.name == "difference" and not context.scores:
        raise TrainingError(
            f"Stage '{stage.name}' selects by difference, and nothing has scored the documents: a teacher's or the "
            "reference's own training cannot."
        )
    labels = split.labels[positions]
    count = torch.bincount(labels[labels != UNLABELLED], minlength=len(context.classes))
    return {
        "stage": stage.name,
        "name": stage.select.name,
        "kept": len(positions),
        "of": len(split),
        "kept_by_class": count.tolist(),
    }


def selection_notes(
    context: Context,
    stage: Stage,
    split: Split,
    student: Model,
    scorers: Iterable[tuple[str, Model]],
) -> list[str]:
    """Say how much of the data a stage keeps, and what it costs to know what.

    Args:
        context: the run.
        stage: the stage.
        split: the training samples.
        student: its student, whose tokens are counted.
        scorers: what the models are called that score documents, and the models.
    """
    select = stage.select
    positions = chosen(context, stage, split, context.experiment.settings.seeds[0])
    if select is None or positions is None:
        return []
    how = "at random" if select.name == "random" else "by log p(teacher) - log p(reference)"
    kept = f"learns from {len(positions):,} of {len(split):,} samples, chosen {how}"
    if isinstance(context.experiment.task, LanguageModelling):
        own = _tokens(context, student, split.subset(positions))
        # Which will be kept is not known before they are scored; any as many have about as many tokens.
        kept += f": about {own:,} of {_tokens(context, student, split):,} tokens"
    notes = [kept]
    if select.name == "difference":
        notes += [_scoring_note(context, whom, model, split) for whom, model in scorers]
    return notes


def _scoring_note(context: Context, whom: str, model: Model, split: Split) -> str:
    if context.cache is not None and is_complete(likelihood_file(context, model, split)):
        return f"the {whom} has scored the {len(split):,} documents before"
    size = min(context.experiment.settings.evaluation_batch_size, len(split))
    example = context.example(split, {"student": model.preprocess}, size)
    flops = cost.flops(model.module, example.inputs["student"])
    begin = time.perf_counter()
    with torch.no_grad():
        context.experiment.task.forward(model.module, example, "student")
    seconds = (time.perf_counter() - begin) * len(split) / size
    work = "" if flops is None else f", {flops * len(split) / size:.2g} FLOPs"
    return (
        f"before, the {whom} scores {len(split):,} documents once: about {seconds:.1f} s{work}; "
        f"{24 * len(split):,} bytes are kept"
    )


def _tokens(context: Context, model: Model, split: Split) -> int:
    """Return how many tokens a split has that are predicted, reckoned from some of its documents where it has many."""
    step = max(1, len(split) // COUNTED)
    part = split.subset(torch.arange(0, len(split), step)[:COUNTED])
    found = 0
    for positions in torch.arange(len(part)).split(32):
        batch = context.example(
            part.subset(positions), {"student": model.preprocess}, len(positions)
        )
        found += len(tokens_of(batch).labels)
    return round(found * len(split) / len(part))
