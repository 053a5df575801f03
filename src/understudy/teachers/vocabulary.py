"""What a teacher's features are told apart by, place by place: visual words, or sub-classes of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from understudy.data.batch import UNLABELLED
from understudy.objectives.feature.assignments import soft_assignment
from understudy.teachers.clustering import Array, class_kmeans, kmeans, resolve, score_table
from understudy.teachers.discriminants import Discriminants, discriminants
from understudy.teachers.features import Features
from understudy.teachers.notes import Note
from understudy.teachers.readings import Reading, Seen
from understudy.teachers.statistics import ClassMoments
from understudy.teachers.study import Study

ROWS_PER_CENTRE = 39
"""Rows that a centre should stand for at least, as faiss asks for."""
LOOKED_AT = 16_384
"""Rows by which the confidence of an assignment is measured, at most."""
WORD_ITERATIONS = 20
"""Iterations of k-means for visual words, as published."""
_CHUNK = 65_536


@dataclass(frozen=True)
class SubClasses:
    """Sub-classes of the classes, and how far they are mistaken for each other.

    Attributes:
        mean: float64 [D], what is subtracted from a row first.
        directions: float64 [D, n], the linear discriminants.
        centres: float64 [C, S, n], in their space.
        table: float64 [C * S, C * S], `clustering.score_table`.
    """

    mean: torch.Tensor
    directions: torch.Tensor
    centres: torch.Tensor
    table: torch.Tensor


def visual_words(
    study: Study, reading: Reading, count: int, *, sharpness: float, sequence: bool
) -> torch.Tensor:
    """Return the words of a reading, float64 [K, D], and note how sure the assignment to them is.

    Args:
        study: what `Method.fit` got.
        reading: what is read, in the form "rows".
        count: number of words K.
        sharpness: see `objectives.soft_assignment`.
        sequence: whether it gives tokens, of which padding is left out.
    """
    if sequence:
        centres = _token_words(study, reading, count)
    else:
        centres = study.kmeans(reading, count, iterations=WORD_ITERATIONS)

    def make(inner: Study) -> dict[str, torch.Tensor]:
        rows, _ = _rows(inner, reading, sequence)
        chosen = np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).astype(np.int64)
        values = torch.from_numpy(np.array(rows[chosen], dtype=np.float32))
        parts = [
            soft_assignment(part, centres, sharpness).amax(dim=-1) for part in values.split(1024)
        ]
        return {"mean_largest": torch.cat(parts).mean()}

    settings = {"version": 1, "count": count, "sharpness": sharpness}
    found = study.artefact("word_confidence", settings, make, of=[Features(reading)])
    if not study.provisional:
        sure = float(found["mean_largest"])
        study.notes.append(
            Note(study.method, f"mean largest probability of {count} words: {sure:.3f}", 0, 0)
        )
    return centres


def sub_classes(
    study: Study, reading: Reading, each: int, directions: int, *, sequence: bool
) -> SubClasses:
    """Return sub-classes of a reading: linear discriminants, k-means of each class in their space, the table.

    Args:
        study: what `Method.fit` got.
        reading: what is read, in the form "rows".
        each: sub-classes of each class S.
        directions: number of discriminants n.
        sequence: whether it gives tokens, of which padding is left out.

    Raises:
        DataError: there are fewer discriminants, or a class has fewer different rows than sub-classes.
    """
    moments = ClassMoments(reading, covariance="pooled")
    settings = {"version": 1, "each": each, "directions": directions, "backend": resolve("auto")}

    def make(inner: Study) -> dict[str, torch.Tensor]:
        inner.collect(moments)
        space = discriminants(moments, directions, provisional=inner.provisional)
        rows, labels = _rows(inner, reading, sequence)
        kept = torch.nonzero(labels != UNLABELLED).flatten()
        projected = _projected(rows, kept, space)
        clusters = class_kmeans(
            projected,
            labels[kept],
            each,
            classes=inner.classes,
            provisional=inner.provisional,
        )
        return {
            "mean": space.mean,
            "directions": space.directions,
            "centres": clusters.centres.view(len(inner.classes), each, directions),
            "table": score_table(projected, clusters),
        }

    found = study.artefact("sub_classes", settings, make, of=[moments, Features(reading)])
    if not study.provisional:
        right = float(found["table"].diagonal().mean())
        study.notes.append(
            Note(
                study.method,
                f"mean share of rows nearest to their own sub-class: {right:.3f}",
                0,
                0,
            )
        )
    return SubClasses(**{name: found[name] for name in SubClasses.__dataclass_fields__})


def _token_words(study: Study, reading: Reading, count: int) -> torch.Tensor:
    """Return the centres of tokens that are no padding; `Study.kmeans` takes features of one shape."""

    def make(inner: Study) -> Mapping[str, torch.Tensor]:
        rows, _ = _rows(inner, reading, True)
        found = kmeans(
            rows,
            count,
            iterations=WORD_ITERATIONS,
            what=f"the tokens of '{reading.tap}'",
            provisional=inner.provisional,
        )
        return {"centres": found.centres}

    settings = {"version": 1, "count": count, "seed": 0, "backend": resolve("auto")}
    return study.artefact("token_words", settings, make, of=[Features(reading)])["centres"]


def _rows(study: Study, reading: Reading, sequence: bool) -> tuple[Array, torch.Tensor]:
    """Return all rows of a reading [R, D] and the label of each, int64 [R], -1 for none."""
    split = study.split
    if not sequence:
        features = Features(reading)
        study.collect(features)
        return features.flat(), features.per_row(split.ids, split.labels)
    rows, labels = [], []
    for batch, outputs in study.passes(reading):
        found, owners = Seen(batch, outputs, len(study.classes)).rows(reading)
        rows.append(found.cpu())
        told = batch.labels
        labels.append(
            torch.full_like(owners, UNLABELLED).cpu() if told is None else told[owners].cpu()
        )
    values: Array = torch.cat(rows).numpy()
    return values, torch.cat(labels)


def _projected(rows: Array, kept: torch.Tensor, space: Discriminants) -> Array:
    """Return the kept rows in the space of the discriminants, float32 [R, n]."""
    parts: list[Any] = [np.empty((0, space.directions.shape[1]), np.float32)]
    for part in kept.split(_CHUNK):
        values = torch.from_numpy(np.array(rows[part.numpy()], dtype=np.float32))
        parts.append(space(values).float().numpy())
    return np.concatenate(parts)
