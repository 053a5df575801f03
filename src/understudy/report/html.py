"""The report of one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from understudy.report import checks, figures, narrative, provenance
from understudy.report.figures import Entry, Figure
from understudy.report.formatting import COST, GEOMETRY, QUALITY, TRAINING
from understudy.report.page import lines_of, measured, render, write_page
from understudy.report.reading import read_run
from understudy.report.run import RunData, role_of
from understudy.report.statistics import Row, compare_arms, summarise


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run, finished or in progress, as one self-contained HTML file.

    Args:
        folder: the run directory.
        output: the file to write; `report.html` in the run directory when not given.

    Returns:
        The file that was written.

    Raises:
        RunDirectoryError: when the run cannot be read or the file cannot be written.
    """
    run = read_run(folder)
    return write_page(render_report(run), Path(output) if output else run.folder / "report.html")


def render_report(run: RunData) -> str:
    """Return the report of a run as HTML."""
    rows = summarise(run.results)
    entries = figures.entries_of(run, _all_rows(run, rows))
    done = [entry for entry in entries if entry.row.values]
    head = narrative.headline(run, rows)
    drawn: dict[str, Sequence[Figure | None]] = {
        "results": [figures.accuracy_by_seed(done), figures.differences(done)],
        "cost": [figures.trade_off(done), figures.calibration(done)],
        "learning": figures.learning_curves(entries),
        "terms": figures.loss_terms(entries),
        "classes": [figures.class_changes(done, run.classes)],
    }
    groups = {name: [figure for figure in group if figure] for name, group in drawn.items()}
    pairs = compare_arms(run.results)
    alerts = checks.warnings(run, rows)
    data = {
        "run": run.header,
        "headline": head,
        "rows": rows,
        "pairs": pairs,
        "warnings": alerts,
        "models": run.models,
        "metrics_sha256": run.digest,
    }
    return render(
        "report.html.j2",
        [figure for group in groups.values() for figure in group],
        data,
        title=run.name,
        run=run,
        head=head,
        kicker=_kicker(run),
        alerts=alerts,
        missing=", ".join(map(provenance.member_name, run.missing)),
        cards=narrative.cards(run, rows),
        colours=_card_colours(entries, head.arm),
        quality=lines_of(done, QUALITY, mark_best=True),
        quality_columns=QUALITY,
        geometry=lines_of(measured(done, GEOMETRY), GEOMETRY, mark_best=True),
        geometry_columns=GEOMETRY,
        has_difference=any(row.difference is not None for row in rows),
        pairs=pairs,
        costs=lines_of(done, COST),
        cost_columns=COST,
        budget=lines_of(done, TRAINING),
        budget_columns=TRAINING,
        class_lines=_class_lines(run, done),
        facts=provenance.facts(run),
        notes=narrative.notes(run),
        models=list(run.models.values()),
        members=provenance.members(run),
        member_columns=provenance.MEMBER_COLUMNS,
        environment=list(provenance.flattened(run.environment)),
        **groups,
    )


def _all_rows(run: RunData, rows: Sequence[Row]) -> list[Row]:
    """Return the rows, and empty ones for arms that train but have no result yet, so that colours stay."""
    known = {row.arm: row for row in rows}
    seen = dict.fromkeys([*(line.arm for line in run.steps), *(line.arm for line in run.epochs)])
    teachers = [arm for arm in [*known, *seen] if role_of(arm) == "teacher"]
    order = dict.fromkeys([*teachers, *run.arms, *seen])
    return [known.get(arm) or Row(arm, role_of(arm), (), {}) for arm in order]


def _card_colours(entries: Sequence[Entry], chosen: str | None) -> dict[str, str]:
    student = next((entry.colour for entry in entries if entry.row.arm == chosen), "")
    return {"teacher": "var(--teacher)", "baseline": "var(--baseline)", "student": student}


def _kicker(run: RunData) -> list[str]:
    facts = [str(run.header[key]) for key in ("task", "kind") if run.header.get(key)]
    if run.classes:
        facts.append(f"{len(run.classes)} classes")
    if run.seeds:
        facts.append(f"{len(run.seeds)} seed{'s' * (len(run.seeds) != 1)}")
    return [*facts, *([run.started[:10]] if run.started else [])]


def _class_lines(run: RunData, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return name, sample count and each arm's mean accuracy for every class."""
    counts = next((result.class_count for result in run.results if result.class_count), ())
    lines = []
    for index, count in enumerate(counts):
        name = run.classes[index] if index < len(run.classes) else str(index)
        lines.append(
            {
                "name": name,
                "count": count,
                "accuracy": [_class_mean(entry, index) for entry in entries],
            }
        )
    return lines


def _class_mean(entry: Entry, index: int) -> float | None:
    values = [
        value
        for result in entry.results
        if index < len(result.class_accuracy)
        and (value := result.class_accuracy[index]) is not None
    ]
    return sum(values) / len(values) if values else None
