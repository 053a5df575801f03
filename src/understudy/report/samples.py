"""What the members wrote after the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from understudy.report.figures import Entry
from understudy.report.run import Member, RunData


@dataclass(frozen=True)
class Answer:
    """What one arm wrote; `seed` is None for a teacher that was loaded."""

    arm: str
    standing: str
    colour: str
    seed: int | None
    text: str


@dataclass(frozen=True)
class Prompt:
    """A prompt, what the data has in its place if anything, and the arms' answers in the order of the tables."""

    id: int
    text: str
    reference: str | None
    answers: tuple[Answer, ...]


def prompts_of(run: RunData, entries: Sequence[Entry]) -> list[Prompt]:
    """Return every prompt after which somebody wrote, in the order of the file.

    Of each arm its first seed is shown; answers stand beside each other only where id, prompt and reference are equal.
    """
    members = [(entry, _first(run, entry.row.arm)) for entry in entries]
    written = [(entry, member) for entry, member in members if member is not None]
    order = dict.fromkeys(
        (sample.id, sample.prompt, sample.reference)
        for _, member in written
        for sample in run.samples[member]
    )
    answers: dict[tuple[int, str, str | None], list[Answer]] = {key: [] for key in order}
    for entry, member in written:
        for sample in run.samples[member]:
            answers[sample.id, sample.prompt, sample.reference].append(
                Answer(member[0], entry.standing, entry.colour, member[1], sample.text)
            )
    return [Prompt(*key, tuple(answers[key])) for key in order]


def _first(run: RunData, arm: str) -> Member | None:
    """Return the member of an arm with the first of the run's seeds that has written; a loaded teacher has none."""
    places = {seed: place for place, seed in enumerate(run.seeds)}
    found = [member for member in run.samples if member[0] == arm]
    return min(found, key=lambda member: places.get(member[1], -1), default=None)  # type: ignore[arg-type]
