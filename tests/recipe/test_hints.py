from __future__ import annotations

import collections.abc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from understudy.recipe.hints import derived, descriptions, strict
from understudy.recipe.words import in_words


def read(hint: Any, value: Any) -> Any:
    return TypeAdapter(strict(hint)).validate_python(value)


def message(hint: Any, value: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        read(hint, value)
    return "; ".join(
        f"{'.'.join(map(str, line['loc']))}: {line['msg']}" if line["loc"] else line["msg"]
        for line in caught.value.errors()
    )


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, 0.5, 0.5),
        (bool, True, True),
        (str, "x", "x"),
        (float | None, None, None),
        (int | float | None, 3, 3),
        (int | float | None, 0.5, 0.5),
        (bool | Literal["auto"], "auto", "auto"),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[float, float], [1, 2], (1.0, 2.0)),
        (list[str], ("a",), ["a"]),
        (collections.abc.Sequence[str], ["a"], ("a",)),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Path, "a/b", "a/b"),
        (str | dict[str, str], {"train": "x"}, {"train": "x"}),
        (Any, {"x": [1]}, {"x": [1]}),
        (Literal[1, 3], 3, 3),
    ],
)
def test_values_that_are_taken(hint: Any, value: Any, expected: Any) -> None:
    assert read(hint, value) == expected
    assert type(read(hint, value)) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "text"),
    [
        (int, "3", "expected a whole number, found the text '3'"),
        (int, 3.0, "expected a whole number, found the number 3.0"),
        (int, True, "expected a whole number, found true"),
        (float, "high", "expected a number, found the text 'high'"),
        (float, True, "expected a number, found true"),
        (float, float("nan"), "expected a number, found the number nan"),
        (bool, 1, "expected true or false, found the number 1"),
        (bool, "yes", "expected true or false, found the text 'yes'"),
        (str, 3, "expected text, found the number 3"),
        (float | None, "x", "expected a number or null, found the text 'x'"),
        (int | float | None, True, "expected a whole number, a number or null, found true"),
        (tuple[int, ...], 3, "expected a list, each a whole number, found the number 3"),
        (tuple[int, ...], [1, "x"], "1: expected a whole number, found the text 'x'"),
        (tuple[float, float], [1], "expected a list of 2: a number, a number, found the list [1]"),
        (list[str], "ab", "expected a list, each text, found the text 'ab'"),
        (dict[str, int], [1], "expected a mapping, found the list [1]"),
        (Literal["zeros", "reflect"], "zero", "there is no choice 'zero'. Did you mean 'zeros'?"),
        (Literal["a", "b"], 3, "expected 'a' or 'b', found the number 3"),
        (Literal[1, 3], True, "expected 1 or 3, found true"),
        (Path, 3, "expected a path, found the number 3"),
        (str | dict[str, str], 3, "expected text or a mapping, found the number 3"),
    ],
)
def test_values_that_are_not_taken_are_answered_in_words(hint: Any, value: Any, text: str) -> None:
    assert message(hint, value) == text


@dataclass
class Point:
    """A point.

    Attributes:
        x: how far to the right,
            in metres.
        y: how far up.
    """

    x: float
    y: float = 0.0
    names: tuple[str, ...] = field(default_factory=lambda: ("a",))

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x is negative")


def test_a_section_is_derived_from_a_dataclass() -> None:
    section = derived("PointSection", Point)
    made = section.model_validate({"x": 1})
    assert (made.x, made.y, made.names) == (1.0, 0.0, ("a",))  # type: ignore[attr-defined]
    assert section.model_fields["x"].description == "how far to the right, in metres."
    with pytest.raises(ValidationError, match=r"is missing; expected a number"):
        section.model_validate({})
    with pytest.raises(ValidationError, match=r"no such key. Did you mean 'names'"):
        section.model_validate({"x": 1, "name": []})


def test_a_dataclass_is_read_from_a_mapping_with_its_own_checks() -> None:
    assert read(Point, {"x": 1, "y": 2}) == Point(1.0, 2.0)
    assert read(float | Point, {"x": 1}) == Point(1.0)
    assert read(float | Point, 3) == 3.0
    assert message(float | Point, {"x": -1}) == "x is negative"
    assert message(float | Point, {"x": "a"}) == "x: expected a number, found the text 'a'"
    assert "a number or a mapping with x, y, names" in message(float | Point, "a")


def test_descriptions_are_read_from_docstrings() -> None:
    assert descriptions(Point) == {
        "x": "how far to the right, in metres.",
        "y": "how far up.",
    }


@given(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.none()))
)
def test_scalars_are_never_coerced(value: Any) -> None:
    for hint in (int, bool, str):
        try:
            taken = read(hint, value)
        except ValidationError:
            assert type(value) is not hint
        else:
            assert type(value) is hint
            assert taken == value


def test_words_of_hints() -> None:
    assert in_words(int | None) == "a whole number or null"
    assert in_words(Literal["a", "b", "c"]) == "'a', 'b' or 'c'"
    assert in_words(list) == "a list"
