"""Images per second of the training loop beside a loop written by hand, on the same machine in the same run.

    python benchmarks/training.py --data FOLDER_OF_CIFAR100 [--precision bf16] [--steps 60]

Both train kd:resnet20 from kd:resnet56 (T = 4, 0.9 KD + 0.1 cross-entropy) on the same images with
random crop and flip, batch 64 by default.
The hand-written loop is what a good engineer would write: images decoded in memory and augmented in
batches, the teacher in evaluation
mode without gradient, autocast, channels-last where asked for, fused SGD, no synchronisation.
The two take turns step by step; quoted are medians and the
ratio of paired steps. Before anything is timed, both run the same ten batches from the same
weights and their losses must agree.

Without --data the images are random numbers: speed is the same, there is nothing to learn.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from understudy.data.batch import Batch
from understudy.data.source import Source
from understudy.data.sources.python import from_tensors
from understudy.data.transforms.horizontal_flip import HorizontalFlip
from understudy.data.transforms.random_crop import RandomCrop
from understudy.methods import KD, Supervised
from understudy.models import kd
from understudy.models.model import Model
from understudy.models.preprocess import ImagePreprocess
from understudy.teachers.ahead import Steps
from understudy.training.context import Context
from understudy.training.distribution import join_world
from understudy.training.experiment import Experiment, ExperimentData, ExperimentTeacher
from understudy.training.loop import train
from understudy.training.optimizers import Optimizer
from understudy.training.precision import Precision
from understudy.training.recorder import Recorder
from understudy.training.schedules import Rate
from understudy.training.settings import Settings
from understudy.training.splits import make_splits
from understudy.training.stage import Stage
from understudy.training.stage_run import StageRun

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
TEMPERATURE, ALPHA, RATE, MOMENTUM, DECAY = 4.0, 0.9, 0.05, 0.9, 5e-4


def load(folder: str | None) -> Source:
    """Return CIFAR-100, or random images of its shape."""
    if folder:
        from understudy.data.sources.huggingface import huggingface

        return huggingface(folder)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(6000) % 100
    return from_tensors(
        images[:5000], labels[:5000], test_inputs=images[5000:], test_labels=labels[5000:]
    )


def model(name: str, seed: int) -> Model:
    """Return a network of the family with its preprocessing."""
    torch.manual_seed(seed)
    return Model(kd.build(name, classes=100), ImagePreprocess(MEAN, STD), f"kd:{name}")


class HandWritten:
    """The loop that a good engineer writes for this one task."""

    def __init__(
        self,
        source: Source,
        student: nn.Module,
        teacher: nn.Module,
        precision: Precision,
        batch: int,
    ) -> None:
        self.images = source.train.fetch(torch.arange(len(source.train)))
        self.labels = source.train.labels
        form = torch.channels_last if precision.channels_last else torch.contiguous_format
        self.student = student.to(memory_format=form).train()
        self.teacher = teacher.to(memory_format=form).eval()
        self.form, self.batch = form, batch
        self.context: Callable[[], AbstractContextManager[object]] = (
            nullcontext
            if precision.dtype == "float32"
            else lambda: torch.autocast("cpu", dtype=torch.bfloat16)
        )
        self.optimizer = torch.optim.SGD(
            student.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=True
        )
        self.scale = 1 / (255 * torch.tensor(STD)).view(1, 3, 1, 1)
        self.shift = (-torch.tensor(MEAN) / torch.tensor(STD)).view(1, 3, 1, 1)
        self.order = torch.randperm(len(self.images))
        self.place = 0

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Return normalised images in the memory format."""
        values = torch.addcmul(self.shift, images.float(), self.scale)
        return values.contiguous(memory_format=self.form)

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next images, cropped and flipped, and their labels."""
        if self.place + self.batch > len(self.order):
            self.order, self.place = torch.randperm(len(self.images)), 0
        chosen = self.order[self.place : self.place + self.batch]
        self.place += self.batch
        padded = F.pad(self.images[chosen], (4, 4, 4, 4))
        rows = torch.arange(32) + torch.randint(0, 9, (self.batch, 1))
        columns = torch.arange(32) + torch.randint(0, 9, (self.batch, 1))
        columns = torch.where(torch.rand(self.batch, 1) < 0.5, columns, columns.flip(1))
        number = torch.arange(self.batch)[:, None, None]
        cropped = padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(
            0, 3, 1, 2
        )
        return self.normalise(cropped), self.labels[chosen]

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Take one optimiser step and return its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.context():
            with torch.no_grad():
                target = self.teacher(images)
            logits = self.student(images)
            divergence = F.kl_div(
                F.log_softmax(logits.float() / TEMPERATURE, 1),
                F.log_softmax(target.float() / TEMPERATURE, 1),
                reduction="batchmean",
                log_target=True,
            )
            loss = ALPHA * TEMPERATURE**2 * divergence + (1 - ALPHA) * F.cross_entropy(
                logits.float(), labels
            )
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def run(self, steps: int) -> None:
        """Take `steps` steps."""
        for _ in range(steps):
            self.step(*self.next_batch())


class Ours:
    """The same task through the package."""

    def __init__(
        self, source: Source, student: Model, teacher: Model, precision: Precision, batch: int
    ) -> None:
        def stage(steps: int) -> Stage:
            return Stage(
                [KD(TEMPERATURE).weighted(ALPHA), Supervised().weighted(1 - ALPHA)],
                steps=steps,
                optimizer=Optimizer("sgd", lr=RATE, momentum=MOMENTUM, weight_decay=DECAY),
            )

        self.stage = stage
        experiment = Experiment(
            "benchmark",
            ExperimentData(
                source, validation=None, transforms=[RandomCrop(padding=4), HorizontalFlip()]
            ),
            lambda: student,
            ExperimentTeacher(lambda: teacher),
            {},
            Settings(batch_size=batch),
        )
        self.context = Context(
            experiment, make_splits(experiment), join_world("cpu"), precision=precision
        )
        self.student, self.teacher = self.context.place(student), self.context.place(teacher)

    def prepare(self, steps: int) -> StageRun:
        """Build a stage of `steps` steps."""
        return self.context.stage_run(
            self.stage(steps), student=self.student, teacher=self.teacher,
            split=self.context.splits.train, seed=0, number=0,
        )  # fmt: skip

    def run(self, run: StageRun) -> None:
        """Train the stage."""
        recorder = Recorder(lambda **_: None, 20, str, self.context.world)
        train(
            run,
            recorder,
            save=lambda: None,
            validate=lambda: False,
            stop=lambda: False,
            checkpoint_every=None,
        )


class Alternating:
    """A loader that lets the other loop take a step after each of ours, and times both."""

    def __init__(self, loader: Steps, other: Callable[[], None]) -> None:
        self.loader, self.other = loader, other
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Give our batches; what passes until the next one is asked for is our step, loading included."""
        batches = self.loader.steps(start, stop)
        for _ in range(start, stop):
            begin = time.perf_counter()
            parts = next(batches)
            yield parts
            middle = time.perf_counter()
            self.other()
            self.ours.append(middle - begin)
            self.theirs.append(time.perf_counter() - middle)


def gate(source: Source, precision: Precision, batch: int) -> float:
    """Run ten equal batches through both and return the largest relative difference of their losses."""
    student, teacher = model("resnet20", 1), model("resnet56", 2)
    hand = HandWritten(
        source, copy.deepcopy(student.module), copy.deepcopy(teacher.module), precision, batch
    )
    ours = Ours(source, student, teacher, precision, batch)
    run = ours.prepare(10)
    batches = [parts[0] for parts in run.loader.steps(0, 10)]
    run.rate = Rate(run.optimizer, lambda _step: 1.0)
    losses: list[float] = []

    class Replay:
        def steps(self, start: int, stop: int) -> Iterator[list[object]]:
            for part in batches[start:stop]:
                yield [part]

    run.loader = Replay()  # type: ignore[assignment]
    recorder = Recorder(lambda **line: losses.append(line["loss"]), 1, str, ours.context.world)
    train(
        run,
        recorder,
        save=lambda: None,
        validate=lambda: False,
        stop=lambda: False,
        checkpoint_every=None,
    )
    plain = [float(hand.step(part.inputs["student"], part.labels)) for part in batches]
    return max(abs(a - b) / abs(b) for a, b in zip(losses, plain, strict=True))


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", help="folder of CIFAR-100 in hub layout; random images without it"
    )
    parser.add_argument("--precision", default="bf16", choices=["float32", "bf16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each loop")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    source = load(given.data)
    precision = Precision(given.precision, given.channels_last, "cpu")

    difference = gate(source, precision, given.batch)
    allowed = 1e-4 if given.precision == "float32" else 2e-2
    print(f"Losses of ten equal steps differ by at most {difference:.1e} (allowed {allowed:.0e})")
    if difference > allowed:
        raise SystemExit("The two loops do not compute the same; nothing is timed.")

    student, teacher = model("resnet20", 1), model("resnet56", 2)
    hand = HandWritten(
        source, copy.deepcopy(student.module), copy.deepcopy(teacher.module), precision, given.batch
    )
    ours = Ours(source, student, teacher, precision, given.batch)
    warm_up = 5
    run = ours.prepare(given.steps + warm_up)
    alternating = Alternating(run.loader, lambda: hand.run(1))
    run.loader = alternating  # type: ignore[assignment]
    ours.run(run)
    seconds = {
        "hand-written": alternating.theirs[warm_up:],
        "understudy": alternating.ours[warm_up:],
    }
    rates = {name: [given.batch / value for value in values] for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(rates["understudy"], rates["hand-written"], strict=True)]
    print(
        f"| loop | images per second (median of {given.steps} steps) | quartiles |\n|---|---|---|"
    )
    for name, values in rates.items():
        low, _, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {statistics.median(values):.0f} | {low:.0f} to {high:.0f} |")
    low, middle, high = statistics.quantiles(ratios, n=4)
    whole = sum(seconds["hand-written"]) / sum(seconds["understudy"])
    print(
        f"Ratio ours / hand-written, paired steps: median {middle:.3f} (quartiles {low:.3f} to {high:.3f})"
    )
    print(f"Ratio of the summed times: {whole:.3f}")
    if given.json:
        given.json.write_text(
            json.dumps(
                {"rates": rates, "ratios": ratios, **{k: str(v) for k, v in vars(given).items()}}
            )
        )


if __name__ == "__main__":
    main()
