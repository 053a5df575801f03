"""Write the table of methods into the README, from the registry and the methods' docstrings.

Run it after adding a method. A test fails when the README is not what this script would write.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from understudy.methods import Method, methods

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- method-table -->", "<!-- /method-table -->"


def paper(method: type[Method]) -> str:
    """Return the citation in a method's docstring; empty when it names none."""
    found = re.search(r"^Paper: (.+?)(?=^\w+:|\n\n|\Z)", inspect.getdoc(method) or "", re.S | re.M)
    return " ".join(found.group(1).split()).rstrip(".") if found else ""


def table() -> str:
    """Return the table in Markdown, one line for each registered method."""
    lines = ["| method | what it does | needs | source |", "|---|---|---|---|"]
    for name, method in methods:
        summary = (inspect.getdoc(method) or "").splitlines()[0].rstrip(".")
        needs = [
            what
            for what, needed in [("labels", method.needs_labels), ("teacher", method.needs_teacher)]
            if needed
        ]
        lines.append(f"| `{name}` | {summary} | {', '.join(needs)} | {paper(method)} |")
    return "\n".join(lines)


def written(text: str) -> str:
    """Return `text` with the table between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README.name} lacks the markers {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    old = README.read_text(encoding="utf-8")
    new = written(old)
    README.write_text(new, encoding="utf-8")
    sys.exit(0 if new == old else f"{README.name} was updated.")
