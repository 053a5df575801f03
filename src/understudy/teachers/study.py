"""What `Method.fit` sees: the teachers, the training samples, and one pass of the former over the latter."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from understudy import seeding
from understudy.data.batch import Batch
from understudy.data.source import Split
from understudy.data.views import Views
from understudy.models.model import Model, fingerprint
from understudy.models.outputs import Outputs
from understudy.tasks.classification import Classification
from understudy.teachers.artefacts import Artefacts, Key
from understudy.teachers.features import Features
from understudy.teachers.passes import Pass, Progress
from understudy.teachers.readings import Reading, Seen, only
from understudy.teachers.snapshots import Snapshots
from understudy.teachers.statistics import Statistic
from understudy.teachers.together import Alone, Peers, Together

logger = logging.getLogger("understudy")
EXAMPLE = 8
"""Samples that a provisional study sees, at most."""
Mode = Literal["real", "provisional", "restoring"]


@dataclass
class Note:
    """What a fit does or would do, for the plan and the log.

    Attributes:
        method: which method.
        what: what it fits.
        samples: samples that a teacher has to be run on; 0 without a pass.
        size: bytes on disk.
        seconds: measured or expected time; None when not known.
        found: whether it was found in the cache.
    """

    method: str
    what: str
    samples: int
    size: int
    seconds: float | None = None
    found: bool = False


@dataclass
class Study:
    """What `Method.fit` sees.

    Attributes:
        split: the stage's training samples with the labels that may be seen.
        teachers: teacher name -> model.
        classes: class names in label order.
        device: where models run.
        mode: "real"; "provisional" when only an example is seen, as in a plan: what is collected has the right shapes
            and values that mean nothing; "restoring" when parameters and buffers come from a checkpoint: what is in
            the cache is read, features are collected if need be, everything else is provisional.
        method: name of the method that is fitted.
        seed: the method's seed, for what it draws (see `stream`).
        notes: what was fitted.
    """

    split: Split
    teachers: Mapping[str, Model]
    classes: tuple[str, ...]
    task: Classification
    device: torch.device
    views: Views
    folder: Path | None = None
    mode: Mode = "provisional"
    batch_size: int = 256
    workers: int | Literal["auto"] = 0
    peers: Peers = field(default_factory=Alone)
    stop: Callable[[], None] = lambda: None
    method: str = "method"
    seed: int = 0
    measure: bool = False
    notes: list[Note] = field(default_factory=list)
    together: Together | None = None
    _scratch: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin without an exchange."""
        if self.together is None:
            self.together = Together(self.peers, self.stop)

    @property
    def provisional(self) -> bool:
        """Whether only an example is seen: shapes count, values don't, and too few samples are no mistake."""
        return self.mode == "provisional"

    def teacher(self, name: str | None = None) -> nn.Module:
        """Return a teacher's module, to read weights from; None for the only one."""
        return self.teachers[only(self.teachers, name)].module

    def stream(self, *names: str | int) -> torch.Generator:
        """Return a generator of the method's own for the purpose that `names` spell out."""
        return seeding.stream(self.seed, *names)

    def collect(self, *statistics: Statistic, view: int | None = None) -> None:
        """Fill statistics and features from one pass of the teachers over the training samples.

        What was collected before from the same teacher, samples, view and settings is read from the cache, and a pass
        that was interrupted goes on. Under several processes the first one collects.

        Args:
            statistics: what is to be filled.
            view: which view of the run's transforms is seen; None for the samples as they are.
        """
        keys = {number: self._key(statistic, view) for number, statistic in enumerate(statistics)}
        if self.mode == "provisional":
            self._collect_example(statistics, view)
            return
        artefacts = Artefacts(self._cache)
        missing = [number for number, key in keys.items() if self._lacks(key)]
        if self.mode == "restoring":
            wanted = [number for number in missing if isinstance(statistics[number], Features)]
            rest = [statistics[number] for number in missing if number not in wanted]
            self.as_provisional()._collect_example(rest, view)
        else:
            wanted, rest = missing, []
        if wanted:
            self._together.do(
                lambda: self._run([statistics[n] for n in wanted], [keys[n] for n in wanted], view)
            )
        for number, statistic in enumerate(statistics):
            if statistic not in rest:
                statistic.load(artefacts.tensors(keys[number]), artefacts.path(keys[number]))
            if number not in missing:
                self.notes.append(self._note(statistic, found=True))

    def artefact(
        self,
        kind: str,
        settings: Mapping[str, Any],
        make: Callable[[Study], Mapping[str, torch.Tensor]],
        *,
        of: Sequence[Statistic] = (),
        view: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return tensors that are computed once and kept in the cache: cluster centres, score tables.

        Args:
            kind: what they are, in letters, digits and underscores.
            settings: everything beside `of` and the data that decides their values, as JSON; a version and a seed too.
            make: computes them, with a study to collect from. Under several processes only the first one calls it.
            of: what they are computed from; collect it inside of `make`, so that it is not needed on a hit.
            view: the view that it is collected from.
        """
        if self.mode == "provisional":
            made = dict(make(self))
            size = sum(value.nbytes for value in made.values())
            self.notes.append(Note(self.method, f"{kind} {_shown(settings)}", 0, size))
            return made
        parts = [{"kind": s.kind, "version": s.version, **s.config()} for s in of]
        labels = any(statistic.uses_labels for statistic in of)
        readings = [reading for statistic in of for reading in statistic.readings]
        key = self._key_of(kind, {"settings": dict(settings), "of": parts}, readings, labels, view)
        artefacts = Artefacts(self._cache)
        if self._lacks(key):
            if self.mode == "restoring":
                return dict(make(self.as_provisional()))

            def work() -> None:
                with artefacts.locked(key, self._together.tick):
                    if not artefacts.holds(key):
                        artefacts.write(key, {n: v.cpu() for n, v in make(self).items()})

            self._together.do(work)
        return artefacts.tensors(key)

    def passes(
        self, *readings: Reading | str, view: int | None = None
    ) -> Iterator[tuple[Batch, Mapping[str, Outputs]]]:
        """Iterate over the batches of a pass with each teacher's outputs; nothing is kept, every process runs it.

        Args:
            readings: the taps that are wanted, and of which teachers.
            view: as for `collect`.
        """
        whole = self._pass(view, example=self.mode != "real")
        with whole.running([Reading.of(reading) for reading in readings]) as outputs:
            for batch in whole.batches():
                yield batch, outputs(batch)
                self._together.tick()

    def as_provisional(self) -> Study:
        """Return the study that sees only the example."""
        return replace(self, mode="provisional", measure=False, notes=[])

    def close(self) -> None:
        """Delete what was only provisional."""
        for scratch in self._scratch:
            scratch.cleanup()
        self._scratch.clear()

    @property
    def _together(self) -> Together:
        assert self.together is not None
        return self.together

    @property
    def _cache(self) -> Path:
        assert self.folder is not None
        return self.folder

    def _lacks(self, key: Key) -> bool:
        """Tell whether an artefact has to be made; all processes get the first one's answer."""
        if self._together._works or self.peers.size == 1:
            return not Artefacts(self._cache).holds(key)
        lacks = self.peers.is_main and not Artefacts(self._cache).holds(key)
        return bool(self.peers.gather(lacks)[0])

    def _pass(self, view: int | None, *, example: bool) -> Pass:
        split = self.split
        if example:
            split = split.subset(torch.arange(min(EXAMPLE, len(split))))
        return Pass(
            split,
            self.teachers,
            len(self.classes),
            self.task,
            self.device,
            min(self.batch_size, len(split)),
            0 if example else self.workers,
            None if view is None else self.views,
            view or 0,
        )

    def _run(self, statistics: Sequence[Statistic], keys: Sequence[Key], view: int | None) -> None:
        """Collect what is missing, from where an interrupted pass stopped."""
        artefacts = Artefacts(self._cache)
        with artefacts.locked(keys[0], self._together.tick):
            if all(artefacts.holds(key) for key in keys):
                return
            for key in keys:
                other = artefacts.difference(key)
                if other:
                    logger.info("%s: the cache holds another %s (%s)", self.method, key.kind, other)
            begun = time.monotonic()
            whole = self._pass(view, example=False)
            snapshots = Snapshots(artefacts, keys, statistics, whole.batch_size)
            folders = [artefacts.partial(key) for key in keys]
            for statistic, folder in zip(statistics, folders, strict=True):
                folder.mkdir(parents=True, exist_ok=True)
                statistic.begin(folder, self.split)
            position = snapshots.load()
            if position == 0:
                for statistic, folder in zip(statistics, folders, strict=True):
                    statistic.begin(folder, self.split)
            what = f"Fitting {self.method}"
            rest = f", from {position:,} on" if position else ""
            logger.info("%s: a pass over %s samples%s", what, f"{len(self.split):,}", rest)
            progress = Progress(what, len(self.split), position)
            readings = [reading for statistic in statistics for reading in statistic.readings]
            with whole.running(readings) as outputs:
                for batch in whole.batches(position):
                    seen = Seen(batch, outputs(batch), len(self.classes))
                    for statistic in statistics:
                        statistic.update(seen)
                    position += len(batch)
                    progress.show(position)
                    try:
                        self._together.tick()
                    except BaseException:
                        snapshots.save(position)
                        raise
                    if snapshots.due:
                        snapshots.save(position)
            for statistic, key in zip(statistics, keys, strict=True):
                artefacts.write(key, statistic.state(), statistic.files)
            snapshots.clear()
            seconds = time.monotonic() - begun
            for statistic in statistics:
                self.notes.append(self._note(statistic, seconds=seconds))

    def _collect_example(self, statistics: Sequence[Statistic], view: int | None) -> None:
        """Fill statistics from the example."""
        if not statistics:
            return
        whole = self._pass(view, example=True)
        folders = []
        for statistic in statistics:
            self._scratch.append(tempfile.TemporaryDirectory(prefix="understudy-fit-"))
            folders.append(Path(self._scratch[-1].name))
            statistic.provisional = True
            statistic.begin(folders[-1], whole.split)
        readings = [reading for statistic in statistics for reading in statistic.readings]
        with whole.running(readings) as outputs:
            for batch in whole.batches():
                seen = Seen(batch, outputs(batch), len(self.classes))
                for statistic in statistics:
                    statistic.update(seen)
        self.notes.extend(self._note(statistic) for statistic in statistics)

    def _note(
        self, statistic: Statistic, *, found: bool = False, seconds: float | None = None
    ) -> Note:
        samples = len(self.split)
        what = f"{statistic.kind} of {', '.join(reading.tap for reading in statistic.readings)}"
        return Note(
            self.method, what, 0 if found else samples, statistic.size(samples), seconds, found
        )

    def _key(self, statistic: Statistic, view: int | None) -> Key:
        settings = {"version": statistic.version, **statistic.config()}
        return self._key_of(
            statistic.kind, settings, statistic.readings, statistic.uses_labels, view
        )

    def _key_of(
        self,
        kind: str,
        settings: Mapping[str, Any],
        readings: Sequence[Reading],
        labels: bool,
        view: int | None,
    ) -> Key:
        if self.mode == "provisional":
            return Key(kind, {})
        roles = sorted({only(self.teachers, reading.teacher) for reading in readings})
        recipe = None if view is None else {**self.views.config(), "view": view}
        return Key(
            kind,
            {
                "fit": dict(settings),
                "teachers": [self._identities[role] for role in roles],
                "data": self._data | ({"labels": self._labels} if labels else {}),
                "view": recipe,
                "precision": "float32",
            },
        )

    @cached_property
    def _identities(self) -> dict[str, Any]:
        return {
            role: {
                "weights": fingerprint(model.module),
                "preprocess": model.preprocess.config(),
            }
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


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
