"""The page as text: complete, self-contained, escaped, equal to the file."""

from __future__ import annotations

import json
import re
import statistics as plain
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import RunDirectoryError
from understudy.report import write_report

MakeRun = Callable[..., Path]
LinesOf = Callable[[Path, str], list[dict[str, Any]]]


class Page(HTMLParser):
    """Collects texts by element id, table cells by (table, arm, key), and every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.cells: dict[tuple[str, str, str], str] = {}
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._script = self._table = self._arm = ""
        self._cell: tuple[str, str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.addresses += [values[name] for name in ("src", "href", "action") if name in values]
        if tag == "script":
            self._script = values.get("id", "code")
        if tag == "table":
            self._table = values.get("id", "")
        if tag == "tr":
            self._arm = values.get("data-arm", "")
        if tag == "td" and "data-key" in values:
            self._cell = (self._table, self._arm, values["data-key"])
            self.cells[self._cell] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = None
        if tag == "script":
            self._script = ""

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        if self._cell:
            self.cells[self._cell] += data


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_it_asks_the_network_for_nothing(make_run: MakeRun) -> None:
    page = page_of(make_run())
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "link" in page.tags and "iframe" not in page.tags and "img" not in page.tags


def test_the_policy_forbids_the_network(make_run: MakeRun) -> None:
    text = write_report(make_run()).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'") and "http" not in policy[1]


def test_what_is_shown_equals_the_file(make_run: MakeRun, metrics_of: LinesOf) -> None:
    folder = make_run()
    page = page_of(folder)
    results = metrics_of(folder, "result")
    for arm in ("teacher", "baseline", "kd", "fitnet"):
        own = [line for line in results if line["arm"] == arm]
        for key, scale, decimals in (
            ("accuracy", 100, 2),
            ("macro_f1", 100, 2),
            ("nll", 1, 3),
            ("ece", 100, 2),
            ("agreement", 100, 2),
            ("kl", 1, 3),
        ):
            values = [
                line["metrics"][key] * scale for line in own if line["metrics"][key] is not None
            ]
            expected = f"{plain.fmean(values):.{decimals}f}" if values else "–"
            if len(values) > 1:
                expected += f" ± {plain.stdev(values):.{decimals}f}"
            assert page.cells["quality", arm, key].strip() == expected
        if arm != "teacher":
            gaps = [line["metrics"]["cosine_gap"] for line in own]
            assert page.cells["geometry", arm, "cosine_gap"].startswith(f"{plain.fmean(gaps):.3f}")
        latency = [line["cost"]["latency_ms"]["64"] for line in own]
        assert page.cells["costs", arm, "latency_ms.64"].startswith(f"{plain.fmean(latency):.2f}")
        assert page.cells["budget", arm, "steps"].strip() == "400"


def test_the_numbers_are_embedded_for_programs(make_run: MakeRun, metrics_of: LinesOf) -> None:
    folder = make_run()
    data = json.loads(page_of(folder).scripts["data"])
    kd = next(row for row in data["rows"] if row["arm"] == "kd")
    written = [
        line["metrics"]["accuracy"] for line in metrics_of(folder, "result") if line["arm"] == "kd"
    ]
    assert kd["values"]["accuracy"]["values"] == written
    assert data["run"]["commit"] == "0123456789abcdef"
    assert len(data["pairs"]) == 3 and data["headline"]["arm"] == "kd"
    assert data["models"]["teacher"]["fingerprint"].endswith("b")


def test_provenance_is_on_the_page(make_run: MakeRun) -> None:
    text = write_report(make_run()).read_text(encoding="utf-8")
    for part in (
        "0123456789abcdef",
        "temperature: 4.0",
        "machine.cpu",
        "0, 1, 2",
        "float32",
        "validation split (180",
    ):
        assert part in text


def test_text_from_users_is_escaped(make_run: MakeRun) -> None:
    evil = "</script><script>alert(1)</script>"
    folder = make_run(
        arms={"teacher": 0.97, "baseline": 0.9, evil: 0.93},
        classes=[evil, "b"],
        name=evil,
        commit=evil,
        task=evil,
    )
    (folder / "recipe.yaml").write_text(f"name: '{evil}'\n")
    (folder / "environment.json").write_text(json.dumps({evil: evil}))
    text = write_report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    page = Page(text)
    assert page.tags.count("script") == 4
    assert page.cells["quality", evil, "accuracy"]


def test_values_that_json_does_not_know(make_run: MakeRun) -> None:
    folder = make_run(seeds=[0])
    path = folder / "metrics.jsonl"
    text = re.sub(
        r'("arm": "kd", "seed": 0, "split": "test".*?"kl": )[\d.]+', r"\1Infinity", path.read_text()
    )
    path.write_text(re.sub(r'"loss": [\d.]+', '"loss": NaN', text))
    page = page_of(folder)
    assert page.cells["quality", "kd", "kl"] == "∞"

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for name in ("data", "figures"):
        json.loads(page.scripts[name], parse_constant=refuse)


@pytest.mark.parametrize("stage", ["empty", "header", "training", "half"])
def test_every_stage_of_a_run_has_a_page(make_run: MakeRun, stage: str) -> None:
    folder = make_run(unfinished=[("fitnet", 2)])
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    events = [json.loads(line)["event"] for line in lines]
    keep = {"empty": 0, "header": 1, "training": events.index("epoch") + 1, "half": len(lines)}[
        stage
    ]
    path.write_text("".join(lines[:keep]))
    text = write_report(folder).read_text()
    if stage == "half":
        assert "9 of 10 results are in; still missing: fitnet seed 2." in text
        assert "So far" in text
    elif stage == "training":
        assert 'id="curve-accuracy"' in text and "1 of 9 results" not in text
    else:
        assert "No student has a result yet." in text


def test_where_it_is_written(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    assert write_report(folder) == folder / "report.html"
    elsewhere = tmp_path / "pages" / "one.html"
    assert write_report(folder, elsewhere) == elsewhere
    assert [path.name for path in elsewhere.parent.iterdir()] == ["one.html"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        write_report(folder, blocked / "report.html")
