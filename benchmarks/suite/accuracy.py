"""C10: what a student has learnt after a fixed time."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import torch
from benchmarks.suite.options import Options
from benchmarks.suite.ours import Ours, automatic, experiment
from benchmarks.suite.peer import Peer
from benchmarks.suite.plain import Plain
from benchmarks.suite.rounds import Run
from benchmarks.suite.row import Goal, Row
from benchmarks.suite.step_rows import OURS, PEER
from benchmarks.suite.task import MEAN, STD, Task
from safetensors.torch import load_file
from torch import nn

from understudy.data.source import Source
from understudy.data.sources.huggingface import huggingface
from understudy.models import kd
from understudy.models.model import Model
from understudy.models.preprocess import ImagePreprocess
from understudy.training.labelling import label

TURN = 5
"""Steps between two looks at the clock."""


def fixed_time(options: Options) -> Row:
    """C10: test accuracy on CIFAR-100 after the same time of training."""
    row = Row("C10", f"CIFAR-100 accuracy after {options.seconds:g} s of training", "accuracy")
    if options.data is None or options.teacher is None:
        row.skipped = "it needs CIFAR-100 (--data) and a teacher (--teacher)"
        return row
    source = huggingface(options.data)
    if options.quick:
        few = torch.arange(256)
        source = dataclasses.replace(
            source, train=source.train.subset(few), test=source.test.subset(few)
        )
    teacher = kd.build("resnet56", classes=100)
    teacher.load_state_dict(load_file(options.teacher))
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "store"
        first = _task(source, teacher, 0, "kd")
        precision = automatic(first)
        begin = time.perf_counter()
        label(experiment(first, place))
        build = time.perf_counter() - begin
        for seed in range(options.seeds):
            task = _task(source, teacher, seed, "kd")
            ours = Ours(task, precision, store=place)
            alone = Plain(_task(source, teacher, seed, "labels"), precision)
            contenders: dict[str, tuple[Run, nn.Module]] = {
                OURS: (ours.run, ours.student.module),
                "labels only": (alone.run, alone.student),
            }
            if options.peer is None:
                peer = Peer(task)
                contenders[PEER] = (peer.run, peer.student)
            for contender, (run, student) in contenders.items():
                steps = _train(run, options.seconds)
                found.setdefault(contender, []).append(_accuracy(student, source))
                row.details.setdefault("steps", {}).setdefault(contender, []).append(steps)
            ours.close()
    row.values = {contender: statistics.mean(values) for contender, values in found.items()}
    row.details |= {"accuracy": found, "build_seconds": build, "precision": str(precision)}
    row.bound = "the most accurate contender"
    best = max(value for contender, value in row.values.items() if contender != OURS)
    row.goals.append(Goal("at least as accurate as the best other", row.values[OURS] - best, 0.0))
    row.notes.append(
        f"{options.seeds} seed(s). kd:resnet56 -> kd:resnet20, batch 64, no augmentation, constant rate. understudy "
        f"and the labels alone run in {precision}; understudy learns from a store whose build took {build:.0f} s, "
        "which are not in its time."
    )
    if options.peer is not None:
        row.notes.append(f"Without torchdistill: {options.peer}.")
    return row


def _task(source: Source, teacher: nn.Module, seed: int, objective: str) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = kd.build("resnet20", classes=100)
    models = [
        Model(module, ImagePreprocess(MEAN, STD), name)
        for module, name in ((student, "kd:resnet20"), (teacher, "kd:resnet56"))
    ]
    return Task(source, models[0], models[1], 64, objective)


def _train(run: Run, seconds: float) -> int:
    """Train for a time and return the steps."""
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        run(TURN)
        steps += TURN
    return steps


def _accuracy(student: nn.Module, source: Source) -> float:
    """Return the share of test samples that are right, in float32."""
    preprocess = ImagePreprocess(MEAN, STD)
    student.eval()
    right = 0
    with torch.no_grad():
        for chosen in torch.arange(len(source.test)).split(500):
            inputs = preprocess(source.test.fetch(chosen), torch.device("cpu"))
            right += int((student(inputs).argmax(1) == source.test.labels[chosen]).sum())
    student.train()
    return right / len(source.test)
