"""Time per step and peak memory of TCS beside training alone, online distillation and CRD.

    python benchmarks/tcs.py [--steps 30] [--batch 64] [--images 1000] [--precision bf16] [--device cpu]
        [--teacher kd:resnet32x4 --student kd:resnet8x4]

All train one student (kd:resnet20) on the same random 32 x 32 images with 100 classes; the teacher (kd:resnet56) costs
about three times as much. Speed does not depend on what is learnt. The stages take turns step by step in one process;
quoted are medians of paired ratios to the student alone. TCS's one pass of the teacher over the images is quoted apart:
it is paid once for all epochs, arms and seeds. Peak memory is that of a block of steps of one stage, after its pass of
the teacher, each in a process of its own; on a CPU it is the process's resident set, with some 300 MB of torch in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from understudy.data.sources.python import from_tensors
from understudy.evaluation import cost
from understudy.evaluation.memory import PeakMemory
from understudy.methods import CRD, KD, TCS, Method, Supervised
from understudy.models.build import build
from understudy.models.model import Model
from understudy.training.context import Context
from understudy.training.distribution import join_world
from understudy.training.experiment import Experiment, ExperimentData
from understudy.training.fitting import Fitting
from understudy.training.optimizers import Optimizer
from understudy.training.precision import Precision
from understudy.training.settings import Settings
from understudy.training.splits import make_splits
from understudy.training.stage import Stage
from understudy.training.stage_run import StageRun

CLASSES = 100


def methods() -> dict[str, list[Method]]:
    """Return what is compared."""
    return {
        "student alone": [Supervised()],
        "tcs": [Supervised(), TCS().weighted(6.0)],
        "kd": [Supervised(), KD()],
        "crd": [Supervised(), CRD(negatives=512).weighted(0.8)],
    }


def network(name: str) -> Model:
    """Return one of the CIFAR networks."""
    return build(
        name,
        classes=CLASSES,
        kind="image",
        input_shape=(3, 32, 32),
        statistics=((0.5,) * 3, (0.25,) * 3),
    )


def context(given: argparse.Namespace, cache: str) -> Context:
    """Return a run's surroundings over random images."""
    count, device = given.images, given.device
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count + 8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count + 8) % CLASSES
    source = from_tensors(
        images[:count],
        labels[:count],
        test_inputs=images[count:],
        test_labels=labels[count:],
        classes=[str(number) for number in range(CLASSES)],
    )
    experiment = Experiment(
        name="tcs",
        data=ExperimentData(source, validation=None),
        student=lambda: network(given.student),
        teacher=None,
        arms={},
        settings=Settings(
            batch_size=given.batch,
            device=device,
            precision=given.precision,
            channels_last=given.precision == "bf16",
            cache=cache,
        ),
    )
    world = join_world(device)
    precision = Precision(given.precision, given.precision == "bf16", device)
    return Context(experiment, make_splits(experiment), world, precision=precision)


def steps(run: StageRun, count: int) -> Iterator[float]:
    """Take steps as the loop does; yield the seconds of each."""
    run.train_mode()
    device = next(run.module.parameters()).device
    parts = iter(run.loader.steps(0, count))
    for _ in range(count):
        begun = time.perf_counter()
        (batch,) = next(parts)
        run.optimizer.zero_grad(set_to_none=True)
        with run.precision.context():
            loss, _ = run.ddp(batch, 0.1, None)
        loss.backward()
        run.optimizer.step()
        run.module.after_step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--teacher", default="kd:resnet56")
    parser.add_argument("--student", default="kd:resnet20")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(given, Path(folder))


def stage_run(shared: Context, teacher: Model | None, used: list[Method], count: int) -> StageRun:
    """Build a stage of `count` steps, its pass of the teacher included."""
    return shared.stage_run(
        Stage(used, steps=count, optimizer=Optimizer("sgd", lr=0.01)),
        student=shared.build_student(0),
        teacher=teacher if any(method.uses_teacher for method in used) else None,
        split=shared.splits.train,
        seed=0,
        number=0,
        fitting=Fitting("real"),
    )


def peak(name: str, given: argparse.Namespace) -> int:
    """Return the peak of memory in bytes over steps of one stage; a teacher that is done with is gone by then."""
    with tempfile.TemporaryDirectory() as folder:
        shared = context(given, folder)
        used = methods()[name]
        teacher: Model | None = None
        if name != "student alone":
            teacher = shared.place(network(given.teacher))
        run = stage_run(shared, teacher, used, 10)
        del teacher
        gc.collect()
        with PeakMemory(shared.world.device) as memory:
            for _ in steps(run, 5):
                pass
        run.close()
    return memory.bytes or 0


def measure(given: argparse.Namespace, folder: Path) -> None:
    """Build all stages, let them take turns, and print one line of JSON for each."""
    shared = context(given, str(folder))
    teacher = shared.place(network(given.teacher))
    runs, fits = {}, {}
    for name, used in methods().items():
        begun = time.perf_counter()
        runs[name] = stage_run(shared, teacher, used, given.steps + 5)
        fits[name] = time.perf_counter() - begun
    warm, timed = 2, given.steps
    turns = {name: steps(run, warm + timed) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm + timed):
        for name, turn in turns.items():
            taken = next(turn)
            if number >= warm:
                seconds[name].append(taken)
    for run in runs.values():
        run.close()
    flops = [
        cost.flops(model.module.to("cpu"), torch.zeros(1, 3, 32, 32))
        for model in (network(given.teacher), network(given.student))
    ]
    print(json.dumps({"teacher_over_student_flops": round(flops[0] / flops[1], 2)}))
    alone = seconds["student alone"]
    spawn = multiprocessing.get_context("spawn")
    for name in runs:
        with spawn.Pool(1) as process:
            bytes_at_most = process.apply(peak, (name, given))
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], alone, strict=True)]
        line = {
            "method": name,
            "milliseconds": round(1000 * statistics.median(seconds[name]), 1),
            "ratio": round(statistics.median(ratios), 3),
            "quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
            "peak_megabytes": round(bytes_at_most / 1e6),
            "building_and_fitting_seconds": round(fits[name], 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
