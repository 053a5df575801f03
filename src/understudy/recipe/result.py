"""What `distill` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from understudy.errors import UnderstudyError, suggestion
from understudy.models import saved
from understudy.models.model import Model
from understudy.training.experiment import BASELINE
from understudy.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from rich.table import Table


class Result:
    """A finished run.

    Attributes:
        directory: the run directory.
        results: the result lines of its `metrics.jsonl`, one per member.
        students: arm -> seed -> the trained student, read from the run directory when first asked for.
    """

    def __init__(
        self,
        directory: Path,
        results: Sequence[Mapping[str, Any]],
        make_student: Callable[[], Model],
        arms: Sequence[str],
    ) -> None:
        """Keep the lines; nothing is loaded yet."""
        self.directory, self.results = directory, list(results)
        self.students = _Arms(directory, self.metrics, make_student)
        self._arms = list(arms)

    @property
    def metrics(self) -> dict[str, dict[int | None, dict[str, float | None]]]:
        """Arm -> seed -> what was measured on the test split; the teacher among the arms."""
        found: dict[str, dict[int | None, dict[str, float | None]]] = {}
        for line in self.results:
            found.setdefault(line["arm"], {})[line["seed"]] = dict(line["metrics"])
        return found

    @property
    def student(self) -> nn.Module:
        """The trained student of the first arm that is not the baseline, under the first seed."""
        arms = [arm for arm in self._arms if arm != BASELINE] or self._arms
        seeds = self.students[arms[0]]
        return seeds[next(iter(seeds))]

    def table(self) -> Table:
        """Return the results as a rich table, with mean and spread over the seeds."""
        from understudy.report.reading import read_run
        from understudy.report.table import table

        return table(read_run(self.directory))

    def report(self) -> Path:
        """Write the HTML report and return its path."""
        from understudy.report.html import write_report

        return write_report(self.directory)

    def __repr__(self) -> str:
        """Show what the members are worth by the run's main measure."""
        from understudy.report.measure import measure_of
        from understudy.report.reading import read_header

        measure = measure_of(read_header(self.directory))
        lines = [f"Result in {self.directory}:"]
        for arm, seeds in self.metrics.items():
            # A teacher whose classifier was not trained has none.
            known = [metrics.get(measure.level_name) for metrics in seeds.values()]
            values = ["none" if value is None else f"{value:.4f}" for value in known]
            lines.append(f"  {arm}: {measure.level_noun} {', '.join(values)}")
        return "\n".join(lines)


class _Arms(Mapping[str, "_Seeds"]):
    """Arm -> seeds."""

    def __init__(
        self, directory: Path, metrics: Mapping[str, Any], make: Callable[[], Model]
    ) -> None:
        arms = [arm for arm in metrics if (directory / "student" / arm).is_dir()]
        self._seeds = {arm: _Seeds(directory, arm, list(metrics[arm]), make) for arm in arms}

    def __getitem__(self, arm: str) -> _Seeds:
        if arm not in self._seeds:
            raise UnderstudyError(f"There is no arm called '{arm}'. {suggestion(arm, self._seeds)}")
        return self._seeds[arm]

    def __iter__(self) -> Iterator[str]:
        return iter(self._seeds)

    def __len__(self) -> int:
        return len(self._seeds)


class _Seeds(Mapping[int, nn.Module]):
    """Seed -> trained student, loaded once."""

    def __init__(
        self, directory: Path, arm: str, seeds: list[int], make: Callable[[], Model]
    ) -> None:
        self._directory, self._arm, self._numbers, self._make = (
            RunDirectory(directory),
            arm,
            seeds,
            make,
        )
        self._loaded: dict[int, nn.Module] = {}

    def __getitem__(self, seed: int) -> nn.Module:
        if seed not in self._numbers:
            raise UnderstudyError(f"Arm '{self._arm}' has the seeds {self._numbers}, not {seed}.")
        if seed not in self._loaded:
            folder = self._directory.student(self._arm, seed)
            # A student that was given as an object has no name to be built by.
            unnamed = saved.read_description(folder)["build"] is None
            module = self._make().module if unnamed else None
            self._loaded[seed] = saved.load(folder, module=module).module.eval()
        return self._loaded[seed]

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)
