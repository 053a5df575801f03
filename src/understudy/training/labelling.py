"""Labelling: the teacher runs once over every view that students will see, and its outputs go into a store."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from understudy import seeding
from understudy.data.batch import Batch
from understudy.data.loader import TrainingLoader
from understudy.data.source import Split
from understudy.data.views import Views
from understudy.errors import StoreError
from understudy.models.model import Model
from understudy.teachers.live import LiveTeacher
from understudy.teachers.store.codecs import Dense, Sparse
from understudy.teachers.store.deviation import Deviation
from understudy.teachers.store.files import open_files
from understudy.teachers.store.manifest import (
    ID_BYTES,
    LOGITS,
    Manifest,
    Part,
    Shard,
    tap_column,
)
from understudy.teachers.store.writer import Writer, damaged
from understudy.training.context import Context
from understudy.training.distribution import join_world
from understudy.training.experiment import TEACHER, Experiment
from understudy.training.label_plan import LabelPlan, plan_labels
from understudy.training.precision import Precision
from understudy.training.splits import DATA_SEED, make_splits

logger = logging.getLogger("understudy")
SPEAK_EVERY = 10.0
"""Seconds between two lines of progress."""


def label(
    experiment: Experiment, *, repair: bool = False, part: tuple[int, int] = (1, 1)
) -> Manifest:
    """Fill the store of an experiment's teacher, or go on filling it.

    Shards that are finished are kept. Under `torchrun` the processes share the shards; what is written does not
    depend on how many there are.

    Args:
        experiment: what the store is for; its teacher has a model and a store.
        repair: also read every finished shard, and make those again that are damaged.
        part: (n, of): label only every shard whose number is n - 1 modulo `of`, for machines that share no disk;
            the parts are put together with `merge`.

    Returns:
        The manifest; complete unless only a part was labelled.

    Raises:
        StoreError: the store belongs to something else, cannot be written, or the teacher's outputs cannot be held.
    """
    context = Context(experiment, make_splits(experiment), join_world(experiment.settings.device))
    try:
        teacher = _build_teacher(context)
        plan = plan_labels(context, teacher)
        return _fill(context, teacher, plan, repair, part)
    finally:
        context.close()


def _build_teacher(context: Context) -> Model:
    teacher = context.experiment.teacher
    if teacher is None or teacher.store is None:
        raise StoreError(
            "The recipe does not say where the teacher's outputs go: give teacher.store=PATH."
        )
    if teacher.stages:
        raise StoreError(
            "The teacher is trained by the run itself, so there is none to label with yet. Run the recipe once, then "
            "give its teacher by name: teacher.train=null teacher.model=saved:runs/NAME/models/teacher."
        )
    if teacher.build is None:
        raise StoreError("Labelling runs the teacher, and the recipe has no teacher.model.")
    with seeding.isolated(context.experiment.settings.seeds[0], TEACHER):
        return context.place(teacher.build())


def _fill(
    context: Context, teacher: Model, plan: LabelPlan, repair: bool, part: tuple[int, int]
) -> Manifest:
    files, world = open_files(plan.settings.path), context.world
    writer = Writer(files, plan.manifest)
    left: list[Shard] | None = None
    problem: str | None = None
    if world.is_main:
        try:
            left = _begin(writer, repair, part)
        except StoreError as error:
            problem = str(error)
    left, problem = world.gather((left, problem))[0]
    if left is None:
        raise StoreError(problem or "The store could not be begun.")
    labeller = _Labeller(context, teacher, plan)
    try:
        mine = left[world.rank :: world.size]
        for each in labeller.shards(mine, _Progress(_rows(mine, plan.manifest))):
            split, order = plan.samples[each.shard.part]
            ids = split.ids[order]
            first = int(torch.searchsorted(ids, each.shard.first))
            own = ids[first : first + each.shard.samples].numpy()
            writer.write(each.shard, own, each.columns, each.deviations)
    finally:
        labeller.close()
    world.wait()
    if part[1] > 1:
        logger.info("Part %d of %d is labelled; put the parts together with `store merge`.", *part)
        return writer.manifest
    if world.is_main:
        writer.complete()
        logger.info("The store %s is complete.", files.place)
    world.wait()
    return writer.manifest


def _begin(writer: Writer, repair: bool, part: tuple[int, int]) -> list[Shard]:
    """Begin or go on; return the shards that are to be made."""
    files = writer.files
    writer.begin()
    missing = writer.missing()
    if repair:
        sound = [shard for shard in writer.manifest.shards if shard not in missing]
        for shard, reason in damaged(files, writer.manifest, sound):
            logger.warning("Shard %s is damaged (%s); it is made again.", shard.name, reason)
            missing.append(shard)
    writer.forget([shard for shard in missing if shard.name in writer.manifest.finished])
    asked = writer.manifest.shards[part[0] - 1 :: part[1]]
    left = [shard for shard in asked if shard in missing]
    need = sum(_bytes(shard, writer.manifest) for shard in left)
    logger.info(
        "Store %s: %d of %d shards to label, %.1f MB.",
        files.place,
        len(left),
        len(asked),
        need / 1e6,
    )
    free = files.free()
    if free is not None and need > free:
        raise StoreError(
            f"The store {files.place} needs {need / 1e6:,.0f} MB more, and only {free / 1e6:,.0f} MB are free. Keep "
            "less (top_k, dtype: float16, fewer views or taps) or choose another disk."
        )
    return left


def _rows(shards: Sequence[Shard], manifest: Manifest) -> int:
    return sum(shard.samples * (manifest.parts[shard.part].views or 1) for shard in shards)


def _bytes(shard: Shard, manifest: Manifest) -> int:
    return (
        _rows([shard], manifest) * manifest.parts[shard.part].row_bytes + shard.samples * ID_BYTES
    )


class _Progress:
    """Says how far labelling is and how long it will take."""

    def __init__(self, rows: int) -> None:
        self._rows, self._done = rows, 0
        self._begin = self._spoken = time.monotonic()

    def add(self, rows: int) -> None:
        """Take rows into account."""
        self._done += rows
        now = time.monotonic()
        if now - self._spoken >= SPEAK_EVERY or self._done == self._rows:
            self._spoken = now
            seconds = (now - self._begin) / self._done * (self._rows - self._done)
            logger.info(
                "Labelled %d of %d views (%.0f per second), about %.0f s left",
                self._done,
                self._rows,
                self._done / max(1e-9, now - self._begin),
                seconds,
            )


@dataclass(frozen=True)
class _Piece:
    """A batch of a shard: `count` rows, at `positions` of a split in `views`; a lone one stands there twice."""

    positions: torch.Tensor
    views: torch.Tensor
    count: int


class _Order:
    """Pieces as the loader wants them."""

    def __init__(self, split: Split, pieces: Sequence[_Piece]) -> None:
        self.population, self._pieces = torch.arange(len(split)), pieces

    @property
    def smallest_batch(self) -> int:
        return 1

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._pieces[step].positions, self._pieces[step].views


class _Labeller:
    """Runs the teacher over shards.

    A shard is computed in batches of its own, which depend on nothing but the plan: whoever computes it gets the same
    numbers.
    """

    def __init__(self, context: Context, teacher: Model, plan: LabelPlan) -> None:
        """Put the taps into the teacher."""
        self._context, self._teacher, self._plan = context, teacher, plan
        self._precision = Precision(plan.settings.precision, device=context.world.device.type)
        self._live = LiveTeacher(
            teacher.module,
            role=TEACHER,
            task=context.experiment.task,
            taps=plan.taps,
            copied=plan.copied,
            precision=self._precision.context,
            compile=context.experiment.settings.compile,
        )

    def close(self) -> None:
        """Take the taps out."""
        self._live.close()

    def shards(self, shards: Sequence[Shard], progress: _Progress) -> Iterator[_Computed]:
        """Compute shards, part after part."""
        for name, part in self._plan.manifest.parts.items():
            mine = [shard for shard in shards if shard.part == name]
            if mine:
                self._live.precision = (
                    nullcontext if part.views is None else self._precision.context
                )
                yield from self._part(mine, part, progress)

    def _part(
        self, shards: Sequence[Shard], part: Part, progress: _Progress
    ) -> Iterator[_Computed]:
        split, order = self._plan.samples[shards[0].part]
        cut = [self._pieces(split.ids, order, shard, part) for shard in shards]
        pieces = [piece for each in cut for piece in each]
        context = self._context
        loader = TrainingLoader(
            split,
            _Order(split, pieces),
            Views([], seed=DATA_SEED) if part.views is None else context.views(DATA_SEED),
            {TEACHER: self._teacher.preprocess},
            device=context.world.device,
            classes=len(context.classes),
            workers=context.experiment.settings.workers,
        )
        try:
            batches = (parts[0] for parts in loader.steps(0, len(pieces)))
            for shard, own in zip(shards, cut, strict=True):
                computed = _Computed(shard, part.columns)
                for piece in own:
                    computed.add(self._run(next(batches)), piece.count)
                    progress.add(piece.count)
                yield computed
        finally:
            loader.close()

    def _pieces(
        self, ids: torch.Tensor, order: torch.Tensor, shard: Shard, part: Part
    ) -> list[_Piece]:
        """Cut a shard into batches of nearly equal size."""
        first = int(torch.searchsorted(ids[order], shard.first))
        positions = order[first : first + shard.samples].repeat_interleave(part.views or 1)
        views = torch.arange(part.views or 1).repeat(shard.samples)
        number = -(-len(positions) // self._plan.settings.batch_size)
        pieces = []
        for own, view in zip(
            positions.tensor_split(number), views.tensor_split(number), strict=True
        ):
            # The matrix product of a lone sample may be computed in another way than that of several.
            again = 2 if len(own) == 1 else 1
            pieces.append(_Piece(own.repeat(again), view.repeat(again), len(own)))
        return pieces

    def _run(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return column -> what the teacher gave."""
        with torch.inference_mode():
            outputs = self._live.targets(batch)
        assert outputs.logits is not None
        features = {tap_column(tap): feature for tap, feature in outputs.features.items()}
        found = {LOGITS: outputs.logits, **features}
        for column, values in found.items():
            _refuse_non_finite(values, column, batch)
        return found


class _Computed:
    """A shard as it comes out of the teacher, batch by batch."""

    def __init__(self, shard: Shard, columns: Mapping[str, Dense | Sparse]) -> None:
        self.shard, self._columns = shard, columns
        self._rows: dict[str, list[np.ndarray]] = {column: [] for column in columns}
        self._deviations: dict[str, list[Deviation]] = {column: [] for column in columns}

    def add(self, found: Mapping[str, torch.Tensor], count: int) -> None:
        for column, codec in self._columns.items():
            rows, deviation = codec.encode(found[column][:count])
            self._rows[column].append(rows)
            self._deviations[column].append(deviation)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        return {column: np.concatenate(rows) for column, rows in self._rows.items()}

    @property
    def deviations(self) -> dict[str, Deviation]:
        return {column: Deviation.sum(each) for column, each in self._deviations.items()}


def _refuse_non_finite(values: torch.Tensor, column: str, batch: Batch) -> None:
    bad = ~values.flatten(1).isfinite().all(dim=1)
    if bool(bad.any()):
        ids = batch.index[bad].unique().tolist()
        raise StoreError(
            f"The teacher's {column} are NaN or infinite for {len(ids)} samples, such as {ids[:5]}. Its precision may "
            "be too low for its values, or its weights are damaged."
        )
