from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Understudy = Callable[..., Ended]


@pytest.fixture
def understudy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Understudy:
    """Run the command line in this process."""

    def run(*arguments: str | Path) -> Ended:
        from understudy.cli import main

        monkeypatch.setattr(sys, "argv", ["understudy", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        code = left.value.code
        assert isinstance(code, int)
        return Ended(code, printed.out, printed.err)

    return run
