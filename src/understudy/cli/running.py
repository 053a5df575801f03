"""Running recipes from the command line."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.cli.outcome import Stopped, speaks
from understudy.errors import RecipeError, RunDirectoryError

if TYPE_CHECKING:
    from understudy.recipe.recipe import Recipe

RUNS = Path("runs")
"""Where run directories are made."""
DEMO = RUNS / "demo"


def run_recipe(name: str, overrides: Sequence[str], directory: Path | None) -> None:
    """Run a recipe into a new run directory and print the results."""
    allow_own_modules()
    from understudy.recipe.loading import load

    recipe = load(name, overrides)
    _run(recipe, directory or RUNS / recipe.name, resume=False)


def resume_run(directory: Path) -> None:
    """Go on with a run."""
    allow_own_modules()
    from understudy.recipe.loading import load

    if not (directory / "recipe.yaml").is_file():
        raise RunDirectoryError(f"'{directory}' is no run directory: it has no recipe.yaml.")
    _run(load(directory), directory, resume=True)


def run_demo(overrides: Sequence[str], *, fresh: bool) -> None:
    """Run the packaged demo, go on with it, or say that it is done."""
    # The demo's networks are so small that threads only wait for each other. Set before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from understudy.recipe.loading import load

    if fresh and DEMO.exists():
        if not (DEMO / "recipe.yaml").is_file():
            raise RunDirectoryError(f"{DEMO} is no run directory, so it is not deleted.")
        if speaks():
            shutil.rmtree(DEMO)
    begun = (DEMO / "recipe.yaml").is_file()
    if begun and overrides:
        raise RecipeError(
            f"{DEMO} was begun with another recipe; add --fresh to delete it and run it anew."
        )
    if begun and (DEMO / "report.html").is_file():
        if speaks():
            print_results(DEMO)
            click.echo(f"The demo has run already; its report is {DEMO / 'report.html'}.")
            click.echo("To run it again: understudy demo --fresh")
        return
    recipe = load(DEMO) if begun else load("demo", overrides)
    _run(recipe, DEMO, resume=begun)


def allow_own_modules() -> None:
    """Let `py:module:attribute` find modules in the current directory, behind everything that is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _run(recipe: Recipe, directory: Path, *, resume: bool) -> None:
    from understudy.training.loop import Interrupted
    from understudy.training.run import run

    with log_shown(directory):
        try:
            run(recipe.build(directory), directory, resume=resume)
        except Interrupted as error:
            raise Stopped(f"{error} To go on: understudy resume {directory}") from error
    if not speaks():
        return
    from understudy.report import write_report

    print_results(directory)
    click.echo(f"Report: {write_report(directory)}")


def print_results(directory: Path) -> None:
    """Print the results of a run: a table on a terminal, plain lines elsewhere."""
    from understudy.report import plain_lines, read_run, tables

    found = read_run(directory)
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        for table in tables(found, console.width):
            console.print(table)
    else:
        click.echo("\n".join(plain_lines(found)))


@contextmanager
def log_shown(directory: Path | None = None) -> Iterator[None]:
    """Show the log while something lasts; errors are left to who ends the command.

    Args:
        directory: a run directory, to show bars of its progress as well on a terminal.
    """
    with ExitStack() as stack:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
        if sys.stderr.isatty() and speaks():
            from rich.console import Console
            from rich.logging import RichHandler

            from understudy.cli.progress import Progress

            console = Console(stderr=True)
            handler = RichHandler(
                console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S"
            )
            if directory is not None:
                stack.enter_context(Progress(console, directory))
        handler.addFilter(lambda record: record.levelno < logging.ERROR)
        handler.setLevel(logging.INFO if speaks() else logging.WARNING)
        logger = logging.getLogger("understudy")
        stack.callback(logger.setLevel, logger.level)
        stack.callback(logger.removeHandler, handler)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        yield
