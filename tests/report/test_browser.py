"""The page in headless Chromium."""

from __future__ import annotations

import json
import statistics as plain
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from understudy.report import compare, write_comparison, write_report

MakeRun = Callable[..., Path]
LinesOf = Callable[[Path, str], list[dict[str, Any]]]
BACKGROUND = "return getComputedStyle(document.body).backgroundColor"


class Window:
    """A page in the browser."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def emulate(self, width: int = 1280, scheme: str = "light") -> None:
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 640}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, page: Path, width: int = 1280, scheme: str = "light") -> None:
        self.emulate(width, scheme)
        for kind in ("browser", "performance"):
            self.browser.get_log(kind)
        self.browser.get(page.as_uri())
        self.wait_until_drawn(scheme)

    def wait_until_drawn(self, scheme: str) -> None:
        for _ in range(300):
            if self.run("return document.documentElement.dataset.drawn") == scheme:
                return
            time.sleep(0.05)
        raise AssertionError(f"not drawn: {self.browser.get_log('browser')}")

    def run(self, script: str, *values: Any) -> Any:
        return self.browser.execute_script(script, *values)

    def requests(self) -> list[str]:
        messages = [
            json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")
        ]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture
def window(browser: Any) -> Iterator[Window]:
    yield Window(browser)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_errors_and_no_requests(window: Window, make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(stages={"fitnet": ["hint", "train"]})
    pages = [
        write_report(folder),
        write_report(make_run("live", unfinished=[("kd", 1)], calibration=False)),
        write_comparison(
            compare([folder, make_run("again", random_seed=3)]), tmp_path / "comparison.html"
        ),
    ]
    for page in pages:
        window.open(page)
        figures = window.run("return document.querySelectorAll('.plot').length")
        assert figures >= 5
        assert window.run("return document.querySelectorAll('.plot .main-svg').length") >= figures
        assert window.browser.get_log("browser") == []
        assert {address.split(":")[0] for address in window.requests()} <= {"file", "data"}


def test_shown_and_drawn_numbers_equal_the_file(
    window: Window, make_run: MakeRun, metrics_of: LinesOf
) -> None:
    folder = make_run()
    window.open(write_report(folder))
    results = metrics_of(folder, "result")
    for arm in ("baseline", "kd", "fitnet"):
        values = [line["metrics"]["accuracy"] * 100 for line in results if line["arm"] == arm]
        cell = window.run(
            "return document.querySelector(`#quality [data-arm='${arguments[0]}'] [data-key=accuracy]`).innerText",
            arm,
        )
        assert cell.split() == [f"{plain.fmean(values):.2f}", "±", f"{plain.stdev(values):.2f}"]
        points = window.run(
            "return document.getElementById('accuracy-by-seed').data.find(t => t.name === arguments[0]).x",
            arm,
        )
        assert points == pytest.approx(values)
    last = {
        line["seed"]: line["metrics"]["accuracy"] * 100
        for line in metrics_of(folder, "epoch")
        if line["arm"] == "kd" and line["step"] == 400
    }
    drawn = window.run(
        "return document.getElementById('curve-accuracy').data.find(t => t.name === 'kd').y.at(-1)"
    )
    assert drawn == pytest.approx(plain.fmean(last.values()))


def test_a_phone_scrolls_down_but_never_sideways(window: Window, make_run: MakeRun) -> None:
    folder = make_run(
        "a-run-with-quite-a-long-name-that-nobody-shortened",
        classes=[f"a class with a long name, number {index}" for index in range(40)],
        arms={
            "teacher": 0.97,
            "baseline": 0.88,
            "kd": 0.93,
            "an_arm_with_a_name_without_end_" * 2: 0.92,
        },
    )
    window.open(write_report(folder), width=390)
    window.run("document.querySelectorAll('details').forEach(box => { box.open = true; })")
    assert window.run("return document.documentElement.scrollWidth") == 390
    wider = window.run(
        "return [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 391"
        " && !e.closest('.scroll, pre')).map(e => e.tagName + '.' + e.className)"
    )
    assert wider == []
    table = "document.getElementById('quality').parentElement"
    assert window.run(f"return {table}.scrollWidth > {table}.clientWidth")


def test_dark_follows_the_system_and_the_button(window: Window, make_run: MakeRun) -> None:
    page = write_report(make_run())
    text_colour = (
        "return getComputedStyle(document.querySelector('#curve-accuracy .xtick text')).fill"
    )
    line_colour = "return document.getElementById('curve-accuracy').data.find(t => t.name === 'kd').line.color"
    window.open(page, scheme="light")
    light = [window.run(script) for script in (BACKGROUND, text_colour, line_colour)]
    window.open(page, scheme="dark")
    dark = [window.run(script) for script in (BACKGROUND, text_colour, line_colour)]
    assert light == ["rgb(246, 245, 242)", "rgb(28, 36, 48)", "#00796b"]
    assert dark == ["rgb(18, 21, 27)", "rgb(231, 233, 238)", "#3fc9b4"]
    window.run("document.getElementById('theme').click()")
    window.wait_until_drawn("light")
    assert [window.run(script) for script in (BACKGROUND, text_colour, line_colour)] == light
    window.run("document.getElementById('theme').click()")
    window.wait_until_drawn("dark")
    window.open(page, scheme="light")
    window.emulate(scheme="dark")
    window.wait_until_drawn("dark")
    assert [window.run(script) for script in (BACKGROUND, text_colour, line_colour)] == dark


def test_buttons_change_the_figures(window: Window, make_run: MakeRun) -> None:
    window.open(write_report(make_run()))
    window.run(
        "[...document.querySelectorAll('[data-choices] button')].find(b => b.textContent === 'FLOPs').click()"
    )
    trade_off = "document.getElementById('trade-off')"
    assert window.run(f"return {trade_off}.layout.xaxis.title.text") == "FLOPs per sample"
    assert window.run(f"return {trade_off}.data[0].x[0]") == pytest.approx(272_474 * 25)
    window.run("document.getElementById('log-terms').click()")
    for _ in range(100):
        if window.run("return document.getElementById('terms-1')?.layout.yaxis.type") == "log":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the loss terms stayed linear")
    assert window.browser.get_log("browser") == []


def test_markup_in_names_stays_text(window: Window, make_run: MakeRun) -> None:
    evil = "<img src=x><b>kd</b>"
    folder = make_run(arms={"teacher": 0.97, "baseline": 0.9, evil: 0.93}, classes=[evil, "b"])
    window.open(write_report(folder))
    assert window.run("return document.querySelectorAll('img').length") == 0
    assert evil in window.run("return document.getElementById('headline').textContent")
    assert evil in window.run(
        "return document.querySelector('#accuracy-by-seed .yaxislayer-above').textContent"
    )
    assert window.browser.get_log("browser") == []
