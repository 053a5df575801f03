from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from understudy.errors import RecipeError
from understudy.recipe import Recipe, from_values, load, packaged, schema
from understudy.recipe.loading import read_text
from understudy.recipe.problems import Section

Values = Callable[..., dict[str, Any]]
NAMES = ["demo", "digits", "huggingface_images", "huggingface_text", "image_folder", "table_text"]


def documented(repository: Path) -> list[str]:
    """The recipes in the documentation: YAML blocks with a student."""
    text = (repository / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    return [block for block in blocks if "\nstudent:" in block]


def test_the_packaged_recipes() -> None:
    assert packaged() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_recipe_is_valid_and_reads_back(name: str) -> None:
    recipe = load(name)
    assert recipe.baseline
    assert from_values(yaml.safe_load(yaml.safe_dump(recipe.resolved()))) == recipe


def test_recipes_of_the_documentation_are_valid(repository: Path, tmp_path: Path) -> None:
    blocks = documented(repository)
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        load(file)


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
    assert read_text("digits")[1] == "The packaged recipe 'digits'"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("digit", "no packaged recipe called 'digit'. Did you mean 'digits'"),
        (
            "nowhere/x.yaml",
            r"There is no recipe 'nowhere/x.yaml' \(looked in .*Packaged recipes: demo",
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
    good = [yaml.safe_load(read_text(name)[0]) for name in NAMES]
    good += [yaml.safe_load(block) for block in documented(repository)]
    good += [
        values(),
        {**values(), "arms": None, "methods": ["kd", {"name": "py:mine:Method", "x": 1}]},
        values(teacher="kd:resnet20", optimizer={"lr": 1}, early_stopping={"patience": 2}),
        values(data={"name": "digits", "test": 0.2}, schedule={"name": "step", "milestones": [1]}),
        from_values(values()).resolved(),
    ]
    for recipe in good:
        assert not [error.message for error in check.iter_errors(recipe)], recipe
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
    ]
    for recipe in bad:
        assert list(check.iter_errors(recipe)), recipe


def test_the_schema_has_all_keys_with_a_description() -> None:
    described = schema()
    assert described["$schema"].endswith("2020-12/schema")
    assert set(described["properties"]) == set(Recipe.model_fields)
    assert issubclass(Recipe, Section)
    for key, shape in described["properties"].items():
        assert shape.get("description"), key
    assert "x-component" not in str(described)
