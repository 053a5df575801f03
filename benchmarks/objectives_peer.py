"""Time and peak memory of objectives beside the losses of torchdistill, where that package is installed.

    pip install --no-deps torchdistill
    python benchmarks/objectives_peer.py [--rounds 5]

Both get the same float32 features, in the form that computes torchdistill's value (`official`, where ours deviates);
value and gradient are compared before anything is timed. Measured as in `benchmarks/objectives.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F

from objectives import Comparison, Loss, measured, round_of, rows
from understudy import objectives

PAIR = {"student": {"io": "output", "path": "m"}, "teacher": {"io": "output", "path": "m"}}


def peer(module: Any, teacher: torch.Tensor) -> Loss:
    """Return a loss of torchdistill as a function of the student's feature."""

    def loss(student: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = module({"m": {"output": student}}, {"m": {"output": teacher}})
        return value

    return loss


def comparisons(losses: Any) -> Iterator[Comparison]:
    def vectors(
        name: str,
        make: Callable[[], Any],
        ours: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        unit: bool = False,
    ) -> Iterator[Comparison]:
        for count, width in ((32, 128), (128, 512), (256, 512)):
            student, teacher = rows(count, width), rows(count, width)
            if unit:
                student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
            yield Comparison(
                name,
                f"{count} samples, width {width}",
                student,
                lambda s, t=teacher: ours(s, t),
                peer(make(), teacher),
            )

    def maps(
        name: str,
        sizes: tuple[tuple[int, int, int], ...],
        make: Callable[[], Any],
        ours: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> Iterator[Comparison]:
        for batch, channels, side in sizes:
            shape = (batch, channels, side, side)
            teacher = torch.randn(shape)
            yield Comparison(
                name,
                f"[{', '.join(map(str, shape))}]",
                torch.randn(shape),
                lambda s, t=teacher: ours(s, t),
                peer(make(), teacher),
            )

    yield from vectors(
        "rkd_distance + 2 rkd_angle",
        lambda: losses.RKDLoss("m", "m", 1.0, 2.0, "mean"),
        lambda s, t: objectives.rkd_distance(s, t) + 2 * objectives.rkd_angle(s, t),
    )
    yield from vectors("pkt", lambda: losses.PKTLoss("m", "output", "m", "output"), objectives.pkt)
    gaussian = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    yield from vectors(
        "correlation_congruence, official",
        lambda: losses.CCKDLoss("m", "m", gaussian, "batchmean"),
        lambda s, t: objectives.correlation_congruence(s, t, official=True),
        unit=True,
    )
    yield from vectors(
        "similarity_preserving, official",
        lambda: losses.SPKDLoss("m", "m", "batchmean"),
        lambda s, t: objectives.similarity_preserving(s, t, official=True),
    )
    yield from maps(
        "attention_transfer",
        ((64, 32, 16), (64, 64, 16), (64, 64, 32)),
        lambda: losses.ATLoss({"pair": PAIR}),
        objectives.attention_transfer,
    )
    yield from maps(
        "affinity, official",
        ((8, 16, 16), (8, 64, 16), (8, 64, 24)),
        lambda: losses.AffinityLoss("m", "m"),
        lambda s, t: objectives.affinity(s, t, official=True),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    try:
        losses = import_module("torchdistill.losses.mid_level")
    except ImportError as error:
        print(f"torchdistill cannot be imported ({error}): nothing to compare with.")
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| objective | size | ms | torchdistill, ms | ratio | MiB | torchdistill, MiB | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for comparison in comparisons(losses):
        found = [round_of(loss, comparison.student) for loss in (comparison.ours, comparison.plain)]
        scale = found[1][1].abs().max().item()
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=5e-3 * scale)
        print(measured(comparison, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
