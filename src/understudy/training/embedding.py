"""What goes into a model's classifier, or into a language model's head, for the test samples."""

from __future__ import annotations

import logging

import torch

from understudy.errors import UnderstudyError
from understudy.evaluation.geometry import SAMPLES
from understudy.methods.wiring import Side
from understudy.models.model import Model
from understudy.teachers.passes import Pass
from understudy.teachers.readings import Reading, Seen
from understudy.training.context import Context

logger = logging.getLogger("understudy")


def embeddings(context: Context, model: Model) -> torch.Tensor | None:
    """Return what goes into a model's classifier for the first test samples, in evaluation mode and float32.

    Maps and sequences are averaged. None, with a line in the log, for a model in which that cannot be read.

    Returns:
        [N, D] on the CPU.
    """
    test, classes = context.splits.test, len(context.classes)
    part = test.subset(torch.arange(min(SAMPLES, len(test))))
    example = context.example(part, {"student": model.preprocess})
    side = Side(
        "student",
        model.module,
        example.inputs["student"],
        training=False,
        input_height=None,
    )
    size = context.experiment.settings.evaluation_batch_size
    whole = Pass(
        part,
        {"student": model},
        classes,
        context.experiment.task,
        context.world.device,
        min(size, len(part)),
    )
    try:
        reading = Reading(side.embedding, form="mean")
        with whole.running([reading]) as outputs:
            found = [
                Seen(batch, outputs(batch), classes).values(reading) for batch in whole.batches()
            ]
    except UnderstudyError as error:
        logger.info("The geometry of %s is not measured: %s", model.name, error)
        return None
    return torch.cat(found).cpu()
