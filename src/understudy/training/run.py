"""A whole run: teacher, then every arm under every seed, one report."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.errors import PreflightError, RunDirectoryError, UnderstudyError, called
from understudy.models import saved
from understudy.models.model import Model
from understudy.teachers.stored import StoredModel
from understudy.training.choosing import check_reference, score
from understudy.training.context import Context, heard_by_any
from understudy.training.distribution import World, join_world
from understudy.training.embedding import embeddings
from understudy.training.experiment import BASELINE, REFERENCE, Experiment, arm_of
from understudy.training.loop import Interrupted
from understudy.training.member import Member
from understudy.training.plan import inspect_stages
from understudy.training.precision import Precision
from understudy.training.preflight import check_outputs, check_teacher
from understudy.training.probe import choose_precision
from understudy.training.run_directory import RunDirectory, commit
from understudy.training.run_log import run_log
from understudy.training.run_start import record_start
from understudy.training.signals import stop_on_signal
from understudy.training.splits import make_splits
from understudy.training.stage import Stage
from understudy.training.teacher import (
    build_reference,
    build_teachers,
    teacher_fingerprint,
    teacher_predictions,
)
from understudy.training.trackers import make_trackers
from understudy.training.verdict import Verdict, refuse

logger = logging.getLogger("understudy")


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        directory: the run directory.
        results: the result lines of `metrics.jsonl`, one per member.
    """

    directory: Path
    results: list[dict[str, Any]]


def run(experiment: Experiment, path: Path, *, resume: bool = False) -> RunResult:
    """Run an experiment, or go on with one.

    Args:
        experiment: what to run.
        path: the run directory; it must not exist yet unless `resume`.
        resume: go on after a crash or a stop. Finished members are kept, the one in training
            continues from its newest checkpoint.

    Raises:
        PreflightError: something is known to ruin the run. Unless it is a teacher that this run trained, nothing
            was written.
        RunDirectoryError: the directory exists, or cannot be written, or holds no run.
        Interrupted: the process was asked to stop; `resume` goes on.
    """
    world = join_world(experiment.settings.device)
    directory = RunDirectory(path, writes=world.is_main)
    # Every process looks before any writes, and then learns whether the first one could.
    (directory.open if resume else directory.check_free)()
    world.wait()
    with (
        run_log(world.is_main) as log,
        stop_on_signal(world) as stop,
        contextlib.ExitStack() as cleanup,
    ):
        try:
            whole = _Run(experiment, directory, world, stop)
            cleanup.callback(whole.context.close)
            whole.check()
            if not resume:
                _create_together(directory, dict(experiment.recipe), world)
            cleanup.enter_context(directory.locked())
            log.write_to(path / "log.txt")
            if world.is_main:
                for tracker in make_trackers(experiment.settings.trackers, path, experiment.name):
                    directory.listeners.append(tracker.line)
                    cleanup.callback(tracker.close)
            whole.go()
        except UnderstudyError as error:
            logger.error("%s", error)
            raise
    return RunResult(path, [line for line in directory.lines() if line["event"] == "result"])


class _Run:
    """The state of a run: context, directory, what is finished already."""

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDirectory,
        world: World,
        stop: Callable[[], bool],
    ) -> None:
        self.experiment, self.directory, self.world, self.stop = experiment, directory, world, stop
        self.lines = directory.lines()
        self.context = Context(experiment, make_splits(experiment), world, directory)

    def check(self) -> None:
        """Build the models, decide the precision and do every check that needs no training."""
        self.teachers = build_teachers(self.context)
        self.reference = build_reference(self.context)
        self.student = self.context.build_student(self.experiment.settings.seeds[0])
        self._decide_precision()
        plans = inspect_stages(self.context, self.teachers)
        verdicts = [verdict for plan in plans for verdict in plan.verdicts]
        verdicts += check_reference(self.context, self.reference, self.teachers)
        for verdict in verdicts:
            level = logging.WARNING if verdict.outcome == "warning" else logging.DEBUG
            logger.log(level, "Preflight, %s: %s", verdict.check, verdict.message)
        self._judge(verdicts)
        for name, teacher in self.teachers.items():
            if not self._stages_of(name):
                self._check_teacher(name, teacher)

    def go(self) -> None:
        """Train the teachers, then the students."""
        if not self._started():
            record_start(self.context, self.directory, self.student, self.teachers, self.reference)
        for name, teacher in self.teachers.items():
            self._teacher_member(name, teacher)
        if self.reference is not None:
            self._reference_member(self.reference)
            score(self.context, self.teachers, self.reference, self._give_way)
        for seed in self.experiment.settings.seeds:
            for arm in self.experiment.arms:
                self._student_member(arm, seed)
        logger.info("Run %s is finished.", self.directory.path)

    def _started(self) -> dict[str, Any] | None:
        return next((line for line in self.lines if line["event"] == "run"), None)

    def _decide_precision(self) -> None:
        """Check the classes and probe the precision; a resumed run keeps what was decided."""
        started = self._started()
        if started is not None:
            self.context.precision = Precision(
                started["precision"], started["channels_last"], self.world.device.type
            )
        else:
            refuse(check_outputs(self.context, self.student, self.teachers))
            self.context.precision, timings = choose_precision(self.context, self.teachers)
            for name, seconds in timings.items():
                logger.info("Probe: a step takes %.1f ms in %s", 1000 * seconds, name)
        logger.info("Precision: %s", self.context.precision)
        for teacher in self.teachers.values():
            if isinstance(teacher, Model):
                self.context.place(teacher)

    def _judge(self, verdicts: list[Verdict]) -> None:
        """Refuse what the checks refuse, or only warn when the settings say so."""
        if self.experiment.settings.preflight == "refuse":
            refuse(verdicts)
        for verdict in verdicts:
            if verdict.outcome == "refused":
                logger.warning("Preflight would refuse: %s", verdict.message)

    def _stages_of(self, teacher: str) -> Sequence[Stage]:
        """Return the stages in which this run trains a teacher."""
        return self.experiment.teachers[teacher].stages

    def _teacher_member(self, name: str, teacher: Model | StoredModel) -> None:
        """Train or only evaluate a teacher, and keep its test predictions to compare students with."""
        seed, arm = self.experiment.settings.seeds[0], arm_of(name)
        member = self._member(arm, seed)
        if isinstance(teacher, StoredModel):
            if not self._finished(arm, seed):
                test = teacher_predictions(self.context, teacher, self.context.splits.test)
                member.finish_stored(teacher, test)
                self.world.wait()
        elif self._finished(arm, seed):
            saved.load(self.directory.teacher(name), module=teacher.module)
        else:
            stages = self._stages_of(name)
            if stages:
                member.train(teacher, {}, stages, self.context.splits.teachers[name])
            classifies = self._classifies(name, teacher)
            member.finish(teacher, self._metadata(arm, seed), classifies=classifies, teacher=name)
            self.world.wait()
        if self._classifies(name, teacher):
            self.context.teacher_predictions[name] = teacher_predictions(
                self.context, teacher, self.context.splits.test
            )
        if isinstance(teacher, Model):
            found = embeddings(self.context, teacher)
            if found is not None:
                self.context.teacher_embeddings[name] = found
        if self._stages_of(name):
            self._check_teacher(name, teacher)

    def _reference_member(self, reference: Model) -> None:
        """Train the reference model, where it is trained, on what is set aside for it."""
        given, split = self.experiment.reference, self.context.splits.reference
        assert given is not None
        if split is None:
            return
        seed, arm = self.experiment.settings.seeds[0], arm_of(REFERENCE)
        if self._finished(arm, seed):
            saved.load(self.directory.teacher(REFERENCE), module=reference.module)
            return
        member = self._member(arm, seed)
        member.train(reference, {}, list(given.stages), split)
        member.finish(reference, self._metadata(arm, seed), teacher=REFERENCE)
        self.world.wait()

    def _give_way(self) -> None:
        """Stop between two batches of documents when the process was asked to; what was scored is kept."""
        if self.stop():
            raise Interrupted("Stopped as asked, while documents were scored.")

    def _heard(self, arm: str, *, logits: bool = False) -> list[str]:
        """Return the teachers that the methods of an arm listen to; with `logits`, only to whose logits."""
        methods = [
            method
            for stage in self.experiment.arms[arm]()
            for method in stage.active_methods
            if method.uses_teacher and (method.reads_logits or not logits)
        ]
        return heard_by_any(methods, self.teachers)

    def _classifies(self, name: str, teacher: Model | StoredModel) -> bool:
        """Tell whether a teacher's logits mean something: they are asked for, or its classifier was trained.

        It was not where the teacher's own training saw neither labels nor another model, or where guessing is as good.
        """
        if any(name in self._heard(arm, logits=True) for arm in self.experiment.arms):
            return True
        methods = [method for stage in self._stages_of(name) for method in stage.active_methods]
        if methods and not any(method.needs_labels or method.uses_teacher for method in methods):
            return False
        split_name, split = self.context.selection_split()
        if split is None:
            return True
        found = teacher_predictions(self.context, teacher, split)
        verdicts = check_teacher(found, None, split=split_name)
        return all(verdict.outcome != "refused" for verdict in verdicts)

    def _check_teacher(self, name: str, teacher: Model | StoredModel) -> None:
        """Refuse a teacher that has nothing to teach, by the validation split (or the labelled training samples)."""
        if not self._classifies(name, teacher):
            logger.info(
                "The %s's classifier was not trained, and no method asks for what it says.",
                called(name),
            )
            return
        split_name, split = self.context.selection_split()
        if split is None:
            logger.warning(
                "No labelled sample outside of the test split: the %s was not checked.",
                called(name),
            )
            return
        student = self.context.build_student(self.experiment.settings.seeds[0])
        start = None
        if student.weights != "random":
            start = self.context.predictions(student, student.module, split)
        found = teacher_predictions(self.context, teacher, split)
        self._judge(check_teacher(found, start, split=split_name, name=name))

    def _student_member(self, arm: str, seed: int) -> None:
        if self._finished(arm, seed):
            logger.info("%s, seed %d: finished before", arm, seed)
            return
        student = self.context.build_student(seed)
        before = {name: teacher_fingerprint(each) for name, each in self.teachers.items()}
        member = self._member(arm, seed)
        member.train(student, self.teachers, self.experiment.arms[arm](), self.context.splits.train)
        for name, teacher in self.teachers.items():
            if teacher_fingerprint(teacher) != before[name]:
                raise PreflightError(
                    f"The {called(name)} changed while '{arm}' was trained; a method must not write to it."
                )
        member.finish(student, self._metadata(arm, seed), heard=self._heard(arm))
        self.world.wait()

    def _member(self, arm: str, seed: int) -> Member:
        return Member(self.context, self.directory, arm=arm, seed=seed, stop=self.stop)

    def _metadata(self, arm: str, seed: int) -> dict[str, Any]:
        return {
            "run": self.experiment.name,
            "arm": arm,
            "seed": seed,
            "commit": commit(),
            "baseline": arm == BASELINE,
        }

    def _finished(self, arm: str, seed: int) -> bool:
        return any(
            line["event"] == "result" and line["arm"] == arm and line["seed"] == seed
            for line in self.lines
        )


def _create_together(directory: RunDirectory, recipe: dict[str, Any], world: World) -> None:
    """Let the first process make the directory; all of them raise when it could not."""
    problem = None
    if directory.writes:
        try:
            directory.create(recipe)
        except RunDirectoryError as error:
            problem = str(error)
    problem = world.gather(problem)[0]
    if problem is not None:
        raise RunDirectoryError(problem)
