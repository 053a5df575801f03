"""What a report says in words, and what it warns of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from understudy.report import read_run, summarise
from understudy.report.checks import warnings
from understudy.report.narrative import Headline, cards, headline, notes
from understudy.report.run import RunData

MakeRun = Callable[..., Path]


def told(folder: Path) -> Headline:
    run = read_run(folder)
    return headline(run, summarise(run))


def warned(folder: Path) -> str:
    run = read_run(folder)
    return "\n".join(warnings(run, summarise(run)))


def rewritten(folder: Path, event: str, change: Callable[[dict[str, object]], None]) -> Path:
    """Change every line of one kind in place."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines:
        if line["event"] == event:
            change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def set_accuracy(
    values: dict[tuple[str, int | None], float],
) -> Callable[[dict[str, object]], None]:
    def change(line: dict[str, object]) -> None:
        key = (line["arm"], line["seed"])
        if key in values:
            line["metrics"]["accuracy"] = values[key]  # type: ignore[index,call-overload]

    return change


def exact(make_run: MakeRun, baseline: list[float], student: list[float]) -> Path:
    folder = make_run(
        arms={"teacher": 0.972, "baseline": 0.5, "kd": 0.5}, seeds=range(len(baseline))
    )
    values: dict[tuple[str, int | None], float] = {("teacher", None): 0.972}
    values |= {("baseline", seed): value for seed, value in enumerate(baseline)}
    values |= {("kd", seed): value for seed, value in enumerate(student)}
    return rewritten(folder, "result", set_accuracy(values))


def test_a_clear_gain(make_run: MakeRun) -> None:
    found = told(exact(make_run, [0.87, 0.88, 0.89], [0.925, 0.93, 0.94]))
    assert found.text == (
        "kd student: 93.2 ± 0.8 % versus 88.0 ± 1.0 % without a teacher (+5.2 points, p = 0.001, 3 seeds); "
        "teacher 97.2 %; 14× fewer parameters."
    )
    assert found.tone == "better" and found.verdict.startswith("The gain is more than")


def test_a_gain_that_may_be_chance(make_run: MakeRun) -> None:
    found = told(exact(make_run, [0.87, 0.90, 0.89], [0.91, 0.89, 0.90]))
    assert found.tone == "unclear"
    assert "With 3 seeds this difference cannot be told from chance" in found.verdict
    assert "(95 % interval −" in found.verdict and "(+1.3 points, p = " in found.text


def test_harm_is_called_harm(make_run: MakeRun) -> None:
    found = told(exact(make_run, [0.92, 0.93, 0.94], [0.87, 0.88, 0.895]))
    assert found.tone == "worse" and "did harm" in found.verdict
    assert "(−4.8 points" in found.text


def test_two_seeds_are_a_hint_at_best(make_run: MakeRun) -> None:
    found = told(exact(make_run, [0.87, 0.88], [0.93, 0.9401]))
    assert "p < 0.001" in found.text
    assert found.tone == "unclear" and found.verdict.startswith("2 seeds give a hint, not more")


def test_one_seed_says_nothing_about_chance(make_run: MakeRun) -> None:
    found = told(exact(make_run, [0.88], [0.93]))
    assert found.tone == "unclear" and found.verdict.startswith("One seed only")
    assert "93.0 % versus 88.0 % without a teacher (+5.0 points, 1 seed)" in found.text


def test_equal_differences_are_not_called_significant(make_run: MakeRun) -> None:
    found = told(exact(make_run, [0.87, 0.88], [0.92, 0.93]))
    assert found.tone == "unclear" and "t-test is not defined" in found.verdict


def test_without_a_baseline(make_run: MakeRun) -> None:
    folder = make_run(arms={"teacher": 0.97, "kd": 0.93})
    found = told(folder)
    assert "versus" not in found.text and "cannot be said" in found.verdict
    assert "what the teacher adds is not known" in warned(folder)


def test_the_headline_is_chosen_on_validation_never_on_test(make_run: MakeRun) -> None:
    """`fitnet` is better on the test split, `kd` on validation: the headline speaks of `kd`."""
    folder = make_run()
    swapped = {("fitnet", seed): 0.999 for seed in range(3)}
    found = told(rewritten(folder, "result", set_accuracy(swapped)))
    assert found.arm == "kd"


def test_before_and_during_a_run(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "recipe.yaml").write_text("name: early\n")
    assert told(tmp_path / "early") == Headline(
        None, "No student has a result yet.", "0 of 0 results are in.", "waiting"
    )
    half = make_run(unfinished=[("fitnet", 2)])
    assert told(half).text.startswith("So far, kd student")


def test_cards(make_run: MakeRun) -> None:
    folder = exact(make_run, [0.87, 0.88, 0.89], [0.925, 0.93, 0.94])
    run = read_run(folder)
    found = {card.title: (card.value, card.detail) for card in cards(run, summarise(run))}
    assert found["Teacher"] == ("97.2 %", "test accuracy")
    assert found["Baseline"] == ("88.0 ± 1.0 %", "no teacher, 3 seeds")
    assert found["kd student"] == ("93.2 ± 0.8 %", "3 seeds")
    assert found["Gain"][0] == "+5.2 points"
    assert found["Gap closed"] == ("56 %", "baseline to teacher")
    assert found["Fewer parameters"] == ("14×", "272 k → 19.3 k")


def test_a_fair_run_has_no_warnings(make_run: MakeRun) -> None:
    assert warned(make_run()) == ""


def test_unequal_budgets_are_pointed_out(make_run: MakeRun) -> None:
    def shorten(line: dict[str, object]) -> None:
        if line["arm"] == "baseline":
            line["cost"]["steps"] = 200  # type: ignore[index,call-overload]

    text = warned(rewritten(make_run(), "result", shorten))
    assert (
        "did not get the same number of optimiser steps: baseline 200, kd 400, fitnet 400." in text
    )
    assert "training samples" not in text


def test_seeds_that_are_missing_or_collapsed(make_run: MakeRun) -> None:
    assert "kd has results for the seeds 0, 1, the baseline for 0, 1, 2" in warned(
        make_run(unfinished=[("kd", 2)])
    )
    text = warned(exact(make_run, [0.87, 0.88, 0.89], [0.93, 0.11, 0.92]))
    assert "kd with seed 1 ended at 11.0%" in text


@pytest.mark.parametrize(
    ("teacher", "sentence"),
    [(0.1, "no better than guessing among 10 classes"), (0.8, "no better than the student")],
)
def test_a_teacher_that_cannot_teach(make_run: MakeRun, teacher: float, sentence: str) -> None:
    assert sentence in warned(make_run(arms={"teacher": teacher, "baseline": 0.9, "kd": 0.9}))


def test_measuring_on_test_during_training_is_not_kept_quiet(make_run: MakeRun) -> None:
    folder = make_run("leaky")
    assert "The test split (360 samples) was measured once" in notes(read_run(folder))[0]
    rewritten(folder, "epoch", lambda line: line.update(split="test"))
    assert "measured on test" in warned(folder)
    assert "measured once" not in notes(read_run(folder))[0]
    none = RunData(folder, header={"counts": {"validation": 0}})
    assert "no validation split" in notes(none)[0]
