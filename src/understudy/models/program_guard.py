"""Looks into a torch-export archive before torch reads it, and refuses what could run foreign code.

`torch.export.load` unpickles some kinds of content without restriction, evaluates shape expressions as Python,
resolves the functions of the graph by name and compiles source code from the names in it. An ordinary exported
classifier uses none of the dangerous forms. This is a filter for a file format that was not made for strangers'
files, not a sandbox: it refuses every form that is known to be dangerous and every operation that is not known.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from understudy.errors import ModelError
from understudy.models.optional import first_line

_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|prim|higher_order|torchvision|quantized|quantized_decomposed)(\.\w+){1,2}"
    r"|torch\.(sym_(int|float|max|min|not|ite|sum)|_sym_sqrt)"
    r"|torch\._C\._set_grad_enabled"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|and_|or_|xor|not_|lshift|rshift"
    r"|eq|ne|lt|le|gt|ge|getitem)"
)
# Attributes that every Python object has. `__and__` and its like are operators of tensors.
_PYTHON = re.compile(
    r"__(call|class|dict|getattr\w*|setattr|globals|init\w*|reduce\w*|module|self)__"
)
_NAME = re.compile(r"[\w.@-]*")
_EXPRESSION = re.compile(r"[\w\s+\-*/%().,<>=&|~']*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_SYMBOL = re.compile(r"[a-z]{1,4}\d+")
_FUNCTIONS = frozenset(
    """
    Symbol Integer Rational Float Mul Add Pow Max Min Abs Eq Ne Lt Le Gt Ge And Or Not Equality Unequality
    StrictLessThan LessThan StrictGreaterThan GreaterThan true false True False None oo int_oo floor ceiling
    integer positive nonnegative real evaluate precision FloorDiv ModularIndexing Where PythonMod Mod CleanDiv
    CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv
    IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity
    """.split()  # noqa: SIM905
)


def check_program(path: Path) -> None:
    """Refuse an archive that is damaged, of another format, or of a kind that would run code when it is read.

    Args:
        path: a `.pt2` file that `torch.export.save` wrote.

    Raises:
        ModelError: what is wrong with it.
    """
    from torch.export.pt2_archive._package import PT2ArchiveReader

    try:
        with PT2ArchiveReader(str(path)) as reader:
            names = list(reader.get_file_names())
            content = {name: bytes(reader.read_bytes(name)) for name in names if _says_more(name)}
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} is damaged or no torch-export program: {first_line(error)}"
        ) from error
    if not any(name.startswith("models/") for name in names):
        raise ModelError(
            f"{path} holds no program in the format that torch.export.save writes; export it again."
        )
    for name in names:
        if name.startswith(("data/aotinductor/", "data/executorch/", "data/mtia/")):
            raise ModelError(f"{path} holds compiled code ({name}), which is not loaded.")
        if name.startswith(("data/weights/", "data/constants/")) and name.endswith(".pt"):
            raise ModelError(f"{path} holds weights in an old, pickled form ({name}).")
    for name, data in content.items():
        if not name.endswith(".json"):
            _check_example(data, path)
            continue
        try:
            parsed = json.loads(data)
        except ValueError as error:
            raise ModelError(f"{path} is damaged: {name} in it is no JSON.") from error
        for entry in _mappings(parsed):
            _check_entry(entry, path)


def _says_more(name: str) -> bool:
    """Tell whether a member of the archive holds anything but plain numbers."""
    described = name.startswith("data/") and name.endswith(".json")
    return described or name.startswith(("models/", "data/sample_inputs/"))


def _check_example(data: bytes, path: Path) -> None:
    """Try the example inputs, a pickle, in the safe way: where that fails, torch would read them in the unsafe one."""
    if not data:
        return
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} holds example inputs that are more than tensors, which could run code when read."
        ) from error


def _check_entry(entry: dict[str, Any], path: Path) -> None:
    if entry.get("use_pickle"):
        raise ModelError(f"{path} holds pickled objects, which could run code when they are read.")
    stored = entry.get("path_name")
    if isinstance(stored, str) and not re.fullmatch(r"(weight|tensor)_\d+", stored):
        raise ModelError(f"{path} holds '{stored}', which is not a tensor.")
    target = entry.get("target")
    if "inputs" in entry and isinstance(target, str):
        known = _OPERATOR.fullmatch(target) and not _PYTHON.search(target)
        if not known:
            raise ModelError(f"{path} calls '{target[:80]}', which is no known tensor operation.")
    expression = entry.get("expr_str")
    if isinstance(expression, str):
        _check_expression(expression, path)
    for key, value in entry.items():
        listed = value if isinstance(value, list) else [value]
        is_name = key.endswith(("name", "names", "fqn"))
        if is_name and not all(_NAME.fullmatch(item) for item in listed if isinstance(item, str)):
            raise ModelError(f"{path} holds a name that is none: {str(value)[:80]!r}.")
        if key.endswith("_spec") and isinstance(value, str) and _builds_objects(value):
            raise ModelError(
                f"{path} takes or returns Python objects that would have to be imported."
            )


def _builds_objects(specification: str) -> bool:
    return "__enum__" in specification or "default_factory" in specification


def _check_expression(expression: str, path: Path) -> None:
    words = _WORD.findall(expression)
    known = all(word in _FUNCTIONS or _SYMBOL.fullmatch(word) for word in words)
    attribute = re.search(r"[A-Za-z_)'\]]\s*\.", expression)
    if not known or attribute or not _EXPRESSION.fullmatch(expression):
        raise ModelError(f"{path} holds a shape that is no arithmetic: {expression[:80]!r}.")


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
