"""Shows the fields of a card ("Paper: ...", "Fails when: ...") as a list instead of one paragraph.

An extension of griffe, which reads docstrings for mkdocstrings.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

FIELD = re.compile(
    r"^(Paper|Equation|Source|Labels|Use|Deviation|Official|Weight|Cost|Fails when): ", re.MULTILINE
)


class CardFields(griffe.Extension):
    """Turns the fields of docstrings into Markdown lists."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a class or function that has two fields or more."""
        if obj.docstring is None or len(FIELD.findall(obj.docstring.value)) < 2:
            return
        text = FIELD.sub(lambda field: f"- **{field[1]}:** ", obj.docstring.value)
        # Markdown begins a list only after an empty line.
        obj.docstring.value = re.sub(r"(?<!\n)\n(?=- \*\*)", "\n\n", text, count=1)
