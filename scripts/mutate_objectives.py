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
import copy
import importlib
import inspect
import multiprocessing
import os
import re
import signal
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "understudy" / "objectives"
BATTERY = ROOT / "tests" / "contract" / "test_objectives.py"
UNIT_TESTS = ROOT / "tests" / "objectives"
NOT_MUTATED = ("__init__.py", "card.py")
KINDS = (
    "drop T^2",
    "swap arguments",
    "wrong reduction",
    "forget the weight",
    "keep the teacher's gradient",
)
# Parts of pytest that only cost time here.
UNNEEDED = ("terminal", "cacheprovider", "logging", "warnings", "xdist", "faulthandler")
# Where to look first for the test that notices.
LIKELY = {
    "drop T^2": "temperature",
    "swap arguments": "teacher_gets_no_gradient",
    "wrong reduction": "splitting",
    "forget the weight": "weight",
    "keep the teacher's gradient": "teacher_gets_no_gradient",
}
# They read declarations, which a mutant does not change.
DECLARATIONS = ("test_docstring", "test_signature")
# Mutants that compute the same, by function and change, with the reason.
_NORMALISED = "what follows divides by the length, so a common factor drops out"
_THRESHOLD = "only moves the size below which a number counts as rounding"
_ORIGIN = "distances do not depend on the origin, which is only moved to save digits"
EQUIVALENT: dict[tuple[str, str], str] = {
    ("_attention", "magnitudes.mean(dim=1) -> magnitudes.sum(dim=1)"): _NORMALISED,
    ("spatial_correlation", "features.sum(dim=1) -> features.mean(dim=1)"): _NORMALISED,
    ("procrustes", "ours.square().sum() -> ours.square().mean()"): _THRESHOLD,
    ("procrustes", "theirs.square().sum() -> theirs.square().mean()"): _THRESHOLD,
    ("centred_exactly", "rows.mean(dim=0) -> rows.sum(dim=0)"): _ORIGIN,
    ("own_nearest", "own.mean(dim=1, keepdim=True) -> own.sum(dim=1, keepdim=True)"): _ORIGIN,
    ("_assignment_logits", "centres.mean(dim=0) -> centres.sum(dim=0)"): _ORIGIN,
}


@dataclass(frozen=True)
class Mutant:
    """One change: in which file and function, of which kind, and what the changed line says."""

    file: str
    function: str
    kind: str
    line: int
    change: str
    source: str

    @property
    def key(self) -> tuple[str, str]:
        """What identifies a mutant when lines move."""
        return self.function, self.change

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
        if name == "detach" and isinstance(function, ast.Attribute) and "teacher" in text:
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
    """Give the functions of the module the mutant's code, in place, so that whoever imported them has it too."""
    module = module_of(mutant.file)
    changed = dict(vars(module))
    source = compile(mutant.source, str(SOURCE / mutant.file), "exec", dont_inherit=True)
    before = dict(cards())
    exec(source, changed)
    cards().clear()
    cards().update(before)
    for name, old in vars(module).items():
        if getattr(old, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(old):
            for key, method in vars(old).items():
                give_code(method, vars(changed[name]).get(key))
        else:
            give_code(old, changed[name])


def give_code(old: object, new: object) -> None:
    """Let a function have another's code."""
    old, new = (inspect.unwrap(getattr(each, "__func__", each)) for each in (old, new))  # type: ignore[arg-type]
    if inspect.isfunction(old) and inspect.isfunction(new):
        old.__code__ = new.__code__


def cards() -> dict[str, tuple[Callable[..., object], object]]:
    """Return the registry of objectives."""
    return importlib.import_module("understudy.objectives.card").cards


def concerned(file: str) -> list[str]:
    """Return the names of the functions that a file defines for others; of all objectives, if it is shared by them."""
    module = module_of(file).__name__
    own = [function.__name__ for function, _ in cards().values() if function.__module__ == module]
    return own or [function.__name__ for function, _ in cards().values()]


inherited: list[Judge] = []
"""The judge that a forked process has of its parent: collected tests cannot be sent to it."""


def inherited_failing() -> list[str]:
    """Return the tests that fail without a mutant."""
    return inherited[0].failing()


def inherited_judge(index: int) -> tuple[Mutant, str | None]:
    """Judge the mutant of this number."""
    return inherited[0].judge(index)


class Judge:
    """A pytest plugin: collects the tests once, then runs them against each mutant in a process of its own."""

    def __init__(self, mutants: list[Mutant], jobs: int, show: bool) -> None:
        self.mutants, self.jobs, self.show = mutants, jobs, show
        self.results: list[tuple[Mutant, str | None]] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note which tests fail."""
        if report.failed:
            self.failed.append(report.nodeid.rpartition("::")[2])

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Judge all mutants in place of running the tests once."""
        self.battery: dict[str, list[pytest.Item]] = {}
        self.others: list[tuple[set[str], pytest.Item]] = []
        words: dict[Path, set[str]] = {}
        for item in session.items:
            if item.path == BATTERY:
                if not item.name.startswith(DECLARATIONS):
                    objective = item.callspec.params["name"].rpartition(".")[2]  # type: ignore[attr-defined]
                    self.battery.setdefault(objective, []).append(item)
                continue
            if item.path not in words:
                words[item.path] = set(re.findall(r"\w+", item.path.read_text(encoding="utf-8")))
            self.others.append((words[item.path], item))
        # What fails without a mutation says nothing about one.
        with self.processes() as pool:
            self.expected = set(pool.apply(inherited_failing))
        for test in sorted(self.expected):
            print(f"fails unmutated, ignored: {test}")
        with self.processes() as pool:
            for mutant, by in pool.imap(inherited_judge, range(len(self.mutants)), chunksize=1):
                self.results.append((mutant, by))
                if self.show:
                    print(f"{mutant}: {by or verdict(mutant)}", flush=True)
        return True

    def processes(self) -> Pool:
        """Return a pool of processes that are copies of this one, and do one task each."""
        inherited.clear()
        inherited.append(self)
        return multiprocessing.get_context("fork").Pool(self.jobs, maxtasksperchild=1)

    def failing(self) -> list[str]:
        """Return all tests that fail."""
        items = [item for items in self.battery.values() for item in items]
        return [
            by for item in [*items, *(item for _, item in self.others)] if (by := self.run(item))
        ]

    def run(self, item: pytest.Item) -> str | None:
        """Run a test; return its name if it fails."""
        self.failed = []
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return self.failed[0] if self.failed else None

    def judge(self, index: int) -> tuple[Mutant, str | None]:
        """Return a mutant and the test that notices it; None when none does."""
        mutant = self.mutants[index]
        signal.alarm(300)
        try:
            install(mutant)
        except Exception as error:
            return mutant, f"does not load: {error}"
        names = sorted(concerned(mutant.file), key=lambda name: name != mutant.function)
        items = [item for name in names for item in self.battery.get(name, [])]
        items.sort(key=lambda item: LIKELY[mutant.kind] not in item.name)
        mentioned = {mutant.function} if mutant.function in names else set(names)
        near = [item for words, item in self.others if words & mentioned]
        far = [item for words, item in self.others if words & set(names) and not words & mentioned]
        # Tests whose name has the function's come first, since they are the likeliest to fail.
        near.sort(key=lambda item: mutant.function not in item.name)
        for item in [*items, *near, *far]:
            by = self.run(item)
            if by and by not in self.expected:
                return mutant, by
        return mutant, None


# Reporting


def verdict(mutant: Mutant) -> str:
    """Say what it means that no test noticed the mutant."""
    return f"equivalent: {EQUIVALENT[mutant.key]}" if mutant.key in EQUIVALENT else "SURVIVED"


def table(results: list[tuple[Mutant, str | None]]) -> str:
    """Return killed mutants of all that change anything, by file and kind, in Markdown."""
    killed: Counter[tuple[str, str]] = Counter()
    made: Counter[tuple[str, str]] = Counter()
    for mutant, by in results:
        if by is None and mutant.key in EQUIVALENT:
            continue
        for key in ((mutant.file, mutant.kind), (mutant.file, ""), ("", mutant.kind), ("", "")):
            made[key] += 1
            killed[key] += by is not None

    def cell(file: str, kind: str) -> str:
        return f"{killed[file, kind]}/{made[file, kind]}" if made[file, kind] else ""

    lines = [f"| file | {' | '.join(KINDS)} | all |", "|---" * (len(KINDS) + 2) + "|"]
    for file in [*sorted({mutant.file for mutant, _ in results}), ""]:
        cells = " | ".join(cell(file, kind) for kind in (*KINDS, ""))
        lines.append(f"| {f'`{file}`' if file else 'all'} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Make the mutants, judge them, print the table and the survivors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--only", default="", help="only mutants whose description contains this")
    parser.add_argument("--list", action="store_true", help="print each mutant and its killer")
    options = parser.parse_args()

    sys.path[:0] = [str(ROOT / "src")]
    os.environ["CI"] = "1"  # the same examples of hypothesis for every mutant
    torch.set_num_threads(1)
    importlib.import_module("understudy.objectives")
    files = [path for path in sorted(SOURCE.rglob("*.py")) if path.name not in NOT_MUTATED]
    mutants = [
        mutant for path in files for mutant in mutants_of(path) if options.only in str(mutant)
    ]
    judge = Judge(mutants, options.jobs, options.list)
    arguments = [str(BATTERY), str(UNIT_TESTS), f"--rootdir={ROOT}"]
    status = pytest.main([*arguments, *(f"-pno:{name}" for name in UNNEEDED)], [judge])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or not judge.results:
        print(f"the tests could not be collected (pytest's exit status {status})")
        return 2
    print(table(judge.results))
    alive = [mutant for mutant, by in judge.results if by is None]
    equivalent = [mutant for mutant in alive if mutant.key in EQUIVALENT]
    survivors = [mutant for mutant in alive if mutant.key not in EQUIVALENT]
    made = len(judge.results) - len(equivalent)
    print(f"\n{made - len(survivors)} of {made} mutants killed", end="")
    print(f"; {len(equivalent)} more change nothing that can be observed:" if equivalent else "")
    for mutant in equivalent:
        print(f"- {mutant}: {EQUIVALENT[mutant.key]}")
    for mutant in survivors:
        print(f"survived: {mutant}")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
