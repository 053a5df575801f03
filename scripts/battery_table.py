"""Write the page that says which objective has which property, from a run of the battery.

`tests/contract/test_objectives.py` is run in this process. Every test function there is a property; which objectives it
is run for comes from its parametrisation, so from the objectives' cards and signatures. The tests that compare with
numbers of the authors' own code (those in `tests/objectives` that read `tests/golden`) are run too, to count the cases
that each objective is held against. A test fails when the page lists other objectives or properties than there are.

    python scripts/battery_table.py

The exit status is 1 when a property does not hold.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "objectives-battery.md"
BATTERY = ROOT / "tests" / "contract" / "test_objectives.py"
UNIT_TESTS = ROOT / "tests" / "objectives"
GOLDEN = ROOT / "tests" / "golden"
UNNEEDED = ("cacheprovider", "xdist")
HOLDS, FAILS, NOTHING = "✓", "✗", "·"

PROPERTIES = {
    "test_docstring_describes_every_argument_and_names_the_source": (
        "docstring",
        "It describes every argument, names the source, and says what is refused.",
    ),
    "test_signature_follows_the_contract": (
        "signature",
        "`weight` is a keyword, `reduction` the mean by default if samples are independent; what the card says exists.",
    ),
    "test_gradient_is_that_of_the_value": (
        "gradient",
        "It is that of finite differences, with and without weights; not asked where a part is constant on purpose.",
    ),
    "test_half_precision_in_is_single_precision_inside": (
        "half precision",
        "Of bfloat16 inputs the value is computed in float32; the gradient comes back in bfloat16.",
    ),
    "test_single_precision_agrees_with_double": (
        "single precision",
        "Value and gradient agree with those of double precision to four and three digits.",
    ),
    "test_autocast_changes_nothing": (
        "autocast",
        "Inside of it, value and gradient are the same bit for bit.",
    ),
    "test_inputs_are_left_as_they_are_and_nothing_is_random": (
        "pure",
        "Inputs are left as they are, and the random state does not matter.",
    ),
    "test_nothing_waits_for_a_value": (
        "no waiting",
        "No value is read on the way, which would hold up an accelerator: it works on tensors without contents.",
    ),
    "test_teacher_gets_no_gradient_and_student_does": (
        "teacher detached",
        "The teacher's tensors get no gradient, the student's does.",
    ),
    "test_minimum_is_at_the_teacher": (
        "minimum",
        "Where student and teacher are equal the value is the declared one, and nothing near is lower.",
    ),
    "test_invariances_hold": (
        "invariances",
        "Those that the card declares: adding a number to a sample's logits, scaling, rotating, permuting channels.",
    ),
    "test_temperature_scales_as_declared": (
        "temperature",
        "The value at T is the declared power of T times the value at 1 of all logits divided by T.",
    ),
    "test_order_of_the_batch_does_not_matter": (
        "order",
        "The order of the samples in a batch does not matter.",
    ),
    "test_a_weight_of_1_changes_nothing_and_only_ratios_count": (
        "weights",
        "Weights of 1 change nothing, others do, and three times all weights give the same gradient.",
    ),
    "test_masked_samples_count_nothing_whatever_they_hold": (
        "masked samples",
        "Samples of weight 0 count nothing in value and gradient, whatever they hold, NaN included.",
    ),
    "test_official_form_heeds_the_weight": (
        "official form",
        "With `official=True`, the authors' arithmetic, weights are heeded too, or refused.",
    ),
    "test_all_masked_has_no_value_and_no_gradient": (
        "all masked",
        "Without any valid sample the value is 0 and so is the gradient, not NaN.",
    ),
    "test_splitting_and_accumulating_equals_the_whole": (
        "splitting",
        "A batch in parts gives, summed up, value and gradient of the whole. Asked where samples are independent.",
    ),
    "test_reductions_of_a_coupled_objective_agree": (
        "reductions",
        "Where a sample's value depends on the others, mean, sum and single values agree.",
    ),
    "test_samples_without_a_label_count_nothing": (
        "no label",
        "A sample with the label -1 counts nothing.",
    ),
    "test_value_and_gradient_are_finite_at_extremes": (
        "extremes",
        "Value and gradient are finite at a temperature of 0.05 and inputs of 10 000, in float32 and bfloat16.",
    ),
    "test_value_and_gradient_are_finite_where_nothing_differs": (
        "no difference",
        "Value and gradient are finite where samples, elements or the two models are equal.",
    ),
    "test_smallest_batch": (
        "smallest batch",
        "The smallest batch of the card works, a smaller one is refused.",
    ),
    "test_smallest_number_of_classes": (
        "fewest classes",
        "The smallest number of classes (or width) of the card works, a smaller one is refused.",
    ),
    "test_masked_classes_count_nothing": (
        "masked classes",
        "A class at minus infinity in student and teacher counts nothing.",
    ),
    "test_shapes_that_do_not_fit_are_refused_by_name": (
        "wrong shapes",
        "They are refused with a message that names both.",
    ),
    "test_weights_that_do_not_fit_are_refused_by_name": (
        "wrong weights",
        "They are refused with a message that names their shape.",
    ),
    "test_unknown_reductions_are_refused": (
        "wrong reduction",
        "It is refused by its name.",
    ),
    "test_temperatures_that_are_not_positive_are_refused": (
        "wrong temperature",
        "0, negative numbers and NaN are refused.",
    ),
}
"""Test function -> the name of its column, and what it asks."""


HEAD = f"""---
hide:
  - toc
---

<!-- Written by scripts/battery_table.py. -->

# Properties of the objectives

Every objective is run through one battery of tests, `tests/contract/test_objectives.py`. Each test there is a property.
Which properties an objective must have follows from its signature and its card, the lines above the function that
declare what it takes and which laws it obeys. So a new objective is tested as soon as it is written.

```bash
python scripts/battery_table.py
```

{HOLDS} holds, {FAILS} does not hold, {NOTHING} is not asked of this objective. The last column counts the cases of
official numbers that an objective is compared with: inputs with the value, and mostly the gradient, that the authors'
own code gives for them. The tests in `tests/objectives` either agree with it or show where and why the objective
deviates. Objectives without a case are compared with the plain formula there."""


@dataclass
class Outcomes:
    """A pytest plugin that notes what became of each (objective, test function) of the battery."""

    known: dict[str, tuple[str, str]] = field(default_factory=dict)
    cells: dict[tuple[str, str], bool] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Remember which objective and which function an item stands for."""
        self.known = {
            item.nodeid: (item.callspec.params["name"], item.originalname)  # type: ignore[attr-defined]
            for item in items
        }

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A property holds when no phase of its test failed."""
        cell = self.known[report.nodeid]
        self.cells[cell] = self.cells.get(cell, True) and report.passed


class Compared:
    """A pytest plugin that notes which objectives are called in tests that read official numbers, and which."""

    def __init__(self) -> None:
        self.cases: dict[str, set[str]] = defaultdict(set)
        self.called: set[str] = set()
        self.read: set[str] = set()
        self.failed: list[str] = []

    def watching(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that notes that it was called."""

        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.called.add(name)
            return function(*args, **kwargs)

        return noted

    def reading(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that notes which file of official numbers it reads."""

        @functools.wraps(function)
        def noted(path: Any, *args: Any, **kwargs: Any) -> Any:
            if GOLDEN in Path(path).parents:
                self.read.add(Path(path).relative_to(GOLDEN).as_posix())
            return function(path, *args, **kwargs)

        return noted

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin with a test."""
        self.called, self.read = set(), set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that passed has held every objective that it called against every file that it read."""
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when == "call" and report.passed:
            for name in self.called:
                self.cases[name] |= self.read


def registered() -> Mapping[str, tuple[Callable[..., Any], Any]]:
    """Return the registry of objectives."""
    importlib.import_module("understudy.objectives")
    found: Mapping[str, tuple[Callable[..., Any], Any]] = importlib.import_module(
        "understudy.objectives.card"
    ).cards
    return found


def run(plugin: object, *tests: Path) -> None:
    """Run tests with a plugin.

    Raises:
        SystemExit: they cannot be collected.
    """
    options = [f"--rootdir={ROOT}", "--quiet", *(f"-pno:{name}" for name in UNNEEDED)]
    status = pytest.main([*options, *map(str, tests)], [plugin])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"The tests could not be collected (pytest's exit status {status}).")


def official() -> Compared:
    """Return which objectives are held against which official numbers.

    The functions are watched only where the tests look them up, in `understudy.objectives`: one that another objective
    calls has not been compared itself.
    """
    objectives = importlib.import_module("understudy.objectives")
    numpy, safetensors = (
        importlib.import_module("numpy"),
        importlib.import_module("safetensors.torch"),
    )
    compared = Compared()
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        for name, (function, _) in registered().items():
            patched.setattr(objectives, function.__name__, compared.watching(name, function))
        patched.setattr(numpy, "load", compared.reading(numpy.load))
        patched.setattr(safetensors, "load_file", compared.reading(safetensors.load_file))
        with_numbers = [
            path for path in sorted(UNIT_TESTS.glob("test_*.py")) if "GOLDEN" in path.read_text()
        ]
        run(compared, *with_numbers)
    return compared


def properties() -> dict[str, list[str]]:
    """Return part of the battery -> its test functions, in the order of the file."""
    source = BATTERY.read_text(encoding="utf-8")
    heads = {
        number: line.removeprefix("# ")
        for number, line in enumerate(source.splitlines(), 1)
        if line.startswith("# ")
    }
    parts: dict[str, list[str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            above = max(number for number in heads if number < node.lineno)
            parts.setdefault(heads[above], []).append(node.name)
    tests = {test for part in parts.values() for test in part}
    if tests != set(PROPERTIES):
        raise SystemExit(
            f"{Path(__file__).name} should name the properties of the battery: "
            f"{sorted(tests ^ set(PROPERTIES))} stand in only one of the two."
        )
    return parts


def page(cells: Mapping[tuple[str, str], bool], cases: Mapping[str, set[str]]) -> str:
    """Return the page in Markdown.

    Args:
        cells: (objective, test function) -> whether it passed.
        cases: objective -> the files of official numbers that it is compared with.
    """
    tests = [test for part in properties().values() for test in part]
    rooms: dict[str, list[str]] = {}
    for name in sorted(registered()):
        rooms.setdefault(name.partition(".")[0], []).append(name)
    tables = [room_table(room, names, tests, cells, cases) for room, names in rooms.items()]
    parts = [HEAD, summary(rooms, cells, cases), *tables, "## What the columns say", legend()]
    return "\n\n".join(parts) + "\n"


def summary(
    rooms: Mapping[str, list[str]],
    cells: Mapping[tuple[str, str], bool],
    cases: Mapping[str, set[str]],
) -> str:
    """Return the table of counts."""
    lines = [
        "| room | objectives | checks | hold | fail | compared with official numbers | cases |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    every = [name for names in rooms.values() for name in names]
    for room, names in [*rooms.items(), ("**all**", every)]:
        held = [passed for (name, _), passed in cells.items() if name in names]
        compared = [cases[name] for name in names if cases.get(name)]
        files = len(set().union(*compared))
        numbers = (len(names), len(held), sum(held), len(held) - sum(held), len(compared), files)
        lines.append(f"| {room} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def room_table(
    room: str,
    names: list[str],
    tests: list[str],
    cells: Mapping[tuple[str, str], bool],
    cases: Mapping[str, set[str]],
) -> str:
    """Return the table of one room, with its heading."""
    heads = [PROPERTIES[test][0] for test in tests]
    lines = [
        f"## {room.capitalize()}\n",
        '<div class="battery" markdown="1">\n',
        f"| objective | {' | '.join(heads)} | official cases |",
        f"|---|{':-:|' * len(tests)}---:|",
    ]
    for name in names:
        function = registered()[name][0]
        link = f"reference/objectives.md#{function.__module__}.{function.__name__}"
        marks = [mark(cells.get((name, test))) for test in tests]
        count = len(cases.get(name, ())) or NOTHING
        lines.append(f"| [`{function.__name__}`]({link}) | {' | '.join(marks)} | {count} |")
    return "\n".join([*lines, "\n</div>"])


def mark(passed: bool | None) -> str:
    """Return what a cell shows."""
    return NOTHING if passed is None else HOLDS if passed else FAILS


def legend() -> str:
    """Return what each column means and which test asks it, by the parts of the battery."""
    lines = ["| column | what is asked | test |", "|---|---|---|"]
    for part, tests in properties().items():
        lines.append(f"| **{part}** | | |")
        lines += [f"| {PROPERTIES[test][0]} | {PROPERTIES[test][1]} | `{test}` |" for test in tests]
    return "\n".join(lines)


def main() -> int:
    """Run the tests, write the page, say what does not hold."""
    os.environ["CI"] = "1"  # the same examples of hypothesis every time
    torch.set_num_threads(1)
    properties()
    compared = official()
    outcomes = Outcomes()
    run(outcomes, BATTERY)
    PAGE.write_text(page(outcomes.cells, compared.cases), encoding="utf-8")
    failed = [f"{name}: {test}" for (name, test), passed in outcomes.cells.items() if not passed]
    for line in [*failed, *compared.failed]:
        print(f"failed: {line}")
    return bool(failed or compared.failed)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "src")]
    sys.exit(main())
