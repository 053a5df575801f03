"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from understudy.errors import RunDirectoryError
from understudy.report import checks, figures, formatting
from understudy.report.columns import Columns, columns_of
from understudy.report.figures import Entry, Figure
from understudy.report.measure import Measure
from understudy.report.page import lines_of, measured, render, write_page
from understudy.report.provenance import flattened
from understudy.report.reading import read_run
from understudy.report.run import RunData
from understudy.report.statistics import Pair, Row, by_seed, compare_values, summarise
from understudy.report.table import text_lines


@dataclass(frozen=True)
class ComparedRow:
    """One arm of one run; `label` is "RUN / ARM"."""

    run: str
    label: str
    row: Row


@dataclass(frozen=True)
class RecipeDifference:
    """A place in the recipe, dotted, at which the runs differ; one value for each run, "–" where it is not set."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Several runs compared.

    Attributes:
        runs: the runs.
        names: what each is called here; unique.
        rows: every arm of every run. `difference` and `test` are against the baseline of the same run.
        pairs: for every two runs, arms of the same name: second run minus first run, paired by seed.
        warnings: what makes the comparison less than fair.
        recipe: where the recipes differ.
        text: all of it as plain text.
    """

    runs: tuple[RunData, ...]
    names: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]
    recipe: tuple[RecipeDifference, ...]
    text: str

    @property
    def columns(self) -> Columns:
        """The columns of the tables."""
        return columns_of(_leading(self.runs), [compared.row for compared in self.rows])

    @property
    def measure(self) -> Measure:
        """The main measure of all runs."""
        return _leading(self.runs).measure


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Compare runs: their arms in one table, arms of the same name paired by seed.

    Raises:
        RunDirectoryError: when there are fewer than two folders, one is named twice, one is not a run, or the runs
            have different tasks or main measures.
    """
    if len(folders) < 2:
        raise RunDirectoryError("Name at least two run directories to compare.")
    resolved = [Path(folder).resolve() for folder in folders]
    for place, folder in enumerate(resolved):
        if folder in resolved[:place]:
            raise RunDirectoryError(
                f"'{folders[place]}' is named twice; a run is not compared with itself."
            )
    runs = tuple(read_run(folder) for folder in folders)
    names = _unique_names(runs)
    _refuse_unlike(runs, names)
    rows = tuple(
        ComparedRow(name, f"{name} / {row.arm}", row)
        for name, run in zip(names, runs, strict=True)
        for row in summarise(run)
    )
    pairs = tuple(_pairs(runs, names))
    warnings = tuple(_warnings(runs, names))
    recipe = tuple(_recipe_differences(runs))
    found = Comparison(runs, names, rows, pairs, warnings, recipe, "")
    return replace(found, text=_as_text(found))


def write_comparison(comparison: Comparison, output: str | Path) -> Path:
    """Write a comparison as one self-contained HTML file and return where."""
    entries, columns = _entries(comparison), comparison.columns
    drawn: dict[str, Sequence[Figure | None]] = {
        "results": [figures.seed_by_seed(entries), figures.differences(entries)],
        "cost": [figures.trade_off(entries)],
        "learning": figures.learning_curves(entries),
    }
    groups = {name: [figure for figure in group if figure] for name, group in drawn.items()}
    page = render(
        "comparison.html.j2",
        [figure for group in groups.values() for figure in group],
        {
            "rows": comparison.rows,
            "pairs": comparison.pairs,
            "warnings": comparison.warnings,
            "recipe": comparison.recipe,
            "metrics_sha256": {name: run.digest for name, run in _named(comparison)},
        },
        comparison.measure,
        title=" vs ".join(comparison.names),
        comparison=comparison,
        named=list(_named(comparison)),
        words=_leading(comparison.runs).words,
        columns=columns,
        quality=lines_of(entries, columns.quality),
        geometry=lines_of(measured(entries, columns.geometry), columns.geometry),
        costs=lines_of(entries, columns.cost),
        budget=lines_of(entries, columns.training),
        **groups,
    )
    return write_page(page, Path(output))


def _named(comparison: Comparison) -> list[tuple[str, RunData]]:
    return list(zip(comparison.names, comparison.runs, strict=True))


def _entries(comparison: Comparison) -> list[Entry]:
    entries: list[Entry] = []
    students = 0
    for index, (name, run) in enumerate(_named(comparison)):
        rows = [compared.row for compared in comparison.rows if compared.run == name]
        entries += figures.entries_of(run, rows, f"{name} / ", students, index)
        students += sum(row.role == "student" for row in rows)
    return entries


def _leading(runs: Sequence[RunData]) -> RunData:
    """Return the run that says what all are measured by: the first that has come so far."""
    return next((run for run in runs if run.header), runs[0])


def _refuse_unlike(runs: Sequence[RunData], names: Sequence[str]) -> None:
    """Refuse runs whose numbers mean different things; a run that has not begun says nothing yet."""
    begun = [(name, run) for name, run in zip(names, runs, strict=True) if run.header]
    for name, run in begun[1:]:
        first_name, first = begun[0]
        language = run.words.language or first.words.language
        if run.measure != first.measure or (language and run.words != first.words):
            raise RunDirectoryError(
                f"'{first_name}' and '{name}' cannot be compared: the first is judged by {_judged(first)}, the second "
                f"by {_judged(run)}. Compare runs of one task."
            )


def _judged(run: RunData) -> str:
    of = f" of a {run.words.task} task" if run.words.task else ""
    return f"{run.measure.level_noun} ({run.measure.better} is better){of}"


def _unique_names(runs: Sequence[RunData]) -> tuple[str, ...]:
    """Call runs by their folder; where two folders have one name, by the folder above it too."""
    short = [run.folder.resolve().name for run in runs]
    long = [f"{run.folder.resolve().parent.name}/{run.folder.resolve().name}" for run in runs]
    names = [
        wide if short.count(name) > 1 else name for name, wide in zip(short, long, strict=True)
    ]
    if len(set(names)) < len(names):
        return tuple(str(run.folder) for run in runs)
    return tuple(names)


def _pairs(runs: Sequence[RunData], names: Sequence[str]) -> list[Pair]:
    found = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        for other, other_name in list(zip(runs, names, strict=True))[index + 1 :]:
            key = run.measure.name
            for arm in (arm for arm in run.arms if arm in other.arms):
                pair = compare_values(
                    f"{other_name} / {arm}",
                    by_seed(other.results, arm, key),
                    f"{name} / {arm}",
                    by_seed(run.results, arm, key),
                )
                if pair is not None:
                    found.append(pair)
    return found


def _warnings(runs: Sequence[RunData], names: Sequence[str]) -> list[str]:
    found: list[str] = []
    words = _leading(runs).words
    aspects: list[tuple[str, list[str]]] = [
        (f"numbers of {words.samples}", [_counts(run) for run in runs]),
        (words.groups, [", ".join(run.classes) for run in runs]),
        ("vocabularies", [str(run.vocabulary or "") for run in runs]),
        ("seeds", [", ".join(map(str, run.seeds)) for run in runs]),
        ("precision", [str(run.header.get("precision", "")) for run in runs]),
        ("commits", [str(run.header.get("commit", "")) for run in runs]),
        ("teachers", [_teacher(run) for run in runs]),
    ]
    for what, values in aspects:
        if len(set(values)) > 1:
            each = "; ".join(
                f"{name}: {_short(value)}" for name, value in zip(names, values, strict=True)
            )
            found.append(f"The runs have different {what}. {each}.")
    if words.language and len({run.vocabulary for run in runs}) > 1:
        found.append(
            "A perplexity means something for one tokenizer only; between tokenizers compare bits per byte."
        )
    for key, unit in checks.budgets(words):
        means = {
            f"{name} / {row.arm}": mean
            for name, run in zip(names, runs, strict=True)
            for row in summarise(run)
            if row.role != "teacher" and (mean := row.mean(key)) is not None
        }
        if means and max(means.values()) > min(means.values()) * (1 + checks.BUDGET_TOLERANCE):
            each = ", ".join(f"{label} {formatting.count(mean)}" for label, mean in means.items())
            found.append(f"Not every arm got the same number of {unit}: {each}.")
    found += [
        f"{name} is not complete: {len(run.missing)} results are missing."
        for name, run in zip(names, runs, strict=True)
        if run.missing
    ]
    return found


def _counts(run: RunData) -> str:
    return ", ".join(f"{name} {count}" for name, count in run.counts.items())


def _teacher(run: RunData) -> str:
    known = [run.models[arm] for arm in run.teachers if arm in run.models]
    return ", ".join(f"{teacher.name} {teacher.fingerprint}".strip() for teacher in known)


def _short(value: str, most: int = 60) -> str:
    return (value if len(value) <= most else f"{value[: most - 1]}…") or "not recorded"


def _recipe_differences(runs: Sequence[RunData]) -> list[RecipeDifference]:
    flat = [dict(flattened(run.recipe)) for run in runs]
    paths = dict.fromkeys(path for one in flat for path in one)
    rows = [(path, tuple(one.get(path, formatting.NOTHING) for one in flat)) for path in paths]
    return [RecipeDifference(path, values) for path, values in rows if len(set(values)) > 1]


def _as_text(found: Comparison) -> str:
    measure = found.measure
    form, unit = measure.change, measure.change.unit
    lines: list[str] = []
    if found.rows:
        labelled = [(compared.label, compared.row) for compared in found.rows]
        lines += text_lines(labelled, found.columns.every, measure)
    if found.pairs:
        lines += ["", f"{measure.titled}, paired by seed{f' ({unit})' if unit else ''}:"]
        for pair in found.pairs:
            test = pair.test
            between = f", 95 % interval {formatting.interval(form, test, more=1)}" if test else ""
            lines.append(
                f"  {pair.first} minus {pair.second}: {formatting.change(form, pair.difference, more=1)} "
                f"({formatting.chance(test)}, {len(pair.seeds)} seeds{between})"
            )
    if found.recipe:
        lines += ["", f"Recipes differ in ({' | '.join(found.names)}):"]
        lines += [f"  {entry.path}: {' | '.join(entry.values)}" for entry in found.recipe]
    warned = [f"Warning: {warning}" for warning in found.warnings]
    return "\n".join([*lines, *([""] if warned else []), *warned])
