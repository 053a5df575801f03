"""Break every objective on purpose and see whether the tests notice.

Each mutant is one change to one place of the objectives' source:

- drop T^2: the factor becomes 1;
- swap arguments: student and teacher change roles;
- wrong reduction: a mean becomes a sum or a sum a mean;
- forget the weight: it is ignored, everywhere or in one place;
- keep the teacher's gradient: a `detach` is left out.

A mutant first meets the battery of `tests/contract/test_objectives.py` for the objectives of its file, then the tests
in `tests/objectives` that mention them. It is killed when one fails. The table that is printed is the one in the docs;
the exit status is 1 when a mutant survives.

    python scripts/mutate_objectives.py [--jobs N] [--only TEXT] [--list]
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.util
import inspect
import io
import multiprocessing
import os
import re
import signal
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "understudy" / "objectives"
BATTERY = ROOT / "tests" / "contract" / "test_objectives.py"
UNIT_TESTS = ROOT / "tests" / "objectives"
KINDS = (
    "drop T^2",
    "swap arguments",
    "wrong reduction",
    "forget the weight",
    "keep the teacher's gradient",
)
# They read declarations, which a mutant does not change.
DECLARATIONS = ("test_docstring", "test_signature")


@dataclass(frozen=True)
class Mutant:
    """One change: in which file and function, of which kind, and what the changed line says."""

    file: str
    function: str
    kind: str
    line: int
    change: str
    source: str

    def __str__(self) -> str:
        """Say where and what."""
        return f"{self.file}:{self.line} {self.function}: {self.kind} ({self.change})"


# Making mutants


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield what a node may become, and the kind of mutant that makes."""
    text = ast.unparse(node) if isinstance(node, ast.expr) else ""
    if isinstance(node, ast.Call):
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name == "square" and isinstance(function, ast.Name):
            yield "drop T^2", ast.Constant(1.0)
        if isinstance(function, ast.Attribute) and name in ("mean", "sum"):
            other = copy.deepcopy(node)
            assert isinstance(other.func, ast.Attribute)
            other.func.attr = "sum" if name == "mean" else "mean"
            yield "wrong reduction", other
        if name in ("reduce", "average") and isinstance(function, ast.Name) and len(node.args) == 3:
            if ast.unparse(node.args[1]) != "None":
                yield "forget the weight", with_argument(node, 1, ast.Constant(None))
            yield "wrong reduction", with_argument(node, 2, ast.Constant("sum"))
        if name == "detach" and isinstance(function, ast.Attribute):
            yield "keep the teacher's gradient", function.value
    if text in ("temperature * temperature", "temperature ** 2"):
        yield "drop T^2", ast.Constant(1.0)


def with_argument(call: ast.Call, position: int, value: ast.expr) -> ast.Call:
    """Return a call with one of its arguments replaced."""
    changed = copy.deepcopy(call)
    changed.args[position] = value
    return changed


class Replace(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        """Replace the node when it is the one."""
        return self.new if node is self.old else super().visit(node)


def is_objective(function: ast.FunctionDef) -> bool:
    """Say whether a function is declared with a card."""
    return any(
        isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "card"
        for mark in function.decorator_list
    )


def starting_with(tree: ast.Module, function: ast.FunctionDef, statement: str) -> str:
    """Return the source with a statement put in front of a function's body."""
    before = function.body
    function.body = [*before[:1], *ast.parse(statement).body, *before[1:]]
    source = ast.unparse(ast.fix_missing_locations(tree))
    function.body = before
    return source


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield the mutants of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    file = str(path.relative_to(SOURCE))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if is_objective(function):
            names = {argument.arg for argument in function.args.args + function.args.kwonlyargs}
            for kind, statement, needed in (
                ("swap arguments", "student, teacher = (teacher, student)", {"student", "teacher"}),
                ("forget the weight", "weight = None", {"weight"}),
            ):
                if needed <= names:
                    source = starting_with(tree, function, statement)
                    yield Mutant(file, function.name, kind, function.lineno, statement, source)
        for node in ast.walk(function):
            for kind, new in replacements(node):
                changed = Replace(node, new).visit(tree)
                source = ast.unparse(ast.fix_missing_locations(changed))
                tree = Replace(new, node).visit(changed)
                what = f"{ast.unparse(node)} -> {ast.unparse(new)}"
                yield Mutant(file, function.name, kind, getattr(node, "lineno", 0), what, source)


# Meeting the tests


def module_of(file: str) -> types.ModuleType:
    """Import the module of a source file."""
    dotted = file.removesuffix(".py").replace("/", ".")
    return importlib.import_module(f"understudy.objectives.{dotted}")


def install(mutant: Mutant) -> None:
    """Run the mutant's source in its module, and put its functions wherever the old ones were imported."""
    module = module_of(mutant.file)
    old = dict(vars(module))
    exec(compile(mutant.source, str(SOURCE / mutant.file), "exec"), vars(module))
    changed = {
        id(value): vars(module)[name]
        for name, value in old.items()
        if inspect.isfunction(value) or inspect.isclass(value)
    }
    for name, other in list(sys.modules.items()):
        if name.startswith("understudy.objectives"):
            for key, value in list(vars(other).items()):
                if id(value) in changed:
                    setattr(other, key, changed[id(value)])


def battery() -> types.ModuleType:
    """Import the battery."""
    spec = importlib.util.spec_from_file_location("battery", BATTERY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["battery"] = module
    spec.loader.exec_module(module)
    return module


def checks() -> dict[str, Callable[[str], None]]:
    """Return the tests of the battery that a mutant meets."""
    return {
        name: value
        for name, value in vars(sys.modules["battery"]).items()
        if name.startswith("test_") and not name.startswith(DECLARATIONS)
    }


def concerned(file: str) -> list[str]:
    """Return the objectives that a file defines; all, if it is shared by them."""
    from understudy.objectives.card import cards

    module = module_of(file).__name__
    own = [name for name, (function, _) in cards.items() if function.__module__ == module]
    return own or sorted(cards)


def failing(
    names: list[str], expected: frozenset[tuple[str, str]] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Yield which check of which objective fails, apart from those that are expected to."""
    for title, check in checks().items():
        (mark,) = (mark for mark in vars(check)["pytestmark"] if mark.name == "parametrize")
        for name in names:
            if name not in mark.args[1] or (title, name) in expected:
                continue
            try:
                check(name)
            except BaseException:  # whatever a broken objective raises, the test has noticed
                yield title, name


def unit_tests(names: list[str]) -> list[str]:
    """Return the files of unit tests that mention one of the objectives."""
    functions = {name.rpartition(".")[2] for name in names}
    return [
        str(path)
        for path in sorted(UNIT_TESTS.glob("test_*.py"))
        if functions & set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    ]


def killer(mutant: Mutant, expected: frozenset[tuple[str, str]]) -> str | None:
    """Return the test that notices the mutant; None when none does."""
    import pytest

    signal.alarm(120)
    try:
        install(mutant)
    except Exception as error:
        return f"does not load: {error}"
    names = concerned(mutant.file)
    names.sort(key=lambda name: name.rpartition(".")[2] != mutant.function)
    for title, name in failing(names, expected):
        return f"{title}[{name}]"
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", *unit_tests(names)]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main(arguments)
    if status == pytest.ExitCode.OK:
        return None
    failed = [
        line for line in output.getvalue().splitlines() if line.startswith(("FAILED", "ERROR"))
    ]
    return failed[0].split(" - ")[0].rpartition("::")[2] if failed else f"exit status {status}"


def judge(task: tuple[Mutant, frozenset[tuple[str, str]]]) -> tuple[Mutant, str | None]:
    """Return a mutant and its killer; runs in a process of its own."""
    mutant, expected = task
    return mutant, killer(mutant, expected)


# Reporting


def table(results: list[tuple[Mutant, str | None]]) -> str:
    """Return killed mutants of all, by file and kind, in Markdown."""
    killed: Counter[tuple[str, str]] = Counter()
    made: Counter[tuple[str, str]] = Counter()
    for mutant, by in results:
        for key in ((mutant.file, mutant.kind), (mutant.file, ""), ("", mutant.kind), ("", "")):
            made[key] += 1
            killed[key] += by is not None

    def cell(file: str, kind: str) -> str:
        key = (file, kind)
        return f"{killed[key]}/{made[key]}" if made[key] else ""

    columns = (*KINDS, "")
    lines = [f"| file | {' | '.join(KINDS)} | all |", "|---" * (len(columns) + 1) + "|"]
    for file in [*sorted({mutant.file for mutant, _ in results}), ""]:
        cells = " | ".join(cell(file, kind) for kind in columns)
        lines.append(f"| {f'`{file}`' if file else 'all'} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Make the mutants, judge them, print the table and the survivors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes (default: one per core)"
    )
    parser.add_argument("--only", default="", help="only mutants whose description contains this")
    parser.add_argument("--list", action="store_true", help="print each mutant and what killed it")
    options = parser.parse_args()

    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    os.environ["CI"] = "1"  # the same examples of hypothesis for every mutant
    import torch

    torch.set_num_threads(1)
    importlib.import_module("understudy.objectives")
    battery()
    # What fails without a mutation says nothing about one.
    expected = frozenset(failing(concerned("reduction.py")))
    for title, name in sorted(expected):
        print(f"fails unmutated, ignored: {title}[{name}]")
    files = [
        path for path in sorted(SOURCE.rglob("*.py")) if path.name not in ("__init__.py", "card.py")
    ]
    found = [mutant for path in files for mutant in mutants_of(path) if options.only in str(mutant)]
    results: list[tuple[Mutant, str | None]] = []
    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=1) as pool:
        for mutant, by in pool.imap(judge, [(mutant, expected) for mutant in found], chunksize=1):
            results.append((mutant, by))
            if options.list:
                print(f"{mutant}: {by or 'SURVIVED'}", flush=True)
    print(table(results))
    survivors = [mutant for mutant, by in results if by is None]
    print(f"\n{len(results) - len(survivors)} of {len(results)} mutants killed")
    for mutant in survivors:
        print(f"survived: {mutant}")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
