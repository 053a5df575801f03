"""The outcome of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from understudy.errors import PreflightError


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check.

    Attributes:
        check: what was looked at.
        outcome: "ok", "warning" or "refused".
        message: a sentence; for a refusal, what is wrong and what would be right.
    """

    check: str
    outcome: Literal["ok", "warning", "refused"]
    message: str


def refuse(verdicts: list[Verdict]) -> None:
    """Raise a `PreflightError` with every refusal in `verdicts`."""
    refused = [verdict.message for verdict in verdicts if verdict.outcome == "refused"]
    if refused:
        raise PreflightError("\n".join(refused))
