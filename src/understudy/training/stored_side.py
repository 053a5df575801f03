"""A teacher in a store as the wiring sees it."""

from __future__ import annotations

from functools import cached_property

from torch import nn

from understudy.errors import StoreError, suggestion
from understudy.methods.wiring import Side, TapShape
from understudy.models.description import ModelDescription
from understudy.teachers.stored import StoredModel


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
        held = self._model.store.taps
        if name not in held:
            raise StoreError(
                f"The store {self._model.store.place} does not hold the teacher's tap '{name}'. "
                f"{suggestion(name, held)} Label again with it among the taps, or leave out teacher.store."
            )
        self.taps[name] = TapShape(name, held[name])
        return self.taps[name]

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
