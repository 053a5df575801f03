"""Filling statistics from a pass: kept as it goes on, and gone on with when it was interrupted."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from understudy.teachers.accumulating import Statistic
from understudy.teachers.artefacts import Artefacts, Key
from understudy.teachers.passes import Pass, Progress
from understudy.teachers.readings import Reading, Seen
from understudy.teachers.snapshots import Snapshots

logger = logging.getLogger("understudy")


def collect(
    whole: Pass,
    statistics: Sequence[Statistic],
    keys: Sequence[Key],
    artefacts: Artefacts,
    *,
    what: str,
    tick: Callable[[], None],
) -> None:
    """Collect statistics that are not in the cache yet, and put them there.

    Args:
        whole: the pass.
        statistics: what is to be filled.
        keys: what each of them is kept under.
        artefacts: the cache.
        what: what the log calls it.
        tick: called after every batch; may raise, upon which what was collected is kept.
    """
    with contextlib.ExitStack() as locks:
        # In order of name, so that two processes that want the same ones don't wait for each other.
        for key in sorted(keys, key=lambda key: key.name):
            locks.enter_context(artefacts.locked(key, tick))
        pairs = [
            (statistic, key)
            for statistic, key in zip(statistics, keys, strict=True)
            if not artefacts.holds(key, says=False)
        ]
        if pairs:
            wanted, missing = zip(*pairs, strict=True)
            _collect(whole, wanted, missing, artefacts, what, tick)


def _collect(
    whole: Pass,
    statistics: Sequence[Statistic],
    keys: Sequence[Key],
    artefacts: Artefacts,
    what: str,
    tick: Callable[[], None],
) -> None:
    for key in keys:
        other = artefacts.difference(key)
        if other is not None:
            logger.info("%s: the %s in the cache do not serve (%s)", what, key.kind, other)
    total = len(whole.split)
    snapshots = Snapshots(artefacts, keys, statistics, whole.batch_size)
    folders = [artefacts.partial(key) for key in keys]
    with artefacts.writing():
        _begin(whole, statistics, folders)
        position = snapshots.load()
        if position == 0:
            _begin(whole, statistics, folders)
    rest = f", from {position:,} on" if position else ""
    logger.info("%s: a pass over %s samples%s", what, f"{total:,}", rest)
    progress = Progress(what, total, position)
    with whole.running(_readings(statistics)) as outputs:
        for batch in whole.batches(position):
            seen = Seen(batch, outputs(batch), whole.classes)
            with artefacts.writing():
                for statistic in statistics:
                    statistic.update(seen)
                position += len(batch)
                if snapshots.due:
                    snapshots.save(position)
            progress.show(position)
            try:
                tick()
            except BaseException:
                with artefacts.writing():
                    snapshots.save(position)
                raise
    for statistic, key in zip(statistics, keys, strict=True):
        artefacts.write(key, statistic.state(), statistic.files)
    snapshots.clear()


def collect_example(
    whole: Pass, statistics: Sequence[Statistic], folders: Sequence[Path], *, measure: bool
) -> float | None:
    """Fill statistics from a pass over few samples, which are kept nowhere.

    Args:
        whole: the pass.
        statistics: what is to be filled.
        folders: a folder for each of them.
        measure: whether to measure the time of a batch.

    Returns:
        Seconds per sample, None when they were not measured.
    """
    for statistic in statistics:
        statistic.provisional = True
    _begin(whole, statistics, folders)
    with whole.running(_readings(statistics)) as outputs:
        if measure:
            for batch in whole.batches():
                outputs(batch)
                break
        begun = time.perf_counter()
        for batch in whole.batches():
            seen = Seen(batch, outputs(batch), whole.classes)
            for statistic in statistics:
                statistic.update(seen)
        if whole.device.type == "cuda":
            torch.cuda.synchronize(whole.device)
    return (time.perf_counter() - begun) / len(whole.split) if measure else None


def _begin(whole: Pass, statistics: Sequence[Statistic], folders: Sequence[Path]) -> None:
    for statistic, folder in zip(statistics, folders, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        statistic.begin(folder, whole.split)


def _readings(statistics: Sequence[Statistic]) -> list[Reading]:
    return [reading for statistic in statistics for reading in statistic.readings]
