"""A teacher of which only the outputs are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch

from understudy.data.batch import Batch
from understudy.errors import StoreError
from understudy.models.description import ModelDescription, ModuleRow, StageDescription
from understudy.models.model import Model
from understudy.models.outputs import Outputs
from understudy.models.tokens import Tokens
from understudy.teachers.store.manifest import tap_column
from understudy.teachers.store.ragged import COUNTS
from understudy.teachers.store.reader import Store


class StoredModel:
    """What a run knows of a teacher whose outputs are in a store.

    Args:
        store: the outputs.
        build: makes the teacher itself, for methods that want more of it than its outputs; None when there is only
            the store.

    Attributes:
        name: the teacher's name.
        parameters: how many it has.
        weights: where its outputs come from, for the log.
        fingerprint: that of its weights.
        classes: class names in logit order when it carries them, else None.
    """

    def __init__(self, store: Store, build: Callable[[], Model] | None = None) -> None:
        """Read the facts from the manifest."""
        self.store, self._build = store, build
        facts = store.manifest.teacher
        self.name, self.parameters = str(facts["name"]), int(facts["parameters"])
        self.weights = f"not loaded: outputs from the store {store.place}"
        self.fingerprint = str(store.key.teacher)
        known = facts["classes"]
        self.classes: tuple[str, ...] | None = None if known is None else tuple(known)

    @property
    def width(self) -> int:
        """The number of its logits."""
        return int(self.store.manifest.teacher["width"])

    @property
    def flops(self) -> int | None:
        """FLOPs of a forward pass per sample."""
        found = self.store.manifest.teacher["flops"]
        return None if found is None else int(found)

    @cached_property
    def model(self) -> Model:
        """The teacher itself, built when it is first asked for.

        Raises:
            StoreError: there is only the store.
        """
        if self._build is None:
            raise StoreError(
                f"A method needs the teacher's model itself, and the store {self.store.place} holds only its outputs. "
                "Give teacher.model beside teacher.store."
            )
        return self._build()

    @cached_property
    def description(self) -> ModelDescription:
        """Its modules, stages and classifier, by which taps are paired, as they were when it labelled."""
        facts = self.store.manifest.teacher["description"]
        return ModelDescription(
            tuple(
                ModuleRow(**{**row, **{key: _shape(row[key]) for key in _SHAPES}})
                for row in facts["modules"]
            ),
            tuple(
                StageDescription(stage["tap"], tuple(stage["shape"]), stage["stride"])
                for stage in facts["stages"]
            ),
            facts["classifier"],
            facts["pooled_width"],
            facts["classes"],
            tuple(facts["order"]),
        )


_SHAPES = ("input_shape", "output_shape")


def _shape(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


class StoredTeacher:
    """Answers for a teacher from a store, as `LiveTeacher` does from a model.

    The look-up itself happens where batches are made (`lookup`, in place of a live model's encoder), on the host and
    before the batch goes to the device: `batch.inputs[role]` holds what was found.

    Args:
        model: what is known of the teacher, and its store.
        role: under which name batches hold what was looked up.

    Attributes:
        taps: the features that are looked up beside the logits: what methods asked for, once they were wired.
    """

    def __init__(self, model: StoredModel, role: str) -> None:
        """Ask for no features yet."""
        self.model, self.role = model, role
        self.taps: tuple[str, ...] = ()
        self.precision: Callable[[], AbstractContextManager[object]] = nullcontext

    def lookup(self, ids: torch.Tensor, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what is stored for samples and views (int64 [B] on the CPU), on the CPU."""
        return self.model.store.lookup(ids, views, self.taps)

    def targets(self, batch: Batch) -> Outputs:
        """Return the teacher's logits and tapped features for the batch."""
        asked = {self.model.store.answers, *map(tap_column, self.taps)}
        given = batch.inputs[self.role]
        if COUNTS in given:
            self._check_counts(given, batch)
        return self.model.store.outputs(
            {name: given[name] for name in given if name.rpartition("/")[0] in asked}
        )

    def _check_counts(self, given: Mapping[str, torch.Tensor], batch: Batch) -> None:
        """Refuse documents that have another number of predicted tokens in the store than for the student.

        On an accelerator only the sum over the batch is compared, for which nothing has to wait.

        Raises:
            StoreError: names the first such document.
        """
        tokens, counts = batch.inputs.get("student"), given[COUNTS]
        if not isinstance(tokens, Tokens):
            return
        start = f"{self.model.store.answers}/"
        rows = next(len(column) for name, column in given.items() if name.startswith(start))
        if rows == len(tokens.labels) and counts.device.type != "cpu":
            return
        own = torch.bincount(tokens.owners, minlength=tokens.documents)
        if torch.equal(own, counts):
            return
        wrong = int((own != counts).int().argmax())
        raise StoreError(
            f"Document {int(batch.index[wrong])} has {int(counts[wrong])} predicted tokens in the store "
            f"{self.model.store.place} and {int(own[wrong])} as the student reads it, so that the two cannot be "
            "compared token by token. Give the student the `tokenizer`, `max_length` and `long` that the teacher had: "
            f"{json.dumps(self.model.store.key.preprocess)}."
        )

    def close(self) -> None:
        """Hold nothing."""
