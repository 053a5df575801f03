"""The training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch

from understudy.errors import TrainingError
from understudy.training.backward import backward
from understudy.training.recorder import Recorder
from understudy.training.stage_run import StageRun


class Interrupted(TrainingError):
    """The run was asked to stop; a checkpoint was written."""


def train(
    run: StageRun,
    recorder: Recorder,
    *,
    save: Callable[[], None],
    validate: Callable[[], bool],
    stop: Callable[[], bool],
    checkpoint_every: int | None,
) -> None:
    """Train one stage from where it stands to its end.

    Args:
        run: the stage with its models, optimiser and data.
        recorder: collects the terms of the steps.
        save: writes a checkpoint.
        validate: looks at the validation split after an epoch; True when the stage may stop early.
        stop: True when the process was asked to stop.
        checkpoint_every: steps between two checkpoints, None for one per epoch.

    Raises:
        Interrupted: `stop` said so; everything up to here is in a checkpoint.
        TrainingError: the loss is not finite.
    """
    run.train_mode()
    end = run.step if run.stopped_early else run.total_steps
    for parts in run.batches(end):
        run.drop_gradients()
        terms: dict[str, torch.Tensor] = {}
        for part, shares, context in run.plan_parts(parts):
            with context:
                with run.precision.context():
                    loss, found = run.ddp(part, run.progress, shares)
                backward(loss)
            for name, value in {**found, "loss": loss.detach()}.items():
                terms[name] = terms[name] + value if name in terms else value
        norm = run.clip()
        run.rate.set(run.step)
        run.update()
        run.module.after_step()
        run.averaging.after_step()
        run.step += 1
        recorder.add(run.step, terms, norm, [part.index for part in parts])

        ends_epoch = run.step % run.steps_per_epoch == 0 or run.step == run.total_steps
        interrupted = stop()
        saves = interrupted or (checkpoint_every is not None and run.step % checkpoint_every == 0)
        if recorder.due(run.step) or ends_epoch or saves:
            recorder.flush(**run.place)
        if ends_epoch:
            run.averaging.after_epoch(run.progress)
            run.stopped_early = validate()
            run.train_mode()
            recorder.restart_clock()
        if saves or (ends_epoch and checkpoint_every is None):
            save()
        if interrupted:
            raise Interrupted("Stopped as asked.")
        if run.stopped_early:
            break
    run.finish()
