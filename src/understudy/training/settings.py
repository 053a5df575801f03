"""Settings of a whole run, shared by all its members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from understudy.errors import TrainingError


@dataclass
class Settings:
    """What all members of a run share.

    Attributes:
        seeds: each arm is trained once per seed.
        batch_size: samples per optimiser step, over all ranks and parts.
        precision: "float32", "bf16" (autocast), or "auto": bf16 where a short probe finds it at least a tenth faster.
        channels_last: memory format of images and convolutions; "auto" measures it together with the precision.
        compile: run the student and the teacher through `torch.compile`.
        device: "auto" takes CUDA when there is one.
        workers: processes that read data; "auto" uses none for data in memory.
        log_every: steps between two lines of metrics.
        checkpoint_every: steps between two checkpoints; None for one per epoch.
        keep_checkpoints: how many of the newest are kept.
        evaluation_batch_size: samples per batch where nothing is learned.
        trackers: "tensorboard", "mlflow", "wandb".
        cache: folder of what methods fit to the teacher before a stage, for all runs that name it; None for `.fitted`
            beside the run directory.
        samples: after how many test prompts each finished language model writes, side by side in the report.
        answers: how many test prompts with an answer are written to and compared (exact match, Rouge-L).
        answer_tokens: most tokens of what is written; 0 for nothing.
        preflight: "refuse" stops before training when a check fails, "warn" only says so.
    """

    seeds: tuple[int, ...] = (0,)
    batch_size: int = 64
    precision: Literal["auto", "float32", "bf16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool = False
    device: str = "auto"
    workers: int | Literal["auto"] = "auto"
    log_every: int = 20
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    evaluation_batch_size: int = 256
    trackers: tuple[str, ...] = ()
    cache: str | None = None
    samples: int = 4
    answers: int = 100
    answer_tokens: int = 64
    preflight: Literal["refuse", "warn"] = "refuse"

    def __post_init__(self) -> None:
        """Check what cannot be right."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise TrainingError(f"seeds are {list(self.seeds)}; give at least one, each once")
        if self.batch_size < 1:
            raise TrainingError(f"batch_size is {self.batch_size}; it must be at least 1")
