"""Recipes as text: YAML by the safe loader, with the line of every value."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from understudy.errors import RecipeError
from understudy.recipe.problems import Place, dotted

_MOST_VALUES = 100_000
"""More values than any recipe has; aliases of aliases can expand to billions."""


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2, where `1e-3` is a number and `no` is a text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    ("merge", r"<<", ["<"]),
]:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    # int() would refuse YAML's leading zeros and read 0o only with base 0.
    return int(text, 0) if re.match(r"0[ox]", text) else int(text)


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    # YAML writes .inf and .nan where Python has inf and nan.
    return float(re.sub(r"\.(inf|nan)", r"\1", str(node.value).lower()))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def read_yaml(text: str, title: str) -> tuple[Any, dict[Place, int]]:
    """Return the value of a YAML text, and the line (from 1) of each of its keys and list items.

    Args:
        text: the YAML.
        title: what error messages call it.

    Raises:
        RecipeError: no valid YAML, a key given twice, or a tag that asks for code to be run.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines: dict[Place, int] = {}
        _walk(node, (), lines, title, frozenset())
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = error.problem or error.context or "it cannot be read"
        raise RecipeError(f"{title}{where}: not valid YAML: {reason}.") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{title}: not valid YAML: {error}.") from None
    finally:
        loader.dispose()


def read_value(text: str) -> Any:
    """Return the value of a piece of YAML, as on the right of an override.

    Raises:
        RecipeError: as `read_yaml`.
    """
    return read_yaml(text, f"'{text}'")[0]


def _walk(
    node: yaml.Node, place: Place, lines: dict[Place, int], title: str, above: frozenset[int]
) -> None:
    """Note the line of every value, and refuse what a recipe may not hold."""
    line = node.start_mark.line + 1
    where = f"{title}, line {line}: {dotted(place)}"
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise RecipeError(
            f"{where} has the tag '{tag}'. A recipe holds plain values and never runs code on its own; to use your "
            "own class or function, name it as py:module:attribute."
        )
    if id(node) in above:
        raise RecipeError(f"{where} contains itself through an alias.")
    if len(lines) > _MOST_VALUES:
        raise RecipeError(
            f"{title} expands to more than {_MOST_VALUES} values through its aliases."
        )
    lines[place] = line
    inside = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _walk(item, (*place, number), lines, title, inside)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key, item in node.value:
            name, at = key.value, key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(
                    f"{title}, line {at}: a key must be a word, not a list or a mapping."
                )
            if name in seen:
                raise RecipeError(
                    f"{title}, line {at}: '{dotted((*place, name))}' is given twice; "
                    f"it stands in line {seen[name]} already."
                )
            seen[name] = at
            _walk(item, place if name == "<<" else (*place, name), lines, title, inside)
            lines[place if name == "<<" else (*place, name)] = at
