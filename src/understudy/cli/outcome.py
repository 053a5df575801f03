"""How a command ends: its exit code, and what it says when it fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from understudy.errors import TrainingError, UnderstudyError

FAILED, WRONG, STOPPED = 1, 2, 130
"""Exit codes: the run failed; the user asked for something that cannot be; the user stopped it."""


class Stopped(Exception):
    """The user stopped a run; its message says how to go on."""


def speaks() -> bool:
    """Tell whether this process prints: under `torchrun` only the first does."""
    return os.environ.get("RANK", "0") == "0"


def ended(command: Callable[[], object]) -> int:
    """Run a command and return its exit code. Errors that a user can act on are printed without a traceback.

    With UNDERSTUDY_DEBUG=1 they are raised as they are.
    """
    try:
        command()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("Stopped.")
        return STOPPED
    except Stopped as stopped:
        if speaks():
            click.echo(str(stopped), err=True)
        return STOPPED
    except UnderstudyError as error:
        if os.environ.get("UNDERSTUDY_DEBUG") == "1":
            raise
        _say(f"Error: {error}")
        return FAILED if isinstance(error, TrainingError) else WRONG
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; closing stdout again would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else WRONG
    return 0


def _say(text: str) -> None:
    rank = os.environ.get("RANK", "0")
    click.echo(text if rank == "0" else f"[rank {rank}] {text}", err=True)
