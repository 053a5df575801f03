"""A teacher in a store as a stage sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import nn

from understudy.data.batch import Batch
from understudy.data.loader import Encoder, TrainingLoader
from understudy.data.order import SampleOrder
from understudy.data.source import Split
from understudy.data.views import Views
from understudy.errors import PreflightError, StoreError, suggestion
from understudy.methods import Method
from understudy.methods.wiring import Side, TapShape
from understudy.models.description import ModelDescription
from understudy.teachers.store import Store
from understudy.teachers.stored import StoredModel, StoredTeacher
from understudy.training.experiment import place_of
from understudy.training.stage import Stage

FEW = 8
"""Samples that are looked at to tell what a feature is like."""


class StoredSide(Side):
    """Answers for a model that is not there, as far as its store can.

    Args:
        role: the teacher's name.
        model: what is known of it.
    """

    def __init__(self, role: str, model: StoredModel) -> None:
        """Ask for nothing yet."""
        self.role, self._model = role, model
        self.training, self.input_height = False, None
        self.inputs = None
        self.taps: dict[str, TapShape] = {}
        self.copied: set[str] = set()

    def tap(self, name: str) -> TapShape:
        """Ask for a tap.

        Raises:
            StoreError: the store does not hold it.
        """
        self.taps[name] = TapShape(name, self._held(name))
        return self.taps[name]

    def shape_at(self, name: str) -> tuple[int, ...]:
        """Return the shape at a tap, without the batch, and do not ask for it.

        Raises:
            StoreError: the store does not hold it.
        """
        return self._held(name)

    def is_signed(self, name: str) -> bool:
        """Tell whether what is stored of a tap has negative numbers, on a few samples.

        Raises:
            StoreError: the store does not hold it.
        """
        self._held(name)
        return bool((self._model.store.first(name, FEW) < 0).any())

    @cached_property
    def description(self) -> ModelDescription:
        """The teacher's stages and classifier, as they were when it labelled."""
        return self._model.description

    @property
    def module(self) -> nn.Module:  # type: ignore[override]
        """The model itself, built for a method that wants more of it than its outputs.

        Raises:
            StoreError: there is only the store.
        """
        return self._model.model.module

    def _held(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tap that the store holds."""
        held = self._model.store.taps
        if self._model.store.manifest.ragged:
            raise StoreError(
                f"The teacher's tap '{name}' is asked for, and the store {self._model.store.place} of a language model "
                "holds no features. Leave out teacher.store, or the method that reads them."
            )
        if name not in held:
            raise StoreError(
                f"The store {self._model.store.place} does not hold the teacher's tap '{name}'. "
                f"{suggestion(name, held)} Label again with it among the taps, or leave out teacher.store."
            )
        return held[name]


def stored_example(
    stored: Sequence[StoredTeacher],
    split: Split,
    views: Views,
    encoders: Mapping[str, Encoder],
    device: torch.device,
    classes: int,
) -> Batch:
    """Return a first view of the first samples, for which stores have the teachers' answers, features included."""
    loader = TrainingLoader(
        split,
        SampleOrder(torch.arange(min(FEW, len(split))), batch_size=FEW, seed=0),
        views,
        encoders,
        device=device,
        classes=classes,
        workers=0,
        lookups={one.role: partial(_everything, one.model.store) for one in stored},
    )
    return next(loader.steps(0, 1))[0]


def _everything(store: Store, ids: torch.Tensor, views: torch.Tensor) -> dict[str, torch.Tensor]:
    return store.lookup(ids, views, store.taps)


def refuse_changed_inputs(stage: Stage, name: str, teacher: StoredModel) -> None:
    """Refuse methods that change what the models see: a store has no answer for that.

    Raises:
        PreflightError: the stage has such methods; names them.
    """
    changing = [m.name for m in stage.active_methods if type(m).inputs is not Method.inputs]
    if changing:
        raise PreflightError(
            f"Stage '{stage.name}' uses {', '.join(changing)}, which changes what the teacher sees, so that the "
            f"answers in the store {teacher.store.place} would be those to something else. Run the teacher itself: "
            f"leave out {place_of(name)}.store."
        )
