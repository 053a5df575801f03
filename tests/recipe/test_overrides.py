from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import RecipeError
from understudy.recipe.overrides import override

RECIPE: dict[str, Any] = {
    "seeds": [0],
    "student": {"model": "kd:resnet8"},
    "arms": {"kd": ["kd", {"name": "supervised", "weight": 0.1}]},
}


def test_values_are_yaml_and_the_original_stays() -> None:
    before = copy.deepcopy(RECIPE)
    changed, written = override(RECIPE, ["seeds=[1, 2]", "optimizer.lr=1e-2", "clip=null"])
    assert changed["seeds"] == [1, 2]
    assert changed["optimizer"] == {"lr": 0.01}
    assert changed["clip"] is None
    assert before == RECIPE
    assert written["optimizer", "lr"] == "optimizer.lr=1e-2"


def test_numbers_address_list_items_and_names_take_keywords() -> None:
    changed, written = override(
        RECIPE, ["arms.kd.0.temperature=2", "arms.kd.1.weight=0.5", "student.model.width=0.25"]
    )
    assert changed["arms"]["kd"] == [
        {"name": "kd", "temperature": 2},
        {"name": "supervised", "weight": 0.5},
    ]
    assert changed["student"]["model"] == {"name": "kd:resnet8", "width": 0.25}
    assert ("arms", "kd", 0, "temperature") in written


def test_an_arm_that_is_null_is_left_out() -> None:
    values = {"arms": {"kd": ["kd"], "7": ["nkd"], "at": ["at"]}}
    found, written = override(values, ["arms.kd=null", "arms.7=null", "arms.at.0=null"])
    assert found == {"arms": {"at": [None]}}
    assert list(written) == [("arms", "at", 0)]
    # A name that is no arm is not passed over in silence: the recipe is refused for it.
    assert override(values, ["arms.kdd=null"])[0]["arms"]["kdd"] is None


def test_later_overrides_win() -> None:
    assert override({}, ["a=1", "a=2"])[0] == {"a": 2}


def test_a_value_may_hold_equals_signs() -> None:
    assert override({}, ["a=b=c"])[0] == {"a": "b=c"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.lr", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("a..b=3", "not of the form key=value"),
        ("arms.kd.7=kd", r"item '7' of arms.kd, a list of 2 \(numbered 0 to 1\)"),
        ("arms.kd.first=kd", "item 'first' of arms.kd"),
        ("seeds.0.x=1", "cannot set 'x': seeds.0 is 0, a plain value"),
        ("a=[1", "not valid YAML"),
        ("a=!!python/name:os.system", "never runs code"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        override(RECIPE, [text])


_KEYS = st.text("abcdef", min_size=1, max_size=5)


@given(st.lists(_KEYS, min_size=1, max_size=4), st.integers())
def test_what_is_set_can_be_found_again(keys: list[str], value: int) -> None:
    changed, written = override({}, [f"{'.'.join(keys)}={value}"])
    for key in keys:
        changed = changed[key]
    assert changed == value
    assert list(written) == [tuple(keys)]
