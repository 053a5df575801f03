"""One member of a run: one arm under one seed, from its first step to its result."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from understudy.data.source import Split
from understudy.errors import ModelError, TrainingError
from understudy.evaluation import geometry
from understudy.evaluation.assessment import Answers
from understudy.evaluation.memory import PeakMemory
from understudy.models.model import Model, fingerprint
from understudy.models.surgery import fold_heads, operate
from understudy.teachers.stored import StoredModel
from understudy.training.checkpoint import Checkpoints
from understudy.training.choosing import selection_line
from understudy.training.context import Context, Teachers
from understudy.training.deliverable import cost_of, save_model
from understudy.training.embedding import embeddings
from understudy.training.fitting import Fitting, fit_lines
from understudy.training.loop import Interrupted, train
from understudy.training.recorder import Recorder
from understudy.training.run_directory import RunDirectory
from understudy.training.stage import Stage
from understudy.training.stage_run import Earlier, StageRun
from understudy.training.writing import write_answers

logger = logging.getLogger("understudy")


class Member:
    """One arm under one seed.

    Args:
        context: what the members of the run share.
        directory: the run directory.
        arm: the arm's name, "teacher" or "teacher.NAME" for a teacher's own training.
        seed: the seed.
        stop: True when the process was asked to stop.
    """

    def __init__(
        self,
        context: Context,
        directory: RunDirectory,
        *,
        arm: str,
        seed: int,
        stop: Callable[[], bool],
    ) -> None:
        """Nothing is built or written yet."""
        self.context, self.directory = context, directory
        self.arm, self.seed, self._stop = arm, seed, stop
        settings = context.experiment.settings
        self.checkpoints = Checkpoints(
            directory.checkpoints, f"{arm}-seed{seed}", settings.keep_checkpoints
        )
        self._seconds = 0.0
        self._peak = 0
        self._total_steps = self._tokens = 0
        self._earlier: Earlier = {}

    def train(
        self,
        student: Model,
        teachers: Teachers,
        stages: Sequence[Stage],
        split: Split,
    ) -> None:
        """Train through all stages, going on from the newest checkpoint when there is one."""
        found = self.checkpoints.load()
        begin_stage = 0
        if found is None:
            self.directory.forget_member(self.arm, self.seed)
            self._record(
                "member",
                state="started",
                weights=student.weights,
                fingerprint=fingerprint(student.module),
            )
        else:
            begin_stage = found["stage"]
            operate(student.module, found["run"]["surgery"])
            self._seconds, self._peak = found["seconds"], found["peak"]
            self._total_steps, self._tokens = found["steps_before"], found["tokens_before"]
            self._earlier = found["earlier"]
            self.directory.truncate(found["metrics_bytes"])
            self._record("member", state="resumed")
            logger.info(
                "Resuming %s, seed %d, at step %d", self.arm, self.seed, found["run"]["step"]
            )
        for number in range(begin_stage, len(stages)):
            resumes = found is not None and number == begin_stage
            run = self.context.stage_run(
                stages[number],
                student=student,
                teacher=teachers,
                split=split,
                seed=self.seed,
                number=number,
                earlier=self._earlier,
                fitting=Fitting("restoring" if resumes else "real", stop=self._give_way),
            )
            try:
                if found is not None and resumes:
                    run.load(found["run"])
                else:
                    self._say_what_it_starts_from(run, split)
                self._train_stage(run, student, number)
                self._earlier = run.learnt()
            finally:
                run.close()
            self._total_steps += run.step
            read = torch.tensor(run.tokens, device=self.context.world.device)
            self._tokens += int(self.context.world.sum(read))

    def _say_what_it_starts_from(self, run: StageRun, split: Split) -> None:
        """Record what was fitted and selected for a stage."""
        if run.study is not None:
            self._record("fit", stage=run.stage.name, fitted=fit_lines(run.study))
        selection = selection_line(self.context, run.stage, split, self.seed)
        if selection is not None:
            self._record("selection", **selection)

    def _give_way(self) -> None:
        """Stop between two batches of a pass when the process was asked to; what was collected is kept."""
        if self._stop():
            raise Interrupted("Stopped as asked, while methods were fitted.")

    def _train_stage(self, run: StageRun, student: Model, number: int) -> None:
        settings = self.context.experiment.settings
        for said in run.ends:
            logger.info("%s, seed %d, %s: %s", self.arm, self.seed, run.stage.name, said)
        clock = time.perf_counter()

        def write(**fields: Any) -> None:
            fields["step"] += self._total_steps
            self._record("step", stage=run.stage.name, **fields)

        def mixed(**fields: Any) -> None:
            fields["step"] += self._total_steps
            self._record("mixture", stage=run.stage.name, **fields)

        if run.mixing is not None:
            run.mixing.record = mixed

        def save() -> None:
            nonlocal clock
            now = time.perf_counter()
            self._seconds, clock = self._seconds + now - clock, now
            state = run.state()
            if self.directory.writes:
                self.checkpoints.save(
                    self._total_steps + run.step,
                    {
                        "stage": number,
                        "run": state,
                        "seconds": self._seconds,
                        "peak": self._peak,
                        "steps_before": self._total_steps,
                        "tokens_before": self._tokens,
                        "earlier": self._earlier,
                        "metrics_bytes": self.directory.size(),
                    },
                )

        def validate() -> bool:
            nonlocal clock
            now = time.perf_counter()
            self._seconds += now - clock
            stops = self._validate(run, student)
            clock = time.perf_counter()
            return stops

        recorder = Recorder(write, settings.log_every, self._last_checkpoint, self.context.world)
        with PeakMemory(self.context.world.device) as memory:
            train(
                run,
                recorder,
                save=save,
                validate=validate,
                stop=self._stop,
                checkpoint_every=settings.checkpoint_every,
            )
        self._seconds += time.perf_counter() - clock
        self._peak = max(self._peak, memory.bytes or 0)

    def _validate(self, run: StageRun, student: Model) -> bool:
        """Measure the validation split after an epoch; True when the stage may stop early."""
        split, stopping = self.context.splits.validation, run.stage.early_stopping
        if split is None:
            if stopping is not None:
                raise TrainingError(
                    f"Stage '{run.stage.name}' stops early, which needs a validation split; set data.validation."
                )
            return False
        module = run.averaging.evaluated
        try:
            predictions = self.context.predictions(student, module, split)
        except ModelError as error:
            raise TrainingError(f"{error} {self._last_checkpoint()}") from error
        metrics = self.context.assessment.validation(predictions)
        self._record(
            "epoch",
            stage=run.stage.name,
            epoch=run.epoch,
            step=self._total_steps + run.step,
            split="validation",
            metrics=metrics,
            elapsed=self._seconds,
        )
        logger.info(
            "%s seed %d | %s epoch %d of %d | validation %s",
            self.arm,
            self.seed,
            run.stage.name,
            run.epoch,
            math.ceil(run.total_steps / run.steps_per_epoch),
            ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()),
        )
        if stopping is None:
            return False
        value = metrics["accuracy"] if stopping.metric == "accuracy" else -metrics["nll"]
        if run.best["value"] is None or value > run.best["value"]:
            weights = {
                name: tensor.detach().clone() for name, tensor in module.state_dict().items()
            }
            run.best.update(value=value, epoch=run.epoch, weights=weights)
        stops = run.epoch - run.best["epoch"] >= stopping.patience
        return self.context.world.any(stops and self.context.world.is_main)

    def finish(
        self,
        student: Model,
        folder_metadata: dict[str, Any],
        *,
        heard: Sequence[str] = (),
        teacher: str | None = None,
        classifies: bool = True,
    ) -> Answers:
        """Evaluate on the test split, save the student and write the result; drop the checkpoints.

        Args:
            student: the trained model.
            folder_metadata: what its folder says beside the metrics.
            heard: the names of the teachers that it listened to, with whom it is compared; with all when empty.
            teacher: its name where it is a teacher itself.
            classifies: False for a teacher whose classifier was never trained; its metrics are None.
        """
        # What is measured is what is deployed.
        fold_heads(student.module)
        predictions = self.context.predictions(student, student.module, self.context.splits.test)
        assessment = self.context.assessment
        metrics: dict[str, float | None] = dict(assessment.metrics(predictions))
        metrics |= dict.fromkeys(("agreement", "kl", *geometry.METRICS))
        if teacher is None:
            metrics |= self._fidelity(student, predictions, heard)
        if not classifies:
            metrics = dict.fromkeys(metrics)
        written = write_answers(self.context, student)
        metrics |= written.metrics
        if self.directory.writes:
            if written.samples:
                self._record("samples", samples=written.samples)
            folder = None
            if not student.extra.get("black_box"):
                folder = (
                    self.directory.student(self.arm, self.seed)
                    if teacher is None
                    else self.directory.teacher(teacher)
                )
                save_model(self.context, student, folder, {**folder_metadata, "metrics": metrics})
            details = assessment.details(predictions, len(self.context.classes))
            self._record(
                "result",
                split="test",
                metrics=metrics,
                **(details if classifies else dict.fromkeys(details)),
                cost={**cost_of(self.context, student, folder), **self._spent()},
            )
            self._record("member", state="finished")
            self.checkpoints.clear()
        return predictions

    def _fidelity(
        self, student: Model, predictions: Answers, heard: Sequence[str]
    ) -> dict[str, float | None]:
        """Compare with the teacher, or with the average of several; embeddings are those of one."""
        known = self.context.teacher_predictions
        names = [name for name in heard or known if name in known]
        if not names:
            return {}
        found: dict[str, float | None] = dict(
            self.context.assessment.fidelity(predictions, [known[name] for name in names])
        )
        theirs = self.context.teacher_embeddings.get(names[0]) if len(names) == 1 else None
        ours = None if theirs is None else embeddings(self.context, student)
        if ours is not None and theirs is not None:
            found |= geometry.geometry_metrics(ours, theirs)
        return found

    def finish_stored(self, teacher: StoredModel, predictions: Answers) -> None:
        """Write the result of a teacher of which only the outputs are there."""
        assessment = self.context.assessment
        self._record(
            "result",
            split="test",
            metrics={
                **assessment.metrics(predictions),
                **dict.fromkeys(("agreement", "kl", *geometry.METRICS)),
            },
            **assessment.details(predictions, len(self.context.classes)),
            cost={"parameters": teacher.parameters, "flops": teacher.flops},
        )
        self._record("member", state="finished")

    def _spent(self) -> dict[str, Any]:
        """Return what training took."""
        return {
            "train_seconds": self._seconds,
            "peak_memory_bytes": self._peak or None,
            "steps": self._total_steps,
            "samples": self._total_steps * self.context.batch_size,
            **({"tokens": self._tokens} if self.context.experiment.task.labels_itself else {}),
        }

    def _last_checkpoint(self) -> str:
        newest = self.checkpoints.newest()
        return (
            f"The last good checkpoint is {newest}."
            if newest
            else "There is no checkpoint before it."
        )

    def _record(self, event: str, **fields: Any) -> None:
        self.directory.record(event, arm=self.arm, seed=self.seed, **fields)
