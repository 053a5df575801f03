"""Exporting a student of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from understudy.errors import RunDirectoryError, UnknownName, suggestion

if TYPE_CHECKING:
    from understudy.models.export import Format

_SENTENCES = (
    "A first sentence, of ordinary length.",
    "Short.",
    "Another one that is a good deal longer than the first, so that samples in a batch have to be padded.",
    "Numbers such as 12 and 3.5, and a question?",
    "The end.",
)
"""What text models are compared on."""


def export_student(
    directory: Path, form: Any, *, arm: str | None, seed: int | None, output: Path | None
) -> None:
    """Export the student of an arm and seed, or the saved model in `directory`."""
    folder = choose_student(directory, arm, seed)
    import torch

    from understudy import seeding
    from understudy.models.export import export
    from understudy.models.saved import load, read_description

    wanted: Format = form
    description = read_description(folder)
    shape, kind = description["input_shape"], description["kind"]
    draws = seeding.stream(0, "export")
    example: Any = list(_SENTENCES)
    if kind == "image":
        example = torch.randint(0, 256, (5, *shape), generator=draws, dtype=torch.uint8)
    elif kind == "tensor":
        example = torch.randn((5, *shape), generator=draws)
    written = export(
        load(folder),
        wanted,
        output or directory / "export" / form,
        example_raw=example,
        kind=kind,
        classes=description["class_names"],
        input_shape=shape,
        metadata=description["metadata"],
    )
    click.echo(f"Exported {folder} to {written}")
    click.echo("It was loaded in a fresh process and answers as the student does.")


def choose_student(directory: Path, arm: str | None, seed: int | None) -> Path:
    """Return the folder of a saved student.

    Args:
        directory: a run directory, or the folder of a saved model.
        arm: which arm; None for the first that is not the baseline.
        seed: which seed; None for the run's first.

    Raises:
        RunDirectoryError: there is no such run, or no student in it yet.
        UnknownName: the run has no such arm or seed.
    """
    if (directory / "config.json").is_file():
        return directory
    from understudy.report import read_run

    run = read_run(directory)
    saved = {
        (result.arm, result.seed): directory / "student" / result.arm / f"seed-{result.seed}"
        for result in run.results
        if (directory / "student" / result.arm).is_dir()
    }
    if not saved:
        raise RunDirectoryError(
            f"'{directory}' holds no trained student yet; finish it with: understudy resume {directory}"
        )
    arms = list(dict.fromkeys(name for name, _ in saved))
    chosen = arm or next((name for name in arms if name != "baseline"), arms[0])
    if chosen not in arms:
        raise UnknownName(f"The run has no arm called '{chosen}'. {suggestion(chosen, arms)}")
    seeds = [number for name, number in saved if name == chosen]
    number = seeds[0] if seed is None else seed
    if number not in seeds:
        raise UnknownName(
            f"Arm '{chosen}' has the seeds {', '.join(map(str, seeds))}, not {number}."
        )
    return saved[chosen, number]
