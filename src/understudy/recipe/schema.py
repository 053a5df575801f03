"""The JSON schema of a recipe, for editors."""

from __future__ import annotations

from typing import Any

from understudy.recipe.components import SCHEMA_MARK, Kind
from understudy.recipe.kinds import KINDS, METHOD, MODEL, OPTIMIZER, SCHEDULE, SOURCE
from understudy.recipe.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PYTHON = "^py:[^:]+:[^:]+$"


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe as it is written in YAML, short forms included."""
    whole = Recipe.model_json_schema()
    definitions = whole.setdefault("$defs", {})
    for kind in KINDS:
        definitions[_key(kind)] = _component(kind, definitions)
    _add_short_forms(whole, definitions)
    return {"$schema": DIALECT, **_linked(whole), "title": "understudy recipe"}


def _key(kind: Kind) -> str:
    return f"component.{kind.label.replace(' ', '_')}"


def _component(kind: Kind, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one kind: a name, or a mapping with `name` and that member's keywords."""
    if kind is MODEL:
        keywords = kind.section("kd:resnet8").model_json_schema()["properties"]
        named = {"type": "string", "pattern": "^[^:]+:.+$"}
        full = {"type": "object", "required": ["name"], "properties": {"name": named, **keywords}}
        return {"oneOf": [named, full], "description": "a model: prefix:name, with keywords"}
    choices: list[dict[str, Any]] = []
    bare: list[str] = []
    for name in kind.names():
        keywords = kind.section(name).model_json_schema()
        definitions.update(keywords.pop("$defs", {}))
        required = keywords.pop("required", [])
        if not required:
            bare.append(name)
        choices.append(
            {
                **keywords,
                "title": f"{kind.label} {name}",
                "properties": {"name": {"const": name}, **keywords.get("properties", {})},
                "required": ["name", *required],
            }
        )
    outside = {
        "type": "object",
        "title": f"{kind.label} from Python",
        "required": ["name"],
        "properties": {"name": {"type": "string", "pattern": _PYTHON}},
    }
    names = [{"enum": bare}, {"type": "string", "pattern": _PYTHON}]
    partial = []
    if kind in (OPTIMIZER, SCHEDULE):
        text = "changes of the default, or in a stage of the recipe's"
        partial = [{"type": "object", "title": text, "not": {"required": ["name"]}}]
    return {"oneOf": [*names, *choices, outside, *partial], "description": f"a {kind.label}"}


def _add_short_forms(whole: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Allow what validation allows: an arm that is a list or a stage, a section that is its component alone."""
    methods = {"type": "array", "items": {SCHEMA_MARK: METHOD.label}, "minItems": 1}
    definitions["Arm"] = {
        "description": "a list of methods, a stage, or several stages",
        "oneOf": [methods, {"$ref": "#/$defs/StageSection"}, definitions["Arm"]],
    }
    # A stage takes from the recipe whatever it leaves out, and a teacher's stage its methods too.
    definitions["StageSection"].pop("required", None)
    stored = definitions["TeacherSection"]["properties"]["store"]
    stored["anyOf"].insert(0, {"type": "string", "description": "a path, or a URL"})
    properties = whole["properties"]
    for key, kind in (("data", SOURCE), ("student", MODEL), ("teacher", MODEL)):
        given = properties[key]
        properties[key] = {
            "description": given.pop("description", ""),
            "anyOf": [{SCHEMA_MARK: kind.label}, *given.pop("anyOf", [given])],
        }


def _linked(value: Any) -> Any:
    """Replace the marks of components by references."""
    if isinstance(value, dict):
        if SCHEMA_MARK in value:
            kind = next(kind for kind in KINDS if kind.label == value[SCHEMA_MARK])
            rest = {name: item for name, item in value.items() if name != SCHEMA_MARK}
            return {"$ref": f"#/$defs/{_key(kind)}", **rest}
        return {name: _linked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_linked(item) for item in value]
    return value
