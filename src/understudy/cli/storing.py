"""Filling and looking after stores of teacher outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from understudy.cli.outcome import speaks
from understudy.cli.running import RUNS, allow_own_modules, log_shown
from understudy.errors import StoreError
from understudy.report.formatting import size

if TYPE_CHECKING:
    from understudy.teachers.store.deviation import Deviation
    from understudy.teachers.store.manifest import Manifest


def label_recipe(
    name: str, overrides: Sequence[str], *, repair: bool, part: str, teacher: str | None
) -> None:
    """Fill the store of a recipe.

    Args:
        name: the recipe.
        overrides: changes of it.
        repair: whether to make damaged shards again.
        part: "N/OF".
        teacher: the name of the teacher where several have a store.
    """
    allow_own_modules()
    from understudy.recipe.loading import load
    from understudy.training.labelling import label, stored_teacher

    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise StoreError(f"--part is '{part}'; it is written N/OF, such as 2/4.")
    recipe = load(name, overrides)
    experiment = recipe.build(RUNS / recipe.name)
    with log_shown():
        manifest = label(
            experiment, repair=repair, part=(int(found[1]), int(found[2])), teacher=teacher
        )
    if speaks() and manifest.complete:
        store = experiment.teachers[stored_teacher(experiment, teacher)].store
        assert store is not None
        click.echo(f"{store.path} holds {size(manifest.bytes)}.")
        click.echo(f"To train from it: {' '.join(['understudy run', name, *overrides])}")


def print_info(place: str, *, check: bool) -> None:
    """Print what a store holds; with `check` read all of it first."""
    from understudy.teachers.store import Store

    store = Store(place)
    if check:
        store.check_files()
    click.echo("\n".join(info_lines(store.manifest)))
    if check:
        click.echo(f"All {len(store.manifest.shards)} shards are as they were written.")
    store.close()


def info_lines(manifest: Manifest) -> list[str]:
    """Return what a manifest says, for people."""
    teacher, key, making = manifest.teacher, manifest.key, manifest.making
    lines = [
        f"teacher: {teacher['name']}, {teacher['parameters']:,} parameters, weights {key.teacher}",
        f"data: {teacher['samples']}, identity {key.data}",
        f"labelled in {making['precision']}, {making['batch_size']} samples at a time",
    ]
    for name, (held, _) in manifest.extra.items():
        lines.append(f"{name}: {size(held)}")
    for name, part in manifest.parts.items():
        shown = f"{part.views} views of each" if part.views else "as they are"
        if part.ragged:
            shown += f", {part.rows:,} predicted tokens"
        shards = "1 shard" if len(part.shards) == 1 else f"{len(part.shards)} shards"
        lines.append(
            f"{name}: {part.samples:,} samples, {shown}; {size(part.bytes)} in {shards}, {part.row_bytes} bytes a row"
        )
        for column, codec in part.columns.items():
            config = ", ".join(f"{key} {value}" for key, value in codec.config().items())
            lines.append(f"  {column}: {config}")
            lines += [f"    {line}" for line in _deviation_lines(manifest.deviation(name, column))]
    return lines


def _deviation_lines(deviation: Deviation) -> list[str]:
    lines = [_deviation(deviation)]
    lines += [f"{name}: {_deviation(part)}" for name, part in deviation.parts.items()]
    return lines + [f"{name}: {value:.4g} on average" for name, value in deviation.means.items()]


def _deviation(deviation: Deviation) -> str:
    if not deviation.maximum:
        return "exact"
    return (
        f"error at most {deviation.maximum:.3g}, root mean square {deviation.root_mean_square:.3g} "
        f"({deviation.relative:.2e} of the numbers')"
    )


def verify_store(
    name: str, overrides: Sequence[str], *, samples: int, seed: int, teacher: str | None
) -> bool:
    """Print how far a store is from its teacher on random samples; return whether that is within what is declared."""
    allow_own_modules()
    from understudy.recipe.loading import load
    from understudy.training.store_check import verify

    recipe = load(name, overrides)
    checks = verify(recipe.build(RUNS / recipe.name), samples=samples, seed=seed, teacher=teacher)
    for check in checks:
        click.echo(
            f"{check.column}: differs by up to {check.found.maximum:.3g} (declared {check.declared.maximum:.3g}, "
            f"allowed {check.allowed:.3g}){'' if check.sound else '  WRONG'}"
        )
    sound = all(check.sound for check in checks)
    click.echo(
        "The teacher says what is stored."
        if sound
        else "The teacher says something else than what is stored."
    )
    return sound


def merge_stores(into: str, places: Sequence[str]) -> None:
    """Put stores together and say what is still missing."""
    from understudy.teachers.store.maintenance import merge

    manifest = merge(into, places)
    missing = [shard.name for shard in manifest.shards if shard.name not in manifest.finished]
    click.echo(
        f"{into} is complete: {size(manifest.bytes)}."
        if manifest.complete
        else f"{into} still lacks {len(missing)} of {len(manifest.shards)} shards, the first of them {missing[0]}."
    )


def convert_store(
    place: str,
    into: str,
    top_k: int | None,
    dtype: Any,
    feature_dtype: Any,
    temperatures: Sequence[float],
) -> None:
    """Make a smaller store of a dense one and say how large it is and what that cost."""
    from understudy.teachers.store.maintenance import convert

    manifest = convert(
        place,
        into,
        top_k=top_k,
        dtype=dtype,
        feature_dtype=feature_dtype,
        temperatures=temperatures,
    )
    click.echo("\n".join(info_lines(manifest)))
