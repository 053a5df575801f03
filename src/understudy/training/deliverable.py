"""What a member leaves behind: its model's folder, and what that model costs to deploy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from understudy.evaluation import cost
from understudy.models import saved
from understudy.models.model import Model
from understudy.training.context import Context

LATENCY_SECONDS = 0.4
"""Time spent on measuring a model's latency."""


def save_model(context: Context, model: Model, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write a trained model's folder.

    Args:
        context: the run's.
        model: the model.
        folder: where.
        metadata: what the folder says of it.
    """
    source = context.experiment.data.source
    example = context.example(context.splits.test, {"student": model.preprocess})
    inputs = example.inputs["student"]
    shape = tuple(inputs.shape[1:]) if isinstance(inputs, torch.Tensor) else None
    saved.save(
        model,
        folder,
        classes=source.classes,
        input_shape=shape,
        kind=source.kind,
        metadata=dict(metadata),
    )


def cost_of(context: Context, model: Model, folder: Path | None) -> dict[str, Any]:
    """Return parameters, floating point operations, bytes on the disk and milliseconds of a model.

    Args:
        context: the run's, whose test samples are the inputs.
        model: the model.
        folder: where it was saved, None where it was not.
    """
    test, encoders = context.splits.test, {"student": model.preprocess}

    def inputs(size: int) -> Any:
        positions = torch.arange(size) % len(test)
        return context.example(test.subset(positions), encoders, size).inputs["student"]

    return {
        "parameters": cost.parameters(model.module),
        "flops": cost.flops(model.module, inputs(1)),
        "bytes": cost.size_on_disk(folder) if folder is not None else None,
        "latency_ms": cost.latency(
            model.module,
            inputs,
            context.experiment.task.latency_sizes,
            budget_seconds=LATENCY_SECONDS,
        ),
    }
