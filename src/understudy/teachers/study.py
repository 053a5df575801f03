"""What `Method.fit` sees: the teachers, the training samples, and passes of the former over the latter."""

from __future__ import annotations

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
from understudy.errors import UnderstudyError
from understudy.models.model import Model
from understudy.models.outputs import Outputs
from understudy.tasks import Task
from understudy.teachers.accumulating import Statistic
from understudy.teachers.artefacts import Artefacts, Key
from understudy.teachers.clustering import Backend, kmeans, resolve
from understudy.teachers.collecting import collect, collect_example
from understudy.teachers.features import Features
from understudy.teachers.keys import Identity
from understudy.teachers.notes import Note, named, shown
from understudy.teachers.passes import Pass
from understudy.teachers.readings import Reading, only
from understudy.teachers.together import Alone, Together

EXAMPLE = 8
"""Samples that a provisional study sees, at most."""
Mode = Literal["real", "provisional", "restoring"]


@dataclass
class Study:
    """What `Method.fit` sees.

    Attributes:
        split: the stage's training samples with the labels that may be seen.
        teachers: teacher name -> model.
        classes: class names in label order.
        task: what a batch means.
        device: where models run.
        views: the run's transforms.
        folder: the cache; None for none, which only a provisional study may have.
        mode: "real"; "provisional" when only an example is seen, as in a plan; "restoring" when parameters and buffers
            come from a checkpoint: what is in the cache is read, features are collected, the rest is provisional.
        batch_size: samples in a batch of a pass.
        workers: processes that read data.
        together: this process among those of the run.
        measure: whether a provisional study looks at a whole batch and measures what the real one would cost.
        method: name of the method that is fitted.
        seed: the method's seed; `stream` draws from it.
        notes: what was fitted.
        guessed: whether a restoring study gave something provisional, since the cache does not have it.
    """

    split: Split
    teachers: Mapping[str, Model]
    classes: tuple[str, ...]
    task: Task
    device: torch.device
    views: Views
    folder: Path | None = None
    mode: Mode = "provisional"
    batch_size: int = 256
    workers: int | Literal["auto"] = 0
    together: Together = field(default_factory=lambda: Together(Alone(), lambda: None))
    measure: bool = False
    method: str = "method"
    seed: int = 0
    notes: list[Note] = field(default_factory=list)
    guessed: bool = False
    _scratch: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list, repr=False)

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
        that was interrupted goes on. Under several processes the first one collects and all read what it wrote.

        Args:
            statistics: what is to be filled.
            view: which view of the run's transforms is seen; None for the samples as they are.
        """
        if not statistics:
            return
        if self.mode == "provisional":
            self._collect_example(statistics, view)
            return
        keys = [self._identity.statistic(statistic, view) for statistic in statistics]
        lacking = [self._lacks(key) for key in keys]
        wanted, rest, found = [], [], []
        for number, statistic in enumerate(statistics):
            if not lacking[number]:
                found.append(number)
            elif self.mode == "restoring" and not isinstance(statistic, Features):
                rest.append(statistic)
            else:
                wanted.append(number)
        if rest:
            self.guessed = True
            self._as_provisional()._collect_example(rest, view)
        begun = time.monotonic()
        if wanted:
            # The same statistic twice is collected once.
            once = {keys[number].name: number for number in wanted}.values()
            self.together.do(
                lambda: collect(
                    self._pass(view, None),
                    [statistics[number] for number in once],
                    [keys[number] for number in once],
                    self._artefacts,
                    what=f"Fitting {self.method}",
                    tick=self.together.tick,
                )
            )
        seconds = time.monotonic() - begun
        for number in (*wanted, *found):
            statistic, key = statistics[number], keys[number]
            statistic.load(self._artefacts.tensors(key), self._artefacts.path(key))
            statistic.provisional = False
        self._note_pass([statistics[number] for number in wanted], seconds)
        self._note_found([statistics[number] for number in found])

    def artefact(
        self,
        kind: str,
        settings: Mapping[str, Any],
        make: Callable[[Study], Mapping[str, torch.Tensor]],
        *,
        of: Sequence[Statistic],
        view: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return tensors that are computed once and kept in the cache, such as cluster centres or a score table.

        Args:
            kind: what they are, in letters, digits and underscores.
            settings: everything else that decides their values, as JSON: a version, a seed, numbers.
            make: computes them, collecting from the study that it is given. Under several processes only the first
                one calls it.
            of: what they are computed from. Collect it inside of `make`, so that nothing is collected when the
                artefact is in the cache.
            view: the view that it is collected from.
        """
        if self.mode == "provisional":
            return self._make_example(kind, settings, make, of, view)
        key = self._identity.artefact(kind, settings, of, view)
        if self._lacks(key):
            if self.mode == "restoring":
                self.guessed = True
                return dict(make(self._as_provisional()))
            self.together.do(lambda: self._make(key, make))
        else:
            self.notes.append(Note(self.method, shown(kind, settings), 0, 0, found=True))
        return self._artefacts.tensors(key)

    def kmeans(
        self,
        reading: Reading | str,
        count: int,
        *,
        iterations: int = 20,
        seed: int = 0,
        backend: Backend = "auto",
        view: int | None = None,
    ) -> torch.Tensor:
        """Return the centres of the rows of a reading, float64 [count, D] (see `clustering.kmeans`)."""
        features = Features(reading)
        settings = {
            "version": 1,
            "count": count,
            "iterations": iterations,
            "seed": seed,
            "backend": resolve(backend),
        }

        def make(study: Study) -> dict[str, torch.Tensor]:
            study.collect(features, view=view)
            found = kmeans(
                features.flat(),
                count,
                iterations=iterations,
                seed=seed,
                backend=backend,
                what=f"the rows of '{features.reading.tap}'",
                provisional=study.provisional,
            )
            return {"centres": found.centres, "counts": found.counts}

        return self.artefact("kmeans", settings, make, of=[features], view=view)["centres"]

    def passes(
        self, *readings: Reading | str, view: int | None = None
    ) -> Iterator[tuple[Batch, Mapping[str, Outputs]]]:
        """Iterate over the batches of a pass with each teacher's outputs; nothing is kept, every process runs it.

        Args:
            readings: the taps that are wanted, and of which teachers.
            view: as for `collect`.
        """
        whole = self._pass(view, None if self.mode == "real" else EXAMPLE)
        with whole.running([Reading.of(reading) for reading in readings]) as outputs:
            for batch in whole.batches():
                yield batch, outputs(batch)
                self.together.tick()

    def close(self) -> None:
        """Delete what was only provisional."""
        for scratch in self._scratch:
            scratch.cleanup()
        self._scratch.clear()

    @cached_property
    def _identity(self) -> Identity:
        return Identity(self.split, self.teachers, self.views)

    @cached_property
    def _artefacts(self) -> Artefacts:
        if self.folder is None:
            raise UnderstudyError("This study has no folder to keep what it collects in.")
        return Artefacts(self.folder)

    def _as_provisional(self) -> Study:
        return replace(self, mode="provisional", measure=False, notes=[])

    def _lacks(self, key: Key) -> bool:
        """Tell whether an artefact has to be made; all processes get the first one's answer."""
        return self.together.agree(lambda: not self._artefacts.holds(key))

    def _make(self, key: Key, make: Callable[[Study], Mapping[str, torch.Tensor]]) -> None:
        with self._artefacts.locked(key, self.together.tick):
            if not self._artefacts.holds(key, says=False):
                begun = time.monotonic()
                made = {name: value.cpu() for name, value in make(self).items()}
                self._artefacts.write(key, made)
                what = shown(key.kind, key.parts["fit"])
                size = sum(value.nbytes for value in made.values())
                self.notes.append(Note(self.method, what, 0, size, time.monotonic() - begun))

    def _pass(self, view: int | None, most: int | None) -> Pass:
        split = self.split
        if most is not None:
            split = split.subset(torch.arange(min(most, len(split))))
        return Pass(
            split,
            self.teachers,
            len(self.classes),
            self.task,
            self.device,
            min(self.batch_size, len(split)),
            self.workers if most is None else 0,
            None if view is None else self.views,
            view or 0,
        )

    def _collect_example(self, statistics: Sequence[Statistic], view: int | None) -> None:
        new = [tempfile.TemporaryDirectory(prefix="understudy-fit-") for _ in statistics]
        self._scratch.extend(new)
        whole = self._pass(view, self.batch_size if self.measure else EXAMPLE)
        folders = [Path(folder.name) for folder in new]
        cost = collect_example(whole, statistics, folders, measure=self.measure)
        known = [self._known(self._identity.statistic, one, view) for one in statistics]
        pairs = list(zip(statistics, known, strict=True))
        seconds = None if cost is None else cost * len(self.split)
        self._note_pass([statistic for statistic, found in pairs if not found], seconds)
        self._note_found([statistic for statistic, found in pairs if found])

    def _make_example(
        self,
        kind: str,
        settings: Mapping[str, Any],
        make: Callable[[Study], Mapping[str, torch.Tensor]],
        of: Sequence[Statistic],
        view: int | None,
    ) -> dict[str, torch.Tensor]:
        inner = replace(self, notes=[])
        made = dict(make(inner))
        found = self._known(self._identity.artefact, kind, settings, of, view)
        size = sum(value.nbytes for value in made.values())
        # What it is computed from is not collected when it is there itself.
        self.notes.extend([] if found else inner.notes)
        self.notes.append(Note(self.method, shown(kind, settings), 0, size, found=found))
        return made

    def _known(self, key: Callable[..., Key], *of: Any) -> bool:
        """Tell whether the cache has what a provisional study would collect; only looked up for a plan."""
        if not self.measure or self.folder is None:
            return False
        return self._artefacts.holds(key(*of))

    def _note_pass(self, statistics: Sequence[Statistic], seconds: float | None) -> None:
        if statistics:
            samples = len(self.split)
            size = sum(statistic.size(samples) for statistic in statistics)
            self.notes.append(Note(self.method, named(statistics), samples, size, seconds))

    def _note_found(self, statistics: Sequence[Statistic]) -> None:
        if statistics:
            self.notes.append(Note(self.method, named(statistics), 0, 0, found=True))
