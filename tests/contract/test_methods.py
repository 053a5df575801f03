"""The battery that every method passes.

It runs for each entry of the registry: a new method is tested as soon as its file is there. Each is built from its
defaults and trained for a few steps on images and, where it can be, on texts.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from workbench import (
    BATCH,
    CLASSES,
    LANGUAGE_KINDS,
    STEPS,
    Bench,
    bench,
    equal,
    go,
    kind_for,
    labelled,
    snapshot,
    started,
    through_file,
    trained_with,
)

from understudy.data.source import Split
from understudy.errors import PreflightError, UnderstudyError
from understudy.evaluation.tokens import TokenPredictions
from understudy.methods import Method, Ramp, methods
from understudy.models import Model, saved
from understudy.models.outputs import Outputs
from understudy.models.splice import _run_grafts, grafts_of
from understudy.recipe.kinds import METHOD
from understudy.teachers.readings import LOGITS, Reading, Seen

NAMES = methods.names()
KINDS = ("image", "text", "language", "pairs")
every = pytest.mark.parametrize("name", NAMES)
on_every_kind = pytest.mark.parametrize("kind", KINDS)


def make(name: str) -> Method:
    """Return a method with its defaults."""
    return methods.get(name)()


def bench_or_skip(name: str, kind: str) -> Bench:
    """Return the bench of a method; skip where the method says that it is not for this kind of model."""
    if kind == "pairs" != kind_for(name):
        pytest.skip("pairs are tried with methods that need them")
    try:
        built = bench([name], kind)
        built.start().close()
    except UnderstudyError as error:
        assert kind != kind_for(name), f"{kind}s are refused: {error}"
        pytest.skip(str(error))
    return built


# Declaration


@every
def test_card_names_source_cost_and_failure_and_describes_every_keyword(name: str) -> None:
    method = methods.get(name)
    card = inspect.getdoc(method) or ""
    fields = ["Equation", "Cost", "Fails when"]
    fields += ["Paper", "Labels"] if name != "supervised" else []
    for field in fields:
        assert re.search(rf"^{field}: \S", card, re.M), f"the card has no '{field}:'"
    for keyword in list(inspect.signature(method.__init__).parameters)[1:]:
        assert re.search(rf"^ +{keyword}: ", card, re.M), f"{keyword} is not described"
    assert card.splitlines()[0].endswith(".")


@every
def test_configuration_goes_through_a_recipe_and_back(name: str) -> None:
    component = METHOD.read({"name": name, "weight": 0.5})
    made = METHOD.make(component)
    assert type(made) is methods.get(name) and made.weight == 0.5
    assert made.config == make(name).config
    again = METHOD.from_object(made)
    assert (again.name, again.keywords, again.extra) == (name, component.keywords, component.extra)
    with pytest.raises(Exception, match="no such key"):
        METHOD.read({"name": name, "no_such_keyword": 1})


# One step


@on_every_kind
@every
def test_builds_from_defaults_and_a_step_is_finite(name: str, kind: str) -> None:
    built = bench_or_skip(name, kind)
    with started(built) as run:
        lines = go(run)
    assert len(lines) == STEPS
    for line in lines:
        assert all(value == value and abs(value) != float("inf") for value in line.values())


@every
def test_a_kind_of_model_that_it_is_not_for_is_refused_with_a_sentence(name: str) -> None:
    try:
        bench([name], "image" if kind_for(name) != "image" else "text").start().close()
    except UnderstudyError as error:
        assert len(str(error).split()) > 8 and str(error).endswith((".", ")")), str(error)


class Watched(Outputs):
    """Outputs that note when somebody asks for the logits."""

    def __init__(self, outputs: Outputs, note: Callable[[], object]) -> None:
        self._outputs, self._note = outputs, note
        self.features, self.top_k = outputs.features, outputs.top_k
        self.head = outputs.head

    @property
    def logits(self) -> torch.Tensor | None:  # type: ignore[override]
        self._note()
        return self._outputs.logits

    @property
    def hidden(self) -> torch.Tensor | None:  # type: ignore[override]
        self._note()
        return self._outputs.hidden


class Read(dict[str, torch.Tensor]):
    """The student's features, and the names of those that were read; the logits count as one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.names.add(name)
        return super().__getitem__(name)

    def watching(self, outputs: Outputs) -> Outputs:
        """Return the outputs, each read of which is noted."""
        self.update(outputs.features)
        outputs.features = self
        return Watched(outputs, lambda: self.names.add(LOGITS))


@on_every_kind
@every
def test_gradients_reach_exactly_what_should_train(name: str, kind: str) -> None:
    built = bench_or_skip(name, kind)
    with started(built) as run:
        batch = next(iter(run.loader.steps(0, 1)))[0]
        run.train_mode()
        read = Read()
        forward = run.module._student_outputs
        run.module._student_outputs = lambda batch: read.watching(forward(batch))
        loss, _ = run.module(batch, 0.5)
        loss.backward()
        method = run.module.active[0]
        for path, parameter in method.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, path
        reached = {
            path
            for path, parameter in built.student.module.named_parameters()
            if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }
        assert bool(reached) == method.trains_student
        assert all(parameter.grad is None for parameter in built.teacher.module.parameters())
        if not method.trains_student:
            return  # the student is frozen
        run.module.zero_grad()
        outputs = built.context.experiment.task.forward_tapped(run.tapped, batch, "student")

        def reach(values: Iterable[torch.Tensor]) -> set[str]:
            run.module.zero_grad()
            sum(value.float().square().sum() for value in values).backward(retain_graph=True)
            return {
                path
                for path, parameter in built.student.module.named_parameters()
                if parameter.grad is not None
            }

        # All that leads to what the loss reads, and nothing else.
        tensors = {**outputs.features, LOGITS: outputs.logits}
        assert read.names and reached == reach(tensors[name] for name in read.names)


@every
def test_says_whether_it_reads_the_teachers_logits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, asked = bench([name]), list[str]()
    values = Seen.values

    def watched(seen: Seen, reading: Reading) -> torch.Tensor:
        if reading.tap == LOGITS:
            asked.append("fit")
        return values(seen, reading)

    monkeypatch.setattr(Seen, "values", watched)
    with started(built) as run:
        teachers = run.module._teachers
        for role, targets in dict(teachers).items():
            teachers[role] = lambda batch, targets=targets: Watched(
                targets(batch), lambda: asked.append("loss")
            )
        batch = next(iter(run.loader.steps(0, 1)))[0]
        run.train_mode()
        run.module(batch, 0.5)
        method = run.module.active[0]
        assert not method.uses_teacher or method.reads_logits == bool(asked)


@on_every_kind
@every
def test_says_whether_it_reads_the_students_logits(name: str, kind: str) -> None:
    built, asked = bench_or_skip(name, kind), list[str]()
    with started(built) as run:
        method = run.module.active[0]
        assert (run.module.stop is not None) <= (not method.reads_student_logits)
        if run.module.stop is not None:
            go(run)  # it would be refused what it asks for
            return
        forward = run.module._student_outputs
        run.module._student_outputs = lambda batch: Watched(
            forward(batch), lambda: asked.append("loss")
        )
        batch = next(iter(run.loader.steps(0, 1)))[0]
        run.train_mode()
        run.module(batch, 0.5)
        run.module.after_step()
        # Where no loss reaches the student it is not run at all.
        assert bool(asked) == (method.reads_student_logits and method.trains_student)


@every
def test_the_loss_draws_nothing_from_the_global_random_state(name: str) -> None:
    built = bench([name])
    with started(built) as run:
        batch = next(iter(run.loader.steps(0, 1)))[0]
        run.train_mode()
        before = torch.get_rng_state()
        run.module(batch, 0.5)
        run.module.after_step()
        assert torch.equal(before, torch.get_rng_state())


# What stays as it was


@on_every_kind
@every
def test_the_teacher_stays_bit_identical_and_no_hook_is_left(name: str, kind: str) -> None:
    built = bench_or_skip(name, kind)
    before = snapshot(built.teacher.module)
    with started(built) as run:
        go(run)
    assert equal(before, snapshot(built.teacher.module))
    for module in (*built.teacher.module.modules(), *built.student.module.modules()):
        # Only what runs a graft stays, as the graft does.
        left = [hook for hook in module._forward_hooks.values() if hook is not _run_grafts]
        assert not left and not module._forward_pre_hooks
        assert bool(module._forward_hooks) <= bool(grafts_of(module))
    assert all(parameter.requires_grad for parameter in built.student.module.parameters())
    assert all(parameter.grad is None for parameter in built.student.module.parameters())


@every
def test_weight_0_is_bit_for_bit_the_same_as_leaving_it_out(name: str) -> None:
    # The stages that the method builds on come first in both: a stage's number decides its draws.
    kind = kind_for(name)
    expected = trained_with(["supervised"], kind, before=methods.get(name).follows)
    assert equal(expected, trained_with(labelled(make(name).weighted(0.0)), kind))
    if methods.get(name).family == "structure":
        return  # it changes the student itself
    # Wired, with its modules and taps in place, but never counted.
    late = Ramp(start=0.0, end=1.0, begin=0.99)
    assert equal(expected, trained_with(labelled(make(name).weighted(late)), kind))


# State


@every
def test_resuming_from_a_checkpoint_gives_the_same_weights_to_the_bit(
    name: str, tmp_path: Path
) -> None:
    whole = bench([name])
    with started(whole) as run:
        go(run)
        methods_state = snapshot(run.module.methods)
    first = bench([name])
    with started(first) as run:
        go(run, until=2)
        state = through_file(run.state(), tmp_path)
    second = bench([name])
    torch.manual_seed(99)
    with started(second) as run:
        run.load(state)
        assert run.step == 2
        go(run)
        assert equal(methods_state, snapshot(run.module.methods))
    assert equal(snapshot(whole.student.module), snapshot(second.student.module))


@on_every_kind
@every
def test_the_student_evaluates_and_is_saved_without_teacher_and_labels(
    name: str, kind: str, tmp_path: Path
) -> None:
    built = bench_or_skip(name, kind)
    with started(built) as run:
        go(run)
    student, splits = built.student, built.context.splits
    nobody = splits.test.with_labels(torch.full_like(splits.test.labels, -1))
    expected = answers(built, student, splits.test)
    found = answers(built, student, nobody)
    assert torch.equal(expected, found)
    assert kind in LANGUAGE_KINDS or found.shape[1] == len(CLASSES)
    if methods.get(name).family != "structure":
        from workbench import model

        assert (
            student.module.state_dict().keys() == model(kind, "student").module.state_dict().keys()
        )
    if kind == "text":
        return  # the toy reader cannot be rebuilt from a name
    shape = (1, 8, 8) if kind == "image" else None
    folder = saved.save(
        student,
        tmp_path / "m",
        classes=list(CLASSES),
        input_shape=shape,
        kind="image" if kind == "image" else "text",
    )
    again = saved.load(folder)
    torch.testing.assert_close(answers(built, again, splits.test), expected)


def answers(built: Bench, model: Model, split: Split) -> torch.Tensor:
    """Return the logits of all samples, or of all tokens."""
    found = built.context.predictions(model, model.module, split)
    if isinstance(found, TokenPredictions):
        with torch.no_grad():
            return torch.cat([logits for _, logits in found.parts()])
    return found.logits


# Labels


@every
def test_samples_without_a_label_are_accepted_or_refused_with_a_sentence(name: str) -> None:
    with started(bench(labelled(make(name)), missing=24)) as run:
        assert len(go(run)) == STEPS
    if make(name).needs_labels and kind_for(name) not in LANGUAGE_KINDS:
        with pytest.raises(PreflightError, match="needs labels, but no training sample has one"):
            bench([name], missing=48).start()
    else:
        with started(bench([name], missing=48)) as run:
            assert len(go(run)) == STEPS


# Ways to run


@every
def test_runs_under_autocast(name: str) -> None:
    with started(bench([name], precision="bf16")) as run:
        lines = go(run)
    assert len(lines) == STEPS and all(line["loss"] == line["loss"] for line in lines)


@every
def test_runs_with_the_models_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Captured whole, but not translated to machine code: that is the compiler's business, and slow.
    whole = functools.partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)
    torch.compiler.reset()
    with started(bench([name])) as run:
        expected = go(run)
    with started(bench([name], compile=True)) as run:
        found = go(run)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@every
def test_a_batch_in_parts_trains(name: str) -> None:
    built = bench([name], accumulate=2)
    with started(built) as run:
        parts = next(iter(run.loader.steps(0, 1)))
        assert sum(map(len, parts)) == BATCH and len(parts) == 2
        assert len(go(run)) == STEPS


def test_two_processes_train_as_one_model(tmp_path: Path) -> None:
    # All methods in one pair of processes: starting them costs more than the steps.
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(Path(__file__).with_name("two_ranks.py")),
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert sorted(found[0]) == NAMES
    wrong = {name: said for name, said in found[0].items() if said != "ok"}
    assert not wrong, wrong
    assert found[0] == found[1]
