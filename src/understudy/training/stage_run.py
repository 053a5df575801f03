"""A stage with everything that it runs on: built from a `Stage`, saved to and loaded from checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from understudy import seeding
from understudy.data.batch import Batch
from understudy.data.source import Split
from understudy.errors import PreflightError
from understudy.methods import Method, Ramp
from understudy.models.model import Model
from understudy.models.surgery import surgery_of
from understudy.models.taps import unchanged
from understudy.models.tokens import Tokens
from understudy.tasks import Task
from understudy.teachers.ahead import Steps, Targets
from understudy.teachers.live import LiveTeacher
from understudy.teachers.stored import StoredTeacher
from understudy.teachers.study import Study
from understudy.training.averaging import Averaging
from understudy.training.distribution import World
from understudy.training.fitting import fit_methods
from understudy.training.freezing import freeze, frozen_parts, undecayed
from understudy.training.host_memory import keep_freed_memory
from understudy.training.mixing import Mixing
from understudy.training.optimizers import quick_step
from understudy.training.precision import Precision
from understudy.training.random_state import get_random_state, set_random_state
from understudy.training.schedules import Rate
from understudy.training.stage import Stage
from understudy.training.stage_wiring import make_wiring
from understudy.training.step import TrainingStep, shares_of
from understudy.training.student_side import student_stop
from understudy.training.teachers_side import look_ahead, start_teachers

Earlier = dict[str, dict[str, torch.Tensor]]
"""Method name -> the state of its modules at the end of an earlier stage of the same arm."""


class StageRun:
    """A stage in training.

    Args:
        stage: what to train with.
        student: the student, on the device already.
        teachers: the teachers that its methods listen to, by name: on the device, or their stores.
        loader: the stage's batches.
        split: the samples that the batches are drawn from.
        example: a small batch by which shapes are measured.
        steps_per_epoch: length of an epoch.
        task: what a batch means.
        classes: number of classes.
        seed: the stage's seed.
        precision: how models run.
        world: this process among its peers.
        compile: whether to compile the models.
        precisions: teacher name -> "float32", "bf16" or "int8" where it runs otherwise than the student.
        ahead: names of teachers that work on the next batch while the student trains on this one.
        devices: teacher name -> the name of the device that it runs on in steps; None for the student's.
        earlier: method name -> its state at the end of an earlier stage of the same arm.
        study: what the methods are fitted to; None where no method has a `fit`.
        mixing: what changes the shares in which domains are drawn; None where nothing does.

    Attributes:
        step: optimiser steps done.
        tokens: tokens that the student has read in them, in this process; 0 where it reads none.
        ends: how the models run and where their passes end, in sentences.
        unreached: trainable parameters that the last trial's loss did not reach.
        best: validation value and weights to go back to, for early stopping.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        student: Model,
        teachers: Mapping[str, Model | StoredTeacher],
        loader: Steps,
        split: Split,
        example: Batch,
        steps_per_epoch: int,
        task: Task,
        classes: int,
        seed: int,
        precision: Precision,
        world: World,
        compile: bool = False,
        precisions: Mapping[str, str | None] | None = None,
        ahead: Sequence[str] = (),
        devices: Mapping[str, str | None] | None = None,
        earlier: Earlier | None = None,
        study: Study | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        """Wire the methods and build what trains."""
        if world.device.type == "cpu":
            keep_freed_memory()
        self.stage, self.precision, self._world = stage, precision, world
        self.loader: Steps = loader
        self.mixing = mixing
        self._task = task
        self.unreached: list[str] = []
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = stage.steps or (stage.epochs or 0) * steps_per_epoch
        self.step = self.tokens = 0
        self.stopped_early = False
        self.best: dict[str, Any] = {"value": None, "epoch": 0, "weights": None}
        self._student = student.module
        methods = stage.active_methods
        self._trains_student = any(method.trains_student for method in methods)
        self._earlier: Earlier = dict(earlier or {})
        self.wiring = make_wiring(
            student,
            teachers,
            methods,
            example=example,
            split=split,
            classes=classes,
            seed=seed,
            earlier=self._earlier,
            device=world.device,
        )
        # After wiring, which may have put grafts or another head into the student.
        self._frozen = freeze(student.module, stage.freeze if self._trains_student else [""])
        self.averaging = Averaging(stage, student.module)
        self.ends: list[str] = []
        self.teachers = start_teachers(
            self.wiring.teachers,
            teachers,
            methods,
            task=task,
            precision=precision,
            compile=compile,
            precisions=precisions or {},
            devices=devices or {},
            home=world.device,
            notes=self.ends,
        )
        stop = student_stop(self.wiring.student, methods, compile=compile, notes=self.ends)
        self.wiring.notes += self.ends
        self.tapped = task.tapped(
            student.module, self.wiring.student.taps, self.wiring.student.copied, stop
        )
        targets: dict[str, Targets] = {name: live.targets for name, live in self.teachers.items()}
        early = [name for name in ahead if isinstance(self.teachers.get(name), LiveTeacher)]
        if early:
            looking = look_ahead(
                loader,
                early,
                self.teachers,
                targets,
                methods,
                steps=self.total_steps,
                home=world.device,
                notes=self.wiring.notes,
            )
            if looking is not None:
                self.loader, targets = looking, targets | looking.targets
        self.module = TrainingStep(self.tapped, methods, targets, task, compile=compile, stop=stop)
        self.example = example
        self._reads_tokens = isinstance(example.inputs["student"], Tokens)
        self.study = study
        if study is not None:
            self._fit(study, seed)
        self.ddp: nn.Module = self.module
        if world.size > 1:
            # What follows the student (banks, statistics) is made equal on all processes by the methods themselves.
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                self.module, [f"methods.{name}" for name, _ in self.module.methods.named_buffers()]
            )
            self.ddp = DistributedDataParallel(
                self.module,
                device_ids=[world.device.index] if world.device.type == "cuda" else None,
                find_unused_parameters=bool(self._unused(methods)),
            )
        self.trained = [p for p in self.module.parameters() if p.requires_grad]
        if not self.trained:
            raise PreflightError(
                f"Stage '{stage.name}' trains nothing: `freeze` covers the whole student and no method has parameters."
            )
        self.optimizer = stage.optimizer.build(self.trained, undecayed(self.module))
        self.update = quick_step(self.optimizer)
        self.rate = Rate(self.optimizer, self._factor)
        torch.manual_seed(seeding.derive(seed, "stage", world.rank))

    @property
    def progress(self) -> float:
        """How much of the stage is done, in [0, 1]."""
        return self.step / self.total_steps

    @property
    def epoch(self) -> int:
        """The epoch that the last step belonged to, counted from 1."""
        return (max(0, self.step - 1)) // self.steps_per_epoch + 1

    @property
    def place(self) -> dict[str, Any]:
        """Where the stage stands, for a line of metrics; `lr` is the rate of the last step."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "progress": self.progress,
            "lr": self.rate.at(max(0, self.step - 1)),
        }

    def _factor(self, step: int) -> float:
        """Return the schedule's factor on the learning rate in step `step`, counted from 0."""
        return self.stage.schedule.factor(step, self.total_steps, self.steps_per_epoch)

    def batches(self, end: int) -> Iterator[Sequence[Batch]]:
        """Give the micro-batches of each step up to `end`; what the loop has not done yet decides no batch."""
        if self.mixing is None:
            yield from self.loader.steps(self.step, end)
            return
        while self.step < end:
            self.mixing.update(self.step)
            yield from self.loader.steps(self.step, self.mixing.end(self.step, end))

    def plan_parts(
        self, parts: Sequence[Batch]
    ) -> Iterator[tuple[Batch, list[torch.Tensor] | None, AbstractContextManager[object]]]:
        """Give each part of a batch with its methods' shares and the context to run it in.

        A method's share is the number of valid elements in the part over that in the whole batch of
        all ranks, so that the parts'
        gradients sum to the whole batch's. Gradients are exchanged between ranks in the last part only.
        """
        if self._reads_tokens:
            self.tokens += sum(tokens_read(part) for part in parts)
        if len(parts) == 1 and self._world.size == 1:
            yield parts[0], None, nullcontext()
            return
        counts = shares_of(self.module.active, parts)
        whole = self._world.sum(torch.stack(counts).sum(dim=0)).clamp_min(1e-12)
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            # Distributed gradients are averaged over the ranks, hence the factor.
            shares = list(count * (self._world.size / whole))
            waits = number < len(parts) - 1 and isinstance(self.ddp, DistributedDataParallel)
            context = self.ddp.no_sync() if waits else nullcontext()  # type: ignore[operator]
            yield part, shares, context

    def train_mode(self) -> None:
        """Put what trains into training mode; frozen modules keep their statistics."""
        self.module.train()
        if not self._trains_student:
            self._student.eval()
        for part in frozen_parts(self._student, self.stage.freeze):
            part.training = False

    def drop_gradients(self) -> None:
        """Forget the gradients of the step before; without the profiler's mark that the optimiser's own way sets."""
        for parameter in self.trained:
            parameter.grad = None

    def clip(self) -> torch.Tensor | None:
        """Clip the gradient norm when the stage asks for it, and return the norm before."""
        if self.stage.clip is None:
            return None
        return nn.utils.clip_grad_norm_(self.trained, self.stage.clip)

    def trial(
        self, precision: Precision, batch: Batch, progress: float = 0.5
    ) -> dict[str, torch.Tensor]:
        """Run one forward and backward pass that leaves no trace, and return its terms."""
        with unchanged(self.module):
            self.train_mode()
            with precision.context():
                loss, terms = self.module(batch, progress)
            loss.backward()
        self.module.forget()
        self.unreached = [
            name for name, p in self.module.named_parameters() if p.requires_grad and p.grad is None
        ]
        for parameter in self.module.parameters():
            parameter.grad = None
        return {**terms, "loss": loss.detach()}

    def student_features(self) -> dict[str, torch.Tensor]:
        """Return the student's tapped features on the example batch; nothing is changed."""
        with unchanged(self.module), torch.no_grad():
            self.module.eval()
            return self._task.forward_tapped(self.tapped, self.example, "student").features

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint needs of the stage; no teacher."""
        return {
            "student": self._student.state_dict(),
            "surgery": surgery_of(self._student),
            "methods": self.module.methods.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaging": self.averaging.state(),
            "best": self.best,
            "step": self.step,
            "tokens": self.tokens,
            "stopped_early": self.stopped_early,
            "random": self._world.gather(get_random_state()),
            **({} if self.mixing is None else {"mixing": self.mixing.state()}),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self._student.load_state_dict(state["student"])
        self.module.methods.load_state_dict(state["methods"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averaging.load(state["averaging"])
        self.best = state["best"]
        self.step, self.tokens = state["step"], state["tokens"]
        self.stopped_early = state["stopped_early"]
        if self.mixing is not None:
            self.mixing.load(state["mixing"])
        set_random_state(state["random"][self._world.rank])

    def learnt(self) -> Earlier:
        """Return what later stages may go on from: the state of this stage's methods and of those before."""
        own = {
            method.name: {
                name: value.detach().clone() for name, value in method.state_dict().items()
            }
            for method in self.module.active
        }
        return {**self._earlier, **{name: state for name, state in own.items() if state}}

    def finish(self) -> None:
        """End the stage: averaged or best weights go into the student."""
        self.averaging.finish()
        if self.best["weights"] is not None:
            self._student.load_state_dict(self.best["weights"])

    def close(self) -> None:
        """Leave nothing behind: no hook, no gradient, no frozen parameter, no training flag of the teacher."""
        self.loader.close()
        self.tapped.close()
        if self.study is not None:
            self.study.close()
        for live in self.teachers.values():
            live.close()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        for parameter in self.module.parameters():
            parameter.grad = None

    def _fit(self, study: Study, seed: int) -> None:
        """Fit the methods; leave nothing behind when that is interrupted."""
        try:
            fit_methods(study, self.module.active, seed, self._world.device)
        except BaseException:
            self.close()
            raise

    def _unused(self, methods: Sequence[Method]) -> list[str]:
        """Return the trainable parameters that a step's loss does not reach."""
        self.trial(self.precision, self.example)
        ramped = any(isinstance(method.weight, Ramp) for method in methods)
        return self.unreached or (["those of a method whose weight may be 0"] if ramped else [])


def tokens_read(batch: Batch) -> int:
    """Return how many tokens the student reads in a batch, without padding; 0 for other models."""
    inputs = batch.inputs.get("student")
    return inputs.read if isinstance(inputs, Tokens) else 0
