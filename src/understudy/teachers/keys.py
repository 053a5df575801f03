"""The identity of what is fitted: which teacher, which samples, which view, which settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from understudy.data.source import Split
from understudy.data.views import Views
from understudy.models.model import Model, fingerprint
from understudy.teachers.accumulating import Statistic
from understudy.teachers.artefacts import Key
from understudy.teachers.readings import only


@dataclass
class Identity:
    """What everything that is fitted in a stage has in common.

    Attributes:
        split: the samples with the labels that may be seen.
        teachers: teacher name -> model.
        views: the run's transforms.
    """

    split: Split
    teachers: Mapping[str, Model]
    views: Views

    def statistic(self, statistic: Statistic, view: int | None) -> Key:
        """Return the key of one statistic."""
        settings = {"version": statistic.version, **statistic.config()}
        return self._key(statistic.kind, settings, [statistic], view)

    def artefact(
        self, kind: str, settings: Mapping[str, Any], of: Sequence[Statistic], view: int | None
    ) -> Key:
        """Return the key of what is computed from some statistics."""
        parts = [{"kind": one.kind, "version": one.version, **one.config()} for one in of]
        return self._key(kind, {**settings, "of": parts}, of, view)

    def _key(
        self, kind: str, fit: Mapping[str, Any], of: Sequence[Statistic], view: int | None
    ) -> Key:
        data = dict(self._data)
        # Of what is computed from nothing that is named, all that it may have looked at is part of the key.
        if not of or any(statistic.uses_labels for statistic in of):
            data["labels"] = self._labels
        # One entry for each reading: two teachers that change places are another artefact.
        roles = [
            only(self.teachers, reading.teacher)
            for statistic in of
            for reading in statistic.readings
        ] or sorted(self.teachers)
        parts = {
            "fit": dict(fit),
            "teachers": [self._teachers[role] for role in roles],
            "data": data,
            "view": None if view is None else {**self.views.config(), "view": view},
            "precision": "float32",
        }
        return Key(kind, parts)

    @cached_property
    def _teachers(self) -> dict[str, Any]:
        return {
            role: {"weights": fingerprint(model.module), "preprocess": model.preprocess.config()}
            for role, model in self.teachers.items()
        }

    @cached_property
    def _data(self) -> dict[str, Any]:
        return {
            "samples": self.split.samples.identity,
            "ids": _hash(self.split.positions, self.split.ids),
            "count": len(self.split),
        }

    @cached_property
    def _labels(self) -> str:
        return _hash(self.split.labels)


def _hash(*columns: torch.Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        digest.update(column.contiguous().numpy().tobytes())
    return digest.hexdigest()
