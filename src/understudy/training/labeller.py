"""Running a teacher over given samples and views, to store what it says."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from understudy.data.batch import Batch
from understudy.data.loader import EVALUATION_VIEW, TrainingLoader
from understudy.data.source import Split
from understudy.data.views import Views
from understudy.errors import StoreError
from understudy.models.model import Model
from understudy.models.outputs import Outputs
from understudy.models.tokens import Tokens
from understudy.objectives import Head
from understudy.teachers.live import LiveTeacher
from understudy.teachers.store.deviation import Deviation
from understudy.teachers.store.manifest import HIDDEN, LOGITS, Column, tap_column
from understudy.training.context import Context
from understudy.training.experiment import TEACHER
from understudy.training.precision import Precision
from understudy.training.splits import DATA_SEED
from understudy.training.token_encoding import LABELS, OWNERS


@dataclass(frozen=True)
class Piece:
    """A batch: int64 [B] positions in a split and views, of which the first `count` rows are wanted."""

    positions: torch.Tensor
    views: torch.Tensor
    count: int


def pieces_of(positions: torch.Tensor, views: torch.Tensor, batch_size: int) -> list[Piece]:
    """Cut (position, view) pairs into batches of nearly equal size.

    A lone pair stands there twice: the matrix product of one sample may be computed in another way than that of
    several, and would round differently.
    """
    number = -(-len(positions) // batch_size)
    pieces = []
    for own, view in zip(positions.tensor_split(number), views.tensor_split(number), strict=True):
        again = 2 if len(own) == 1 else 1
        pieces.append(Piece(own.repeat(again), view.repeat(again), len(own)))
    return pieces


class Labeller:
    """Runs the teacher as a store wants it: in evaluation and inference mode, in its own precision.

    Args:
        context: whose data and views.
        teacher: the model, on the device.
        taps: what is read beside the logits.
        copied: taps whose tensors the model changes afterwards.
        precision: "float32" or "bf16".

    Attributes:
        head: the head of a language model that gives hidden states, once it ran; None of other models.
    """

    def __init__(
        self,
        context: Context,
        teacher: Model,
        *,
        taps: Iterable[str],
        copied: Iterable[str],
        precision: str,
    ) -> None:
        """Put the taps into the teacher."""
        self._context, self._teacher = context, teacher
        self.head: Head | None = None
        self._precision = Precision(precision, device=context.world.device.type)
        self._live = LiveTeacher(
            teacher.module,
            role=TEACHER,
            task=context.experiment.task,
            taps=taps,
            copied=copied,
            precision=self._precision.context,
            compile=context.experiment.settings.compile,
        )

    def run(
        self, split: Split, pieces: Sequence[Piece], *, plain: bool
    ) -> Generator[dict[str, torch.Tensor], None, None]:
        """Give column -> what the teacher says, [count, ...] on the device, for each piece.

        Of a language model that are hidden states, or logits where its head is not known, with a row for every
        predicted token, and the tokens (`LABELS`) with the numbers of their documents (`OWNERS`).

        Args:
            split: whose samples; the students' training split for their views, since mixing looks at all of it.
            pieces: which samples and views.
            plain: samples as they are, in float32, as in an evaluation; else the views that students see.

        Raises:
            StoreError: the teacher says NaN or infinity; names samples.
        """
        context = self._context
        self._live.precision = nullcontext if plain else self._precision.context
        loader = TrainingLoader(
            split,
            _Order(split, pieces),
            _AsTheyAre() if plain else context.views(DATA_SEED),
            {TEACHER: self._teacher.preprocess},
            device=context.world.device,
            classes=len(context.classes),
            workers=context.experiment.settings.workers,
        )
        try:
            for piece, (batch,) in zip(pieces, loader.steps(0, len(pieces)), strict=True):
                found = self._outputs(batch)
                count = piece.count
                if OWNERS in found:
                    # Of documents all rows are wanted; none stands there twice.
                    count = len(found[OWNERS])
                yield {column: values[:count] for column, values in found.items()}
        finally:
            loader.close()

    def close(self) -> None:
        """Take the taps out."""
        self._live.close()

    def _outputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            outputs = self._live.targets(batch)
        tokens = batch.inputs[TEACHER]
        if isinstance(tokens, Tokens):
            return self._token_outputs(batch, tokens, outputs)
        assert outputs.logits is not None
        features = {tap_column(tap): feature for tap, feature in outputs.features.items()}
        found = {LOGITS: outputs.logits, **features}
        for column, values in found.items():
            _refuse_non_finite(values, column, batch.index)
        return found

    def _token_outputs(
        self, batch: Batch, tokens: Tokens, outputs: Outputs
    ) -> dict[str, torch.Tensor]:
        if outputs.hidden is not None:
            self.head, column, values = outputs.head, HIDDEN, outputs.hidden
        else:
            assert outputs.logits is not None
            column, values = LOGITS, outputs.logits
        _refuse_non_finite(values, column, batch.index[tokens.owners])
        return {column: values, LABELS: tokens.labels, OWNERS: tokens.owners}


class Encoded:
    """Records as they come, batch by batch.

    Args:
        columns: column -> its codec.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        """Hold nothing yet."""
        self._codecs = columns
        self._rows: dict[str, list[np.ndarray]] = {column: [] for column in columns}
        self._deviations: dict[str, list[Deviation]] = {column: [] for column in columns}

    def add(self, found: Mapping[str, torch.Tensor], samples: int) -> None:
        """Encode column -> numbers [B, ...] of so many samples B."""
        assert all(len(found[column]) == samples for column in self._codecs)
        for column, codec in self._codecs.items():
            rows, deviation = codec.encode(found[column])
            self._rows[column].append(rows)
            self._deviations[column].append(deviation)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Column -> all records."""
        return {column: np.concatenate(rows) for column, rows in self._rows.items()}

    @property
    def deviations(self) -> dict[str, Deviation]:
        """Column -> how far the records are from the numbers."""
        return {column: Deviation.sum(each) for column, each in self._deviations.items()}


class _AsTheyAre(Views):
    """No transforms, and the view number that an evaluation has: what is drawn by it is drawn alike."""

    def __init__(self) -> None:
        super().__init__([], seed=DATA_SEED)

    def number(self, passes: torch.Tensor) -> torch.Tensor:
        return torch.full_like(passes, EVALUATION_VIEW)


class _Order:
    """Pieces as the loader wants them."""

    def __init__(self, split: Split, pieces: Sequence[Piece]) -> None:
        self.population, self._pieces = torch.arange(len(split)), pieces

    @property
    def smallest_batch(self) -> int:
        return 1

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._pieces[step].positions, self._pieces[step].views


def _refuse_non_finite(values: torch.Tensor, column: str, index: torch.Tensor) -> None:
    """Refuse rows [N, ...] that are not finite; `index` are the ids of their samples [N]."""
    bad = ~values.flatten(1).isfinite().all(dim=1)
    if bool(bad.any()):
        ids = index[bad].unique().tolist()
        raise StoreError(
            f"The teacher's {column} are NaN or infinite for {len(ids)} samples, such as {ids[:5]}. Its precision may "
            "be too low for its values, or its weights are damaged."
        )
