"""Letting a teacher write texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from understudy.cli.outcome import speaks
from understudy.cli.running import RUNS, allow_own_modules, log_shown
from understudy.errors import unknown_name


def write_with_teacher(
    name: str,
    overrides: Sequence[str],
    folder: Path,
    *,
    filters: Sequence[str],
    server: dict[str, Any] | None,
    order: dict[str, Any],
    sampling: dict[str, Any],
) -> None:
    """Write a folder of texts by the teacher of a recipe.

    Args:
        name: the recipe.
        overrides: changes of it.
        folder: where the texts go.
        filters: names of filters without settings.
        server: keywords of a `ServerSampler` that writes in the teacher's place; None for the teacher itself.
        order: fields of `WritingSettings`.
        sampling: fields of a `Sampling`.
    """
    allow_own_modules()
    from understudy.recipe.loading import load
    from understudy.sampling import Finished, RightAnswer, Sampling, ServerSampler, Unseen
    from understudy.training.teacher_text import WritingSettings, write_texts

    known = {"finished": Finished, "unseen": Unseen, "right_answer": RightAnswer}
    for each in filters:
        if each not in known:
            raise unknown_name("filter", each, known)
    recipe = load(name, overrides)
    experiment = recipe.build(RUNS / recipe.name)
    made = WritingSettings(Sampling(**sampling), [known[each]() for each in filters], **order)
    sampler = None if server is None else ServerSampler(**server)
    with log_shown():
        report = write_texts(experiment, folder, made, sampler=sampler)
    if speaks():
        dropped = ", ".join(f"{count} by {each}" for each, count in report.dropped.items())
        click.echo(
            f"{report.folder} holds {report.written} texts, {report.kept} of which are kept"
            + (f" (dropped: {dropped})." if dropped else ".")
        )
        pairs = report.folder / "pairs.jsonl"
        click.echo(
            "To train on them: data.source={name: table, path: "
            f"{pairs}, text: prompt, text_pair: response, label: null, id: id}}"
        )
