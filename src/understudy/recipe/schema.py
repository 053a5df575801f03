"""The JSON schema of a recipe, for editors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from understudy.recipe.components import SCHEMA_MARK, Kind
from understudy.recipe.inheritance import BASE, SECTIONS
from understudy.recipe.kinds import KINDS, METHOD, MODEL, OPTIMIZER, SCHEDULE, SOURCE
from understudy.recipe.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
COMPLETED = {"source": SOURCE, "model": MODEL, "optimizer": OPTIMIZER, "schedule": SCHEDULE}
"""Keys of components that may complete what they inherit."""
OF_STAGES = ("optimizer", "schedule")
"""Those that a stage takes from the recipe."""
_PYTHON = "^py:[^:]+:[^:]+$"
_NAMELESS = {
    "type": "object",
    "title": "changes of the inherited one",
    "not": {"required": ["name"]},
}


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe as it is written in YAML, short forms included.

    A recipe with a `base` may leave out whatever the base may give.
    """
    whole = Recipe.model_json_schema()
    definitions = whole.setdefault("$defs", {})
    for kind in KINDS:
        definitions[_key(kind)] = _component(kind, definitions)
    for kind in COMPLETED.values():
        definitions[_key(kind, "changes")] = _changes(kind)
    _add_short_forms(whole, definitions)
    _add_base(whole, definitions)
    return {"$schema": DIALECT, **_linked(whole), "title": "understudy recipe"}


def _key(kind: Kind, what: str = "component") -> str:
    return f"{what}.{kind.label.replace(' ', '_')}"


def _component(kind: Kind, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one kind: a name, or a mapping with `name` and that member's keywords."""
    if kind is MODEL:
        named = {"type": "string", "pattern": "^[^:]+:.+$"}
        return {
            "oneOf": [named, *_choices(kind)],
            "description": "a model: prefix:name, with keywords",
        }
    choices = _choices(kind)
    for choice in choices:
        definitions.update(choice.pop("$defs", {}))
    bare = [
        choice["properties"]["name"]["const"]
        for choice in choices
        if choice["required"] == ["name"]
    ]
    names = [{"enum": bare}, {"type": "string", "pattern": _PYTHON}]
    outside = {
        "type": "object",
        "title": f"{kind.label} from Python",
        "required": ["name"],
        "properties": {"name": {"type": "string", "pattern": _PYTHON}},
    }
    partial = [_NAMELESS] if kind in (OPTIMIZER, SCHEDULE) else []
    return {"oneOf": [*names, *choices, outside, *partial], "description": f"a {kind.label}"}


def _choices(kind: Kind) -> list[dict[str, Any]]:
    """Return the schemas of a mapping with `name`, one for each member of a kind; of models, one for all."""
    if kind is MODEL:
        keywords = kind.section("kd:resnet8").model_json_schema()["properties"]
        named = {"type": "string", "pattern": "^[^:]+:.+$"}
        return [{"type": "object", "required": ["name"], "properties": {"name": named, **keywords}}]
    choices = []
    for name in kind.names():
        keywords = kind.section(name).model_json_schema()
        choices.append(
            {
                **keywords,
                "title": f"{kind.label} {name}",
                "properties": {"name": {"const": name}, **keywords.get("properties", {})},
                "required": ["name", *keywords.get("required", [])],
            }
        )
    return choices


def _changes(kind: Kind) -> dict[str, Any]:
    """Return the schema of one kind where something inherited may complete it: no keyword is required."""
    choices = [
        {key: value for key, value in choice.items() if key != "$defs"} | {"required": ["name"]}
        for choice in _choices(kind)
    ]
    return {
        "anyOf": [{SCHEMA_MARK: kind.label}, *choices, _NAMELESS],
        "description": f"a {kind.label}, or changes of the inherited one",
    }


def _add_short_forms(whole: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Allow what validation allows: an arm that is a list or a stage, a section that is its component alone."""
    methods = {"type": "array", "items": {SCHEMA_MARK: METHOD.label}, "minItems": 1}
    definitions["Arm"] = {
        "description": "a list of methods, a stage, or several stages",
        "oneOf": [methods, {"$ref": "#/$defs/StageSection"}, definitions["Arm"]],
    }
    # A stage takes from the recipe whatever it leaves out, and a teacher's stage its methods too.
    definitions["StageSection"].pop("required", None)
    _let_change(definitions["StageSection"]["properties"], OF_STAGES)
    stored = definitions["TeacherSection"]["properties"]["store"]
    stored["anyOf"].insert(0, {"type": "string", "description": "a path, or a URL"})
    properties = whole["properties"]
    for key, inside in SECTIONS.items():
        given = properties[key]
        properties[key] = {
            "description": given.pop("description", ""),
            "anyOf": [{SCHEMA_MARK: COMPLETED[inside].label}, *given.pop("anyOf", [given])],
        }
    several = next(each for each in properties["teachers"]["anyOf"] if each["type"] == "object")
    several["additionalProperties"] = {
        "anyOf": [{SCHEMA_MARK: MODEL.label}, several["additionalProperties"]]
    }


def _add_base(whole: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Allow `base`, and require only of a recipe without it what it may give."""
    complete: dict[str, Any] = {
        "arms": {"additionalProperties": {"not": {"type": "null"}}},
        **{key: {SCHEMA_MARK: COMPLETED[key].label} for key in OF_STAGES},
    }
    for key, inside in SECTIONS.items():
        mark = {SCHEMA_MARK: COMPLETED[inside].label}
        section = {"type": "object", "required": [inside], "properties": {inside: mark}}
        complete[key] = {"anyOf": [mark, section, {"type": "null"}]}
        changed = definitions[f"{key.title()}Section"]
        changed.pop("required", None)
        _let_change(changed["properties"], (inside,))
    # A teacher whose outputs are stored need not be named.
    own = definitions["TeacherSection"]["properties"]["model"]
    own["anyOf"] = [{"$ref": own.pop("$ref")}, {"type": "null"}]
    model = {"anyOf": [{SCHEMA_MARK: COMPLETED[SECTIONS["teacher"]].label}, {"type": "null"}]}
    stored = {"type": "object", "required": ["store"], "properties": {"model": model}}
    complete["teacher"]["anyOf"].append(stored)
    properties = whole["properties"]
    one = [option for option in complete["teacher"]["anyOf"] if option != {"type": "null"}]
    complete["teachers"] = {"additionalProperties": {"anyOf": one}}
    several = next(each for each in properties["teachers"]["anyOf"] if each["type"] == "object")
    several["additionalProperties"]["anyOf"].append(
        {"type": "null", "description": "leaves a teacher of the base out"}
    )
    _let_change(properties, OF_STAGES)
    arms = next(option for option in properties["arms"]["anyOf"] if option["type"] == "object")
    arms["additionalProperties"] = {
        "anyOf": [arms["additionalProperties"], {"type": "null"}],
        "description": "an arm; null leaves an arm of the base out",
    }
    whole["properties"] = {
        BASE: {
            "type": "string",
            "description": "another recipe that this one is merged over: the name of a packaged one, or a path from "
            "this file's folder",
        },
        **properties,
    }
    whole["if"] = {"required": [BASE]}
    whole["else"] = {"required": whole.pop("required"), "properties": complete}


def _let_change(properties: dict[str, Any], keys: Iterable[str]) -> None:
    """Let components complete what they inherit."""
    for key in keys:
        kept = {word: properties[key][word] for word in ("description", "title")}
        reference = f"#/$defs/{_key(COMPLETED[key], 'changes')}"
        properties[key] = {"$ref": reference, **kept}


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
