"""The page for those who come from torchdistill names what there is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from understudy import objectives
from understudy.cli.commands import cli
from understudy.methods import methods


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "coming-from-torchdistill.md").read_text(encoding="utf-8")


def rows(page: str, heads: str) -> list[list[str]]:
    """The cells of the table that begins with these heads."""
    lines = iter(page.splitlines())
    assert heads in lines
    next(lines)
    found = []
    for line in lines:
        if not line:
            return found
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    raise AssertionError


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_objectives_exist_with_what_is_said_of_them(page: str) -> None:
    losses = rows(page, "| torchdistill | method | objective | what differs |")
    assert len(losses) > 25
    for loss, _, cell, differs in losses:
        functions = [getattr(objectives, name) for name in names(cell)]
        assert functions, loss
        if "official=True" in differs:
            parameters = {key for each in functions for key in each.__wrapped__.__annotations__}
            assert "official" in parameters, loss


def test_methods_exist_with_the_keywords_that_are_named(page: str) -> None:
    losses = rows(page, "| torchdistill | method | objective | what differs |")
    wrappers = rows(page, "| torchdistill | method | what differs |")
    assert len(wrappers) > 12
    for row in [*losses, *wrappers]:
        known = [methods.get(name) for name in names(row[1])]
        keywords = {key for method in known for key in inspect.signature(method).parameters}
        named = re.findall(r"`(\w+): \w+`", row[1] + row[-1])
        assert set(named) - {"mode", "reduction"} <= keywords, row[0]


def test_verbs_exist(page: str) -> None:
    verbs = re.findall(r"`understudy (\w+)", page)
    assert verbs and set(verbs) <= set(cli.commands)
