"""Write the list of methods into the README, from the registry.

Run it after adding a method. A test fails when the README is not what this script would write. The tables of the
documentation are made here too, when the site is built.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from understudy.methods import Method, methods
from understudy.methods.families import FAMILIES, by_family

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- method-table -->", "<!-- /method-table -->"


def paper(method: type[Method]) -> str:
    """Return the citation in a method's docstring; empty when it names none."""
    found = re.search(r"^Paper: (.+?)(?=^\w+:|\n\n|\Z)", inspect.getdoc(method) or "", re.S | re.M)
    return " ".join(found.group(1).split()).rstrip(".") if found else ""


def overview() -> str:
    """Return the names of all methods in Markdown, one line for each family."""
    lines = [
        f"{len(methods.names())} methods, each with a [card](docs/methods.md): paper, equation, published weight, "
        "cost, and when it fails.",
        "",
        "| family | | methods |",
        "|---|---|---|",
    ]
    for family, names in by_family().items():
        listed = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| {family} | {FAMILIES[family]} | {listed} |")
    return "\n".join(lines)


def tables() -> str:
    """Return a table of methods for each family in Markdown, each linked to its card, for the page `methods.md`."""
    parts = []
    for family, names in by_family().items():
        about = f"{FAMILIES[family][0].upper()}{FAMILIES[family][1:]}."
        lines = [f"## {family.capitalize()}\n", f"{about} [All cards]({card_page(family)}).\n"]
        lines += ["| method | what it does | needs | source |", "|---|---|---|---|"]
        for name in names:
            method = methods.get(name)
            link = f"[`{name}`]({card_page(family)}#{name})"
            summary = (inspect.getdoc(method) or "").splitlines()[0].rstrip(".")
            lines.append(f"| {link} | {summary} | {', '.join(needs(method))} | {paper(method)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def needs(method: type[Method]) -> list[str]:
    """Return what a method needs beside the student."""
    wanted = [("labels", method.needs_labels), ("teacher", method.needs_teacher)]
    return [what for what, needed in wanted if needed] + [
        f"`{name}` before" for name in method.follows
    ]


def card_page(family: str) -> str:
    """Return the page of the documentation with the cards of a family."""
    return f"methods/{family}.md"


def written(text: str) -> str:
    """Return `text` with the list between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README.name} lacks the markers {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{overview()}\n{END}{after}"


if __name__ == "__main__":
    old = README.read_text(encoding="utf-8")
    new = written(old)
    README.write_text(new, encoding="utf-8")
    sys.exit(0 if new == old else f"{README.name} was updated.")
