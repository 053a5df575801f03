"""Where a model's forward pass may end when only its taps are read, and what it gives then."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from understudy.errors import TrainingError
from understudy.models.outputs import Outputs
from understudy.models.taps import Stop, Tapped, unchanged


def find_stop(
    module: nn.Module,
    taps: Iterable[str],
    run: Callable[[nn.Module], Any],
    *,
    training: bool = False,
) -> tuple[Stop | None, str]:
    """Run a model once and find the last place that any tap reads.

    The pass is cut at run time, by an exception from a hook, and not by taking the model apart: that needs no graph of
    the model, works for any code around the modules, and what is read is the same to the bit.

    Args:
        module: the model. Its buffers, flags and torch's random state are left as they were.
        taps: the taps that are read, as `Tap.parse` understands them.
        run: calls the tapped module on example inputs.
        training: whether to run in training mode, as a student does.

    Returns:
        The stop and "", or None and the reason why the model has to run to its end.

    Raises:
        ModelError: a tap was not reached.
    """
    watched = Tapped(module, taps)
    order: list[tuple[str, str]] = []
    record = watched._record

    def watch(place: tuple[str, str], value: Any, clone: bool) -> None:
        order.append(place)
        record(place, value, clone)

    watched._record = watch  # type: ignore[method-assign]
    try:
        with unchanged(watched.module), torch.no_grad():
            watched.module.train(training)
            run(watched)
    finally:
        watched.close()
    if not watched.taps:
        return None, "nothing is tapped"
    last = 0
    for name, tap in watched.taps.items():
        runs = [number for number, place in enumerate(order) if place == (tap.path, tap.side)]
        if tap.call is None and len(runs) > 1:
            return None, (
                f"'{tap.path}' runs {len(runs)} times, and tap '{name}' reads the last time, whose number another "
                "input may change"
            )
        last = max(last, runs[tap.call or 0])
    path, side = order[last]
    return Stop(path, side, order[:last].count((path, side))), ""


class StoppedOutputs(Outputs):
    """What a model gives that ends at its last tap: asking it for logits is an error.

    Args:
        whose: "teacher" or "student".
        declared: the attribute by which a method says that it reads that model's logits.
        stop: where the pass ended.
        features: what was read on the way.
    """

    def __init__(
        self, whose: str, declared: str, stop: Stop, features: dict[str, torch.Tensor]
    ) -> None:
        """Keep the features."""
        self._whose, self._declared, self._stop = whose, declared, stop
        self.features, self.top_k = features, None
        self.hidden = self.head = None

    def tensors(self) -> list[torch.Tensor]:
        """Return the features."""
        return list(self.features.values())

    @property
    def logits(self) -> torch.Tensor:  # type: ignore[override]
        """Logits, which are not there.

        Raises:
            TrainingError: always.
        """
        raise TrainingError(
            f"The {self._whose}'s logits are asked for, but its pass ended {self._stop}, since no method of the stage "
            f"says that it reads them. A method that does has `{self._declared} = True`."
        )
