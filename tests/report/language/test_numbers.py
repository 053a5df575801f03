"""What a report of a language run says in numbers: direction, perplexity, pairs, columns, chance."""

from __future__ import annotations

import json
import math
import statistics as plain
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from understudy.errors import RunDirectoryError
from understudy.report import compare, plain_lines, read_run, summarise, write_comparison
from understudy.report.checks import warnings
from understudy.report.measure import ACCURACY, TOKEN_LIKELIHOOD, measure_of
from understudy.report.narrative import Headline, cards, headline, notes
from understudy.report.statistics import best_teacher, compare_arms

MakeRun = Callable[..., Path]
LinesOf = Callable[[Path, str], list[dict[str, Any]]]


def told(folder: Path) -> Headline:
    run = read_run(folder)
    return headline(run, summarise(run))


def warned(folder: Path) -> str:
    run = read_run(folder)
    return "\n".join(warnings(run, summarise(run)))


def rewritten(folder: Path, event: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change every line of one kind in place."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines:
        if line["event"] == event:
            change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_measure_is_named_by_the_run_line() -> None:
    given = {"task": "causal_lm", "measure": {"name": "nll", "better": "lower"}}
    assert measure_of(given) == TOKEN_LIKELIHOOD
    assert measure_of({}) == measure_of({"measure": {"name": "accuracy", "better": "higher"}})
    assert measure_of({}) == ACCURACY
    # The likelihood of something else than tokens is no perplexity.
    other = measure_of({"task": "signal", "measure": {"name": "nll", "better": "lower"}})
    assert (other.level_name, other.logarithmic) == ("nll", False)
    assert other.improves(-0.1) and not other.improves(0.1)
    overlap = measure_of(
        {"task": "segmentation", "measure": {"name": "mean_iou", "better": "higher"}}
    )
    assert overlap.noun == "mean iou" and overlap.improves(0.1) and overlap.rank(None) == -math.inf


@pytest.mark.parametrize("measure", [{"name": "nll", "better": "down"}, {"better": "lower"}, {}])
def test_a_measure_that_says_nothing_is_an_error_of_its_line(
    make_language_run: MakeRun, measure: dict[str, str]
) -> None:
    with pytest.raises(RunDirectoryError, match=r'Line 1 .*"measure" should be like'):
        read_run(make_language_run(measure=measure))


def test_rows_are_of_perplexity_and_tests_of_its_logarithm(
    make_language_run: MakeRun, metrics_of: LinesOf
) -> None:
    folder = make_language_run()
    rows = {row.arm: row for row in summarise(read_run(folder))}
    results = metrics_of(folder, "result")
    nll = {
        arm: [line["metrics"]["nll"] for line in results if line["arm"] == arm]
        for arm in ("baseline", "kd")
    }
    perplexity = rows["kd"].values["perplexity"]
    each = [math.exp(value) for value in nll["kd"]]
    assert perplexity.mean == pytest.approx(plain.fmean(each))
    assert perplexity.std == pytest.approx(plain.stdev(each))
    expected = plain.fmean(a - b for a, b in zip(nll["kd"], nll["baseline"], strict=True))
    assert expected < 0 and rows["kd"].difference == pytest.approx(expected)
    test = rows["kd"].test
    assert test is not None
    assert test.p_value == pytest.approx(stats.ttest_rel(nll["kd"], nll["baseline"]).pvalue)
    assert compare_arms(read_run(folder))[0].difference == pytest.approx(expected)


def test_a_perplexity_that_was_not_written_is_the_exponential(make_language_run: MakeRun) -> None:
    def forget(line: dict[str, Any]) -> None:
        del line["metrics"]["perplexity"]

    folder = rewritten(make_language_run(), "result", forget)
    rewritten(folder, "epoch", forget)
    run = read_run(folder)
    for line in (*run.results, *run.epochs):
        assert line.metrics["perplexity"] == pytest.approx(math.exp(line.metrics["nll"] or 0))
    rewritten(folder, "result", lambda line: line["metrics"].update(nll=1e4))
    assert read_run(folder).results[0].metrics["perplexity"] == math.inf


def test_a_lower_likelihood_is_a_gain(make_language_run: MakeRun) -> None:
    folder = make_language_run(levels={"teacher": 2.9, "baseline": 3.4, "kd": 3.15}, noise=0.0)

    def set_nll(line: dict[str, Any]) -> None:
        shift = {0: 0.0, 1: 0.01, 2: -0.01}.get(line["seed"], 0.0)
        nll = {"teacher": 2.9, "baseline": 3.4, "kd": 3.15}[line["arm"]]
        nll += shift * (2 if line["arm"] == "kd" else 1)
        line["metrics"].update(nll=nll, perplexity=math.exp(nll))

    found = told(rewritten(folder, "result", set_nll))
    assert found.text == (
        "kd student: perplexity 23.34 ± 0.47 versus 29.97 ± 0.30 without a teacher (−0.25 nats/token, p < 0.001, "
        "3 seeds); teacher 18.17; 5.9× fewer parameters."
    )
    assert found.tone == "better" and "95 % interval −0.27 to −0.23 nats/token" in found.verdict
    run = read_run(folder)
    shown = {card.title: (card.value, card.detail) for card in cards(run, summarise(run))}
    assert shown["Teacher"] == ("18.17", "test perplexity")
    assert shown["Baseline"] == ("29.97 ± 0.30", "no teacher, 3 seeds")
    assert shown["NLL to baseline, nats/token"] == ("−0.25", "p < 0.001, 3 seeds")
    assert shown["Gap closed"] == ("50 %", "baseline to teacher")
    assert any("validation perplexity" in note for note in notes(run))
    assert any("whose exponential is the perplexity" in note for note in notes(run))
    assert "200 documents" in notes(run)[0]


def test_a_higher_likelihood_is_harm(make_language_run: MakeRun) -> None:
    found = told(make_language_run(levels={"teacher": 2.9, "baseline": 3.1, "kd": 3.4}))
    assert found.tone == "worse" and "did harm" in found.verdict and "(+0.3" in found.text


def test_the_lowest_loss_on_validation_is_spoken_of(make_language_run: MakeRun) -> None:
    """`kd` is better on the test split, `reverse_kl` on validation: the headline speaks of the latter."""
    levels = {"teacher": 2.9, "baseline": 3.4, "kd": 3.0, "reverse_kl": 3.2}
    validation = {"baseline": 3.4, "kd": 3.3, "reverse_kl": 3.1}
    assert told(make_language_run(levels=levels, validation=validation)).arm == "reverse_kl"


def test_the_best_teacher_has_the_lowest_loss(make_language_run: MakeRun) -> None:
    folder = make_language_run(levels={"teacher": 2.9, "baseline": 3.4, "kd": 3.2})
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(
        "".join(
            line.replace('"teacher"', f'"teacher.{name}"').replace('"nll": 2.9,', f'"nll": {nll},')
            for line in lines
            for name, nll in (("old", 3.1), ("new", 2.8))
            if '"teacher"' in line or name == "old"
        )
    )
    run = read_run(folder)
    teacher = best_teacher(summarise(run), run.measure)
    assert teacher is not None and teacher.arm == "teacher.new"


def test_the_terminal_shows_measures_that_exist(make_language_run: MakeRun) -> None:
    heading, *lines = plain_lines(read_run(make_language_run()))
    order = [
        "Perplexity",
        "NLL nats/token",
        "vs baseline",
        "Bits/byte",
        "Token accuracy %",
        "ECE %",
        "Agreement %",
        "KL nats/token",
    ]
    places = [heading.index(title) for title in order]
    assert places == sorted(places)
    assert "Macro-F1" not in heading and "Exact match" not in heading
    kd = next(line for line in lines if line.startswith("kd"))
    assert "−0.2" in kd and "(p " in kd
    assert "Exact match %" in plain_lines(read_run(make_language_run("b", answers=True)))[0]


def test_any_measure_is_compared_and_named(make_run: MakeRun) -> None:
    """A task that the report has never heard of: a number of its own, here better when it is low."""
    folder = make_run(task="regression", measure={"name": "mean_error", "better": "lower"})

    def measure(line: dict[str, Any]) -> None:
        line["metrics"]["mean_error"] = 1 - line["metrics"].pop("accuracy")

    rewritten(rewritten(folder, "result", measure), "epoch", measure)
    found = told(folder)
    assert found.text.startswith("kd student: mean error 0.0") and found.tone == "better"
    assert "teacher 0.030" in found.text
    heading = plain_lines(read_run(folder))[0]
    assert heading.split()[2:6] == ["Mean", "error", "vs", "baseline"]
    assert "Accuracy" not in heading


def test_a_fair_run_has_no_warnings(make_language_run: MakeRun) -> None:
    assert warned(make_language_run()) == ""


def test_chance_is_known_by_the_vocabulary_alone(make_language_run: MakeRun) -> None:
    levels = {"teacher": 8.4, "baseline": 9.0, "kd": 9.0}
    text = warned(make_language_run("bad", levels=levels, vocabulary=4096))
    assert "no better than guessing among the 4,096 tokens of its vocabulary" in text
    assert "(NLL 8.40 nats, a guess 8.32)" in text
    assert "guessing" not in warned(make_language_run("large", levels=levels, vocabulary=5000))
    # Two domains are not two classes: an accuracy below a half is no sign of guessing.
    assert warned(make_language_run("unknown", levels=levels, vocabulary=None, domains="ab")) == ""


def test_a_teacher_behind_its_student_and_a_seed_that_collapsed(make_language_run: MakeRun) -> None:
    text = warned(make_language_run(levels={"teacher": 3.6, "baseline": 3.4, "kd": 3.4}))
    assert "The teacher (NLL 3.600) is no better than the student without it (NLL 3." in text

    def collapse(line: dict[str, Any]) -> None:
        if line["arm"] == "kd" and line["seed"] < 2:
            line["metrics"]["nll"] = 9.0 if line["seed"] else 2.2

    text = warned(rewritten(make_language_run("fallen", seeds=range(4)), "result", collapse))
    assert "kd with seed 1 ended at NLL 9.000, far above its other seeds." in text
    assert "kd with seed 0" not in text


def test_tokens_are_part_of_the_budget(make_language_run: MakeRun) -> None:
    def shorten(line: dict[str, Any]) -> None:
        if line["arm"] == "baseline":
            line["cost"]["tokens"] = 4_000_000

    text = warned(rewritten(make_language_run(), "result", shorten))
    assert "the same number of training tokens: baseline 4.00 M, kd 8.19 M" in text


def test_two_language_runs_are_compared(make_language_run: MakeRun, tmp_path: Path) -> None:
    first = make_language_run("first")
    second = make_language_run("second", random_seed=4, vocabulary=8192)
    found = compare([first, second])
    assert "NLL, paired by seed (nats/token):" in found.text and "Perplexity" in found.text
    assert any("different vocabularies. first: 4096; second: 8192" in one for one in found.warnings)
    assert any("bits per byte" in one for one in found.warnings)
    page = write_comparison(found, tmp_path / "comparison.html").read_text()
    assert "Test NLL in nats/token." in page and 'id="perplexity-by-seed"' in page
    assert compare([first, make_language_run("third", random_seed=5)]).warnings == ()


def test_unlike_runs_are_refused(make_language_run: MakeRun, make_run: MakeRun) -> None:
    language, images = make_language_run("words"), make_run("pictures")
    with pytest.raises(RunDirectoryError) as caught:
        compare([images, language])
    assert str(caught.value) == (
        "'pictures' and 'words' cannot be compared: the first is judged by accuracy (higher is better) of a "
        "classification task, the second by perplexity (lower is better) of a causal language model task. Compare "
        "runs of one task."
    )
    with pytest.raises(RunDirectoryError, match="masked language model"):
        compare([language, make_language_run("masked", task="masked_lm")])
    # A run that has not begun says nothing yet.
    (images / "metrics.jsonl").write_text("")
    assert compare([images, language]).measure == TOKEN_LIKELIHOOD
