"""Spot checks of a store against the teacher that filled it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from understudy import seeding
from understudy.errors import StoreError
from understudy.methods.wiring import Side
from understudy.models.outputs import Outputs, TopK
from understudy.objectives import Head
from understudy.teachers.store.codecs import tail_name
from understudy.teachers.store.deviation import Deviation
from understudy.teachers.store.manifest import HIDDEN, LOGITS, TRAIN, tap_column
from understudy.teachers.store.ragged import COUNTS
from understudy.teachers.store.reader import Store
from understudy.teachers.store.token_logits import logit_parts
from understudy.training.context import Context
from understudy.training.distribution import join_world
from understudy.training.experiment import Experiment
from understudy.training.labeller import Labeller, Piece, pieces_of
from understudy.training.labelling import stored_teacher, teacher_to_label
from understudy.training.splits import make_splits
from understudy.training.teacher import store_key
from understudy.training.token_plan import token_pieces

ROUNDING = {"float32": 1e-4, "bf16": 5e-2}
"""How far the same teacher may be from itself in other batches, as a share of the root mean square of its outputs."""


@dataclass(frozen=True)
class ColumnCheck:
    """One column on random samples.

    Attributes:
        column: "logits", a tap's, or "logits/tail at T".
        found: how far what is stored is from what the teacher says now.
        declared: how far it was when it was written.
        allowed: the largest difference that is put down to rounding: what was declared, and a little for batches of
            another size.
    """

    column: str
    found: Deviation
    declared: Deviation
    allowed: float

    @property
    def sound(self) -> bool:
        """Whether the teacher still says what is stored."""
        return self.found.maximum <= self.allowed


def verify(
    experiment: Experiment, *, samples: int = 256, seed: int = 0, teacher: str | None = None
) -> list[ColumnCheck]:
    """Run the teacher on random samples and views, and compare with what is stored.

    Args:
        experiment: what the store is for; its teacher has a model and a store.
        samples: how many (sample, view) pairs, at most.
        seed: which ones.
        teacher: the name of the teacher; None for the only one that has a store.

    Raises:
        StoreError: the store is damaged or does not match the recipe.
    """
    context = Context(experiment, make_splits(experiment), join_world(experiment.settings.device))
    name = stored_teacher(experiment, teacher)
    model, settings = teacher_to_label(context, name), experiment.teachers[name].store
    assert settings is not None
    store = context.open_store(settings.path)
    store.check_key(store_key(context, model))
    split = context.splits.train
    store.check_holds(split.ids)
    inputs = context.example(split, {"teacher": model.preprocess}).inputs["teacher"]
    side = Side("teacher", model.module, inputs, training=False, input_height=None)
    for tap in store.taps:
        side.tap(tap)
    making = store.manifest.making
    labeller = Labeller(
        context, model, taps=side.taps, copied=side.copied, precision=making["precision"]
    )
    draws = torch.randperm(
        len(split) * store.views, generator=seeding.stream(seed, "verify store")
    )[:samples]
    positions, views = draws // store.views, draws % store.views
    pieces = _pieces(store, split.ids[positions], positions, views)
    found: dict[str, list[Deviation]] = {}
    try:
        start = 0
        for piece, now in zip(pieces, labeller.run(split, pieces, plain=False), strict=True):
            own = slice(start, start + piece.count)
            start += piece.count
            stored = store.outputs(store.lookup(split.ids[positions[own]], views[own], store.taps))
            compared = (
                _compare_tokens(stored, now, labeller.head)
                if store.manifest.ragged
                else _compare(stored, now)
            )
            for name, deviation in compared.items():
                found.setdefault(name, []).append(deviation)
    finally:
        labeller.close()
        context.close()
    return [
        _check(store, name, Deviation.sum(each), ROUNDING[making["precision"]])
        for name, each in found.items()
    ]


def _compare(stored: Outputs, now: Mapping[str, torch.Tensor]) -> dict[str, Deviation]:
    """Return name -> how far what is stored is from what the teacher says now.

    Of top k, the kept classes are compared at the places that were kept: where the k-th logit and the next are all but
    equal, either may have been.
    """
    logits = now[LOGITS].float()
    if stored.top_k is None:
        assert stored.logits is not None
        found = {LOGITS: Deviation.between(logits, stored.logits)}
    else:
        found = _compare_top_k(stored.top_k, logits)
    for tap, feature in stored.features.items():
        column = tap_column(tap)
        found[column] = Deviation.between(now[column].float(), feature)
    return found


def _compare_top_k(kept: TopK, logits: torch.Tensor) -> dict[str, Deviation]:
    """Return the deviations of the largest logits and of the tails from float32 logits [N, C]."""
    indices = kept.indices.to(logits.device)
    relative = logits - logits.amax(dim=-1, keepdim=True)
    found = {LOGITS: Deviation.between(relative.gather(-1, indices), kept.values)}
    rest = relative.scatter(-1, indices, -torch.inf)
    if indices.shape[1] < logits.shape[1]:
        for t, tail in kept.tails.items():
            found[f"{LOGITS}/{tail_name(t)}"] = Deviation.between(
                t * torch.logsumexp(rest / t, dim=-1), tail
            )
    return found


def _compare_tokens(
    stored: Outputs, now: Mapping[str, torch.Tensor], head: Head | None
) -> dict[str, Deviation]:
    """Return what `_compare` does for the tokens of documents; logits are made part after part."""
    given = now[HIDDEN] if HIDDEN in now else now[LOGITS]
    known = stored.hidden if stored.hidden is not None else stored.top_k
    if known is None:
        assert stored.logits is not None
        known = stored.logits
    rows = len(known.values if isinstance(known, TopK) else known)
    if rows != len(given):
        raise StoreError(
            f"The teacher predicts {len(given)} tokens of documents of which {rows} are stored; its preprocessing is "
            "another one."
        )
    if stored.hidden is not None:
        return {HIDDEN: Deviation.between(given.float(), stored.hidden)}
    found: dict[str, list[Deviation]] = {}
    for place, logits in logit_parts(given, head):
        if isinstance(known, TopK):
            part = TopK(
                known.values[place],
                known.indices[place],
                {t: tail[place] for t, tail in known.tails.items()},
                known.entropy[place],
                known.classes,
            )
            compared = _compare_top_k(part, logits)
        else:
            compared = {LOGITS: Deviation.between(logits, known[place])}
        for name, each in compared.items():
            found.setdefault(name, []).append(each)
    return {name: Deviation.sum(each) for name, each in found.items()}


def _pieces(
    store: Store, ids: torch.Tensor, positions: torch.Tensor, views: torch.Tensor
) -> list[Piece]:
    size = store.manifest.making["batch_size"]
    if not store.manifest.ragged:
        return pieces_of(positions, views, size)
    return token_pieces(positions, views, store.lookup(ids, views)[COUNTS].numpy(), size)


def _check(store: Store, name: str, found: Deviation, rounding: float) -> ColumnCheck:
    column, _, part = name.partition("/") if name.startswith(LOGITS) else (name, "", "")
    declared = store.manifest.deviation(TRAIN, column)
    if part:
        declared = declared.parts[part]
    size = (found.size / max(1, found.count)) ** 0.5
    return ColumnCheck(name, found, declared, declared.maximum + rounding * size)
