"""The families of methods, by which they are listed."""

from __future__ import annotations

from understudy.methods.method import Family, methods

FAMILIES: dict[Family, str] = {
    "labels": "what the labels say",
    "response": "the teacher's outputs",
    "feature": "the teacher's features, layer by layer",
    "relation": "how samples, channels or places relate to each other",
    "information": "how much the student's features say of the teacher's",
    "self-supervision": "what the teacher makes of a task that needs no labels",
    "structure": "modules that stay in the student",
}
"""What the methods of each family are about, in the order in which they are listed."""


def by_family() -> dict[Family, list[str]]:
    """Return family -> the names of its methods, sorted; families without any are left out."""
    found = {
        family: [name for name, method in methods if method.family == family] for family in FAMILIES
    }
    return {family: names for family, names in found.items() if names}
