from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import understudy as us
from understudy.errors import RecipeError
from understudy.recipe import from_values, load
from understudy.recipe.inheritance import with_base

Values = Callable[..., dict[str, Any]]

BASE = """\
name: base
data:
  source: {name: digits, test: 0.3}
  labels: 200
  transforms: [horizontal_flip, {name: random_crop, padding: 1}]
teacher:
  model: {name: kd:resnet20, width: 0.5}
  train: {epochs: 3}
student:
  model: kd:resnet8
epochs: 4
optimizer: {name: sgd, lr: 0.05, momentum: 0.8}
schedule: {name: step, milestones: [2], gamma: 0.5}
early_stopping: {patience: 3, metric: nll}
arms:
  kd: [kd, supervised]
  slow: {methods: [kd], optimizer: {lr: 0.01}, steps: 7}
  two: {stages: [{methods: [fitnet], epochs: 1}, {methods: [kd]}]}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)


def over(text: str) -> dict[str, Any]:
    """What a recipe that says `text` becomes over the base, before it is validated."""
    return dict(with_base({"base": "base.yaml", **(yaml.safe_load(text) or {})}).values)


def whole(**changes: Any) -> dict[str, Any]:
    """The base without its name, with changes."""
    values = yaml.safe_load(BASE) | changes
    del values["name"]
    return {key: value for key, value in values.items() if value is not Ellipsis}


def refused(text: str, file: str = "recipe.yaml", overrides: tuple[str, ...] = ()) -> str:
    Path(file).write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(file, overrides)
    return str(caught.value)


def test_a_recipe_that_only_names_its_base_is_the_base_under_its_own_name() -> None:
    Path("child.yaml").write_text("base: base.yaml\n")
    child, base = load("child.yaml"), load("base.yaml")
    assert (child.name, base.name) == ("child", "base")
    assert child.resolved() == base.resolved() | {"name": "child"}
    assert "base" not in child.resolved()


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        # Mappings merge key by key, lists and plain values replace, null is a value.
        ("epochs: 9", {"epochs": 9}),
        (
            "data: {transforms: [horizontal_flip]}",
            {
                "data": {
                    "source": {"name": "digits", "test": 0.3},
                    "labels": 200,
                    "transforms": ["horizontal_flip"],
                }
            },
        ),
        ("early_stopping: {patience: 5}", {"early_stopping": {"patience": 5, "metric": "nll"}}),
        ("early_stopping: null", {"early_stopping": None}),
        ("teacher: null", {"teacher": None}),
        # A component of the same name, or of none, is completed; one of another name replaces.
        ("optimizer: {lr: 1}", {"optimizer": {"name": "sgd", "lr": 1, "momentum": 0.8}}),
        (
            "optimizer: {name: sgd, lr: 1}",
            {"optimizer": {"name": "sgd", "lr": 1, "momentum": 0.8}},
        ),
        ("optimizer: {name: adamw, lr: 1}", {"optimizer": {"name": "adamw", "lr": 1}}),
        ("optimizer: sgd", {"optimizer": "sgd"}),
        (
            "student: {model: {width: 0.5}}",
            {"student": {"model": {"name": "kd:resnet8", "width": 0.5}}},
        ),
        (
            "teacher: {model: {name: kd:vgg13}}",
            {"teacher": {"model": {"name": "kd:vgg13"}, "train": {"epochs": 3}}},
        ),
        # The source is replaced, what is done with the data is not; the section's short form is the whole section.
        (
            "data: {source: {name: table, path: x.csv}, labels: null}",
            {
                "data": {
                    "source": {"name": "table", "path": "x.csv"},
                    "labels": None,
                    "transforms": ["horizontal_flip", {"name": "random_crop", "padding": 1}],
                }
            },
        ),
        ("data: digits", {"data": "digits"}),
        ("data: {name: digits, test: 0.5}", {"data": {"name": "digits", "test": 0.5}}),
        ("teacher: kd:resnet20", {"teacher": "kd:resnet20"}),
        ("student: {name: kd:resnet8}", {"student": {"name": "kd:resnet8"}}),
    ],
)
def test_what_merging_gives(text: str, changes: dict[str, Any]) -> None:
    assert over(text) == whole(**changes)


def arm(text: str, name: str) -> Any:
    return over(f"arms: {text}")["arms"].get(name, "left out")


def test_arms_are_added_changed_and_left_out() -> None:
    assert list(over("arms: {new: [fitnet]}")["arms"]) == ["kd", "slow", "two", "new"]
    assert arm("{kd: [fitnet]}", "kd") == ["fitnet"]
    assert arm("{kd: null}", "kd") == "left out"
    assert arm("{kd: {epochs: 2}}", "kd") == {"methods": ["kd", "supervised"], "epochs": 2}
    assert arm("{slow: {optimizer: {momentum: 0}}}", "slow") == {
        "methods": ["kd"],
        "optimizer": {"lr": 0.01, "momentum": 0},
        "steps": 7,
    }
    assert arm("{slow: {stages: [{methods: [kd]}]}}", "slow") == {"stages": [{"methods": ["kd"]}]}
    assert arm("{two: {methods: [kd]}}", "two") == {"methods": ["kd"]}
    assert arm("{new: null}", "new") is None
    assert "arms.new (line 2): expected a list of methods" in refused(
        "base: base.yaml\narms: {new: null}"
    )


def test_of_two_keys_that_exclude_each_other_the_given_one_stays() -> None:
    assert over("steps: 30") == {**whole(epochs=...), "steps": 30}
    assert arm("{slow: {epochs: 2}}", "slow") == {
        "methods": ["kd"],
        "optimizer": {"lr": 0.01},
        "epochs": 2,
    }
    assert over("methods: [kd]") == {**whole(arms=...), "methods": ["kd"]}
    assert over("methods: null") == {**whole(), "methods": None}
    Path("only.yaml").write_text("base: base.yaml\nmethods: [kd]\n")
    Path("more.yaml").write_text("base: only.yaml\narms: {x: [kd], y: [fitnet]}\n")
    assert list(load("more.yaml").arms or {}) == ["x", "y"]
    assert "stands beside `epochs`" in refused("base: base.yaml\nsteps: 3\nepochs: 3\n")


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("data: digits", "data: {source: digits}"),
        ("data: {name: digits, test: 0.2}", "data: {source: {name: digits, test: 0.2}}"),
        ("student: kd:resnet8", "student: {model: {name: kd:resnet8}}"),
        ("optimizer: adamw", "optimizer: {name: adamw}"),
        ("optimizer: {lr: 0.2}", "optimizer: {name: sgd, lr: 0.2}"),
        ("arms: {kd: [kd]}", "arms: {kd: {methods: [kd]}}"),
    ],
)
def test_short_forms_in_a_base_mean_the_long_ones(values: Values, short: str, long: str) -> None:
    child = {
        "data": {"source": {"test": 0.25}, "labels": 50},
        "student": {"model": {"width": 0.5}},
        "optimizer": {"weight_decay": 0.1},
        "arms": {"kd": {"clip": 1.0}},
    }
    found = []
    for text in (short, long):
        Path("given.yaml").write_text(yaml.safe_dump(values(**yaml.safe_load(text))))
        found.append(from_values({"base": "given.yaml", "name": "x", **child}))
    assert found[0] == found[1]
    assert found[0].data.labels == 50
    assert found[0].data.source.keywords["test"] == 0.25


def test_the_default_optimizer_is_known_by_its_name(values: Values) -> None:
    Path("given.yaml").write_text(yaml.safe_dump(values(optimizer={"lr": 0.2})))
    changed = {"base": "given.yaml", "name": "x"}
    same = from_values({**changed, "optimizer": {"name": "sgd", "momentum": 0.5}})
    assert same.optimizer.keywords["lr"] == 0.2
    other = from_values({**changed, "optimizer": {"name": "adamw"}})
    assert other.optimizer.keywords["lr"] == 1e-3


def test_bases_have_bases_each_beside_the_recipe_that_names_it() -> None:
    Path("a/b").mkdir(parents=True)
    Path("a/middle.yaml").write_text("base: ../base.yaml\nepochs: 5\nclip: 1.0\n")
    Path("a/b/top.yaml").write_text("base: ../middle.yaml\nclip: 2.0\n")
    recipe = load("a/b/top.yaml")
    assert (recipe.epochs, recipe.clip, recipe.name) == (5, 2.0, "top")
    assert recipe.optimizer.keywords["momentum"] == 0.8


def test_a_base_is_a_packaged_recipe_a_file_or_a_run() -> None:
    Path("mine.yaml").write_text("base: digits\nepochs: 3\n")
    recipe = load("mine.yaml")
    assert (recipe.name, recipe.epochs) == ("mine", 3)
    assert recipe.resolved()["teacher"] == load("digits").resolved()["teacher"]
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(yaml.safe_dump(recipe.resolved()))
    Path("again.yaml").write_text("base: run\nclip: 1.0\n")
    again = load("again.yaml").resolved()
    # A resolved recipe says everything of its arms, so that there only the default changes.
    assert again | {"clip": None, "name": "mine"} == recipe.resolved()
    # As for `understudy run`, a file is looked for first ...
    assert recipe.student.model.keywords == {"width": 0.25}
    Path("digits").write_text("base: base.yaml\n")
    assert load("mine.yaml").student.model.keywords == {}
    # ... but what ships with the package never depends on what happens to lie around.
    Path("cifar100").mkdir()
    Path("cifar100/kd").write_text("nonsense: 1")
    assert load("huggingface_images").epochs == 240


def test_overrides_come_after() -> None:
    Path("child.yaml").write_text("base: base.yaml\nepochs: 5\n")
    recipe = load("child.yaml", ["epochs=6", "arms.kd.0.temperature=2", "data.labels=null"])
    assert recipe.epochs == 6
    assert recipe.data.labels is None
    assert recipe.arms is not None
    assert recipe.arms["kd"].stages[0].methods[0].keywords["temperature"] == 2.0
    with pytest.raises(RecipeError, match="'base=digits' comes too late"):
        load("child.yaml", ["base=digits"])


def test_values_from_python_have_bases_too() -> None:
    module = nn.Linear(64, 10)
    recipe = from_values(
        {"base": "base.yaml", "teacher": module, "arms": {"own": [us.methods.KD(temperature=2.0)]}}
    )
    assert recipe.teacher is not None
    assert recipe.teacher.model.live is module
    # A module given alone knows its task: it is not trained as the base's teacher would be.
    assert recipe.teacher.train is None
    assert recipe.name == "run"
    assert list(recipe.arms or {}) == ["kd", "slow", "two", "own"]
    with pytest.raises(RecipeError, match=r"The recipe: base: There is no recipe 'no.yaml'"):
        from_values({"base": "no.yaml"})


def test_lines_name_the_file_in_which_the_key_stands() -> None:
    Path("middle.yaml").write_text(
        "# A comment.\nbase: base.yaml\noptimizer: {momentm: 1}\nclipp: 1\n"
        "student: {model: {weights: 3}}\n"
    )
    text = refused(
        "base: middle.yaml\n\nbatch_siz: 1\narms:\n  kd: {epochs: many, methds: []}\n"
        "  two: {stages: [{methods: [kdd]}]}\ndata: {source: {tst: 1}}\nlog_every: many\n",
        overrides=("log_every=often", "data.source.test=2"),
    )
    assert text.startswith("The recipe 'recipe.yaml' has 9 problems:")
    for line in (
        "optimizer.momentm (line 3 of the recipe 'middle.yaml'): there is no such key",
        "clipp (line 4 of the recipe 'middle.yaml'): there is no such key",
        "student.model.weights (line 5 of the recipe 'middle.yaml'): expected text or null",
        "batch_siz (line 3): there is no such key",
        "arms.kd.epochs (line 5): expected a whole number",
        "arms.kd.methds (line 5): there is no such key",
        "arms.two.stages.0.methods.0 (line 6): There is no method called 'kdd'",
        "data.source.tst (line 7): there is no such key",
        "log_every (override log_every=often): expected a whole number",
    ):
        assert f"  {line}" in text.splitlines() or f"  {line}" in text, line


def test_what_the_base_says_in_a_short_form_keeps_its_line(values: Values) -> None:
    given = "data: {name: digits, tst: 1}\nstudent: kd:resnet8\narms:\n  kd:\n    - kd\n    - sup\n"
    Path("short.yaml").write_text(given)
    text = refused("base: short.yaml\ndata: {labels: 5}\narms: {kd: {clip: 1.0}}\nepochs: 1\n")
    assert "data.source.tst (line 1 of the recipe 'short.yaml')" in text
    assert "arms.kd.methods.1 (line 6 of the recipe 'short.yaml')" in text


def test_an_override_leaves_no_line_of_what_it_replaced() -> None:
    text = refused(BASE, overrides=("optimizer={lr: -1, momentm: 2}",))
    assert "optimizer.momentm (override optimizer={lr: -1, momentm: 2})" in text


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("digit", "The recipe 'recipe.yaml', line 2: base: There is no file and no packaged recipe called 'digit'. "
         "Did you mean 'digits'?"),
        ("no/where.yaml", "The recipe 'recipe.yaml', line 2: base: There is no recipe 'no/where.yaml' (looked in ."),
        ("[digits]", "line 2: base should be the name of a packaged recipe or a path, found the list ['digits']."),
        ("list.yaml", "The recipe 'list.yaml' should be a mapping with `data`, `student`, ...; found the list [1]."),
        ("broken.yaml", "The recipe 'broken.yaml', line 2, column 1: not valid YAML"),
    ],
)  # fmt: skip
def test_a_base_that_cannot_be_read_is_named(base: str, message: str) -> None:
    Path("list.yaml").write_text("[1]")
    Path("broken.yaml").write_text("a: [1\n")
    assert message in refused(f"epochs: 3\nbase: {base}\n")


def test_a_null_base_is_none(values: Values) -> None:
    assert from_values(values(base=None)) == from_values(values())


def test_cycles_are_refused_with_the_chain() -> None:
    Path("b.yaml").write_text("base: ./c.yaml\n")
    Path("c.yaml").write_text("base: recipe.yaml\n")
    assert (
        refused("base: b.yaml\n")
        == "The recipe 'recipe.yaml' is its own base: 'recipe.yaml' -> 'b.yaml' -> './c.yaml' -> 'recipe.yaml'."
    )
    assert (
        refused("base: self.yaml\n", "self.yaml")
        == "The recipe 'self.yaml' is its own base: 'self.yaml' -> 'self.yaml'."
    )


_PLAIN = st.recursive(
    st.integers() | st.none() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
_RECIPES = st.dictionaries(st.sampled_from(["clip", "ema", "log", "trackers"]), _PLAIN, max_size=4)


def _plainly(base: Any, own: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    kept = {key: value for key, value in base.items() if key not in own}
    return kept | {k: _plainly(base[k], v) if k in base else v for k, v in own.items()}


@settings(max_examples=50)
@given(_RECIPES, _RECIPES)
def test_elsewhere_merging_is_that_of_plain_mappings(base: dict[str, Any], own: dict) -> None:
    Path("plain.yaml").write_text(yaml.safe_dump(base))
    before = yaml.safe_dump(own)
    assert with_base({"base": "plain.yaml", **own}).values == _plainly(base, own)
    assert yaml.safe_dump(own) == before
