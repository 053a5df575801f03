"""Running an export in a fresh Python process, and comparing what it gives."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models import export_check
from understudy.models.export_check import tensor_hash

_TIME_LIMIT = 900.0


@dataclass(frozen=True)
class Case:
    """Inputs to compare on.

    Attributes:
        tensors: by input name, what the model's preprocessing gave.
        texts: the raw texts behind them, where a tokenizer is to be compared, too.
    """

    tensors: dict[str, torch.Tensor]
    texts: list[Any] | None = None

    @property
    def single(self) -> torch.Tensor | None:
        """Return the tensor of a model that takes one argument, None for one that takes several by name."""
        if "input_ids" in self.tensors:
            return None
        return next(iter(self.tensors.values()))


def run_fresh(kind: str, place: Path, cases: list[Case]) -> list[np.ndarray]:
    """Load the export at `place` in a process of its own, run the cases, return an answer for each.

    Raises:
        ModelError: the process failed; says how.
    """
    with tempfile.TemporaryDirectory(prefix="understudy-check-") as scratch:
        inputs, answers = Path(scratch) / "cases.npz", Path(scratch) / "answers.npz"
        np.savez(inputs, allow_pickle=False, **_arrays(cases, with_texts=kind == "hf"))
        # -P: the folder of the file is not searched for imports, so that nothing in it is taken for a library.
        command = [sys.executable, "-P", str(export_check.__file__), kind, str(place)]
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if kind == "safetensors":
            environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        try:
            result = subprocess.run(
                [*command, str(inputs), str(answers)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=_TIME_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"The {kind} export did not answer in a fresh process within {_TIME_LIMIT:.0f} seconds."
            ) from error
        if result.returncode != 0 or not answers.is_file():
            said = [line for line in result.stderr.strip().splitlines() if line.strip()]
            last = said[-1].strip() if said else f"exit status {result.returncode}"
            raise ModelError(f"The {kind} export cannot be used in a fresh process: {last}")
        with np.load(answers, allow_pickle=False) as archive:
            return [archive[str(number)] for number in range(len(cases))]


def compare_tensors(place: Path, network: nn.Module) -> None:
    """Check in a fresh process that the file at `place` holds the tensors of `network`, bit for bit.

    This is for a network that only the caller's own code can build, so that no other process can run it.

    Raises:
        ModelError: a tensor is missing or differs.
    """
    # The process wants a case to answer; what it answers here is a table of checksums.
    answer = run_fresh("tensors", place, [Case({"unused": torch.zeros(1)})])[0]
    found: dict[str, str] = json.loads(str(answer))
    expected = {name: tensor_hash(value) for name, value in network.state_dict().items()}
    for name, checksum in expected.items():
        # A tensor that two modules share is written once, under one of its names.
        shared = name not in found and checksum in found.values()
        if not shared and found.get(name) != checksum:
            raise ModelError(f"The safetensors export holds another '{name}' than the model.")


def compare(
    answers: list[np.ndarray], expected: list[torch.Tensor], tolerance: float, what: str
) -> float:
    """Compare logits; return the largest difference as a part of the largest logit of each case.

    Raises:
        ModelError: shapes differ, an answer is not finite, or a difference exceeds `tolerance`.
    """
    worst = 0.0
    for answer, wanted in zip(answers, expected, strict=True):
        reference = wanted.numpy()
        if answer.shape != reference.shape:
            raise ModelError(
                f"{what} gives logits of shape {answer.shape} for a batch of {len(reference)}; "
                f"the model gives {reference.shape}."
            )
        scale = max(float(np.abs(reference).max()), 1e-3)
        difference = float(np.abs(answer.astype(np.float64) - reference).max()) / scale
        if not math.isfinite(difference) or difference > tolerance:
            raise ModelError(
                f"{what} answers differently in a fresh process: at a batch of {len(reference)}, logits differ by "
                f"up to {difference:.3g} of the largest one; {tolerance:g} is allowed."
            )
        worst = max(worst, difference)
    return worst


def _arrays(cases: list[Case], *, with_texts: bool) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for number, case in enumerate(cases):
        for name, tensor in case.tensors.items():
            arrays[f"{number}/{name}"] = tensor.numpy()
        if with_texts and case.texts is not None:
            arrays[f"{number}/texts"] = np.asarray(json.dumps(case.texts))
    return arrays
