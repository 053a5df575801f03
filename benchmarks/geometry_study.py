"""How many nearly orthogonal directions a narrower student keeps, when its features alone are fitted to the teacher's.

    python benchmarks/geometry_study.py [--seeds 8] [--steps 100] [--plot docs/assets/geometry-study.svg]

The teacher holds n random unit vectors in n dimensions, any two of which are orthogonal up to eps (Bhattarai et al.,
arXiv 2509.25253, synthetic study; sizes, optimiser and starting point are ours, since theirs are not known). The
student has n free vectors in fewer dimensions, which Adam moves for so many steps. Counted is the largest set that a
greedy search finds in which any two vectors have a cosine within eps of 0, after the mean was taken off; the distances
are those of `understudy.evaluation.geometry`. `free` is the student that no loss has moved.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from understudy import objectives
from understudy.evaluation import geometry_metrics

COUNT, EPSILON = 96, 0.35
WIDTHS = (8, 16, 32, 64)
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "procrustes": objectives.procrustes,
    "gram": objectives.feature_gram,
    "cka": objectives.cka,
}
ARMS = ("free", *LOSSES, "projection")
COLOURS = dict(zip(ARMS, ("#888888", "#2b6cb0", "#2f855a", "#c05621", "#6b46c1"), strict=True))


def cosines(rows: torch.Tensor) -> torch.Tensor:
    """Return the absolute cosines between centred rows, 0 on the diagonal."""
    rows = F.normalize(rows - rows.mean(dim=0), dim=1)
    return (rows @ rows.T).abs().fill_diagonal_(0)


def kept(rows: torch.Tensor) -> int:
    """Return the size of a set of rows that are orthogonal up to eps, two by two: those with few conflicts first."""
    conflicts = cosines(rows) > EPSILON
    chosen: list[int] = []
    for row in conflicts.sum(dim=1).argsort(stable=True).tolist():
        if not bool(conflicts[row, chosen].any()):
            chosen.append(row)
    return len(chosen)


def fitted(arm: str, teacher: torch.Tensor, width: int, steps: int, seed: int) -> torch.Tensor:
    """Return the student's vectors [n, width] after fitting."""
    generator = torch.Generator().manual_seed(1000 + seed)
    student = nn.Parameter(torch.randn(COUNT, width, generator=generator) / width**0.5)
    parameters = [student]
    if arm == "projection":
        drawn = torch.randn(width, teacher.shape[1], generator=generator) / width**0.5
        parameters.append(nn.Parameter(drawn))
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(0 if arm == "free" else steps):
        if arm == "projection":
            loss = (student @ parameters[1] - teacher).square().mean()
        else:
            loss = LOSSES[arm](student, teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.detach()


def study(seeds: int, steps: int) -> dict[tuple[str, int], list[dict[str, float]]]:
    """Return (arm, width) -> what was measured, for each seed."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        teacher = F.normalize(torch.randn(COUNT, COUNT, generator=generator), dim=1)
        for width in WIDTHS:
            for arm in ARMS:
                student = fitted(arm, teacher, width, steps, seed)
                measured = {
                    key: value or 0.0 for key, value in geometry_metrics(student, teacher).items()
                }
                line = {"kept": float(kept(student)), **measured, "teacher": float(kept(teacher))}
                found.setdefault((arm, width), []).append(line)
    return found


def spread(lines: list[dict[str, float]], key: str, decimals: int) -> str:
    values = [line[key] for line in lines]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{decimals}f} ± {deviation:.{decimals}f}"


def plot(found: dict[tuple[str, int], list[dict[str, float]]]) -> str:
    """Return a drawing of the directions that are kept over the student's width, as SVG."""
    left, bottom, across, up = 60, 250, 360, 220
    most = max(line["kept"] for lines in found.values() for line in lines) * 1.1
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 300" font-family="sans-serif" font-size="12">',
        '<rect width="560" height="300" fill="#ffffff"/>',
        f'<path d="M{left} {bottom - up}V{bottom}H{left + across}" fill="none" stroke="#444444"/>',
        f'<text x="{left + across / 2}" y="290" text-anchor="middle">width of the student</text>',
        f'<text x="16" y="{bottom - up / 2}" text-anchor="middle" transform="rotate(-90 16 {bottom - up / 2})">'
        f"directions kept, of {COUNT}</text>",
    ]
    place = {width: left + across * (n + 0.5) / len(WIDTHS) for n, width in enumerate(WIDTHS)}
    for width, x in place.items():
        parts.append(f'<text x="{x:.0f}" y="{bottom + 18}" text-anchor="middle">{width}</text>')
    for share in (0.25, 0.5, 0.75, 1.0):
        y = bottom - up * share
        parts.append(
            f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{most * share:.0f}</text>'
        )
    for number, arm in enumerate(ARMS):
        means = {w: statistics.fmean(line["kept"] for line in found[arm, w]) for w in WIDTHS}
        points = " ".join(f"{place[w]:.0f},{bottom - up * means[w] / most:.1f}" for w in WIDTHS)
        y = bottom - up + 20 * number + 10
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[arm]}" stroke-width="2"/>',
            f'<path d="M440 {y}h20" stroke="{COLOURS[arm]}" stroke-width="2"/>',
            f'<text x="466" y="{y + 4}">{arm}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = study(options.seeds, options.steps)
    first = next(iter(found.values()))
    print(
        f"The teacher's {COUNT} vectors: {spread(first, 'teacher', 1)} orthogonal up to {EPSILON}.\n"
    )
    print("| width | loss | directions kept | Procrustes | Gram | CKA | cosine gap |")
    print("|---|---|---|---|---|---|---|")
    for width in WIDTHS:
        for arm in ARMS:
            lines = found[arm, width]
            cells = [spread(lines, "kept", 1)]
            cells += [spread(lines, key, 3) for key in ("procrustes", "gram", "cka", "cosine_gap")]
            print(f"| {width} | {arm} | {' | '.join(cells)} |")
    if options.plot is not None:
        options.plot.write_text(plot(found), encoding="utf-8")


if __name__ == "__main__":
    main()
