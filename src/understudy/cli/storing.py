"""Filling and looking after stores of teacher outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from understudy.cli.outcome import speaks
from understudy.cli.running import RUNS, allow_own_modules, log_shown
from understudy.errors import StoreError
from understudy.report.formatting import size


def label_recipe(name: str, overrides: Sequence[str], *, repair: bool, part: str) -> None:
    """Fill the store of a recipe.

    Args:
        name: the recipe.
        overrides: changes of it.
        repair: whether to make damaged shards again.
        part: "N/OF".
    """
    allow_own_modules()
    from understudy.recipe.loading import load
    from understudy.training.labelling import label

    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise StoreError(f"--part is '{part}'; it is written N/OF, such as 2/4.")
    recipe = load(name, overrides)
    with log_shown():
        manifest = label(
            recipe.build(RUNS / recipe.name), repair=repair, part=(int(found[1]), int(found[2]))
        )
    if speaks() and manifest.complete:
        assert recipe.teacher is not None and recipe.teacher.store is not None
        click.echo(f"{recipe.teacher.store.path} holds {size(manifest.bytes)}.")
        click.echo(f"To train from it: {' '.join(['understudy run', name, *overrides])}")
