"""Figures: valid for Plotly, and equal to the file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from understudy.report import read_run, summarise
from understudy.report.curves import Curve, thinned, validation_curve
from understudy.report.figures import (
    Entry,
    Figure,
    calibration,
    class_changes,
    differences,
    entries_of,
    learning_curves,
    loss_terms,
    seed_by_seed,
    trade_off,
)

MakeRun = Callable[..., Path]
LinesOf = Callable[[Path, str], list[dict[str, Any]]]


def entries(folder: Path) -> list[Entry]:
    run = read_run(folder)
    return entries_of(run, summarise(run))


def every_figure(folder: Path) -> list[Figure]:
    found, classes = entries(folder), read_run(folder).classes
    single = [seed_by_seed(found), differences(found), trade_off(found), calibration(found)]
    drawn = [*single, class_changes(found, classes), *learning_curves(found), *loss_terms(found)]
    return [figure for figure in drawn if figure is not None]


def named(figure: Figure | None, name: str) -> dict[str, Any]:
    assert figure is not None
    return next(trace for trace in figure.data if trace.get("name") == name)


def test_plotly_accepts_every_figure(make_run: MakeRun) -> None:
    """Plotly's own classes refuse unknown properties and wrong values."""
    figures = every_figure(make_run(stages={"fitnet": ["hint", "train"]}))
    assert len(figures) == 10
    assert len({figure.id for figure in figures}) == 10
    for figure in figures:
        text = json.dumps({"data": figure.data, "layout": figure.layout}, allow_nan=False)
        go.Figure(json.loads(text.replace("band(", "var(")))


def test_colours_are_variables_that_the_style_defines(make_run: MakeRun) -> None:
    import understudy.report

    style = (Path(understudy.report.__file__).parent / "templates" / "style.css.j2").read_text()
    used = set(
        re.findall(
            r"(?:var|band)\((--[\w-]+)\)", json.dumps([f.data for f in every_figure(make_run())])
        )
    )
    assert {"--teacher", "--baseline", "--student-1", "--student-2", "--term-1"} <= used
    for name in used:
        # A hexadecimal colour once for each theme; the script takes it apart.
        assert len(re.findall(rf"{name}: #[0-9a-f]{{6}};", style)) == 2, name


def test_accuracy_and_differences_are_those_of_the_file(
    make_run: MakeRun, metrics_of: LinesOf
) -> None:
    folder = make_run()
    accuracy = {
        (line["arm"], line["seed"]): line["metrics"]["accuracy"] * 100
        for line in metrics_of(folder, "result")
    }
    drawn = named(seed_by_seed(entries(folder)), "kd")
    assert drawn["x"] == pytest.approx([accuracy["kd", seed] for seed in range(3)])
    assert drawn["text"] == ["seed 0", "seed 1", "seed 2"]
    expected = [accuracy["kd", seed] - accuracy["baseline", seed] for seed in range(3)]
    assert named(differences(entries(folder)), "kd")["x"] == pytest.approx(expected)
    mean = named(differences(entries(folder)), "kd, mean")
    assert mean["x"] == pytest.approx([sum(expected) / 3])
    assert mean["error_x"]["array"][0] > 0


def test_learning_curves_are_mean_least_and_greatest(
    make_run: MakeRun, metrics_of: LinesOf
) -> None:
    folder = make_run()
    at_200 = [
        line["metrics"]["accuracy"]
        for line in metrics_of(folder, "epoch")
        if line["arm"] == "kd" and line["step"] == 200
    ]
    curve = validation_curve(read_run(folder), "kd", "accuracy")
    assert curve is not None
    place = curve.steps.index(200)
    assert (curve.mean[place], curve.low[place], curve.high[place], curve.seeds[place]) == (
        pytest.approx(sum(at_200) / 3),
        min(at_200),
        max(at_200),
        3,
    )
    line = named(learning_curves(entries(folder))[0], "kd")
    assert line["y"][place] == pytest.approx(sum(at_200) / 3 * 100)


def test_a_member_that_stopped_early_leaves_the_mean(make_run: MakeRun) -> None:
    curve = validation_curve(read_run(make_run(unfinished=[("kd", 2)])), "kd", "accuracy")
    assert curve is not None
    assert curve.seeds[0] == 3 and curve.seeds[-1] == 2


def test_terms_have_a_figure_for_each_arm_and_stages_are_marked(make_run: MakeRun) -> None:
    figures = loss_terms(entries(make_run(stages={"fitnet": ["hint", "train"]})))
    assert [figure.title for figure in figures] == ["baseline", "kd", "fitnet"]
    names = [[trace["name"] for trace in figure.data if "name" in trace] for figure in figures]
    assert names == [["supervised"], ["kd", "supervised"], ["hint", "kd"]]
    colours = {
        trace["name"]: trace["line"]["color"]
        for figure in figures
        for trace in reversed(figure.data)
        if "name" in trace
    }
    assert colours == {
        "supervised": "var(--term-1)",
        "kd": "var(--term-2)",
        "hint": "var(--term-3)",
    }
    assert figures[0].layout["shapes"] == []
    assert [shape["x0"] for shape in figures[2].layout["shapes"]] == [200]
    assert figures[2].layout["annotations"][0]["text"] == "stage train"


def test_class_changes(make_run: MakeRun, metrics_of: LinesOf) -> None:
    folder = make_run()
    results = {(line["arm"], line["seed"]): line for line in metrics_of(folder, "result")}
    expected = sum(
        results["kd", seed]["per_class"]["accuracy"][4]
        - results["baseline", seed]["per_class"]["accuracy"][4]
        for seed in range(3)
    )
    bars = named(class_changes(entries(folder), list("0123456789")), "kd")
    assert bars["y"][4] == pytest.approx(expected / 3 * 100)


def test_many_classes_show_those_that_changed_most(make_run: MakeRun) -> None:
    folder = make_run(classes=[f"class {index}" for index in range(100)])
    figure = class_changes(entries(folder), read_run(folder).classes)
    assert figure is not None and "30 of 100 classes" in figure.caption
    assert all(len(trace["x"]) == 30 for trace in figure.data)


def test_the_trade_off_offers_every_cost(make_run: MakeRun, metrics_of: LinesOf) -> None:
    folder = make_run()
    figure = trade_off(entries(folder))
    assert figure is not None
    assert [choice["label"] for choice in figure.choices] == [
        "Parameters",
        "FLOPs",
        "Size on disk",
        "Latency at batch 1",
        "Latency at batch 64",
    ]
    teacher = next(line for line in metrics_of(folder, "result") if line["arm"] == "teacher")
    assert figure.choices[4]["x"][0] == [teacher["cost"]["latency_ms"]["64"]]
    assert figure.data[0]["marker"]["symbol"] == "star"


def test_calibration_only_when_it_was_measured(make_run: MakeRun) -> None:
    assert calibration(entries(make_run("without", calibration=False))) is None
    figure = calibration(entries(make_run("with")))
    assert named(figure, "kd")["customdata"][0] == 6  # 2 samples a seed


def test_names_from_users_are_escaped(make_run: MakeRun) -> None:
    evil = "<img src=x onerror=alert(1)>"
    folder = make_run(classes=[evil, "b"], arms={"teacher": 0.97, "baseline": 0.9, evil: 0.93})
    text = json.dumps([[figure.data, figure.layout] for figure in every_figure(folder)])
    assert "<img" not in text and "&lt;img" in text


def test_thinning_keeps_mean_least_and_greatest() -> None:
    length = 1003
    values = tuple(float(index % 7) for index in range(length))
    curve = Curve(
        tuple(map(float, range(length))),
        values,
        tuple(v - 1 for v in values),
        tuple(v + 1 for v in values),
        (2,) * length,
    )
    found = thinned(curve, most=100)
    assert len(found.steps) <= 100
    assert min(found.low) == -1 and max(found.high) == 7
    assert thinned(curve, most=length) is curve
