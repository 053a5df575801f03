"""What the KD layer costs: parameters, and time of a training step and of inference beside the bare student.

    python benchmarks/kd_layer.py [--steps 30] [--batch 64] [--student resnet20]

Students with and without layers take turns step by step on the same random 32 x 32 images; quoted are medians and the
median ratio of paired steps. A training step here is forward, loss and backward of the student, with the words' loss
where there is one; the teacher's forward, the same for all distillation, is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from understudy import objectives
from understudy.models import kd
from understudy.models.grafts.kd_layer import KDLayer
from understudy.models.splice import splice
from understudy.models.taps import Tapped

CLASSES, WORDS, SUBCLASSES = 100, 4096, 800


def student(name: str, layers: dict[str, int]) -> nn.Module:
    """Return a student with a layer of so many templates behind each path."""
    torch.manual_seed(0)
    module = kd.build(name, classes=CLASSES)
    width = module.fc.in_features  # type: ignore[union-attr]
    for path, templates in layers.items():
        splice(module, path, KDLayer(int(width), templates))  # type: ignore[arg-type]
    return module


def timed(run: Callable[[], object]) -> float:
    """Return milliseconds of one call."""
    begun = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begun)


def main() -> None:
    """Let the variants take turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--student", default="resnet20")
    options = parser.parse_args()
    images = torch.randn(options.batch, 3, 32, 32)
    labels = torch.arange(options.batch) % CLASSES
    features = torch.randn(options.batch, 8, 8, 64)
    words = torch.randn(WORDS, 64)
    variants: dict[str, dict[str, int]] = {
        "bare": {},
        "words": {"layer3": WORDS},
        "sub-classes": {"layer3.0": SUBCLASSES},
        "both": {"layer3.0": SUBCLASSES, "layer3": WORDS},
    }
    models = {name: student(options.student, layers) for name, layers in variants.items()}
    taps = {
        name: [f"{path}.graft.scores" for path, count in layers.items() if count == WORDS]
        for name, layers in variants.items()
    }
    tapped = {name: Tapped(model, taps[name]) for name, model in models.items()}

    def train(name: str) -> None:
        logits, found = tapped[name].train()(images)
        loss = F.cross_entropy(logits, labels)
        for scores in found.values():
            loss = loss + objectives.visual_words(scores, features, centres=words)
        loss.backward()
        tapped[name].zero_grad()

    def infer(name: str) -> None:
        with torch.no_grad():
            models[name].eval()(images)

    times: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in variants} for kind in ("train", "infer")
    }
    for step in range(options.steps + 2):
        for name in variants:
            for kind, run in (("train", train), ("infer", infer)):
                found = timed(lambda run=run, name=name: run(name))  # type: ignore[misc]
                if step >= 2:
                    times[kind][name].append(found)
    for name, model in models.items():
        line = {"student": name, "parameters": sum(p.numel() for p in model.parameters())}
        for kind, each in times.items():
            ratios = [ours / bare for ours, bare in zip(each[name], each["bare"], strict=True)]
            line[f"{kind}_ms"] = round(statistics.median(each[name]), 1)  # type: ignore[assignment]
            line[f"{kind}_ratio"] = round(statistics.median(ratios), 3)  # type: ignore[assignment]
        print(json.dumps(line))


if __name__ == "__main__":
    main()
