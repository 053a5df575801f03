"""To which of several teachers a method listens: one, an average of some, or for each sample another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import torch

from understudy.data.batch import UNLABELLED, Batch
from understudy.errors import UnderstudyError, unknown_name
from understudy.models.outputs import Outputs

RESERVED = ("student", "by", "classes", "among")
"""What no teacher may be called: the student's role, and the keys of `Route`."""


@dataclass(frozen=True)
class Route:
    """For each sample the logits of one teacher; all of them are run on the whole batch.

    Attributes:
        by: "label": the teacher that is named for the sample's class (of soft labels the class with the largest share;
            a sample without a label gets the average of all these teachers). "confidence": the teacher whose
            probabilities at temperature 1 have the lowest entropy, the first one where several have.
        classes: with "label": teacher name -> numbers of its classes, from 0; together every class once.
        among: with "confidence": the names of the teachers; None for all.
    """

    by: Literal["label", "confidence"]
    classes: dict[str, list[int]] | None = None
    among: list[str] | None = None

    def __post_init__(self) -> None:
        """Check that what is given belongs together."""
        if self.by not in ("label", "confidence"):
            raise unknown_name("route", str(self.by), ("label", "confidence"))
        if (self.classes is not None) != (self.by == "label"):
            raise UnderstudyError(
                "a route by label needs `classes` (teacher name -> numbers of its classes), one by confidence has none"
            )
        if self.among is not None and (self.by == "label" or not self.among):
            raise UnderstudyError(
                "`among` names the teachers of a route by confidence, at least one"
            )
        given = [number for own in (self.classes or {}).values() for number in own]
        twice = sorted({number for number in given if given.count(number) > 1})
        if twice:
            raise UnderstudyError(f"class {twice[0]} is given to several teachers")

    def check_classes(self, count: int) -> None:
        """Refuse classes that no teacher is named for, or that the data does not have.

        Raises:
            UnderstudyError: names them.
        """
        if self.classes is None:
            return
        given = {number for own in self.classes.values() for number in own}
        missing, unknown = sorted(set(range(count)) - given), sorted(given - set(range(count)))
        if missing or unknown:
            what = f"no teacher for {_listed(missing)}" if missing else ""
            what += " and " if missing and unknown else ""
            what += f"{_listed(unknown)}, which the data does not have" if unknown else ""
            raise UnderstudyError(f"A route by label names {what}; the data has {count} classes.")


Hears = str | Sequence[str] | Mapping[str, float] | Route
"""One teacher by name; the average of several; an average with weights; or a route."""


def check_hears(hears: Hears) -> None:
    """Refuse what names nobody, or weights that make no average.

    Raises:
        UnderstudyError: says what is wrong.
    """
    if isinstance(hears, str | Route):
        return
    if not hears or len(set(hears)) != len(list(hears)):
        raise UnderstudyError(
            f"an average needs the names of its teachers, each once; got {list(hears)}"
        )
    if isinstance(hears, Mapping) and not all(weight > 0 for weight in hears.values()):
        raise UnderstudyError(
            f"the weights of an average must be greater than 0; got {dict(hears)}"
        )


def heard(hears: Hears | None, teachers: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the teachers that are listened to.

    Args:
        hears: what was asked for; None for all that there are.
        teachers: the names of those that there are.

    Raises:
        UnknownName: a name that there is not.
    """
    names: Sequence[str]
    if hears is None:
        names = list(teachers)
    elif isinstance(hears, str):
        names = [hears]
    elif isinstance(hears, Route):
        names = list(hears.classes or hears.among or teachers)
    else:
        names = list(hears)
    for name in names:
        if name not in teachers:
            raise unknown_name("teacher", name, teachers)
    return tuple(names)


class Combined(Outputs):
    """What several teachers say together: logits only.

    Args:
        hears: how they are combined; None for the average of all.
        outputs: teacher name -> its outputs.
        batch: the batch, whose labels a route may look at.
        temperature: T, at which probabilities are averaged: softmax(logits / T) is the mean of the teachers'
            softmax(z / T). Of a route's logits, which are those of one teacher, it decides nothing.
        method: who asks, for errors.
    """

    def __init__(
        self,
        hears: Hears | None,
        outputs: Mapping[str, Outputs],
        batch: Batch,
        *,
        temperature: float,
        method: str,
    ) -> None:
        """Compute nothing yet."""
        names = heard(hears, list(outputs))
        self._parts = {name: outputs[name] for name in names}
        self._hears, self._batch, self._temperature = hears, batch, temperature
        self._method = method
        self.features, self.top_k = _NoFeatures(names, method), None

    @cached_property
    def logits(self) -> torch.Tensor:  # type: ignore[override]
        """The combined logits [B, C]."""
        rows = torch.stack(self._logits())
        if not isinstance(self._hears, Route):
            weights = self._hears if isinstance(self._hears, Mapping) else {}
            return averaged(
                rows, [weights.get(name, 1.0) for name in self._parts], self._temperature
            )
        if self._hears.by == "confidence":
            return chosen(rows, entropies(rows).argmin(dim=0))
        return self._by_label(rows)

    def _by_label(self, rows: torch.Tensor) -> torch.Tensor:
        assert isinstance(self._hears, Route) and self._hears.classes is not None
        self._hears.check_classes(rows.shape[2])
        labels = self._batch.labels
        average = averaged(rows, [1.0] * len(rows), self._temperature)
        if labels is None:
            return average
        present = labels != UNLABELLED
        if labels.is_floating_point():
            present, labels = labels.sum(dim=1) > 0.5, labels.argmax(dim=1)
        classes = tuple(tuple(own) for own in self._hears.classes.values())
        whose = _owners(classes, rows.device)[labels.clamp_min(0)]
        return torch.where(present.unsqueeze(1), chosen(rows, whose), average)

    def _logits(self) -> list[torch.Tensor]:
        found = []
        for name, part in self._parts.items():
            if part.logits is None:
                raise UnderstudyError(f"The teacher '{name}' gives no logits to combine.")
            found.append(part.logits.detach())
        shapes = {name: tuple(one.shape) for name, one in zip(self._parts, found, strict=True)}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"'{name}' {shape}" for name, shape in shapes.items())
            raise UnderstudyError(
                f"Teachers whose logits differ in shape cannot be combined: {listed}."
            )
        return [one if one.dtype == torch.float64 else one.float() for one in found]


class _NoFeatures(dict[str, torch.Tensor]):
    """Features of several teachers at once, which there are none of."""

    def __init__(self, names: Sequence[str], method: str) -> None:
        super().__init__()
        self._names, self._method = names, method

    def __missing__(self, tap: str) -> torch.Tensor:
        raise UnderstudyError(name_one(self._method, self._names))


def name_one(method: str, teachers: Sequence[str]) -> str:
    """Return the refusal of a method that reads features of several teachers at once."""
    return (
        f"Method '{method}' reads features, or something else of one teacher, and listens to {len(teachers)}: "
        f"{', '.join(teachers)}. Name one of them: {{name: {method}, teacher: {next(iter(teachers), 'NAME')}}}."
    )


def averaged(rows: torch.Tensor, weights: Sequence[float], temperature: float) -> torch.Tensor:
    """Return logits [B, C] whose softmax at a temperature is the mean of the teachers' softened probabilities.

    Equation: T * log sum_k w_k softmax(z_k / T), with the weights w_k divided by their sum.

    Args:
        rows: [K, B, C], the teachers' logits.
        weights: K numbers greater than 0.
        temperature: T.
    """
    whole = sum(weights)
    logs = [
        (row / temperature).log_softmax(dim=1) + math.log(weight / whole)
        for row, weight in zip(rows, weights, strict=True)
    ]
    return temperature * torch.stack(logs).logsumexp(dim=0)


def entropies(rows: torch.Tensor) -> torch.Tensor:
    """Return the entropy [...] of softmax over the last dimension of [..., C], in nats."""
    logs = rows.log_softmax(dim=-1)
    return -torch.where(logs.isneginf(), 0.0, logs.exp() * logs).sum(dim=-1)


def chosen(rows: torch.Tensor, whose: torch.Tensor) -> torch.Tensor:
    """Return [B, C]: for each sample the row of the teacher number `whose` [B] among [K, B, C]."""
    return rows[whose, torch.arange(rows.shape[1], device=rows.device)]


@lru_cache(maxsize=16)
def _owners(classes: tuple[tuple[int, ...], ...], device: torch.device) -> torch.Tensor:
    """Return int64 [C], the number of each class's teacher; kept, so that no step waits for a copy to the device."""
    owner = torch.zeros(sum(map(len, classes)), dtype=torch.int64)
    for number, own in enumerate(classes):
        owner[list(own)] = number
    return owner.to(device)


def _listed(numbers: Sequence[int]) -> str:
    return ("class " if len(numbers) == 1 else "the classes ") + ", ".join(map(str, numbers))
