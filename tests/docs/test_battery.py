"""The page about the properties of the objectives says what the battery asks, of whom, and that it holds."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from understudy import objectives
from understudy.objectives.card import cards

assert objectives  # importing the rooms is what fills `cards`

UPDATE = "run `python scripts/battery_table.py`"


def load(path: Path) -> Iterator[ModuleType]:
    """Import a file that belongs to no package; its dataclasses look their module up by its name."""
    name = f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def script(repository: Path) -> Iterator[ModuleType]:
    yield from load(repository / "scripts" / "battery_table.py")


@pytest.fixture(scope="module")
def battery(repository: Path) -> Iterator[ModuleType]:
    yield from load(repository / "tests" / "contract" / "test_objectives.py")


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "objectives-battery.md").read_text(encoding="utf-8")


def asked(battery: ModuleType) -> set[tuple[str, str]]:
    """What the battery asks: (objective, test function)."""
    return {
        (name, test)
        for test, function in vars(battery).items()
        if test.startswith("test_")
        for mark in function.pytestmark
        for name in mark.args[1]
    }


def shown(page: str) -> dict[str, list[str]]:
    """What the page shows: objective -> its cells."""
    found: dict[str, list[str]] = {}
    room = ""
    for line in page.splitlines():
        if line.startswith("## "):
            room = line.removeprefix("## ").lower()
        row = re.match(r"\| \[`(\w+)`\]\(\S+\) \| (.*) \|$", line)
        if row:
            assert f"{room}.{row[1]}" not in found
            found[f"{room}.{row[1]}"] = row[2].split(" | ")
    return found


def test_the_page_lists_the_registered_objectives_and_the_tests_of_the_battery(
    script: ModuleType, battery: ModuleType, page: str
) -> None:
    tests = [test for part in script.properties().values() for test in part]
    assert tests == [name for name in vars(battery) if name.startswith("test_")]
    assert page.startswith(script.HEAD) and script.legend() in page, UPDATE
    assert re.findall(r"\| `(test_\w+)` \|$", page, re.M) == tests, UPDATE
    assert list(shown(page)) == sorted(cards), UPDATE
    names = " | ".join(script.PROPERTIES[test][0] for test in tests)
    assert page.count(f"| objective | {names} | official cases |") == len(
        {name.partition(".")[0] for name in cards}
    ), UPDATE


def test_a_property_is_shown_where_the_battery_asks_it_and_all_hold(
    script: ModuleType, battery: ModuleType, page: str
) -> None:
    tests = [test for part in script.properties().values() for test in part]
    expected = asked(battery)
    for name, marks in shown(page).items():
        for test, mark in zip(tests, marks[:-1], strict=True):
            wanted = script.HOLDS if (name, test) in expected else script.NOTHING
            assert mark == wanted, f"{name}, {test}: {UPDATE}"
    assert f"| **all** | {len(cards)} | {len(expected)} | {len(expected)} | 0 |" in page


def test_the_script_shows_what_fails(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {("response.kd", test): True for test in script.PROPERTIES}
    cells["response.kd", "test_smallest_batch"] = False
    monkeypatch.setattr(script, "registered", lambda: {"response.kd": cards["response.kd"]})
    text = script.page(cells, {"response.kd": {"a/1", "a/2"}})
    (marks,) = shown(text).values()
    column = list(script.PROPERTIES).index("test_smallest_batch")
    assert marks[column] == script.FAILS
    assert marks.count(script.HOLDS) == len(script.PROPERTIES) - 1
    assert marks[-1] == "2"
    count = len(script.PROPERTIES)
    assert f"| **all** | 1 | {count} | {count - 1} | 1 | 1 | 2 |" in text


def test_a_test_without_a_name_for_its_column_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = {key: value for key, value in script.PROPERTIES.items() if "batch" not in key}
    monkeypatch.setattr(script, "PROPERTIES", fewer)
    with pytest.raises(SystemExit, match="test_smallest_batch"):
        script.properties()


def test_plugins_note_outcomes_and_what_is_compared(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = tmp_path / "golden"
    golden.mkdir()
    (golden / "one.txt").write_text("1")
    monkeypatch.setattr(script, "GOLDEN", golden)
    compared = script.Compared()
    read = compared.reading(Path.read_text)
    call = compared.watching("response.kd", lambda: 3)
    assert read(golden / "one.txt") == "1"
    assert read(Path(__file__)) and call() == 3
    report = pytest.TestReport("t", ("t", 1, "t"), {}, "passed", None, "call")  # type: ignore[arg-type]
    compared.pytest_runtest_logreport(report)
    assert compared.cases == {"response.kd": {"one.txt"}}

    outcomes = script.Outcomes()
    outcomes.known = {"t": ("response.kd", "test_x")}
    for when, outcome in (("setup", "passed"), ("call", "failed"), ("teardown", "passed")):
        report = pytest.TestReport("t", ("t", 1, "t"), {}, outcome, None, when)  # type: ignore[arg-type]
        outcomes.pytest_runtest_logreport(report)
    assert outcomes.cells == {("response.kd", "test_x"): False}
