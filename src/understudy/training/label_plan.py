"""What labelling will write: which samples and views, in which columns, cut into which shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from understudy.data.source import Split
from understudy.errors import StoreError
from understudy.evaluation import cost
from understudy.methods.wiring import Side, TapShape
from understudy.models.model import Model
from understudy.tasks import LanguageModelling
from understudy.teachers.listening import heard
from understudy.teachers.store.codecs import Dense, Sparse, as_temperatures, record_bytes
from understudy.teachers.store.files import checksum
from understudy.teachers.store.key import plain
from understudy.teachers.store.manifest import (
    LOGITS,
    TRAIN,
    Column,
    Manifest,
    Part,
    shards_of,
    tap_column,
)
from understudy.teachers.store.ragged import ragged_shards
from understudy.teachers.store.settings import StoreSettings
from understudy.teachers.store.stored_head import HEAD, head_bytes, head_facts
from understudy.training.context import Context
from understudy.training.splits import DATA_SEED
from understudy.training.teacher import store_key
from understudy.training.token_plan import (
    PASS_TOKENS,
    TokenCounts,
    count_tokens,
    token_columns,
)

SHARD_BYTES = 64 * 2**20
"""A shard is at most this large, since it is held in memory while it is made."""
SHARD_ROWS = 4096
"""A shard has at least this many rows when there are enough."""
MOST_SHARDS = 64
"""More shards than this are only made where one would be too large; fewer lose more when a process is killed."""


@dataclass(frozen=True)
class LabelPlan:
    """What labelling will write.

    Attributes:
        settings: what was asked for.
        manifest: what the store will hold; nothing in it is finished.
        samples: part -> its samples, and int64 [N], their positions in the order of ascending ids.
        taps: the taps that are read.
        copied: those whose tensors the teacher changes afterwards.
        counts: of a language model: part -> the tokens of its documents.
        extra: file name -> contents of what belongs to the store as a whole.
    """

    settings: StoreSettings
    manifest: Manifest
    samples: Mapping[str, tuple[Split, torch.Tensor]]
    taps: tuple[str, ...]
    copied: frozenset[str]
    counts: Mapping[str, TokenCounts] = field(default_factory=dict)
    extra: Mapping[str, bytes] = field(default_factory=dict)


def plan_labels(context: Context, role: str, teacher: Model) -> LabelPlan:
    """Find out what the recipe's methods need of a teacher, and plan a store of it.

    Args:
        context: the run.
        role: the teacher's name.
        teacher: the teacher.

    Raises:
        StoreError: the views cannot go with a store; more logits are asked for than there are.
    """
    settings = context.experiment.teachers[role].store
    assert settings is not None
    key, views = store_key(context, teacher), context.views(DATA_SEED)
    side, temperatures = _wanted(context, role, teacher, settings)
    language = isinstance(context.experiment.task, LanguageModelling)
    width = context.outputs(teacher) if language else side.description.classes
    if settings.top_k is not None and settings.top_k > width:
        raise StoreError(
            f"top_k of the store is {settings.top_k}, but the teacher has {width} "
            f"{'tokens' if language else 'classes'}."
        )
    if language:
        return _plan_tokens(context, teacher, settings, side, temperatures)
    if settings.keep == "hidden":
        raise StoreError(
            "keep of the store is 'hidden', which is for language models; leave it out."
        )
    logits: Dense | Sparse = Dense((width,), settings.dtype)
    if settings.top_k is not None:
        temperatures = as_temperatures([*temperatures, *settings.temperatures])
        logits = Sparse(width, settings.top_k, settings.dtype, temperatures)
    columns: dict[str, Dense | Sparse] = {LOGITS: logits}
    for name, tap in side.taps.items():
        _refuse_padded(side.inputs, tap)
        columns[tap_column(name)] = Dense(tap.shape, settings.feature_dtype or settings.dtype)
    exact: dict[str, Dense | Sparse] = {LOGITS: Dense((width,), "float32")}
    samples = _samples(context)
    parts = {}
    for name, (each, order) in samples.items():
        count = (views.count or 1 if views.stochastic else 1) if name == TRAIN else None
        parts[name] = _part(
            name, each.ids[order].tolist(), count, columns if name == TRAIN else exact, settings
        )
    making = {"precision": settings.precision, "batch_size": settings.batch_size}
    manifest = Manifest(key, _facts(context, teacher, side), making, parts)
    return LabelPlan(settings, manifest, samples, tuple(side.taps), frozenset(side.copied))


def _samples(context: Context) -> dict[str, tuple[Split, torch.Tensor]]:
    """Return part -> its samples and their positions in the order of ascending ids."""
    selection, split = context.selection_split()
    splits = {TRAIN: context.splits.train, "test": context.splits.test}
    if split is not None:
        splits[selection] = split
    return {name: (each, torch.argsort(each.ids)) for name, each in splits.items()}


def _plan_tokens(
    context: Context,
    teacher: Model,
    settings: StoreSettings,
    side: Side,
    temperatures: tuple[float, ...],
) -> LabelPlan:
    """Plan the store of a language model, in which every predicted token has a row."""
    if side.taps:
        raise StoreError(
            f"Features of a language model's tokens are not kept, and the recipe asks for the teacher's "
            f"{', '.join(side.taps)}. Leave out the store, or the methods and `taps` that read features."
        )
    tails = as_temperatures([*temperatures, *settings.temperatures])
    columns = token_columns(context, teacher, settings, tails)
    views = context.views(DATA_SEED)
    samples, parts, counts = _samples(context), {}, {}
    for name, (split, order) in samples.items():
        count = (views.count or 1 if views.stochastic else 1) if name == TRAIN else None
        counts[name] = count_tokens(teacher.preprocess, split, order, count, context.world)
        parts[name] = _token_part(
            name,
            split.ids[order].numpy(),
            count,
            columns.train if name == TRAIN else columns.evaluation,
            counts[name].predicted,
            settings,
        )
    making = {
        "precision": settings.precision,
        "batch_size": settings.batch_size,
        "pass_tokens": PASS_TOKENS,
    }
    facts, extra = _facts(context, teacher, side), {}
    facts["width"] = context.outputs(teacher)
    if columns.head is not None:
        facts["head"] = head_facts(columns.head)
        extra[HEAD] = head_bytes(columns.head)
    manifest = Manifest(
        store_key(context, teacher),
        facts,
        making,
        parts,
        extra={name: (len(data), checksum(data)) for name, data in extra.items()},
    )
    return LabelPlan(settings, manifest, samples, (), frozenset(), counts, extra)


def _token_part(
    name: str,
    ids: np.ndarray,
    views: int | None,
    columns: Mapping[str, Column],
    predicted: np.ndarray,
    settings: StoreSettings,
) -> Part:
    row_bytes = sum(record_bytes(codec) for codec in columns.values())
    per_sample = predicted.reshape(len(ids), -1).sum(axis=1)
    rows = max(SHARD_ROWS, int(per_sample.sum()) // MOST_SHARDS)
    rows = min(rows, SHARD_BYTES // max(1, row_bytes))
    shards = ragged_shards(name, ids, per_sample, rows, settings.shard_samples)
    return Part(views, columns, tuple(shards))


def _part(
    name: str,
    ids: list[int],
    views: int | None,
    columns: Mapping[str, Dense | Sparse],
    settings: StoreSettings,
) -> Part:
    per_sample = views or 1
    row_bytes = sum(record_bytes(codec) for codec in columns.values())
    rows = max(SHARD_ROWS, len(ids) * per_sample // MOST_SHARDS)
    rows = min(rows, SHARD_BYTES // max(1, row_bytes))
    samples = settings.shard_samples or max(1, rows // per_sample)
    return Part(views, columns, tuple(shards_of(name, ids, samples)))


def _wanted(
    context: Context, name: str, teacher: Model, settings: StoreSettings
) -> tuple[Side, tuple[float, ...]]:
    """Wire what listens to the teacher once: return a side with all taps asked for, and the methods' temperatures."""
    inputs = context.example(context.splits.train, {"teacher": teacher.preprocess}).inputs[
        "teacher"
    ]
    height = inputs.shape[2] if isinstance(inputs, torch.Tensor) and inputs.dim() == 4 else None
    side = Side("teacher", teacher.module, inputs, training=False, input_height=height)
    for tap in settings.taps:
        side.tap(tap)
    temperatures: list[float] = []
    names = list(context.experiment.teachers)
    seed = context.experiment.settings.seeds[0]
    for make in context.experiment.arms.values():
        student = context.build_student(seed)
        for number, stage in enumerate(make()):
            learning = [
                method
                for method in stage.active_methods
                if method.needs_teacher and name in heard(method.hears, names)
            ]
            if not learning:
                continue
            run = context.stage_run(
                # The other teachers are not there; methods that listen to none but them are left out.
                dataclasses.replace(stage, methods=learning) if len(names) > 1 else stage,
                student=student,
                teacher=dict.fromkeys(names, teacher),
                split=context.splits.train,
                seed=seed,
                number=number,
            )
            asked: dict[str, TapShape] = {}
            other = run.wiring.teachers[name]
            asked |= other.taps
            side.copied |= other.copied
            run.close()
            side.taps |= asked
            found = [getattr(method, "temperature", None) for method in learning]
            temperatures += [float(t) for t in found if isinstance(t, int | float)]
    return side, tuple(temperatures)


def _refuse_padded(inputs: Any, tap: TapShape) -> None:
    """Refuse token sequences that are padded: their length is that of a batch, and the padding would not be stored."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if isinstance(mask, torch.Tensor) and len(tap.shape) > 1 and tap.shape[0] == mask.shape[1]:
        raise StoreError(
            f"The teacher's tap '{tap.name}' gives a sequence of tokens, as long as the longest text of a batch; only "
            "features of one shape can be stored. Tap a vector, such as what goes into the classifier."
        )


def _facts(context: Context, teacher: Model, side: Side) -> dict[str, Any]:
    """Return what a run will want to know of a teacher that it does not load."""
    description = side.description
    return {
        "name": teacher.name,
        "parameters": teacher.parameters,
        "weights": teacher.weights,
        "classes": None if teacher.classes is None else list(teacher.classes),
        "width": description.classes,
        "flops": cost.flops(teacher.module, side.inputs),
        "description": plain(dataclasses.asdict(description)),
        "samples": context.experiment.data.source.name,
    }
