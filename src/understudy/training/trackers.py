"""Live tracking: the lines of `metrics.jsonl` as scalars in TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from understudy.errors import UnderstudyError, unknown_name


class Tracker(ABC):
    """Something that takes scalars as they are measured."""

    @abstractmethod
    def scalar(self, name: str, value: float, step: int) -> None:
        """Take one value at a step."""

    @abstractmethod
    def close(self) -> None:
        """Write what is pending."""

    def line(self, line: Mapping[str, Any]) -> None:
        """Take the numbers of one line of metrics, under `arm/seed/...`."""
        if line["event"] not in ("step", "epoch", "result"):
            return
        prefix = f"{line['arm']}/seed{line['seed']}"
        step = int(line.get("step") or line.get("cost", {}).get("steps") or 0)
        for name, value in _numbers(line):
            self.scalar(f"{prefix}/{name}", value, step)


class TensorBoard(Tracker):
    """Writes event files below the run directory."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open the writer."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def scalar(self, name: str, value: float, step: int) -> None:
        """Take one value at a step."""
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class MLflow(Tracker):
    """Logs to MLflow: to the server that `MLFLOW_TRACKING_URI` names, else to a database in the run directory."""

    def __init__(self, folder: Path, name: str) -> None:
        """Start a run."""
        try:
            import mlflow
        except ImportError as error:
            raise _missing("mlflow") from error
        import os

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        mlflow.set_experiment("understudy")
        self._client = mlflow.MlflowClient()
        self._run = mlflow.start_run(run_name=name)
        self._end = mlflow.end_run

    def scalar(self, name: str, value: float, step: int) -> None:
        """Take one value at a step."""
        self._client.log_metric(self._run.info.run_id, name, value, step=step)

    def close(self) -> None:
        """Write what is pending."""
        self._end()


class WeightsAndBiases(Tracker):
    """Logs to Weights & Biases; offline unless `WANDB_MODE` says otherwise, to be uploaded with `wandb sync`."""

    def __init__(self, folder: Path, name: str) -> None:
        """Start a run."""
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        import os

        os.environ.setdefault("WANDB_MODE", "offline")
        self._run = wandb.init(project="understudy", name=name, dir=str(folder))

    def scalar(self, name: str, value: float, step: int) -> None:
        """Take one value at a step; members run one after another, so each keeps its own step."""
        self._run.log({name: value, f"{name.rsplit('/', 1)[0]}/step": step})

    def close(self) -> None:
        """Write what is pending."""
        self._run.finish()


TRACKERS: dict[str, type[TensorBoard] | type[MLflow] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def make_trackers(names: tuple[str, ...], folder: Path, run: str) -> list[Tracker]:
    """Start the trackers called `names`."""
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, TRACKERS)
    return [TRACKERS[name](folder, run) for name in names]


def _missing(package: str) -> UnderstudyError:
    return UnderstudyError(f"Tracking with {package} needs it installed: pip install {package}")


def _numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Give the numbers of a line by dotted name."""
    for key, value in line.items():
        if not prefix and key in ("event", "time", "arm", "seed", "step", "epoch", "per_class"):
            continue
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)
