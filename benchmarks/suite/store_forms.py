"""Forms of a store of the largest logits: what a sample takes, how fast it is read, what it costs the gradient."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.store import made_rows, write
from benchmarks.suite.cache import sizes
from benchmarks.suite.options import Options
from benchmarks.suite.task import MEAN, STD
from benchmarks.top_k_gradient import stored_error, teachers
from safetensors.torch import load_file

from understudy.data.sources.huggingface import huggingface
from understudy.models import kd
from understudy.models.preprocess import ImagePreprocess
from understudy.teachers.store import Store
from understudy.teachers.store.codecs import Sparse

CLASSES = 100
TEMPERATURES = (1.0, 4.0)


@dataclass(frozen=True)
class Form:
    """What a store keeps of a sample.

    Attributes:
        k: so many of the largest logits, with a tail at two temperatures and the entropy.
        dtype: in what the logits are.
    """

    k: int
    dtype: str

    def __str__(self) -> str:
        """Return what a row calls it."""
        return f"top {self.k} in {self.dtype}"

    @property
    def codec(self) -> Sparse:
        """Its codec."""
        return Sparse(CLASSES, self.k, self.dtype, TEMPERATURES)


USUAL, SMALL, SMALLEST = Form(16, "float16"), Form(16, "int8"), Form(10, "int8")


@dataclass
class Reading:
    """What was measured of a form.

    Attributes:
        files: bytes a sample in files.
        blocks: bytes a sample in blocks of the disk.
        first: seconds a sample of the first pass, in which the column is opened.
        read: seconds a sample, mean over all passes.
        restored: seconds a sample of a later pass in which numbers are restored to float32.
    """

    files: float
    blocks: float
    first: float
    read: float
    restored: float


def measured(form: Form, place: Path, samples: int, batch: int, passes: int) -> Reading:
    """Write a store with made contents and read all of it, shuffled, some times over from when it is opened."""
    write(place, form.codec, samples, made_rows(form.codec, samples))
    files, blocks = (value / samples for value in sizes(place))
    generator = torch.Generator().manual_seed(0)
    orders = [shuffled(samples, batch, generator) for _ in range(passes)]
    store = Store(place)
    seconds = []
    for order in orders:
        begin = time.perf_counter()
        for ids, views in order:
            store.lookup(ids, views)
        seconds.append((time.perf_counter() - begin) / samples)
    begin = time.perf_counter()
    for ids, views in orders[0]:
        store.outputs(store.lookup(ids, views))
    restored = (time.perf_counter() - begin) / samples
    store.close()
    return Reading(files, blocks, seconds[0], sum(seconds) / passes, restored)


def shuffled(
    samples: int, batch: int, generator: torch.Generator
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return ids of all samples and views, shuffled, in batches; views lie in the cache, as those just made do."""
    order = torch.randperm(samples, generator=generator).split(batch)
    views = torch.zeros(batch, dtype=torch.int64)
    return [(ids, views[: len(ids)]) for ids in order]


def gradient_errors(form: Form, teacher: torch.Tensor) -> dict[str, float]:
    """Return student and temperature -> the error of the gradient relative to that of all logits."""
    noise = torch.randn(
        teacher.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    students = {"the teacher with noise": teacher + 0.7 * noise, "no knowledge": 0.1 * noise}
    return {
        f"{name}, T = {temperature:g}": stored_error(student, teacher, form.codec, temperature)
        for name, student in students.items()
        for temperature in TEMPERATURES
    }


def teacher_logits(options: Options) -> tuple[str, torch.Tensor]:
    """Return who the teacher of the gradients is, and its logits float64 [N, 100]."""
    if options.data is None or options.teacher is None:
        made = teachers(options.pick(2000, 200), CLASSES, torch.Generator().manual_seed(0))
        return "made logits with a clear first class (no --data and --teacher given)", made[
            "peaked"
        ]
    teacher = kd.build("resnet56", classes=CLASSES)
    teacher.load_state_dict(load_file(options.teacher))
    teacher.eval()
    test = huggingface(options.data).test
    chosen = torch.arange(options.pick(1000, 100))
    preprocess = ImagePreprocess(MEAN, STD)
    with torch.no_grad():
        found = [
            teacher(preprocess(test.fetch(part), torch.device("cpu"))).double()
            for part in chosen.split(200)
        ]
    return f"kd:resnet56 on {len(chosen)} test images of CIFAR-100", torch.cat(found)
