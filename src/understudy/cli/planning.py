"""Printing a plan."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from understudy.cli.outcome import speaks
from understudy.cli.running import RUNS, allow_own_modules
from understudy.errors import called
from understudy.report.formatting import NOTHING, count, duration, size
from understudy.report.run import TEACHER

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from understudy.teachers.notes import Note
    from understudy.training.plan import ModelPlan, Plan, StagePlan
    from understudy.training.store_plan import StorePlan

_WIDTH = 160
"""Columns of tables that don't go to a terminal."""


def print_plan(name: str, overrides: Sequence[str], *, modules: bool) -> bool:
    """Plan a recipe and print it; return whether a check would refuse to run it.

    Args:
        name: the recipe.
        overrides: changes of it.
        modules: whether to list all tappable modules of both models.
    """
    allow_own_modules()
    from understudy.recipe.loading import load
    from understudy.training.plan import make_plan

    recipe = load(name, overrides)
    entries = recipe.python_entries()
    if entries and speaks():
        click.echo("This recipe runs code of its own:")
        click.echo("\n".join(f"  {entry}" for entry in entries) + "\n")
    directory = RUNS / recipe.name
    plan = make_plan(recipe.build(directory), directory)
    if speaks():
        from rich.console import Console

        terminal = sys.stdout.isatty()
        show_plan(
            Console(width=None if terminal else _WIDTH, highlight=False), plan, modules=modules
        )
    return bool(plan.refused)


def show_plan(console: Console, plan: Plan, *, modules: bool) -> None:
    """Print a plan to a console."""
    _lines(
        console,
        [
            f"{plan.name}: {len(plan.classes)} classes",
            _counts(plan),
            *map(str, plan.dropped),
            *_run_lines(plan),
        ],
    )
    console.print(_models(plan.models))
    if plan.stages:
        console.print(_stages(plan.stages))
    for stage in plan.stages:
        taps = [
            f"  {called(role)} tap {tap.name}: {_shape(tap.shape)}"
            for role, wanted in stage.taps.items()
            for tap in wanted
        ]
        notes = [f"  {note}" for note in stage.notes]
        fits = [f"  {_fit(note)}" for note in stage.fits]
        if taps or notes or fits:
            _lines(console, [f"{stage.arm} / {stage.stage}", *taps, *notes, *fits, ""])
    for name, store in plan.stores.items():
        _lines(console, list(_store_lines(name, store)))
    if modules:
        for model in plan.models:
            console.print(_modules(model))
    _lines(console, list(_verdicts(plan)))


def _lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _counts(plan: Plan) -> str:
    return "data: " + ", ".join(f"{number} {part}" for part, number in plan.counts.items())


def _run_lines(plan: Plan) -> list[str]:
    lines = [f"batch size {plan.batch_size}, {plan.steps_per_epoch} steps per epoch"]
    probed = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in plan.probed.items())
    lines.append(
        f"precision: {plan.precision}" + (f" (probed per step: {probed})" if probed else "")
    )
    if plan.seconds is not None:
        lines.append(
            f"{plan.members} members, about {duration(plan.seconds)} of training steps in all"
        )
    if plan.fit_seconds:
        lines.append(f"about {duration(plan.fit_seconds)} of fitting to the teacher before, once")
    return [*lines, ""]


def _models(models: Sequence[ModelPlan]) -> Table:
    table = _table(
        "Models", ["role", "model", "initial weights"], ["parameters", "FLOPs per sample"]
    )
    for model in models:
        _row(
            table,
            model.role,
            model.name,
            model.weights,
            count(model.parameters),
            NOTHING if model.flops is None else count(model.flops),
        )
    return table


def _stages(stages: Sequence[StagePlan]) -> Table:
    numbers = ["steps", "trained", "not exported", "loss FLOPs", "step", "memory"]
    table = _table("Stages", ["arm", "stage", "methods and weights"], numbers)
    for stage in stages:
        methods = ", ".join(f"{name} {weight}" for name, weight in stage.methods.items())
        _row(
            table,
            stage.arm,
            stage.stage,
            methods,
            str(stage.steps),
            count(stage.trained),
            count(stage.extra),
            NOTHING if stage.loss_flops is None else count(stage.loss_flops),
            NOTHING if stage.step_seconds is None else f"{1000 * stage.step_seconds:.1f} ms",
            NOTHING if stage.step_bytes is None else size(stage.step_bytes),
        )
    return table


def _store_lines(name: str, store: StorePlan) -> Iterable[str]:
    """Say what a store of a teacher's outputs costs and saves."""
    sizes = ", ".join(f"{size(each)} {form}" for form, each in store.sizes.items())
    whose = "teacher outputs" if name == TEACHER else f"the outputs of teacher '{name}'"
    held = f"{store.samples} samples, {store.views} views of each"
    if store.tokens is not None:
        about = "" if store.used else "about "
        held = f"{store.samples} documents, {about}{store.tokens:,} predicted tokens"
    yield f"Store of {whose}: {held}: {sizes}"
    yield f"  {store.sentence}"
    yield ""


def _modules(model: ModelPlan) -> Table:
    stages = {stage.tap for stage in model.description.stages}
    table = _table(
        f"Taps of the {_called(model.role)} ({model.name}); * marks its stages",
        ["path", "module", "input", "output"],
        ["parameters", "calls"],
    )
    for row in model.description.modules:
        mark = " *" if row.path in stages else ""
        shapes = (_shape(row.input_shape), _shape(row.output_shape))
        _row(table, row.path + mark, row.type, *shapes, count(row.parameters), str(row.calls))
    return table


def _verdicts(plan: Plan) -> Iterable[str]:
    yield "Checks:"
    for verdict in plan.verdicts:
        yield f"  {verdict.outcome:<8} {verdict.check}: {verdict.message}"
    for stage in plan.stages:
        for verdict in stage.verdicts:
            yield f"  {verdict.outcome:<8} {stage.arm} / {stage.stage}, {verdict.check}: {verdict.message}"
    refused = len(plan.refused)
    yield (
        f"A run would be refused: {refused} of these."
        if refused
        else "Nothing stands against a run."
    )


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for text in texts:
        table.add_column(text, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def _row(table: Table, *cells: str) -> None:
    from rich.markup import escape

    table.add_row(*map(escape, cells))


def _fit(note: Note) -> str:
    """Return a line on what a method fits to the teacher before its stage."""
    line = f"{note.method} fits {note.what}: "
    if note.found:
        return f"{line}in the cache"
    if note.samples == 0:
        return f"{line}computed once, {size(note.size)} on disk"
    time = "" if note.seconds is None else f"about {duration(note.seconds)}, "
    return f"{line}one pass over {note.samples:,} samples, {time}{size(note.size)} on disk"


def _called(role: str) -> str:
    """Return what a sentence calls a model of the plan, whose role is "teacher.NAME" for one of several teachers."""
    return called(role.removeprefix(f"{TEACHER}."))


def _shape(shape: tuple[int, ...] | None) -> str:
    return NOTHING if shape is None else " x ".join(map(str, shape)) or "scalar"
