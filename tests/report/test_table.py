"""Tables for terminals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from understudy.report import plain_lines, read_run, summarise, table, tables

MakeRun = Callable[..., Path]


def shown(found: Table, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found)
    return console.export_text()


def test_every_number_and_role_is_there(make_run: MakeRun) -> None:
    run = read_run(make_run())
    text = shown(table(run), 250)
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    for arm, role in (
        ("teacher", "teacher"),
        ("baseline", "baseline"),
        ("kd", "student"),
        ("fitnet", "student"),
    ):
        assert lines[arm].split()[1] == role
    row = summarise(run)[2]
    spread = row.values["accuracy"]
    assert row.difference is not None and row.test is not None and row.test.p_value is not None
    assert f"{spread.mean * 100:.2f} ± {spread.std * 100:.2f}" in lines["kd"]  # type: ignore[operator]
    assert f"{row.difference * 100:+.2f} (p = {row.test.p_value:.3f})" in lines["kd"]
    assert "272 k" in lines["teacher"] and "6.81 M" in lines["teacher"]


@pytest.mark.parametrize("width", [60, 80, 120, 250])
def test_narrow_terminals_get_several_tables(make_run: MakeRun, width: int) -> None:
    run = read_run(make_run())
    found = tables(run, width)
    assert (len(found) == 1) == (width == 250)
    headings = [
        str(column.header)
        for one in found
        for column in one.columns
        if column.header not in ("arm", "role")
    ]
    assert headings == [str(column.header) for column in table(run).columns][2:]
    for one in found:
        text = shown(one, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert all(arm in text for arm in ("teacher", "baseline", "kd", "fitnet"))


def test_plain_lines_are_aligned(make_run: MakeRun) -> None:
    lines = plain_lines(read_run(make_run()))
    assert len(lines) == 5 and lines[0].startswith("arm ")
    end = lines[0].index("Accuracy %") + len("Accuracy %")
    assert all(line[end : end + 2] == "  " and line[end - 1] != " " for line in lines)


def test_markup_in_names_is_text(make_run: MakeRun) -> None:
    run = read_run(make_run(arms={"baseline": 0.9, "[red]kd[/red]": 0.93}))
    assert "[red]kd[/red]" in shown(table(run), 250)


def test_a_run_without_results_has_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: early\n")
    run = read_run(tmp_path)
    assert plain_lines(run) == ["arm  role"]
    assert tables(run, 80)[0].row_count == 0
