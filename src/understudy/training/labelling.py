"""Labelling: the teacher runs once over every view that students will see, and its outputs go into a store."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing

import torch

from understudy import seeding
from understudy.errors import StoreError, unknown_name
from understudy.models.model import Model
from understudy.teachers.store.files import open_files
from understudy.teachers.store.manifest import Manifest, Shard
from understudy.teachers.store.writer import Writer, damaged
from understudy.training.context import Context
from understudy.training.distribution import join_world
from understudy.training.experiment import TEACHER, Experiment
from understudy.training.label_plan import LabelPlan, plan_labels
from understudy.training.labeller import Encoded, Labeller, Piece, pieces_of
from understudy.training.splits import make_splits
from understudy.training.teacher import seed_names
from understudy.training.token_encoding import EncodedTokens
from understudy.training.token_plan import token_pieces

logger = logging.getLogger("understudy")
SPEAK_EVERY = 10.0
"""Seconds between two lines of progress."""


def label(
    experiment: Experiment,
    *,
    repair: bool = False,
    part: tuple[int, int] = (1, 1),
    teacher: str | None = None,
) -> Manifest:
    """Fill the store of one of an experiment's teachers, or go on filling it.

    Shards that are finished are kept. Under `torchrun` the processes share the shards; what is written does not
    depend on how many there are.

    Args:
        experiment: what the store is for; its teacher has a model and a store.
        repair: also read every finished shard, and make those again that are damaged.
        part: (n, of): label only every shard whose number is n - 1 modulo `of`, for machines that share no disk;
            the parts are put together with `merge`.
        teacher: the name of the teacher; None for the only one that has a store.

    Returns:
        The manifest; complete unless only a part was labelled.

    Raises:
        StoreError: the store belongs to something else, cannot be written, or the teacher's outputs cannot be held.
    """
    context = Context(experiment, make_splits(experiment), join_world(experiment.settings.device))
    try:
        name = stored_teacher(experiment, teacher)
        model = teacher_to_label(context, name)
        plan = plan_labels(context, name, model)
        return _fill(context, model, plan, repair, part)
    finally:
        context.close()


def stored_teacher(experiment: Experiment, wanted: str | None = None) -> str:
    """Return the name of the teacher whose outputs are stored.

    Args:
        experiment: with its teachers.
        wanted: the name; None for the only one that has a store.

    Raises:
        StoreError: it has no store, or several have one and none was named.
        UnknownName: there is no such teacher.
    """
    teachers = experiment.teachers
    if wanted is not None and wanted not in teachers:
        raise unknown_name("teacher", wanted, teachers)
    names = [wanted] if wanted is not None else list(teachers)
    found = [name for name in names if teachers[name].store is not None]
    if len(found) == 1:
        return found[0]
    if found:
        raise StoreError(
            f"The teachers {', '.join(found)} have a store each; say which to label, with --teacher {found[0]}."
        )
    key = "teacher" if TEACHER in teachers or not teachers else f"teachers.{names[0]}"
    trained = any(teachers[name].stages for name in names)
    raise StoreError(
        f"The recipe does not say where the teacher's outputs go: give {key}.store=PATH."
        + (
            f" Its teacher is trained by the run; do that once, and name it: {key}.train=null "
            f"{key}.model=saved:runs/NAME/models/{key.rpartition('.')[2]}."
            if trained
            else ""
        )
    )


def teacher_to_label(context: Context, name: str) -> Model:
    """Build a teacher of a recipe that names a store.

    Raises:
        StoreError: the recipe names no model.
    """
    given = context.experiment.teachers[name]
    if given.build is None:
        raise StoreError("Labelling runs the teacher, and the recipe has no teacher.model.")
    with seeding.isolated(context.experiment.settings.seeds[0], *seed_names(name)):
        return context.place(given.build())


def _fill(
    context: Context, teacher: Model, plan: LabelPlan, repair: bool, part: tuple[int, int]
) -> Manifest:
    files, world = open_files(plan.settings.path), context.world
    writer = Writer(files, plan.manifest)
    found: tuple[list[Shard] | None, str] = (None, "")
    if world.is_main:
        try:
            found = (_begin(writer, plan, repair, part), "")
        except StoreError as error:
            found = (None, str(error))
    left, problem = world.gather(found)[0]
    if left is None:
        raise StoreError(problem)
    labeller = Labeller(
        context,
        teacher,
        taps=plan.taps,
        copied=plan.copied,
        precision=plan.settings.precision,
    )
    try:
        _write(writer, labeller, plan, left[world.rank :: world.size])
    finally:
        labeller.close()
    world.wait()
    if part[1] > 1:
        logger.info("Part %d of %d is labelled; put the parts together with `store merge`.", *part)
    elif world.is_main:
        writer.complete()
        logger.info("The store %s is complete.", files.place)
    world.wait()
    return writer.manifest


def _begin(writer: Writer, plan: LabelPlan, repair: bool, part: tuple[int, int]) -> list[Shard]:
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
    need = sum(writer.manifest.parts[shard.part].bytes_of(shard) for shard in left)
    need += sum(size for size, _ in writer.manifest.extra.values())
    logger.info(
        "Store %s: %d of %d shards to label, %.1f MB",
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
    for name, data in plan.extra.items():
        writer.write_extra(name, data)
    return left


def _write(writer: Writer, labeller: Labeller, plan: LabelPlan, shards: Sequence[Shard]) -> None:
    """Label shards, part after part."""
    progress = _Progress(sum(_rows(shard, plan.manifest) for shard in shards))
    for name, part in plan.manifest.parts.items():
        split, order = plan.samples[name]
        ids = split.ids[order]
        mine = [shard for shard in shards if shard.part == name]
        if not mine:
            continue
        starts = [int(torch.searchsorted(ids, shard.first)) for shard in mine]
        cut = [
            _pieces(plan, shard, order[start : start + shard.samples], start)
            for shard, start in zip(mine, starts, strict=True)
        ]
        # One stream over all shards, so that workers read ahead from one into the next.
        pieces = [piece for own in cut for piece in own]
        with closing(labeller.run(split, pieces, plain=part.views is None)) as stream:
            for shard, start, own in zip(mine, starts, cut, strict=True):
                encoded: Encoded | EncodedTokens | None = None
                for piece in own:
                    found = next(stream)
                    if encoded is None:
                        # Only once it ran does a labeller know a language model's head.
                        encoded = _encoded(plan, labeller, shard, start)
                    encoded.add(found, piece.count)
                    progress.add(piece.count)
                assert encoded is not None
                own_ids = ids[start : start + shard.samples].numpy()
                writer.write(shard, own_ids, encoded.columns, encoded.deviations)


def _pieces(plan: LabelPlan, shard: Shard, positions: torch.Tensor, start: int) -> list[Piece]:
    """Cut a shard into batches. They depend on the plan alone: whoever computes a shard gets the same numbers.

    Args:
        plan: what is labelled.
        shard: one of its shards.
        positions: int64 [samples], its samples in their split.
        start: the number of the first of them in its part.
    """
    count, size = plan.manifest.parts[shard.part].views or 1, plan.settings.batch_size
    repeated = positions.repeat_interleave(count)
    views = torch.arange(count).repeat(len(positions))
    if shard.part in plan.counts:
        read = plan.counts[shard.part].read[start * count :][: len(repeated)]
        return token_pieces(repeated, views, read, size)
    return pieces_of(repeated, views, size)


def _encoded(
    plan: LabelPlan, labeller: Labeller, shard: Shard, start: int
) -> Encoded | EncodedTokens:
    """Return what takes the records of a shard, whose first sample is number `start` of its part."""
    part = plan.manifest.parts[shard.part]
    if shard.part not in plan.counts:
        return Encoded(part.columns)
    count = part.views or 1
    planned = plan.counts[shard.part].predicted[start * count :][: shard.samples * count]
    return EncodedTokens(part.columns, labeller.head, planned)


def _rows(shard: Shard, manifest: Manifest) -> int:
    return shard.samples * (manifest.parts[shard.part].views or 1)


class _Progress:
    """Says how far labelling is and how long it will take."""

    def __init__(self, rows: int) -> None:
        self._rows, self._done = rows, 0
        self._begin = self._spoken = time.monotonic()

    def add(self, rows: int) -> None:
        """Take rows into account."""
        self._done += rows
        now = time.monotonic()
        if now - self._spoken < SPEAK_EVERY and self._done < self._rows:
            return
        self._spoken = now
        rate = self._done / max(1e-9, now - self._begin)
        logger.info(
            "Labelled %d of %d views, %.0f per second, about %.0f s left",
            self._done,
            self._rows,
            rate,
            (self._rows - self._done) / rate,
        )
