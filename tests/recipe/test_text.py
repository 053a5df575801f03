from __future__ import annotations

import pytest

from understudy.errors import RecipeError
from understudy.recipe.text import read_value, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("12", 12),
        ("-0", 0),
        ("0x10", 16),
        ("0o17", 15),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("", None),
        ("~", None),
        ("2020-01-01", "2020-01-01"),
        ("1:30", "1:30"),
        ("kd:resnet20", "kd:resnet20"),
        ("[0, 1, 2]", [0, 1, 2]),
        ("{a: 1e-2}", {"a": 0.01}),
        ("'1'", "1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = read_value(text)
    assert read == value
    assert type(read) is type(value)


def test_special_floats() -> None:
    assert read_value(".inf") == float("inf")
    assert read_value("-.INF") == float("-inf")
    assert str(read_value(".NaN")) == "nan"


def test_lines_of_keys_and_items() -> None:
    values, lines = read_yaml("a: 1\nb:\n  - x\n  - c: 2\n", "text")
    assert values == {"a": 1, "b": ["x", {"c": 2}]}
    assert lines["a",] == 1
    assert lines["b",] == 2
    assert lines["b", 1, "c"] == 4


def test_anchors_and_merges_still_work() -> None:
    values, _ = read_yaml("a: &x {lr: 1}\nb: {<<: *x, momentum: 2}\n", "text")
    assert values["b"] == {"lr": 1, "momentum": 2}


def test_a_key_given_twice_names_both_lines() -> None:
    with pytest.raises(RecipeError, match=r"line 3: 'a.b' is given twice; it stands in line 2"):
        read_yaml("a:\n  b: 1\n  b: 2\n", "text")


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']",
        "a: !!python/name:os.system",
        "!!python/object:builtins.object {}",
        "a: !mine 1",
        "a: [1, !!python/tuple [1, 2]]",
    ],
)
def test_tags_are_refused_with_what_to_do_instead(text: str) -> None:
    with pytest.raises(RecipeError, match=r"never runs code on its own.*py:module:attribute"):
        read_yaml(text, "text")


def test_bad_yaml_names_line_and_column() -> None:
    with pytest.raises(RecipeError, match=r"recipe, line 2, column 9: not valid YAML"):
        read_yaml("a: 1\nb: [1, 2}\n", "recipe")


def test_aliases_cannot_run_away() -> None:
    with pytest.raises(RecipeError, match="contains itself"):
        read_yaml("a: &a [*a]", "text")
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    with pytest.raises(RecipeError, match="expands to more than"):
        read_yaml(bomb, "text")
