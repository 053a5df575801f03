"""Where a model's forward pass may end when only its taps are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from understudy.models.taps import Stop, Tapped, unchanged


def find_stop(
    module: nn.Module, taps: Iterable[str], run: Callable[[nn.Module], Any]
) -> tuple[Stop | None, str]:
    """Run a model once, in evaluation mode, and find the last place that any tap reads.

    The pass is cut at run time, by an exception from a hook, and not by taking the model apart: that needs no graph of
    the model, works for any code around the modules, and what is read is the same to the bit.

    Args:
        module: the model. Its buffers, flags and torch's random state are left as they were.
        taps: the taps that are read, as `Tap.parse` understands them.
        run: calls the tapped module on example inputs.

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
            watched.module.eval()
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
