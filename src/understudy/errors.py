"""The errors that a user may meet, and the "did you mean" that goes with a wrong name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnderstudyError(Exception):
    """Base of every error that understudy raises on purpose. The command line prints it without a traceback."""


class UnknownName(UnderstudyError):
    """A name that nothing answers to: a model, tap, method, keyword."""


class RecipeError(UnderstudyError):
    """A recipe or an override that cannot be read; names the path inside the recipe."""


class DataError(UnderstudyError):
    """Data that cannot be used: a folder without images, a label out of range, a corrupt file, NaN."""


class ModelError(UnderstudyError):
    """A model that cannot be built, loaded, tapped or exported."""


class PreflightError(UnderstudyError):
    """A check before training found what is known to ruin a run."""


class TrainingError(UnderstudyError):
    """A run that cannot go on, such as a loss that is not finite."""


class RunDirectoryError(UnderstudyError):
    """A run directory that exists already, cannot be written, or holds no usable checkpoint."""


class StoreError(UnderstudyError):
    """A store of teacher outputs that cannot be written or read, does not match, or lacks what is asked for."""


class SamplingError(UnderstudyError):
    """A model or a server that cannot write what is asked for: unreachable, out of room, refusing a request."""


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` members of `valid` that look most like `name`, best first."""
    candidates = [str(candidate) for candidate in valid]
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)
    contained = [low for low in by_lower if name.lower() in low and low not in close]
    return [by_lower[low] for low in (close + contained)[:count]]


def suggestion(name: str, valid: Iterable[str]) -> str:
    """Return the sentence that helps with a wrong name: the nearest valid names, or all when they are few."""
    candidates = sorted(str(candidate) for candidate in valid)
    if not candidates:
        return "There is none to choose from."
    close = nearest(name, candidates)
    if close:
        return "Did you mean " + " or ".join(f"'{candidate}'" for candidate in close) + "?"
    shown = ", ".join(candidates[:20]) + (", ..." if len(candidates) > 20 else "")
    return f"Valid names: {shown}."


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UnknownName:
    """Build the error for a `kind` ("method", "tap", ...) that is not called `name`."""
    return UnknownName(f"There is no {kind} called '{name}'. {suggestion(name, valid)}")


def called(role: str) -> str:
    """Return what a sentence calls the model of a role: "student", "teacher", or "teacher 'big'"."""
    return role if role in ("student", "teacher") else f"teacher '{role}'"
