"""Where the numbers of a run come from: facts, members, environment, as the report lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from understudy.report.formatting import NOTHING, Column, duration, size
from understudy.report.measure import capital
from understudy.report.run import Member, RunData


@dataclass(frozen=True)
class MemberLine:
    """One member as it is listed: who, how far it came, and the texts of `member_columns`."""

    name: str
    state: str
    texts: tuple[str, ...]


def facts(run: RunData) -> list[tuple[str, str]]:
    """Return (name, text) of what the `run` line says; what is not known is left out."""
    found = [
        ("Run", run.name),
        ("Commit", run.header.get("commit")),
        ("Recipe hash", run.header.get("recipe_hash")),
        ("Seeds", ", ".join(map(str, run.seeds))),
        ("Precision", run.header.get("precision")),
        ("Vocabulary", f"{run.vocabulary:,} tokens" if run.vocabulary is not None else None),
        *(
            (f"{capital(run.words.samples)}, {name}", f"{count:,}")
            for name, count in run.counts.items()
        ),
        ("First line", run.started),
        ("Last line", run.ended),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def member_columns(run: RunData) -> tuple[Column, ...]:
    """Return the columns of the table of members."""
    measure, samples = run.measure, run.words.samples
    form = measure.level
    title = f"{capital(measure.level_noun)}{form.suffix}"
    return (
        Column("steps", "Steps", "Optimiser steps.", form="{:,.0f}".format),
        Column("samples", capital(samples), f"Training {samples} drawn.", form="{:,.0f}".format),
        Column("train_seconds", "Time", "Wall-clock time of training.", form=duration),
        Column("peak_memory_bytes", "Peak memory", "Peak while training.", form=size),
        Column(measure.level_name, title, "On the test split.", form.scale, form.decimals + 1),
    )


def members(run: RunData) -> list[MemberLine]:
    """Return every member that was begun or has a result."""
    results = {(result.arm, result.seed): result for result in run.results}
    lines, columns = [], member_columns(run)
    for member in dict.fromkeys([*run.states, *results]):
        result = results.get(member)
        if result is None:
            state, texts = "not finished", tuple(NOTHING for _ in columns)
        else:
            state = "finished" if member in run.states else "evaluated"
            texts = tuple(column.one(result.value(column.key)) for column in columns)
        if member in run.resumed:
            state += f", resumed {run.resumed[member]}×"
        lines.append(MemberLine(member_name(member), state, texts))
    return lines


def member_name(member: Member) -> str:
    """Return "kd seed 1", or the arm alone where there is no seed."""
    arm, seed = member
    return arm if seed is None else f"{arm} seed {seed}"


def flattened(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return (dotted name, text) of every value in nested mappings and lists of mappings."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            found += flattened(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            found += flattened({str(place): item for place, item in enumerate(value)}, f"{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((name, text))
    return found
