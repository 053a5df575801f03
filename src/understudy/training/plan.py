"""The plan: one batch through everything, before anything is spent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from understudy.data.curation import Dropped
from understudy.data.source import Split
from understudy.errors import called
from understudy.evaluation import cost
from understudy.evaluation.memory import PeakMemory
from understudy.methods.wiring import Side, TapShape
from understudy.models.description import ModelDescription
from understudy.models.model import Model
from understudy.models.surgery import restored
from understudy.models.taps import unchanged
from understudy.teachers.notes import Note
from understudy.teachers.stored import StoredModel
from understudy.training.choosing import check_reference, scoring_teacher, selection_notes
from understudy.training.context import Context, Teachers
from understudy.training.distribution import join_world
from understudy.training.experiment import REFERENCE, Experiment, arm_of
from understudy.training.fitting import Fitting
from understudy.training.measuring import loss_flops, saving_notes, teacher_uses
from understudy.training.mixing import mixing_notes
from understudy.training.precision import Precision
from understudy.training.preflight import check_outputs, check_stage
from understudy.training.probe import choose_precision
from understudy.training.run_directory import RunDirectory
from understudy.training.splits import make_splits
from understudy.training.stage import Stage
from understudy.training.stage_run import Earlier, StageRun
from understudy.training.store_plan import StorePlan, TeacherUse, plan_store
from understudy.training.teacher import build_reference, build_teachers
from understudy.training.verdict import Verdict


@dataclass
class StagePlan:
    """What a stage will do.

    Attributes:
        arm: the arm's name.
        stage: the stage's name.
        methods: method name -> its weight, as text.
        steps: optimiser steps.
        taps: "student" or the teacher's name -> its taps with their shapes.
        notes: pairings and projectors.
        trained: trainable parameters of student and methods.
        extra: parameters of the methods' own modules, which are not exported.
        loss_flops: FLOPs per sample of the methods' part of a forward pass.
        step_seconds: measured time of one forward and backward pass over a batch; None when not measured.
        step_bytes: peak memory of the process in that pass.
        uses: teacher name -> how the stage uses it, for those that it asks for, where it was measured.
        fits: what methods will fit to the teacher before the stage, with its expected cost.
        verdicts: the outcome of each check.
    """

    arm: str
    stage: str
    methods: dict[str, str]
    steps: int
    taps: dict[str, list[TapShape]]
    notes: list[str]
    trained: int
    extra: int
    loss_flops: int | None = None
    step_seconds: float | None = None
    step_bytes: int | None = None
    uses: dict[str, TeacherUse] = field(default_factory=dict)
    fits: list[Note] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


@dataclass
class ModelPlan:
    """A model as the plan shows it.

    Attributes:
        role: "student", "teacher", or "teacher.NAME" where there are several.
        name: the name it was asked for by.
        weights: where its initial weights come from.
        parameters: their number.
        flops: FLOPs of a forward pass per sample, 2 per multiply-add; None where nobody counted.
        description: its modules, stages and classifier.
    """

    role: str
    name: str
    weights: str
    parameters: int
    flops: int | None
    description: ModelDescription


@dataclass
class Plan:
    """What a run will do, before it does anything.

    Attributes:
        name: the run's name.
        counts: samples per part of the data.
        classes: class names.
        batch_size: samples per optimiser step.
        steps_per_epoch: steps per pass over the training split.
        members: how many trainings the run holds.
        precision: how models will run, and the probed seconds of the alternatives.
        models: student and teacher.
        stages: every stage of every arm.
        verdicts: the outcome of the checks on the models.
        dropped: what each filter of documents left out.
        stores: teacher name -> what a store of its outputs costs and saves, for those that something asks for.
    """

    name: str
    counts: dict[str, int]
    classes: tuple[str, ...]
    batch_size: int
    steps_per_epoch: int
    members: int
    precision: Precision
    probed: dict[str, float]
    models: list[ModelPlan]
    stages: list[StagePlan]
    verdicts: list[Verdict]
    dropped: list[Dropped] = field(default_factory=list)
    stores: dict[str, StorePlan] = field(default_factory=dict)

    @property
    def refused(self) -> list[Verdict]:
        """The checks that would stop a run."""
        every = [*self.verdicts, *(verdict for stage in self.stages for verdict in stage.verdicts)]
        return [verdict for verdict in every if verdict.outcome == "refused"]

    @property
    def seconds(self) -> float | None:
        """The expected time of all members' training steps together, None when no step was measured."""
        seeds = self.members / max(1, len({stage.arm for stage in self.stages}))
        times = [stage.steps * stage.step_seconds for stage in self.stages if stage.step_seconds]
        return seeds * sum(times) if times else None

    @property
    def fit_seconds(self) -> float:
        """The expected time of all passes that methods are fitted from; each is made once for all members."""
        once = {note.what: note.seconds or 0.0 for stage in self.stages for note in stage.fits}
        return sum(once.values())


def make_plan(experiment: Experiment, path: Path | None = None) -> Plan:
    """Run one batch through every stage of every arm and say what the run will do and cost.

    Args:
        experiment: what would be run.
        path: the directory that it would run into, beside which fitted artefacts may lie; nothing is written there.
    """
    directory = None if path is None else RunDirectory(path, writes=False)
    world = join_world(experiment.settings.device)
    context = Context(experiment, make_splits(experiment), world, directory)
    seed = experiment.settings.seeds[0]
    student, teachers = context.build_student(seed), build_teachers(context)
    reference = build_reference(context)
    _place(context, teachers)
    verdicts = check_outputs(context, student, teachers)
    verdicts += check_reference(context, reference, teachers)
    models = [model_plan(context, "student", student)]
    models += [_teacher_plan(context, arm_of(name), each) for name, each in teachers.items()]
    if reference is not None:
        models.append(model_plan(context, arm_of(REFERENCE), reference))
    stages: list[StagePlan] = []
    probed: dict[str, float] = {}
    if all(verdict.outcome != "refused" for verdict in verdicts):
        context.precision, probed = choose_precision(context, teachers)
        _place(context, teachers)
        stages = inspect_stages(context, teachers, measure=True, reference=reference)
    splits = context.splits
    return Plan(
        name=experiment.name,
        counts={
            "train": len(splits.train),
            "labelled": len(splits.train.labelled),
            "validation": len(splits.validation) if splits.validation else 0,
            "test": len(splits.test),
            **({} if splits.reference is None else {"reference": len(splits.reference)}),
        },
        classes=context.classes,
        batch_size=context.batch_size,
        steps_per_epoch=context.steps_per_epoch,
        members=len(experiment.arms) * len(experiment.settings.seeds),
        precision=context.precision,
        probed=probed,
        models=models,
        stages=stages,
        verdicts=verdicts,
        dropped=experiment.data.dropped,
        stores={
            name: found
            for name, each in teachers.items()
            if (
                found := plan_store(
                    context, name, each, [s.uses[name] for s in stages if name in s.uses]
                )
            )
        },
    )


def model_plan(context: Context, role: str, model: Model) -> ModelPlan:
    """Describe one model from an example batch."""
    example = context.example(context.splits.train, {"student": model.preprocess})
    inputs = example.inputs["student"]
    height = inputs.shape[2] if isinstance(inputs, torch.Tensor) and inputs.dim() == 4 else None
    side = Side(role, model.module, inputs, training=False, input_height=height)
    return ModelPlan(
        role,
        model.name,
        model.weights,
        model.parameters,
        cost.flops(model.module, inputs),
        side.description,
    )


def _place(context: Context, teachers: Teachers) -> None:
    for teacher in teachers.values():
        if isinstance(teacher, Model):
            context.place(teacher)


def _teacher_plan(context: Context, role: str, teacher: Model | StoredModel) -> ModelPlan:
    if isinstance(teacher, Model):
        return model_plan(context, role, teacher)
    return ModelPlan(
        role,
        teacher.name,
        teacher.weights,
        teacher.parameters,
        teacher.flops,
        teacher.description,
    )


def inspect_stages(
    context: Context,
    teachers: Teachers,
    *,
    measure: bool = False,
    reference: Model | None = None,
) -> list[StagePlan]:
    """Build every stage of every arm, run one step that leaves no trace, and say what was found.

    Args:
        context: the run.
        teachers: its teachers.
        measure: whether to measure what the stages cost.
        reference: what documents are scored against, for what that costs.
    """
    plans = []
    seed = context.experiment.settings.seeds[0]
    for name, given in context.experiment.teachers.items():
        if given.stages:
            model, split = teachers[name], context.splits.teachers[name]
            assert isinstance(model, Model)
            stages = list(given.stages)
            plans += _inspect_arm(context, arm_of(name), stages, model, {}, split, measure)
    given_reference, aside = context.experiment.reference, context.splits.reference
    if given_reference is not None and aside is not None and reference is not None:
        stages, arm = list(given_reference.stages), arm_of(REFERENCE)
        plans += _inspect_arm(context, arm, stages, reference, {}, aside, measure)
    for arm, make in context.experiment.arms.items():
        student = context.build_student(seed)
        plans += _inspect_arm(
            context, arm, make(), student, teachers, context.splits.train, measure, reference
        )
    return plans


def _inspect_arm(
    context: Context,
    arm: str,
    stages: list[Stage],
    student: Model,
    teachers: Teachers,
    split: Split,
    measure: bool,
    reference: Model | None = None,
) -> list[StagePlan]:
    plans = []
    earlier: Earlier = {}
    # What a stage grafts is there in the next one, and nothing of it afterwards.
    with unchanged(student.module), restored(student.module):
        for number, stage in enumerate(stages):
            run = context.stage_run(
                stage,
                student=student,
                teacher=teachers,
                split=split,
                seed=context.experiment.settings.seeds[0],
                number=number,
                earlier=earlier,
                fitting=Fitting(measure=measure),
            )
            try:
                plans.append(_stage_plan(run, arm, measure))
                if measure and stage.select is not None:
                    scorers = _scorers(context, stage, teachers, reference)
                    plans[-1].notes += selection_notes(context, stage, split, student, scorers)
                earlier = run.learnt()
            finally:
                run.close()
    return plans


def _scorers(
    context: Context, stage: Stage, teachers: Teachers, reference: Model | None
) -> list[tuple[str, Model]]:
    """Return the models that score documents for a stage, with what they are called."""
    if stage.select is None or stage.select.name != "difference" or reference is None:
        return []
    name = scoring_teacher(context.experiment, stage)
    teacher = teachers[name]
    assert isinstance(teacher, Model)
    return [(called(name), teacher), (REFERENCE, reference)]


def _stage_plan(run: StageRun, arm: str, measure: bool) -> StagePlan:
    wiring = run.wiring
    sides = {"student": wiring.student, **wiring.teachers}
    plan = StagePlan(
        arm=arm,
        stage=run.stage.name,
        methods={method.name: str(method.weight) for method in run.module.active},
        steps=run.total_steps,
        taps={role: list(side.taps.values()) for role, side in sides.items()},
        notes=list(wiring.notes),
        trained=sum(parameter.numel() for parameter in run.trained),
        extra=sum(parameter.numel() for parameter in run.module.methods.parameters()),
        fits=[] if run.study is None else run.study.notes,
        verdicts=check_stage(run, arm),
    )
    if run.mixing is not None:
        plan.notes += mixing_notes(run.mixing, run.total_steps)
    if measure:
        plan.loss_flops = loss_flops(run)
        plan.notes += saving_notes(run)
        batch = next(iter(run.loader.steps(0, 1)))[0]
        run.trial(run.precision, batch)
        with PeakMemory(batch.index.device) as memory:
            begin = time.perf_counter()
            run.trial(run.precision, batch)
            plan.step_seconds = (time.perf_counter() - begin) * run.stage.accumulate
        plan.step_bytes = memory.bytes
        plan.uses = teacher_uses(run, batch)
    return plan
