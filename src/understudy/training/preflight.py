"""Preflight: what is known to ruin a run is found before anything is spent."""

from __future__ import annotations

import math

import torch

from understudy.data.labels import check_label_maps
from understudy.errors import PreflightError, called
from understudy.evaluation.assessment import Answers
from understudy.evaluation.classification import accuracy
from understudy.evaluation.tokens import TokenPredictions
from understudy.methods import Ramp
from understudy.models.model import Model
from understudy.models.taps import unchanged
from understudy.tasks import LanguageModelling
from understudy.teachers.stored import StoredModel
from understudy.training.context import Context, Teachers
from understudy.training.language_checks import check_language_teacher, check_tokenizers
from understudy.training.stage_run import StageRun
from understudy.training.verdict import Verdict

CHANCE_PROBABILITY = 0.01
"""A teacher whose accuracy random guessing reaches with at least this probability is no better than chance."""
ENOUGH_TO_JUDGE = 50
"""With fewer samples, a teacher above chance is only warned of when chance could explain it."""
DEAD_VARIANCE = 1e-12
"""A tap whose values vary less than this over an example batch tells nothing."""


def check_outputs(context: Context, student: Model, teachers: Teachers) -> list[Verdict]:
    """Check that the outputs of student and teachers mean the same: classes, or tokens."""
    if isinstance(context.experiment.task, LanguageModelling):
        return check_tokenizers(context, student, teachers)
    return check_classes(context.classes, measure_classes(context, student, teachers))


def measure_classes(
    context: Context, student: Model, teachers: Teachers
) -> dict[str, tuple[Model | StoredModel, int | None]]:
    """Run an example through each model; return role -> (model, number of its logits)."""
    found: dict[str, tuple[Model | StoredModel, int | None]] = {}
    everyone: dict[str, Model | StoredModel] = {"student": student, **teachers}
    for role, model in everyone.items():
        if isinstance(model, StoredModel):
            found[role] = (model, model.width)
            continue
        batch = context.example(context.splits.train, {"student": model.preprocess}, size=2)
        with unchanged(model.module), torch.no_grad():
            model.module.eval()
            logits = context.experiment.task.forward(model.module, batch, "student").logits
        found[role] = (model, None if logits is None else int(logits.shape[-1]))
    return found


def check_classes(
    classes: tuple[str, ...], models: dict[str, tuple[Model | StoredModel, int | None]]
) -> list[Verdict]:
    """Check the number of classes of each model, and the names of those that know theirs, against the data.

    Args:
        classes: the data's class names.
        models: role -> (model, how many logits it gives; None when not measured).
    """
    verdicts = []
    for role, (model, width) in models.items():
        known: tuple[str, ...] | int | None = model.classes or width
        whom = called(role)
        check = f"classes of the {whom}"
        try:
            if width is not None and width != len(classes):
                raise PreflightError(
                    f"The {whom} gives {width} logits, but the data has {len(classes)} classes. Build it with "
                    f"{len(classes)} classes, or replace its classifier."
                )
            if known is not None:
                check_label_maps(classes, **{role if role == "student" else "teacher": known})
        except PreflightError as error:
            told = str(error) if whom in str(error) else f"The {whom}: {error}"
            verdicts.append(Verdict(check, "refused", told))
        else:
            verdicts.append(Verdict(check, "ok", f"{len(classes)} classes"))
    return verdicts


def check_teacher(
    teacher: Answers, student: Answers | None, *, split: str, name: str = "teacher"
) -> list[Verdict]:
    """Check that a teacher is better than chance, and than the untrained student.

    Args:
        teacher: its predictions on a labelled split.
        student: those of a student that starts from trained weights, else None.
        split: the split's name.
        name: the teacher's name, where there are several.
    """
    whom = called(name)
    if isinstance(teacher, TokenPredictions):
        assert student is None or isinstance(student, TokenPredictions)
        return check_language_teacher(teacher, student, split=split, whom=whom)
    labelled = teacher.labelled()
    count, value = len(labelled), accuracy(teacher)
    chance = 1 / teacher.classes
    probability = _guessing_probability(round(value * count), count, chance)
    facts = f"accuracy {value:.4f} on {count} {split} samples, chance {chance:.4f}"
    verdicts = [Verdict(f"{whom} against chance", "ok", facts)]
    if probability > CHANCE_PROBABILITY and value > chance and count < ENOUGH_TO_JUDGE:
        few = f"{count} labelled samples are too few to tell whether the {whom} is better than chance: {facts}."
        verdicts = [Verdict(f"{whom} against chance", "warning", few)]
    elif probability > CHANCE_PROBABILITY:
        return [
            Verdict(
                f"{whom} against chance",
                "refused",
                f"The {whom} is no better than chance: {facts}. Check its weights, its preprocessing and the "
                "order of its classes.",
            )
        ]
    if student is not None:
        assert not isinstance(student, TokenPredictions)
        own = accuracy(student)
        worse = value < own
        verdicts.append(
            Verdict(
                f"{whom} against student",
                "refused" if worse else "ok",
                f"The {whom}'s accuracy is {value:.4f} on the {split} split, the student's {own:.4f} before training."
                + (" A teacher worse than its student has nothing to teach." if worse else ""),
            )
        )
    return verdicts


def check_stage(run: StageRun, arm: str) -> list[Verdict]:
    """Run one step of a stage that leaves no trace, and look at its taps and its losses."""
    place = f"arm '{arm}', stage '{run.stage.name}'"
    if any(isinstance(method.weight, Ramp) for method in run.module.active):
        # A method that is silent half-way may still ask for what is not there.
        for progress in (0.0, 1.0):
            run.trial(run.precision, run.example, progress)
    terms = run.trial(run.precision, run.example)
    verdicts = []
    bad = [name for name, value in terms.items() if not math.isfinite(float(value))]
    if bad:
        verdicts.append(
            Verdict(
                "first loss",
                "refused",
                f"{place}: {', '.join(bad)} is not finite on the first samples. Look at the data, the weights that "
                "the models start from, and the teacher.",
            )
        )
    else:
        shown = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
        verdicts.append(Verdict("first loss", "ok", f"{place}: {shown}"))
    verdicts += _check_taps(run, place)
    unreached = run.unreached
    if unreached:
        verdicts.append(
            Verdict(
                "gradients",
                "warning",
                f"{place}: the loss does not reach {len(unreached)} trainable parameters, such as '{unreached[0]}'.",
            )
        )
    return verdicts


def _check_taps(run: StageRun, place: str) -> list[Verdict]:
    verdicts = []
    features = {
        "student": run.student_features(),
        **{name: live.targets(run.example).features for name, live in run.teachers.items()},
    }
    for role, found in features.items():
        for name, tensor in found.items():
            variance = float(tensor.float().var()) if tensor.numel() > 1 else 0.0
            if not variance > DEAD_VARIANCE:
                verdicts.append(
                    Verdict(
                        "taps",
                        "refused",
                        f"{place}: the {called(role)}'s tap '{name}' is dead: its values do not vary over a batch "
                        f"(variance {variance:.1e}). Choose another tap.",
                    )
                )
    taps = sum(len(found) for found in features.values())
    if taps and not verdicts:
        verdicts.append(Verdict("taps", "ok", f"{place}: {taps} taps, all alive"))
    return verdicts


def _guessing_probability(hits: int, count: int, chance: float) -> float:
    """Return the probability that guessing gets at least `hits` of `count` right."""
    from scipy.stats import binom

    return float(binom.sf(hits - 1, count, chance))
