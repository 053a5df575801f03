"""The sentences of a report, made from its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.report import formatting
from understudy.report.curves import last_validation
from understudy.report.measure import Measure, capital
from understudy.report.run import BASELINE, TEACHER, RunData
from understudy.report.statistics import SIGNIFICANCE, Row, best_teacher, spread


@dataclass(frozen=True)
class Headline:
    """What a report says first.

    Attributes:
        arm: the student arm that it speaks of, None while there is none.
        text: one sentence with the numbers.
        verdict: one sentence on what they allow to say.
        tone: "better", "worse", "unclear" or "waiting".
    """

    arm: str | None
    text: str
    verdict: str
    tone: str


@dataclass(frozen=True)
class Card:
    """One number in large type."""

    title: str
    value: str
    detail: str
    role: str = ""


def headline(run: RunData, rows: Sequence[Row]) -> Headline:
    """Sum the run up: the student that is best on the validation split against baseline and teacher."""
    measure = run.measure
    by_arm = {row.arm: row for row in rows}
    row = chosen_student(run, rows)
    if row is None:
        done, whole = len(run.results), len(run.results) + len(run.missing)
        return Headline(
            None, "No student has a result yet.", f"{done} of {whole} results are in.", "waiting"
        )
    so_far = "So far, " if run.missing else ""
    parts = [f"{so_far}{row.arm} student: {measure.named_level}{level(row, measure)}"]
    baseline = by_arm.get(BASELINE)
    if baseline is not None and row.difference is not None:
        parts[0] += (
            f" versus {level(baseline, measure)} without a teacher "
            f"({formatting.change(measure.change, row.difference)}{measure.change.suffix}, {_evidence(row)})"
        )
    for each in rows:
        if each.role == "teacher" and measure.level_name in each.values:
            parts.append(f"{_titled(each)} {level(each, measure)}")
    teacher = best_teacher(rows, measure)
    smaller = compression(teacher, row)
    if smaller:
        parts.append(smaller)
    sentence, tone = verdict(row, baseline, measure)
    return Headline(row.arm, "; ".join(parts) + ".", sentence, tone)


def chosen_student(run: RunData, rows: Sequence[Row]) -> Row | None:
    """Return the student arm to speak of: the best on the validation split, else the first; never by test results."""
    measure = run.measure
    students = [row for row in rows if row.role == "student" and measure.level_name in row.values]
    if not students:
        return None
    last = last_validation(run)
    validation = {
        row.arm: spread(value for (arm, _), value in last.items() if arm == row.arm)
        for row in students
    }
    if any(found is None for found in validation.values()):
        return students[0]
    return max(
        students,
        key=lambda row: measure.rank(found.mean if (found := validation[row.arm]) else None),
    )


def verdict(row: Row, baseline: Row | None, measure: Measure) -> tuple[str, str]:
    """Return what the numbers of a student arm allow to say about it, and the tone of that."""
    if baseline is None or row.difference is None:
        return "Without a baseline, what the teacher adds cannot be said.", "unclear"
    test = row.test
    if test is None:
        return (
            "One seed only: whether the difference is more than chance cannot be said.",
            "unclear",
        )
    if test.p_value is None:
        return (
            f"All {test.n} seeds show the same difference, so a t-test is not defined.",
            "unclear",
        )
    between = f"95 % interval {formatting.interval(measure.change, test)}{measure.change.suffix}"
    if test.p_value < SIGNIFICANCE and not test.significant:
        return f"{test.n} seeds give a hint, not more ({between}).", "unclear"
    if not test.significant:
        return (
            f"With {test.n} seeds this difference cannot be told from chance ({between}).",
            "unclear",
        )
    if measure.improves(test.mean):
        return f"The gain is more than the seeds' spread explains ({between}).", "better"
    return f"The teacher did harm here: the student is better without it ({between}).", "worse"


def compression(teacher: Row | None, student: Row) -> str:
    """Return "12× fewer parameters" than the teacher, or "" where sizes are not known."""
    large = teacher.mean("parameters") if teacher is not None else None
    small = student.mean("parameters")
    if not large or not small:
        return ""
    if large >= small * 1.05:
        return f"{formatting.ratio(large, small)} fewer parameters"
    if small >= large * 1.05:
        return f"{formatting.ratio(small, large)} more parameters"
    return "as many parameters"


def cards(run: RunData, rows: Sequence[Row]) -> list[Card]:
    """Return the numbers that are shown in large type."""
    measure = run.measure
    by_arm = {row.arm: row for row in rows}
    teachers = [row for row in rows if row.role == "teacher"]
    teacher, baseline = best_teacher(rows, measure), by_arm.get(BASELINE)
    student = chosen_student(run, rows)
    found = [
        Card(title, level(row, measure), _measured(row, measure), row.role)
        for title, row in (
            *((capital(_titled(each)), each) for each in teachers),
            ("Baseline", baseline),
            (f"{student.arm} student" if student else "", student),
        )
        if row is not None and measure.level_name in row.values
    ]
    if student is None:
        return found
    if student.difference is not None:
        found.append(_gain(student.difference, student, measure))
    closed = _gap_closed(teacher, baseline, student, measure)
    if closed is not None:
        found.append(Card("Gap closed", f"{closed * 100:.0f} %", _to(teachers)))
    return found + (_savings(teacher, student) if teacher is not None else [])


def _gain(difference: float, student: Row, measure: Measure) -> Card:
    """Return the difference to the baseline; only of what should rise it is called a gain."""
    form = measure.change
    text, evidence = formatting.change(form, difference), _evidence(student)
    if measure.better == "higher":
        return Card("Gain", f"{text}{form.suffix}", evidence)
    return Card(f"{measure.titled} to baseline{form.heading}", text, evidence)


def _titled(teacher: Row) -> str:
    """Return "teacher", or "teacher 'big'" where there are several."""
    name = teacher.arm.removeprefix(f"{TEACHER}.")
    return TEACHER if name == TEACHER else f"{TEACHER} '{name}'"


def _to(teachers: Sequence[Row]) -> str:
    return "baseline to teacher" if len(teachers) < 2 else "baseline to the best teacher"


def level(row: Row, measure: Measure) -> str:
    """Return what an arm is worth: "93.1 ± 0.4 %", or its perplexity; it must have been measured."""
    return formatting.level(measure.level, row.values[measure.level_name])


def _evidence(row: Row) -> str:
    if row.test is None:
        return "1 seed"
    return f"{formatting.p_value(row.test.p_value)}, {row.test.n} seeds"


def _measured(row: Row, measure: Measure) -> str:
    n = row.values[measure.level_name].n
    seeds = f"{n} seeds" if n > 1 else "1 seed"
    if row.role == "baseline":
        return f"no teacher, {seeds}"
    return seeds if row.role == "student" else f"test {measure.level_noun}"


def _gap_closed(
    teacher: Row | None, baseline: Row | None, student: Row, measure: Measure
) -> float | None:
    """Return (student - baseline) / (teacher - baseline), None unless the teacher is ahead of the baseline."""
    top = teacher.mean(measure.name) if teacher is not None else None
    base = baseline.mean(measure.name) if baseline is not None else None
    own = student.mean(measure.name)
    if top is None or base is None or own is None or not measure.improves(top - base):
        return None
    return (own - base) / (top - base)


def _savings(teacher: Row, student: Row) -> list[Card]:
    found = []
    for key, less, more in (
        ("parameters", "Fewer parameters", "More parameters"),
        ("latency_ms.1", "Faster, batch 1", "Slower, batch 1"),
    ):
        large, small = teacher.mean(key), student.mean(key)
        if not large or not small:
            continue
        detail = (
            f"{formatting.count(large)} → {formatting.count(small)}"
            if key == "parameters"
            else f"{large:.2f} → {small:.2f} ms"
        )
        title = less if large >= small else more
        found.append(Card(title, formatting.ratio(max(large, small), min(large, small)), detail))
    return found


def notes(run: RunData) -> list[str]:
    """Return how the numbers came about: splits, spread, tests, what is counted."""
    counts, measure, words = run.counts, run.measure, run.words
    validation, test = counts.get("validation", 0), counts.get("test")
    on = f" ({test} {words.samples})" if test else ""
    if any(line.split != "validation" for line in run.epochs):
        first = "Training was watched on other splits than validation; see the warning above."
    elif validation:
        first = (
            f"Whatever was chosen during training was chosen on the validation split ({validation} {words.samples}). "
            f"The test split{on} was measured once for each member, after its training."
        )
    else:
        first = (
            "There is no validation split, so nothing was chosen by results. The test split"
            f"{on} was measured once for each member, after its training."
        )
    several = (
        "Agreement, KL and the geometry compare a student with the teacher that it listened to; where it listened to "
        "several, with the mean of their probabilities, and the geometry is left out. The baseline is compared with "
        "all."
    )
    return [
        first,
        *([several] if len(run.teachers) > 1 else []),
        f"The headline speaks of the student arm with the best last validation {measure.level_noun}, which need "
        "not be the best on the test split.",
        "± is the sample standard deviation over seeds (n − 1). Bands in the learning curves reach "
        "from the least to the greatest seed.",
        "Differences are paired: an arm minus the baseline with the same seed. p is from a two-sided "
        "paired t-test and is not corrected for the number of arms; few seeds make a weak test.",
        *([] if measure.name == measure.level_name else [_same_thing(measure)]),
        "The baseline is the same student, trained without the teacher.",
        f"FLOPs are counted by PyTorch for one {words.pass_of}, a multiply-add as two. Latency is the median of warm "
        "forward passes on the machine below.",
    ]


def _same_thing(measure: Measure) -> str:
    """Return why differences are not in the unit of what is shown."""
    return (
        f"Differences, their tests and the closed gap are of the {measure.noun} ({measure.change.unit}), whose "
        f"exponential is the {measure.level_noun}: a difference of −0.10 is a {measure.level_noun} about 10 % lower. "
        f"{capital(measure.better)} is better."
    )
