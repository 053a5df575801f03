"""The report of one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from understudy.report import checks, figures, narrative, provenance
from understudy.report.classes import class_lines
from understudy.report.columns import columns_of
from understudy.report.figures import Entry, Figure
from understudy.report.figures.classes import class_measure
from understudy.report.page import lines_of, measured, render, write_page
from understudy.report.reading import read_run
from understudy.report.run import RunData, role_of
from understudy.report.samples import prompts_of
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
    rows = summarise(run)
    entries = figures.entries_of(run, _all_rows(run, rows))
    done = [entry for entry in entries if entry.row.values]
    columns = columns_of(run, rows)
    head = narrative.headline(run, rows)
    drawn: dict[str, Sequence[Figure | None]] = {
        "results": [figures.seed_by_seed(done), figures.differences(done)],
        "cost": [figures.trade_off(done), figures.calibration(done)],
        "learning": figures.learning_curves(entries),
        "terms": figures.loss_terms(entries),
        "classes": [figures.class_changes(done, run.classes)],
    }
    groups = {name: [figure for figure in group if figure] for name, group in drawn.items()}
    pairs = compare_arms(run)
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
        run.measure,
        title=run.name,
        run=run,
        head=head,
        kicker=_kicker(run),
        alerts=alerts,
        missing=", ".join(map(provenance.member_name, run.missing)),
        cards=narrative.cards(run, rows),
        colours=_card_colours(entries, head.arm),
        words=run.words,
        columns=columns,
        quality=lines_of(done, columns.quality, mark_best=True),
        geometry=lines_of(measured(done, columns.geometry), columns.geometry, mark_best=True),
        has_difference=any(row.difference is not None for row in rows),
        pairs=pairs,
        costs=lines_of(done, columns.cost),
        budget=lines_of(done, columns.training),
        class_lines=class_lines(run, done),
        class_noun=class_measure(run).level_noun,
        prompts=prompts_of(run, entries),
        facts=provenance.facts(run),
        notes=narrative.notes(run),
        models=list(run.models.values()),
        members=provenance.members(run),
        member_columns=provenance.member_columns(run),
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
    facts = [text for text in (run.words.task, str(run.header.get("kind") or "")) if text]
    if run.classes and (len(run.classes) > 1 or not run.words.language):
        facts.append(f"{len(run.classes)} {run.words.groups}")
    if run.seeds:
        facts.append(f"{len(run.seeds)} seed{'s' * (len(run.seeds) != 1)}")
    return [*facts, *([run.started[:10]] if run.started else [])]
