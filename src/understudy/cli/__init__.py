"""The command line: one thin function per verb."""

from understudy.cli.commands import main

__all__ = ["main"]
