from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import understudy as us
from understudy.errors import RecipeError
from understudy.recipe import Recipe, from_values, load, packaged, schema
from understudy.recipe.finding import find
from understudy.recipe.problems import Section

Values = Callable[..., dict[str, Any]]
NAMES = packaged()


def documented(repository: Path) -> list[str]:
    """The recipes in the documentation: YAML blocks with a student or a base."""
    text = (repository / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml[^\n]*\n(.*?)```", text, flags=re.DOTALL)
    return [block for block in blocks if re.search(r"^(student|base):", block, re.M)]


def test_recipes_in_folders_are_packaged_too() -> None:
    folder = Path(us.__file__).parent / "recipes"
    assert [
        file.relative_to(folder).with_suffix("").as_posix()
        for file in sorted(folder.rglob("*.yaml"), key=lambda file: file.as_posix())
    ] == NAMES
    assert {"cifar100/kd", "demo", "huggingface_text"} < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_recipe_is_valid_and_reads_back(name: str) -> None:
    recipe = load(name)
    assert recipe.baseline
    assert from_values(yaml.safe_load(yaml.safe_dump(recipe.resolved()))) == recipe


def test_a_recipe_is_found_as_file_run_directory_or_packaged_name(
    tmp_path: Path, values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {key: value for key, value in values().items() if key != "name"}
    Path("my first.yaml").write_text(yaml.safe_dump(given))
    assert load("my first.yaml").name == "my-first"
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(yaml.safe_dump(values()))
    assert load("run").name == "example"
    assert find("digits").title == "The packaged recipe 'digits'"
    assert load("digits").name == "digits"
    assert load("cifar100/kd").name == "cifar100-kd"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("digit", "no packaged recipe called 'digit'. Did you mean 'digits'"),
        ("cifar100/kdd", "no packaged recipe called 'cifar100/kdd'. Did you mean .*'cifar100/kd'"),
        ("kd", "no packaged recipe called 'kd'. Did you mean 'cifar100/kd'\\?"),
        (
            "nowhere/x.yaml",
            r"There is no recipe 'nowhere/x.yaml' \(looked in .*Packaged recipes: cifar100/.*, demo",
        ),
        (".", "is a folder without a recipe.yaml"),
        ("list.yaml", "should be a mapping .* found the list"),
        ("empty.yaml", "found nothing"),
        ("binary.yaml", "cannot be read"),
    ],
)
def test_recipes_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("[1, 2]")
    Path("empty.yaml").write_text("")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=message):
        load(path)


def test_problems_say_in_which_line_or_override_they_stand(tmp_path: Path, values: Values) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values(epochs="many"), sort_keys=False) + "clipp: 1\n")
    with pytest.raises(RecipeError) as caught:
        load(file, ["optimizer.momentm=1", "arms.kd.0.temperature=[]"])
    text = str(caught.value)
    assert text.startswith(f"The recipe '{file}' has 4 problems:")
    line = file.read_text().splitlines().index("epochs: many") + 1
    assert f"epochs (line {line}): expected a whole number or null" in text
    assert "clipp (line " in text
    assert "optimizer.momentm (override optimizer.momentm=1): there is no such key" in text
    assert "arms.kd.0.temperature (override arms.kd.0.temperature=[]): expected a number" in text


def test_overrides_reach_everything() -> None:
    recipe = load("demo", ["seeds=[7]", "optimizer.lr=1e-2", "arms.kd.0.temperature=2", "clip=1"])
    assert recipe.seeds == (7,)
    assert recipe.arms is not None
    stage = recipe.arms["kd"].stages[0]
    assert stage.optimizer.keywords["lr"] == 0.01
    assert stage.methods[0].keywords["temperature"] == 2.0
    assert stage.clip == 1.0


def test_the_schema_is_one_and_accepts_what_validation_accepts(
    values: Values, repository: Path
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    described = schema()
    jsonschema.Draft202012Validator.check_schema(described)
    check = jsonschema.Draft202012Validator(described)
    good = [yaml.safe_load(find(name).text) for name in NAMES]
    of_documentation = [yaml.safe_load(block) for block in documented(repository)]
    assert len(of_documentation) > 3
    good += [
        values(),
        {**values(), "arms": None, "methods": ["kd", {"name": "py:mine:Method", "x": 1}]},
        values(teacher="kd:resnet20", optimizer={"lr": 1}, early_stopping={"patience": 2}),
        values(data={"name": "digits", "test": 0.2}, schedule={"name": "step", "milestones": [1]}),
        from_values(values()).resolved(),
        # What a base may give, a recipe may leave out.
        {"base": "digits"},
        {"base": "digits", "arms": {"kd": None, "new": ["fitnet"]}, "teacher": {"train": {}}},
        {"base": "digits", "data": {"labels": 5}, "student": {"model": {"width": 0.5}}},
        {"base": "digits", "data": {"source": {"test": 0.2}}, "optimizer": {"name": "sgd"}},
        {"base": "cifar100/kd", "schedule": {"name": "step", "gamma": 0.2}},
        values(
            schedule={"name": "step", "milestones": [1]},
            arms={"kd": {"methods": ["kd"], "schedule": {"name": "step", "gamma": 0.2}}},
        ),
    ]
    for recipe in good + of_documentation:
        assert not [error.message for error in check.iter_errors(recipe)], recipe
    for recipe in good:
        from_values(recipe) if "py:mine:Method" not in str(recipe) else None
    bad = [
        values(batch_siz=3),
        values(epochs="many"),
        values(data={"source": {"name": "digits", "tst": 1}}),
        values(arms={"kd": [{"name": "kd", "temperature": "hot"}]}),
        values(arms={"kd": ["kdd"]}),
        values(arms={"kd": {"metods": ["kd"]}}),
        values(schedule="step"),
        {"student": "kd:resnet8"},
        values(arms={"kd": None}),
        values(data={"labels": 5}),
        values(student={"model": {"width": 0.5}}),
        values(teacher={"train": {}}),
        values(data={"source": {"test": 0.2}}),
        values(schedule={"name": "step", "gamma": 0.2}),
        {"base": 3},
        {"base": "digits", "epoch": 3},
        {"base": "digits", "data": {"lables": 5}},
        {"base": "digits", "data": {"source": {"name": "digits", "tst": 0.2}}},
        {"base": "digits", "schedule": "step"},
    ]
    for recipe in bad:
        assert list(check.iter_errors(recipe)), recipe
        with pytest.raises(RecipeError):
            from_values(recipe)


def test_the_schema_has_all_keys_with_a_description() -> None:
    described = schema()
    assert described["$schema"].endswith("2020-12/schema")
    assert set(described["properties"]) == {"base", *Recipe.model_fields}
    assert issubclass(Recipe, Section)
    for key, shape in described["properties"].items():
        assert shape.get("description"), key
    assert "x-component" not in str(described)
