"""The columns of the tables: which numbers there are, what they are called and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.report.formatting import Column, count, duration, size
from understudy.report.measure import ACCURACY, Measure, Words
from understudy.report.run import RunData
from understudy.report.statistics import Row

QUALITY = (
    Column(
        "accuracy",
        "Accuracy %",
        "Share of test samples that are classified rightly.",
        100,
        2,
        "higher",
    ),
    Column("macro_f1", "Macro-F1 %", "F1 score, each class counting the same.", 100, 2, "higher"),
    Column("nll", "NLL nats", "Mean negative log-likelihood of the true class.", 1, 3, "lower"),
    Column(
        "ece",
        "ECE %",
        "Expected calibration error over 15 bins: |confidence − accuracy|.",
        100,
        2,
        "lower",
    ),
    Column(
        "agreement",
        "Agreement %",
        "Share of test samples on which the teacher answers the same.",
        100,
        2,
        "higher",
    ),
    Column(
        "kl", "KL nats", "KL(teacher ‖ student) at temperature 1, mean over samples.", 1, 3, "lower"
    ),
)
LANGUAGE = (
    Column(
        "perplexity",
        "Perplexity",
        "Exponential of the NLL: among how many equally likely tokens the model is left to choose.",
        1,
        2,
        "lower",
    ),
    Column(
        "nll",
        "NLL nats/token",
        "Mean negative log-likelihood of the true token, over all predicted tokens of the test split.",
        1,
        3,
        "lower",
    ),
    Column(
        "bits_per_byte",
        "Bits/byte",
        "Negative log-likelihood of the texts in bits for each byte; comparable between tokenizers.",
        1,
        3,
        "lower",
    ),
    Column(
        "accuracy",
        "Token accuracy %",
        "Share of predicted tokens that are the one the model thinks most likely.",
        100,
        2,
        "higher",
    ),
    Column(
        "ece",
        "ECE %",
        "Expected calibration error over 15 bins of the tokens: |confidence − accuracy|.",
        100,
        2,
        "lower",
    ),
    Column(
        "agreement",
        "Agreement %",
        "Share of tokens at which student and teacher think the same one most likely.",
        100,
        2,
        "higher",
    ),
    Column(
        "kl",
        "KL nats/token",
        "KL(teacher ‖ student) at temperature 1, mean over tokens.",
        1,
        3,
        "lower",
    ),
    Column(
        "exact_match",
        "Exact match %",
        "Share of written answers that equal the reference.",
        100,
        2,
        "higher",
    ),
    Column(
        "rouge_l",
        "Rouge-L %",
        "Longest common subsequence of words of written answer and reference (F1).",
        100,
        2,
        "higher",
    ),
)
GEOMETRY = (
    Column(
        "procrustes",
        "Procrustes",
        "Squared Procrustes distance of the embeddings to the teacher's, 0 to 2.",
        1,
        3,
        "lower",
    ),
    Column(
        "gram", "Gram", "Squared distance of the embeddings' Gram matrices, 0 to 2.", 1, 3, "lower"
    ),
    Column(
        "cka",
        "CKA",
        "Linear centred kernel alignment of the embeddings, 0 to 1.",
        1,
        3,
        "higher",
    ),
    Column(
        "cosine_gap",
        "Cosine gap",
        "Mean difference of the cosines between two embeddings, over pairs of samples.",
        1,
        3,
        "lower",
    ),
)


@dataclass(frozen=True)
class Columns:
    """The columns of a report's tables."""

    quality: tuple[Column, ...]
    geometry: tuple[Column, ...]
    cost: tuple[Column, ...]
    training: tuple[Column, ...]

    @property
    def table(self) -> tuple[Column, ...]:
        """Return those of the table that a terminal shows."""
        return (*self.quality, *self.cost, self.training[0])

    @property
    def every(self) -> tuple[Column, ...]:
        """Return all, table after table."""
        return (*self.quality, *self.geometry, *self.cost, *self.training)


def columns_of(run: RunData, rows: Sequence[Row]) -> Columns:
    """Return the columns for a run and others of its kind.

    Args:
        run: says the task and the main measure.
        rows: of all runs on the page; quality that none of them was measured for has no column, but for a
            classification, whose columns are always the same.
    """
    found = {key for row in rows for key in row.values}
    return Columns(_quality(run, found), GEOMETRY, _cost(run.words), _training(run.words, found))


def _quality(run: RunData, found: set[str]) -> tuple[Column, ...]:
    measure = run.measure
    if measure == ACCURACY and not run.words.language:
        return QUALITY
    known = LANGUAGE if run.words.language else QUALITY
    main = [] if measure.name in {column.key for column in known} else [_main(measure)]
    shown = [*main, *(column for column in known if column.key in found)]
    return tuple(sorted(shown, key=lambda column: column.key != measure.level_name))


def _main(measure: Measure) -> Column:
    """Return the column of a measure that only the run knows."""
    form, unit = measure.level, measure.level.suffix
    explanation = "The quantity by which this run's members are compared."
    title = f"{measure.titled}{unit}"
    return Column(measure.name, title, explanation, form.scale, form.decimals, measure.better)


def _cost(words: Words) -> tuple[Column, ...]:
    one = words.pass_of
    return (
        Column("parameters", "Parameters", "Numbers in the model.", better="lower", form=count),
        Column(
            "flops",
            "FLOPs",
            f"Floating-point operations for one {one}; a multiply-add counts 2.",
            better="lower",
            form=count,
        ),
        Column("bytes", "On disk", "Bytes of the exported model.", better="lower", form=size),
        Column(
            "latency_ms.1",
            "ms, batch 1",
            f"Median time of a warm forward pass of one {one}.",
            1,
            2,
            "lower",
        ),
        Column(
            "latency_ms.64",
            "ms, batch 64",
            f"Median time of a warm forward pass of 64 {one}s.",
            1,
            2,
            "lower",
        ),
    )


def _training(words: Words, found: set[str]) -> tuple[Column, ...]:
    many = words.samples
    tokens = Column("tokens", "Tokens seen", "Training tokens, counted each time.", form=count)
    return (
        Column(
            "train_seconds",
            "Training time",
            "Wall-clock time of training, mean over seeds.",
            form=duration,
        ),
        Column("steps", "Steps", "Optimiser steps.", form=count),
        Column(
            "samples",
            f"{many.capitalize()} seen",
            f"Training {many} drawn, counted each time.",
            form=count,
        ),
        *([tokens] if "tokens" in found else []),
        Column(
            "peak_memory_bytes",
            "Peak memory",
            "Of the process on a CPU, of the allocator on a GPU.",
            form=size,
        ),
    )
