"""Fewer labels, smaller parts and label maps that agree."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from understudy.data.batch import UNLABELLED
from understudy.data.source import Source, Split
from understudy.errors import DataError, PreflightError
from understudy.seeding import derive, uniform

_GENERIC = re.compile(r"(label|class)? ?\d+")


def keep_labels(split: Split, count: int | float, *, stratified: bool = True, seed: int) -> Split:
    """Return the same samples with `count` labels kept and the others hidden as -1.

    Args:
        split: the samples; those without a label stay without.
        count: an integer is a number of labels, a float in (0, 1] a fraction of those there are.
        stratified: give every class labels in proportion to its size, and at least one when `count` allows it.
        seed: which labels are drawn.

    The choice depends on (seed, sample ids, labels) only, not on the order of the samples, and it is nested: what
    100 labels keep is a part of what 200 keep under the same seed. For that the classes' shares come from the
    Sainte-Lague divisor method, which never takes a seat back when there are more to give; largest remainders can.
    The two differ by at most a label or so in a class, and for classes of equal size not at all.

    Raises:
        DataError: `count` is negative, more than there are labels, or a fraction outside (0, 1].
    """
    labelled = split.labelled
    kept = _number(count, len(labelled), "labels to keep", "labelled samples")
    order = _order(split, labelled, stratified, seed, "keep_labels", spare=False)
    labels = torch.full_like(split.labels, UNLABELLED)
    chosen = order[:kept]
    labels[chosen] = split.labels[chosen]
    return split.with_labels(labels)


def remainders(source: Source, modulus: int) -> Source:
    """Return a source whose classes are the remainders of the labels: with 2, "even" and "odd".

    So one can have few classes that hold known groups. Samples, ids and missing labels stay.

    Args:
        source: the data.
        modulus: by what labels are divided, from 2 to the number of classes.

    Raises:
        DataError: `modulus` is out of that range.
    """
    count = len(source.classes)
    if not 2 <= modulus <= count:
        raise DataError(
            f"Source '{source.name}': the remainder of {count} labels modulo {modulus} was asked for; it must be "
            f"between 2 and {count}."
        )

    def divided(split: Split) -> Split:
        labels = split.labels
        return split.with_labels(torch.where(labels == UNLABELLED, labels, labels % modulus))

    return replace(
        source,
        train=divided(source.train),
        test=divided(source.test),
        validation=None if source.validation is None else divided(source.validation),
        classes=("even", "odd")
        if modulus == 2
        else tuple(f"{rest} mod {modulus}" for rest in range(modulus)),
    )


def carve(
    split: Split, count: int | float, *, stratified: bool = True, seed: int
) -> tuple[Split, Split]:
    """Take labelled samples out of a split, to select or to test on.

    Args:
        split: the samples; those without a label are never taken, since nothing can be measured on them.
        count: an integer is a number of samples, a float in (0, 1) a fraction of the labelled ones.
        stratified: take from every class in proportion to its size, at least one when `count` allows it, and a
            class's last sample only when nothing else is left.
        seed: which samples are taken. As in `keep_labels`, only (seed, sample ids, labels) matter and larger parts
            contain smaller ones.

    Returns:
        (rest, carved), both in the order of `split`.

    Raises:
        DataError: one of the two would be empty, or there are too few labels.
    """
    labelled = split.labelled
    taken = _number(count, len(labelled), "samples to carve out", "labelled samples")
    if taken == 0 or taken == len(split):
        raise DataError(
            f"Carving {count} out of {len(split)} samples ({len(labelled)} labelled) leaves "
            f"{'nothing to carve' if taken == 0 else 'no rest'}; both parts must hold at least one sample."
        )
    order = _order(split, labelled, stratified, seed, "carve", spare=True)
    inside = torch.zeros(len(split), dtype=torch.bool)
    inside[order[:taken]] = True
    return split.subset(torch.nonzero(~inside).flatten()), split.subset(
        torch.nonzero(inside).flatten()
    )


def check_label_maps(
    data_classes: Sequence[str],
    *,
    teacher: Sequence[str] | int | None = None,
    student: Sequence[str] | int | None = None,
) -> None:
    """Refuse label maps that differ.

    Args:
        data_classes: class names of the data, in label order.
        teacher: class names of the teacher in logit order, or only their number when it names none; None: no teacher.
        student: the same for the student.

    Names are compared without case and with "_", "-" and " " taken as equal. A name that carries no information
    ("LABEL_0", "class 3", "7"), that is unknown on the other side or that occurs there twice is passed over.

    Raises:
        PreflightError: the numbers differ, or a name stands for another index on the other side.
    """
    maps: list[tuple[str, Sequence[str] | int]] = [("the data", data_classes)]
    maps += [
        (role, classes)
        for role, classes in (("the teacher", teacher), ("the student", student))
        if classes is not None
    ]
    for (one, first), (other, second) in itertools.combinations(maps, 2):
        sizes = [
            classes if isinstance(classes, int) else len(classes) for classes in (first, second)
        ]
        if sizes[0] != sizes[1]:
            raise PreflightError(
                f"{one.capitalize()} and {other} do not have the same number of classes: {one} "
                f"{_has(one)} {sizes[0]} and {other} {_has(other)} {sizes[1]}."
            )
        if not isinstance(first, int) and not isinstance(second, int):
            _check_order(one, first, other, second)


def _has(role: str) -> str:
    return "have" if role == "the data" else "has"


def _check_order(one: str, first: Sequence[str], other: str, second: Sequence[str]) -> None:
    positions, others = _informative(first), _informative(second)
    for name, index in positions.items():
        if name in others and others[name] != index:
            raise PreflightError(
                f"{one.capitalize()} and {other} order their classes differently: '{first[index]}' is class "
                f"{index} of {one} but class "
                f"{others[name]} of {other}, whose class {index} is '{second[index]}'. Give the data's "
                "`classes` in the order "
                f"{list(second) if len(second) <= 20 else 'that the model uses'}, or use a model with the "
                "data's order."
            )


def _informative(classes: Sequence[str]) -> dict[str, int]:
    """Return normalised name -> index for the names that say something and occur once."""
    names = [re.sub(r"[\s_-]+", " ", name).strip().casefold() for name in classes]
    occurrences = Counter(names)
    return {
        name: index
        for index, name in enumerate(names)
        if not _GENERIC.fullmatch(name) and occurrences[name] == 1
    }


def _number(count: int | float, available: int, what: str, of: str) -> int:
    """Turn a number or a fraction of `available` into a number."""
    if isinstance(count, bool) or not isinstance(count, int | float):
        raise DataError(f"The number of {what} is {count!r}; it must be an integer or a fraction.")
    if isinstance(count, float):
        if not 0 < count <= 1:
            raise DataError(
                f"The fraction of {what} is {count}; it must lie in (0, 1]. A number of samples is written as "
                "an integer."
            )
        return round(count * available)
    if not 0 <= count <= available:
        raise DataError(f"The number of {what} is {count}, but there are {available} {of}.")
    return count


def _order(
    split: Split, indices: torch.Tensor, stratified: bool, seed: int, purpose: str, *, spare: bool
) -> torch.Tensor:
    """Order `indices` so that its first n entries are the choice of n samples, for any n.

    Within a class the order is drawn at random. Between classes, the sample that would be the (s + 1)-th of a class
    of n samples has priority n / (s + 1/2), Sainte-Lague's; every class's first one comes before all of these. With
    `spare`, every class's last one comes after them.
    """
    ids = split.ids[indices].numpy()
    draws = uniform(seed, split.ids[indices], torch.zeros_like(indices), purpose)[:, 0].numpy()
    if not stratified:
        return indices[torch.from_numpy(np.lexsort((ids, draws)))]
    labels = split.labels[indices].numpy()
    by_class = np.lexsort((ids, draws, labels))
    _, start, inverse, size = np.unique(
        labels[by_class], return_index=True, return_inverse=True, return_counts=True
    )
    seat = np.arange(len(by_class)) - start[inverse]
    priority = size[inverse] / (seat + 0.5)
    priority[seat == 0] = np.inf
    if spare:
        priority[seat == size[inverse] - 1] = 0.0
    # Classes that tie take turns in an order drawn by the seed, lest the first ones in the alphabet always win.
    turn = np.array([derive(seed, purpose, int(label)) for label in labels[by_class][start]])[
        inverse
    ]
    return indices[torch.from_numpy(by_class[np.lexsort((turn, -size[inverse], -priority))])]
