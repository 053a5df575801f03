"""The page of a language run: words, figures, domains, and what the models wrote."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from understudy.report import read_run, summarise, write_report
from understudy.report.classes import class_lines
from understudy.report.figures import (
    Entry,
    class_changes,
    differences,
    entries_of,
    learning_curves,
    seed_by_seed,
    trade_off,
)
from understudy.report.samples import prompts_of

MakeRun = Callable[..., Path]
LinesOf = Callable[[Path, str], list[dict[str, Any]]]
EVIL = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>&amp; {{ 7 * 7 }}"


def entries(folder: Path) -> list[Entry]:
    run = read_run(folder)
    return entries_of(run, summarise(run))


def text_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def visible(page: str) -> str:
    """Return the page without styles and scripts."""
    return re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)


def words_of(page: str) -> str:
    """Return what a reader sees or hears: texts and descriptions of figures, without other markup."""
    named = re.sub(r'<[^>]*aria-label="([^"]*)"[^>]*>', r" \1 ", visible(page))
    return re.sub(r"<[^>]*>", " ", named)


def test_nobody_speaks_of_test_accuracy_or_classes(make_language_run: MakeRun) -> None:
    page = visible(text_of(make_language_run()))
    words = words_of(page)
    for wrong in ("test accuracy", "Test accuracy", "points", "classes", "classifier", "samples"):
        assert wrong not in words
    for right in ("test perplexity", "vs baseline, nats/token", "Documents, train", "4,096 tokens"):
        assert right in page
    assert "causal language model" in page and "3 domains" in page
    assert 'data-key="perplexity"' in page and 'data-key="macro_f1"' not in page


def test_differences_to_below_zero_are_shown_as_better(make_language_run: MakeRun) -> None:
    page = text_of(make_language_run())
    assert re.search(r'data-key="difference"><span class="up">−0\.2\d\d</span>', page)


def test_figures_are_of_perplexity_on_a_logarithmic_axis(
    make_language_run: MakeRun, metrics_of: LinesOf
) -> None:
    folder = make_language_run()
    drawn = entries(folder)
    single = [seed_by_seed(drawn), differences(drawn), trade_off(drawn)]
    figures = {figure.id: figure for figure in (*single, *learning_curves(drawn)) if figure}
    assert list(figures) == [
        "perplexity-by-seed",
        "differences",
        "trade-off",
        "curve-perplexity",
        "curve-accuracy",
    ]
    for figure in figures.values():
        text = json.dumps({"data": figure.data, "layout": figure.layout}, allow_nan=False)
        go.Figure(json.loads(text.replace("band(", "var(")))
    seeds, change, cost, curve = (figures[name] for name in list(figures)[:4])
    nll = [line["metrics"]["nll"] for line in metrics_of(folder, "result") if line["arm"] == "kd"]
    kd = next(trace for trace in seeds.data if trace["name"] == "kd")
    assert kd["x"] == pytest.approx([math.exp(value) for value in nll])
    assert seeds.layout["xaxis"]["title"]["text"] == "Test perplexity"
    assert seeds.layout["xaxis"]["type"] == cost.layout["yaxis"]["type"] == "log"
    assert change.layout["xaxis"]["title"]["text"] == "Difference to the baseline, nats/token"
    assert "Left of zero is better" in change.caption and max(change.data[0]["x"]) < 0
    assert cost.caption.startswith("Down and to the left is better")
    assert [choice["title"] for choice in cost.choices][1] == "FLOPs per sequence"
    # From hundreds to tens: marks at 1, 2 and 5.
    assert curve.layout["yaxis"]["dtick"] == "D2" and "dtick" not in cost.layout["yaxis"]


def test_a_spread_beyond_zero_has_no_whisker_downwards(make_language_run: MakeRun) -> None:
    figure = trade_off(entries(make_language_run(noise=4.0)))
    assert figure is not None
    for trace in figure.data:
        error = trace.get("error_y")
        if error is not None and error["array"][0] >= trace["y"][0]:
            assert error["arrayminus"] == [0.0]
            break
    else:
        raise AssertionError("no arm scattered that far")


def test_domains_have_perplexity_and_the_gap_to_the_teacher(
    make_language_run: MakeRun, metrics_of: LinesOf
) -> None:
    folder = make_language_run()
    run, drawn = read_run(folder), entries(folder)
    results = {(line["arm"], line["seed"]): line for line in metrics_of(folder, "result")}
    column = {key: line["per_class"]["perplexity"] for key, line in results.items()}
    lines = class_lines(run, drawn)
    assert [(line.name, line.count) for line in lines] == [
        ("stories", 30_000),
        ("news", 31_000),
        ("code", 32_000),
    ]
    mean = sum(column["kd", seed][1] for seed in range(3)) / 3
    teacher = column["teacher", None][1]
    teacher_cell, _, kd, _ = lines[1].cells
    assert (teacher_cell.text, teacher_cell.gap) == (f"{teacher:.2f}", "")
    assert (kd.text, kd.gap) == (f"{mean:.2f}", f"{mean / teacher:.2f}×")
    figure = class_changes(drawn, run.classes)
    assert figure is not None and "Below zero is better" in figure.caption
    expected = [math.log(column["kd", seed][1] / column["baseline", seed][1]) for seed in range(3)]
    assert figure.data[0]["y"][1] == pytest.approx(sum(expected) / 3)
    page = visible(text_of(folder))
    assert "Domain by domain" in page and f"<small>{mean / teacher:.2f}×</small>" in page


@pytest.mark.parametrize("domains", [(), ("all",)])
def test_without_several_domains_there_is_no_part_on_them(
    make_language_run: MakeRun, domains: tuple[str, ...]
) -> None:
    page = visible(text_of(make_language_run(domains=domains)))
    assert 'id="classes"' not in page and "domain" not in page.lower()


def test_texts_stand_side_by_side(make_language_run: MakeRun) -> None:
    folder = make_language_run(seeds=[3, 1, 2])
    prompts = prompts_of(read_run(folder), entries(folder))
    assert [prompt.id for prompt in prompts] == [11, 12, 13, 14]
    assert prompts[2].text == "The council decided on Monday\n\tto"
    assert (prompts[0].reference, prompts[1].reference) == (
        " there was a king.\nHe had three daughters.",
        None,
    )
    assert [(answer.arm, answer.seed) for answer in prompts[0].answers] == [
        ("teacher", None),
        ("baseline", 3),
        ("kd", 3),
        ("reverse_kl", 3),
    ]
    assert prompts[0].answers[2].text == " ...and kd went on,\n  seed 3."
    page = text_of(folder)
    assert page.count('<details class="box sample"') == 4
    assert '<pre class="written">The council decided on Monday\n\tto</pre>' in page
    assert '<pre class="written"> ...and kd went on,\n  seed 3.</pre>' in page


def test_other_prompts_are_not_mixed_up(make_language_run: MakeRun) -> None:
    folder = make_language_run(seeds=[0])
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    changed = [
        line.replace("def area(r):", "def volume(r):") if '"arm": "kd"' in line else line
        for line in lines
    ]
    path.write_text("".join(changed))
    prompts = prompts_of(read_run(folder), entries(folder))
    by_text = {prompt.text: [answer.arm for answer in prompt.answers] for prompt in prompts}
    assert by_text["def area(r):"] == ["teacher", "baseline", "reverse_kl"]
    assert by_text["def volume(r):"] == ["kd"]


def test_what_models_write_is_never_code(make_language_run: MakeRun) -> None:
    arms = dict.fromkeys(("teacher", "baseline", "kd", "reverse_kl"), EVIL)
    page = text_of(make_language_run(written=arms, domains=[EVIL, "b"]))
    assert "<script>alert" not in page and "<img" not in page and "&lt;img" in page
    assert "{{ 7 * 7 }}" in page


def test_a_classification_run_has_no_samples(make_run: MakeRun) -> None:
    assert 'id="samples"' not in text_of(make_run())


def opened(browser: Any, page: Path, width: int) -> Callable[..., Any]:
    """Open a page at a width and return what runs scripts in it."""
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 640}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser")
    browser.get(page.as_uri())
    for _ in range(300):
        if browser.execute_script("return document.documentElement.dataset.drawn"):
            run: Callable[..., Any] = browser.execute_script
            return run
        time.sleep(0.05)
    raise AssertionError(f"not drawn: {browser.get_log('browser')}")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(browser: Any, make_language_run: MakeRun, width: int) -> None:
    endless = "word" * 200 + "\n\tindented  twice\n" + EVIL
    arms = dict.fromkeys(("teacher", "baseline", "kd", "reverse_kl"), endless)
    run = opened(browser, write_report(make_language_run(written=arms)), width)
    run("document.querySelectorAll('details').forEach(box => { box.open = true; })")
    assert run("return document.documentElement.scrollWidth") == width
    wider = run(
        "return [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > arguments[0]"
        " && !e.closest('.scroll')).map(e => e.tagName + '.' + e.className)",
        width + 1,
    )
    assert wider == []
    clipped = run(
        "return [...document.querySelectorAll('.number-card .value')].filter(e => e.scrollWidth > e.clientWidth)"
        ".map(e => e.textContent)"
    )
    assert clipped == []
    shown = run("return document.querySelector(`[data-sample='11'] [data-arm='kd'] pre`).innerText")
    assert shown == endless
    assert run("return document.querySelectorAll('img').length") == 0
    assert browser.get_log("browser") == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
