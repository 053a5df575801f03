"""Shows the fields of a card ("Paper: ...", "Fails when: ...") as a list instead of one paragraph.

An extension of griffe, which reads docstrings for mkdocstrings.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

FIELDS = (
    "Paper",
    "Equation",
    "Source",
    "Labels",
    "Top k",
    "Use",
    "Weight",
    "Deviation",
    "Official",
    "Log",
    "Cost",
    "Fails when",
)
FIELD = re.compile(rf"^({'|'.join(FIELDS)}): ", re.MULTILINE)
EMPHASIS = re.compile(r"\*|(?<!\w)_|_(?!\w)")


class CardFields(griffe.Extension):
    """Turns the fields of docstrings into Markdown lists."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a class or function that has two fields or more."""
        if obj.docstring is not None:
            obj.docstring.value = as_list(obj.docstring.value)


def as_list(text: str) -> str:
    """Return a docstring with the fields of its card as a Markdown list; one with fewer than two is left as it is.

    A field is put on one line, since a line that happens to begin with a number or a minus would begin a list of its
    own. What is plain text stays it: a product's `*` and an index's `_` are no emphasis, `<K, L>` is no tag.
    """
    if len(FIELD.findall(text)) < 2:
        return text
    parts = []
    for paragraph in text.split("\n\n"):
        first = FIELD.search(paragraph)
        if first is None:
            parts.append(paragraph)
            continue
        if first.start():
            parts.append(paragraph[: first.start()].rstrip())
        pieces = FIELD.split(paragraph[first.start() :])[1:]
        lines = [
            f"- **{name}:** {literal(' '.join(content.split()))}"
            for name, content in zip(pieces[::2], pieces[1::2], strict=True)
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def literal(text: str) -> str:
    """Return text in which Markdown finds no emphasis and no tags; what stands between backticks is left as it is."""
    pieces = text.split("`")
    return "`".join(
        piece if number % 2 else EMPHASIS.sub(r"\\\g<0>", piece).replace("<", "&lt;")
        for number, piece in enumerate(pieces)
    )
