"""Finding out whether foreign code draws from global random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from understudy.errors import UnderstudyError


@contextmanager
def no_global_draws(culprit: str, device: torch.device) -> Iterator[None]:
    """Raise after the block if it moved a global generator of torch, NumPy or Python.

    Args:
        culprit: what runs inside the block, for the error.
        device: where it computes.

    Raises:
        UnderstudyError: a generator moved. Nothing that depends on it could be repeated later.
    """
    before = _states(device)
    yield
    for (library, old), (_, new) in zip(before, _states(device), strict=True):
        if old != new:
            raise UnderstudyError(
                f"{culprit} drew from the global generator of {library}, so its views could not be "
                "rebuilt and a resumed run would see others. Subclass Transform and draw from "
                "`draw` instead."
            )


def _states(device: torch.device) -> list[tuple[str, object]]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    states: list[tuple[str, object]] = [
        ("torch", torch.get_rng_state().numpy().tobytes()),
        ("NumPy", (kind, np.asarray(keys).tobytes(), *rest)),
        ("Python's random", random.getstate()),
    ]
    if device.type == "cuda":
        states.append(("torch on CUDA", torch.cuda.get_rng_state(device).numpy().tobytes()))
    return states
