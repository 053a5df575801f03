from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from pydantic_core import PydanticCustomError
from torch import nn
from torch.utils.data import TensorDataset

from understudy.data.transforms.random_crop import RandomCrop
from understudy.data.views import Deterministic
from understudy.errors import RecipeError, UnderstudyError
from understudy.methods import KD, Method
from understudy.recipe import from_values
from understudy.recipe.components import keyword_section
from understudy.recipe.kinds import KINDS, METHOD, MODEL, OPTIMIZER, SOURCE, TRANSFORM
from understudy.training.optimizers import Optimizer, optimizer_classes

Values = Callable[..., dict[str, Any]]

MODULE = """
from __future__ import annotations

from typing import TYPE_CHECKING

from understudy.methods import Method

if TYPE_CHECKING:
    from nowhere import Strange


class Shift(Method):
    def __init__(self, amount: float = 1, note: Strange = None, size: int = None):
        super().__init__()
        self.amount, self.note, self.size = amount, note, size


class Typed(Method):
    def __init__(self, amount: float, size: int = None):
        super().__init__()
        self.amount, self.size = amount, size


def not_a_method(x: int = 1):
    return x


def open_ended(**keywords):
    return Shift(**keywords)
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_methods.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_methods", None)
    return "own_methods"


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind is not MODEL], ids=lambda k: k.label
)
def test_every_member_of_every_registry_has_a_section(kind: Any) -> None:
    for name in kind.names():
        section = kind.section(name)
        assert section.model_json_schema()["type"] == "object"
        if not any(field.is_required() for field in section.model_fields.values()):
            component = kind.read(name)
            assert kind.read(component.values()) == component


def test_keywords_of_torch_optimizers_are_typed() -> None:
    for name in optimizer_classes():
        assert OPTIMIZER.section(name).model_fields["lr"].annotation is not Any
    with pytest.raises(ValidationError, match="expected a number, found the text"):
        OPTIMIZER.read({"name": "adamw", "weight_decay": "much"})
    # What is left to torch stays out of the recipe.
    assert "foreach" not in OPTIMIZER.read("adamw").keywords


def test_python_entries_are_read_off_their_signatures(own_module: str) -> None:
    component = METHOD.read({"name": f"py:{own_module}:Typed", "amount": 2, "weight": 3})
    assert component.keywords == {"amount": 2.0, "size": None}
    made = METHOD.make(component)
    assert (made.amount, made.weight) == (2.0, 3.0)
    with pytest.raises(ValidationError, match=r"amount(?s:.*)is missing; expected a number"):
        METHOD.read(f"py:{own_module}:Typed")
    with pytest.raises(ValidationError, match="Did you mean 'amount'"):
        METHOD.read({"name": f"py:{own_module}:Typed", "amout": 2})


def test_hints_that_cannot_be_read_leave_the_judgement_to_the_constructor(own_module: str) -> None:
    assert METHOD.read({"name": f"py:{own_module}:Shift", "note": [1]}).keywords["note"] == [1]
    entry = {"name": f"py:{own_module}:open_ended", "amount": 5}
    assert METHOD.make(METHOD.read(entry)).amount == 5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("py:nowhere_at_all:x", "module 'nowhere_at_all' cannot be imported"),
        ("py:own_methods:Shft", "Did you mean 'Shift'"),
        ("py:own_methods", "not of the form 'py:module:attribute'"),
        ("py:own_methods:not_a_method", "gives the number 1, which is no method"),
        ("py:own_methods:Method.name", "is a str, not a class or function"),
    ],
)
def test_python_entries_that_are_wrong(own_module: str, entry: str, message: str) -> None:
    with pytest.raises((ValidationError, PydanticCustomError), match=message):
        METHOD.read(entry)


def test_the_recipe_lists_its_python_entries(values: Values, own_module: str) -> None:
    entry = f"py:{own_module}:Shift"
    recipe = from_values(values(arms={"a": ["kd", entry]}, student="py:mine:network"))
    assert recipe.python_entries() == [
        "student.model: py:mine:network",
        f"arms.a.stages.0.methods.1: {entry}",
    ]


def test_live_objects_that_have_a_name_are_written_by_it(values: Values) -> None:
    live = from_values(
        values(
            data={"source": "digits", "transforms": [RandomCrop(padding=1)]},
            optimizer=Optimizer("adamw", lr=0.01),
            arms={"kd": [KD(temperature=2.0).weighted(0.5)]},
        )
    )
    named = from_values(
        values(
            data={"source": "digits", "transforms": [{"name": "random_crop", "padding": 1}]},
            optimizer={"name": "adamw", "lr": 0.01},
            arms={"kd": [{"name": "kd", "temperature": 2.0, "weight": 0.5}]},
        )
    )
    assert live == named
    assert live.live_objects() == []


class Own(Method):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def test_other_live_objects_are_described_and_cannot_be_read_again(values: Values) -> None:
    network = nn.Linear(2, 2)
    flip = Deterministic(lambda images: images.flip(3))
    recipe = from_values(
        values(
            data={"source": "digits", "transforms": [flip]},
            student=network,
            arms={"own": [Own(network).weighted(2.0)]},
        )
    )
    resolved = recipe.resolved()
    assert resolved["student"] == {"model": {"object": "torch.nn.modules.linear.Linear"}}
    method = resolved["arms"]["own"]["stages"][0]["methods"][0]
    assert method["weight"] == 2.0
    assert method["object"].endswith("Own")
    assert len(recipe.live_objects()) == 3
    with pytest.raises(RecipeError, match=r"student.model: .*Call distill\(..., resume=True\)"):
        from_values(resolved)


def test_a_live_method_is_copied_for_every_member(values: Values) -> None:
    given = Own(nn.Linear(2, 2)).weighted(3.0)
    recipe = from_values(values(arms={"own": [given]}))
    assert recipe.arms is not None
    first, second = (recipe.arms["own"].build()[0].methods[0] for _ in range(2))
    assert first is not second
    assert given not in (first, second)
    assert torch.equal(first.layer.weight, given.layer.weight)
    assert first.weight == 3.0


def test_wrong_objects_are_named() -> None:
    with pytest.raises(
        PydanticCustomError, match="expected a method .*found an object of class torch.*Linear"
    ):
        METHOD.read(nn.Linear(1, 1))
    with pytest.raises(PydanticCustomError, match="expected a transform"):
        TRANSFORM.read(3)


def test_data_from_python() -> None:
    inputs, labels = torch.rand(20, 3), torch.arange(20) % 2
    pairs = SOURCE.read(((inputs, labels), (inputs[:4], labels[:4]))).live
    assert (len(pairs.train), len(pairs.test)) == (20, 4)
    whole = SOURCE.read(TensorDataset(inputs, labels)).live
    assert (len(whole.train), len(whole.test)) == (16, 4)
    two = SOURCE.read((TensorDataset(inputs, labels), TensorDataset(inputs[:6], labels[:6]))).live
    assert (len(two.train), len(two.test)) == (20, 6)
    with pytest.raises(UnderstudyError, match="NaN"):
        SOURCE.read(((inputs * float("nan"), labels), (inputs, labels)))


def test_keyword_sections_take_defaults_in_the_type_of_the_hint() -> None:
    def function(rate: float = 0, *, name: int = None, rest: list[int] = ()) -> None:  # noqa: RUF013
        pass

    read = keyword_section("function", function).model_validate({})
    assert repr(read.rate) == "0.0"  # type: ignore[attr-defined]
    assert read.name is None  # type: ignore[attr-defined]
