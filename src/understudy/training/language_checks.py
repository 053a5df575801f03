"""What is known to ruin the distillation of language models."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from understudy.errors import called
from understudy.evaluation.tokens import TokenPredictions
from understudy.models.model import Model
from understudy.teachers.listening import heard
from understudy.teachers.stored import StoredModel
from understudy.training.context import Context
from understudy.training.verdict import Verdict


def check_tokenizers(
    context: Context, student: Model, teachers: Mapping[str, Model | StoredModel]
) -> list[Verdict]:
    """Check that student and teachers read the same tokens, unless no method compares them token by token.

    Tokenizers are compared by what they do, not by their size.
    """
    verdicts = []
    own = _described(student)
    for name, teacher in teachers.items():
        whom, theirs = called(name), _described(teacher)
        check = f"tokenizer of the {whom}"
        needing = sorted(
            {
                method.name
                for make in context.experiment.arms.values()
                for stage in make()
                for method in stage.active_methods
                if method.uses_teacher
                and not method.crosses_tokenizers
                and name in heard(method.hears, list(teachers))
            }
        )
        if own == theirs:
            verdicts.append(
                Verdict(check, "ok", f"the same as the student's, {own['vocabulary']} tokens")
            )
            verdicts += _check_masks(whom, _masks(student), _masks(teacher), needing)
        elif not needing:
            verdicts.append(
                Verdict(check, "ok", "another than the student's, as the methods allow")
            )
        else:
            verdicts.append(
                Verdict(
                    check,
                    "refused",
                    f"Student ({own['vocabulary']} tokens) and {whom} ({theirs['vocabulary']} tokens) have different "
                    f"tokenizers, so that {', '.join(needing)} would compare different tokens. Give both the same "
                    "`tokenizer`, or use a method for different tokenizers, such as `uld`.",
                )
            )
    return verdicts


def check_language_teacher(
    teacher: TokenPredictions, student: TokenPredictions | None, *, split: str, whom: str
) -> list[Verdict]:
    """Check that a teacher predicts better than all tokens alike, and than the untrained student.

    Args:
        teacher: its predictions on a split.
        student: those of a student that starts from trained weights, else None.
        split: the split's name.
        whom: what a sentence calls the teacher.
    """
    value, chance = float(teacher.scores.nats.mean()), math.log(teacher.vocabulary)
    facts = f"{value:.4f} nats per token on {len(teacher)} {split} tokens, chance {chance:.4f}"
    if value >= chance:
        return [
            Verdict(
                f"{whom} against chance",
                "refused",
                f"The {whom} is no better than chance: {facts}. Check its weights and its tokenizer.",
            )
        ]
    verdicts = [Verdict(f"{whom} against chance", "ok", facts)]
    if student is not None and torch.equal(student.labels, teacher.labels):
        own = float(student.scores.nats.mean())
        worse = value > own
        verdicts.append(
            Verdict(
                f"{whom} against student",
                "refused" if worse else "ok",
                f"The {whom} needs {value:.4f} nats per token on the {split} split, the student {own:.4f} before "
                "training."
                + (" A teacher worse than its student has nothing to teach." if worse else ""),
            )
        )
    return verdicts


def _check_masks(
    whom: str, own: dict[str, object], theirs: dict[str, object], needing: list[str]
) -> list[Verdict]:
    """Check that student and teacher are asked for the same tokens, where tokens are taken out at random."""
    if own == theirs or not needing:
        return []
    return [
        Verdict(
            f"masks of the {whom}",
            "refused",
            f"The student is asked for other tokens ({own}) than the {whom} ({theirs}), so that {', '.join(needing)} "
            "would compare different tokens. Give both the same `share` and `seed`.",
        )
    ]


def _masks(model: Model | StoredModel) -> dict[str, object]:
    """Return what decides which tokens are taken out; nothing where none are."""
    config = (
        model.store.key.preprocess or {}
        if isinstance(model, StoredModel)
        else model.preprocess.config()
    )
    return {name: config[name] for name in ("share", "seed") if name in config}


def _described(model: Model | StoredModel) -> dict[str, object]:
    if isinstance(model, StoredModel):
        known = model.store.key.preprocess or {}
        return {"tokenizer": known.get("tokenizer"), "vocabulary": model.width}
    config = model.preprocess.config()
    vocabulary = getattr(model.preprocess, "vocabulary", None)
    return {"tokenizer": config.get("tokenizer"), "vocabulary": vocabulary}
