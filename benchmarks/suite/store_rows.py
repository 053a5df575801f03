"""C4 and C9: training from a store, and the store itself."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from benchmarks.store import made_rows, write
from benchmarks.suite.cache import Cache, sizes
from benchmarks.suite.options import Options
from benchmarks.suite.ours import Ours, experiment
from benchmarks.suite.peer import Peer
from benchmarks.suite.plain import Plain
from benchmarks.suite.rounds import Run, measure
from benchmarks.suite.row import Goal, Row
from benchmarks.suite.step_rows import FLOAT, OURS, PEER, PLAIN
from benchmarks.suite.store_forms import (
    SMALL,
    SMALLEST,
    USUAL,
    Form,
    Reading,
    gradient_errors,
    measured,
    shuffled,
    teacher_logits,
)
from benchmarks.suite.task import image_pair

from understudy.teachers.store import Store
from understudy.teachers.store.codecs import Dense, Sparse
from understudy.training.labelling import label

EPOCHS = 10


def epochs(options: Options) -> Row:
    """C4: ten epochs of C2 from a store of the 16 largest of 100 logits in int8."""
    row = Row("C4", f"C2 from a store of the {SMALL}, {EPOCHS} epochs", "ms / step")
    pair = ("resnet8", "resnet14") if options.quick else ("resnet8x4", "resnet32x4")
    batch = options.pick(64, 8)
    samples = options.pick(256, 32)
    task = image_pair(*pair, batch=batch, samples=samples + batch)
    labels = image_pair(*pair, batch=batch, samples=samples + batch, objective="labels")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "store"
        begin = time.perf_counter()
        label(experiment(task, place, dtype="int8"))
        build = (time.perf_counter() - begin) * samples / len(task.source.train)
        ours, plain, floor = (
            Ours(task, FLOAT, store=place),
            Plain(task, FLOAT),
            Plain(labels, FLOAT),
        )
        contenders: dict[str, Run] = {OURS: ours.run, PLAIN: plain.run, "student alone": floor.run}
        peer = None
        if options.peer is None:
            peer = Peer(task)
            cache = Cache(task, Path(name) / "cache", samples)
            cache.build(peer)
            contenders[f"{PEER}, its cache"] = cache.run(peer)
        times = measure(contenders, options.pick(2, 1), options.pick(4, 2))
        teacher = _teacher_seconds(plain, options)
        row.take(times, 1e3, [(OURS, PLAIN), (OURS, f"{PEER}, its cache")])
        bound = 1 + teacher / times.median("student alone")
        excluded = row.ratios[f"{OURS} / {PLAIN}"]
        steps = EPOCHS * (samples // batch)
        included = steps * times.median(PLAIN) / (build + steps * times.median(OURS))
        row.ratios |= {f"{OURS} / {PLAIN}, build included": included}
        row.bound = (
            f"(3 + r) / 3 = {bound:.2f}x the plain loop; r is the teacher's forward pass over a third of the step of "
            "the student alone"
        )
        row.share = excluded / bound
        row.goals.append(Goal("at least 0.9 of the bound, build excluded", row.share, 0.9))
        row.details |= {"build_seconds": build, "teacher_seconds": teacher, "epochs": EPOCHS}
        row.notes.append(
            f"{EPOCHS} epochs of {samples} samples, reckoned from the steps; the build took {build:.2f} s."
        )
        ours.close()
        readings = _measure_forms(row, Path(name) / "forms", batch, options)
        if peer is not None:
            _compare_files(row, readings, cache, samples)
        else:
            row.notes.append(f"Without torchdistill: {options.peer}.")
    return row


def _measure_forms(row: Row, folder: Path, batch: int, options: Options) -> dict[Form, Reading]:
    """Measure what a sample takes in forms of a store and how fast it is read, and say what they cost the gradient."""
    count = options.pick(50_000, 500)
    readings = {
        form: measured(form, folder / form.dtype / str(form.k), count, batch, EPOCHS)
        for form in (USUAL, SMALL, SMALLEST)
    }
    name, logits = teacher_logits(options)
    errors = {form: gradient_errors(form, logits) for form in readings}
    row.details |= {
        "forms": {str(form): asdict(each) for form, each in readings.items()},
        "gradient_errors": {"teacher": name} | {str(form): found for form, found in errors.items()},
    }
    sizes = "; ".join(
        f"{form} {each.files:.1f} and {each.blocks:.1f}" for form, each in readings.items()
    )
    each = readings[SMALL]
    row.notes += [
        f"Bytes a sample in files and in blocks of the disk, {count} samples: {sizes}.",
        f"Error of the gradient against that of all logits, {name}; students and temperatures: "
        f"{'; '.join(errors[SMALL])}. "
        + " ".join(
            f"{form}: {', '.join(f'{error:.3f}' for error in found.values())}."
            for form, found in errors.items()
        ),
        f"A read ({SMALL}) takes {1e6 * each.read:.2f} us in batches of {batch}, as a mean over {EPOCHS} epochs from "
        f"when the store is opened ({1e6 * each.first:.2f} us in the first, {1e6 * each.restored:.2f} us with the "
        "numbers restored to float32).",
    ]
    return readings


def _compare_files(row: Row, readings: dict[Form, Reading], cache: Cache, samples: int) -> None:
    """Compare size and reading time of a sample in forms of a store and in torchdistill's cache."""
    files, blocks = (value / samples for value in sizes(cache.folder))
    begin = time.perf_counter()
    for number in range(samples):
        cache.data[number]
    read = (time.perf_counter() - begin) / samples
    row.details[PEER] = {"files": files, "blocks": blocks, "read": read}
    row.goals += [
        Goal(
            f"store ({SMALLEST}) at least 100 times smaller than torchdistill's cache, by bytes in files",
            files / readings[SMALLEST].files,
            100,
        ),
        Goal(
            f"store ({SMALL}) at least 100 times smaller, by blocks of the disk",
            blocks / readings[SMALL].blocks,
            100,
        ),
        Goal("a sample read at least 500 times faster", read / readings[SMALL].read, 500),
    ]
    smaller = "; ".join(
        f"{form} {files / each.files:.0f} and {blocks / each.blocks:.0f}"
        for form, each in readings.items()
    )
    row.notes.append(
        f"torchdistill keeps all logits: {files:.0f} bytes a sample in files, {blocks:.0f} in blocks of the disk. "
        f"Times smaller, in files and in blocks: {smaller}. Its read takes {1e6 * read:.0f} us."
    )


def throughput(options: Options) -> Row:
    """C9: writing, reading and checking records, beside numpy."""
    row = Row(
        "C9", "store: records of the top 16 of 100, and of 768 features", "thousand records / s"
    )
    cases: dict[str, tuple[Dense | Sparse, int]] = {
        "top 16": (USUAL.codec, options.pick(400_000, 1000)),
        "768 features": (Dense((768,), "float32"), options.pick(100_000, 500)),
    }
    shares, checks = [], []
    with tempfile.TemporaryDirectory() as name:
        for title, (codec, count) in cases.items():
            place = Path(name) / title.replace(" ", "-")
            made = made_rows(codec, count)
            written = write(place, codec, count, made)
            store = Store(place)
            runs = {
                each: _repeated(action) for each, action in _actions(store, made, count).items()
            }
            times = measure(runs, 1, options.pick(5, 2))
            store.close()
            row.details[title] = times.summary() | {"records": count, "write_seconds": written}
            row.values[f"{title}: write"] = count / written / 1e3
            row.values |= {f"{title}: {each}": count / times.median(each) / 1e3 for each in runs}
            row.ratios[f"{title}: read / numpy gather"] = times.paired("read", "numpy gather")
            shares.append(row.ratios[f"{title}: read / numpy gather"])
            checks.append(count / times.median("verify"))
            if times.marked:
                row.notes.append(
                    f"{title}: {times.marked} of {len(times.busy)} rounds ran beside other processes."
                )
    row.bound, row.share = "numpy.take of the same rows out of memory", min(shares)
    row.goals += [
        Goal("reads at least 0.8 of the gather", min(shares), 0.8),
        Goal("verifies at least 50,000 records/s", min(checks), 50_000),
    ]
    row.notes.append(
        "The store was just written: it is in the page cache. A read gives tensors at the stored precision; ids were "
        "unpacked when the column was first read, in the warm-up. `restore` makes float32 numbers and int64 ids of "
        "them, which happens on the student's device. Neither side keeps what it read."
    )
    return row


def _actions(store: Store, made: np.ndarray, count: int) -> dict[str, Callable[[], object]]:
    """Return what C9 measures; nobody keeps what was read, as in training."""
    order = shuffled(count, 256, torch.Generator().manual_seed(0))
    target = np.empty_like(made)

    def read() -> None:
        for ids, views in order:
            store.lookup(ids, views)

    def restore() -> None:
        for ids, views in order:
            store.outputs(store.lookup(ids, views))

    def gather() -> None:
        for ids, _ in order:
            np.take(made, ids.numpy(), axis=0)

    return {
        "read": read,
        "read and restore": restore,
        "numpy gather": gather,
        "memcpy": lambda: np.copyto(target, made),
        "verify": store.check_files,
    }


def _repeated(action: Callable[[], object]) -> Run:
    def run(steps: int) -> None:
        for _ in range(steps):
            action()

    return run


def _teacher_seconds(plain: Plain, options: Options) -> float:
    inputs, _ = next(plain.batches)
    found = []
    for _ in range(options.pick(4, 1)):
        begin = time.perf_counter()
        with torch.no_grad():
            plain.teacher(inputs)
        found.append(time.perf_counter() - begin)
    return sorted(found)[len(found) // 2]
