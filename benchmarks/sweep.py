"""Ten students from one store of teacher outputs, beside ten runs with the teacher in every step.

    python benchmarks/sweep.py --data FOLDER_OF_CIFAR100 --teacher WEIGHTS_OF_RESNET56 [--students 10]

A sweep of learning rates: kd:resnet20 learns from kd:resnet56 (T = 4, 0.9 KD + 0.1 cross-entropy) on `--samples` images
with random crop and flip, in `--views` views. The store holds all logits in float32, labelled in the precision of
training. Each student is trained twice, from the store and from the live teacher, one after the other, so that both
see the machine in the same state; every second pair starts with the live teacher. What is summed is the time of whole
calls (`us.label`, `us.distill`): reading, evaluation and writing included. Both see the same views in the same order,
so their students should agree; the largest difference in test accuracy is printed.

Without --data and --teacher images and weights are random: speed is the same, there is nothing to learn.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import understudy as us
from understudy.data.source import Source
from understudy.data.sources.python import from_tensors

MEAN, STD = [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]
CLASSES = 100


def load(folder: str | None, samples: int, test: int) -> Source:
    """Return some images of CIFAR-100, or random ones."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        shape = (samples + test, 3, 32, 32)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        labels = torch.arange(samples + test) % CLASSES
        return from_tensors(
            images[:samples],
            labels[:samples],
            test_inputs=images[samples:],
            test_labels=labels[samples:],
        )
    from understudy.data.sources.huggingface import huggingface

    whole = huggingface(folder)
    assert whole.test is not None

    def some(split: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
        return split.fetch(chosen), split.labels[chosen]

    images, labels = some(whole.train, samples)
    test_images, test_labels = some(whole.test, test)
    return from_tensors(images, labels, test_inputs=test_images, test_labels=test_labels)


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train all students both ways and return what was measured."""
    source = load(arguments.data, arguments.samples, arguments.test)
    teacher: dict[str, Any] = {
        "name": "kd:resnet56",
        "preprocess": {"mean": MEAN, "std": STD},
    }
    if arguments.teacher is not None:
        teacher["weights"] = arguments.teacher
    shared: dict[str, Any] = {
        "student": {"name": "kd:resnet20", "preprocess": {"mean": MEAN, "std": STD}},
        "data": {
            "source": source,
            "views": arguments.views,
            "validation": None,
            "transforms": [{"name": "random_crop", "padding": 4}, "horizontal_flip"],
        },
        "methods": [
            {"name": "kd", "temperature": 4.0, "weight": 0.9},
            {"name": "supervised", "weight": 0.1},
        ],
        "epochs": arguments.epochs,
        "batch_size": arguments.batch,
        "precision": arguments.precision,
        "channels_last": True,
        "preflight": "warn",
    }
    store = folder / "store"
    stored = {"store": {"path": str(store), "precision": arguments.precision}}
    begin = time.perf_counter()
    us.label(teacher={"model": teacher, **stored}, **copy.deepcopy(shared))
    labelling = time.perf_counter() - begin
    print(f"labelled {arguments.samples} x {arguments.views} views in {labelling:.1f} s")

    sides = {"stored": {"store": str(store)}, "live": {"model": teacher}}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    accuracy: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(arguments.students):
        rate = 0.02 * 1.3**number
        for side in list(sides) if number % 2 == 0 else list(reversed(sides)):
            begin = time.perf_counter()
            result = us.distill(
                teacher=copy.deepcopy(sides[side]),
                seeds=[0],
                baseline=False,
                optimizer={"name": "sgd", "lr": rate, "momentum": 0.9, "weight_decay": 5e-4},
                directory=folder / f"{side}-{number}",
                **copy.deepcopy(shared),
            )
            seconds[side].append(time.perf_counter() - begin)
            accuracy[side].append(measured(result.directory))
        print(
            f"student {number + 1} of {arguments.students}, lr {rate:.3f}: "
            f"stored {seconds['stored'][-1]:.1f} s, live {seconds['live'][-1]:.1f} s, "
            f"accuracy {accuracy['stored'][-1]:.4f} and {accuracy['live'][-1]:.4f}",
            flush=True,
        )
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    return {
        "labelling_s": labelling,
        "seconds": seconds,
        "accuracy": accuracy,
        "store_bytes": size,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "load": os.getloadavg(),
    }


def measured(directory: Path) -> float:
    """Return the test accuracy of the only student of a run."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    (found,) = [line for line in lines if line["event"] == "result" and line["arm"] != "teacher"]
    return float(found["metrics"]["accuracy"])


def show(found: dict[str, Any]) -> None:
    """Print the totals as a Markdown table."""
    stored, live = sum(found["seconds"]["stored"]), sum(found["seconds"]["live"])
    labelling, students = found["labelling_s"], len(found["seconds"]["live"])
    paired = [
        there / here
        for here, there in zip(found["seconds"]["stored"], found["seconds"]["live"], strict=True)
    ]
    gaps = [
        abs(one - other)
        for one, other in zip(found["accuracy"]["stored"], found["accuracy"]["live"], strict=True)
    ]
    print(f"\n| {students} students | labelling | training | total |\n|---|---:|---:|---:|")
    print(f"| teacher in every step | | {live:.0f} s | {live:.0f} s |")
    print(f"| from one store | {labelling:.0f} s | {stored:.0f} s | {labelling + stored:.0f} s |")
    print(
        f"\nTotal {live / (labelling + stored):.2f} times as fast; one student {statistics.median(paired):.2f} times "
        f"(median of pairs); store {found['store_bytes'] / 1e6:.1f} MB; largest difference in accuracy {max(gaps):.4f}."
    )


def main() -> None:
    """Read the arguments, run and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", help="folder of CIFAR-100 in hub layout; random images without it"
    )
    parser.add_argument("--teacher", help="weights of kd:resnet56; random without it")
    parser.add_argument("--students", type=int, default=10)
    parser.add_argument("--samples", type=int, default=5000, help="training images")
    parser.add_argument("--test", type=int, default=1000, help="test images")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    logging.getLogger("understudy").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        found = run(arguments, Path(folder))
    show(found)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
