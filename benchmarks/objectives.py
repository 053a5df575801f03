"""Time and peak memory of the objectives that have a closed or cheap form, beside the formula as it is written.

    python benchmarks/objectives.py [--rounds 5] [--only rkd]

The plain forms are what the authors' code and torchdistill compute: autograd through a singular value decomposition,
matrices over examples or positions, differences of all pairs of samples, gathered rows of a memory bank, transport
scaled outside of logarithms (which underflows for a small regularisation; here it does not). (Distances
between samples they take from inner products in float32, which is cheap but wrong for near duplicates.) Both forms get
the same float32 features; value and gradient are compared first. A round is one value and its gradient with respect to
the student. Rounds are interleaved; the table has medians, and ratios to ours.

Time is processor time on one thread: it says how much work there is, also while others use the machine. Memory is the
most that was allocated at once during a round, on top of the features themselves.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from understudy import objectives

Loss = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Comparison:
    """One objective at one size."""

    name: str
    size: str
    student: torch.Tensor
    ours: Loss
    plain: Loss


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Return centred rows over their Frobenius norm."""
    rows = rows - rows.mean(dim=0)
    return rows / rows.norm()


def rows(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width)


def plain_procrustes(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    ours, theirs = unit(student), unit(teacher)
    return 2 - 2 * torch.linalg.svd(theirs.T @ ours, full_matrices=False).S.sum()


def plain_gram(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    ours, theirs = unit(student), unit(teacher)
    return (ours @ ours.T - theirs @ theirs.T).square().sum()


def plain_cka(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    kernels = [x @ x.T for x in (student, teacher)]
    ours, theirs = (k - k.mean(0) - k.mean(1, keepdim=True) + k.mean() for k in kernels)
    return 1 - (ours * theirs).sum() / (ours.norm() * theirs.norm())


def plain_unbiased_cka(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    n = len(student)

    def hsic(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        corner = one.sum() * two.sum() / ((n - 1) * (n - 2))
        return (one * two).sum() + corner - 2 / (n - 2) * (one.sum(0) * two.sum(0)).sum()

    kernels = [(x - x.mean(0)) @ (x - x.mean(0)).T for x in (student, teacher)]
    ours, theirs = (k * (1 - torch.eye(n)) for k in kernels)
    return 1 - hsic(ours, theirs) / (hsic(ours, ours) * hsic(theirs, theirs)).sqrt()


def plain_angle(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    def cosines(x: torch.Tensor) -> torch.Tensor:
        differences = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), dim=2)
        return torch.bmm(differences, differences.transpose(1, 2))

    with torch.no_grad():
        target = cosines(teacher)
    return F.smooth_l1_loss(cosines(student), target)


def plain_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    def relative(x: torch.Tensor) -> torch.Tensor:
        lengths = x.square().sum(dim=1)
        squared = (lengths.unsqueeze(1) + lengths.unsqueeze(0) - 2 * x @ x.T).clamp(min=1e-12)
        distances = squared.sqrt().clone()
        distances[range(len(x)), range(len(x))] = 0
        return distances / distances[distances > 0].mean()

    with torch.no_grad():
        target = relative(teacher)
    return F.smooth_l1_loss(relative(student), target)


def plain_nst(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x.unsqueeze(1) * y.unsqueeze(2)).sum(dim=3).square().mean()

    ours, theirs = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
    with torch.no_grad():
        constant = kernel(theirs, theirs)
    return constant + kernel(ours, ours) - 2 * kernel(ours, theirs)


def plain_affinity(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    directions = [F.normalize(x.flatten(2), dim=1) for x in (student, teacher)]
    ours, theirs = (x.mT @ x for x in directions)
    return (ours - theirs).norm(dim=(1, 2)).mean() / ours.shape[-1]


def plain_official_affinity(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    ours, theirs = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
    total = torch.zeros(len(ours))
    for channel in range(ours.shape[1]):
        outer = [x[:, channel].unsqueeze(2) @ x[:, channel].unsqueeze(1) for x in (ours, theirs)]
        total = total + ((outer[0] - outer[1]) / ours.shape[2]).norm(dim=(1, 2))
    return total.mean()


def plain_sinkhorn(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    ours, theirs = (x.div(2.0).softmax(dim=1) for x in (student, teacher))
    cost = (ours.unsqueeze(1) - theirs.unsqueeze(0)).abs().sum(dim=2)
    plan = torch.exp(-cost / 0.1)
    for _ in range(20):
        plan = plan / plan.sum(dim=1, keepdim=True)
        plan = plan / plan.sum(dim=0, keepdim=True)
    return (plan * cost).sum() / len(student)


def plain_crd(
    student: torch.Tensor, bank: torch.Tensor, index: torch.Tensor, log_normaliser: torch.Tensor
) -> torch.Tensor:
    fetched = bank.index_select(0, index.flatten()).view(*index.shape, -1)
    p = torch.exp(torch.bmm(fetched, student.unsqueeze(2)).squeeze(2) / 0.07 - log_normaliser)
    ratio = (index.shape[1] - 1) / len(bank)
    positive = (p[:, 0] / (p[:, 0] + ratio + 1e-7)).log()
    negative = (ratio / (p[:, 1:] + ratio + 1e-7)).log().sum(dim=1)
    return -(positive + negative).mean()


def geometry() -> Iterator[Comparison]:
    pairs: dict[str, tuple[Loss, Loss]] = {
        "procrustes": (objectives.procrustes, plain_procrustes),
        "feature_gram": (objectives.feature_gram, plain_gram),
        "cka": (objectives.cka, plain_cka),
        "cka, debiased": (
            lambda s, t: objectives.cka(s, t, debiased=True),
            plain_unbiased_cka,
        ),
    }
    for name, (ours, plain) in pairs.items():
        for count, theirs, own in ((64, 768, 384), (512, 256, 128), (4096, 256, 128)):
            teacher = rows(count, theirs)
            yield Comparison(
                name,
                f"{count} rows, widths {theirs} and {own}",
                rows(count, own),
                lambda s, t=teacher, f=ours: f(s, t),
                lambda s, t=teacher, f=plain: f(s, t),
            )


def relations() -> Iterator[Comparison]:
    pairs: dict[str, tuple[Loss, Loss]] = {
        "rkd_angle": (objectives.rkd_angle, plain_angle),
        "rkd_distance": (objectives.rkd_distance, plain_distance),
    }
    for name, (ours, plain) in pairs.items():
        for count, width in ((32, 128), (128, 512), (256, 512)):
            teacher = rows(count, width)
            yield Comparison(
                name,
                f"{count} samples, width {width}",
                rows(count, width),
                lambda s, t=teacher, f=ours: f(s, t),
                lambda s, t=teacher, f=plain: f(s, t),
            )


def maps() -> Iterator[Comparison]:
    sizes = {
        "nst": ((8, 64, 8), (8, 128, 8), (8, 256, 8)),
        "affinity": ((8, 64, 16), (8, 64, 32), (4, 128, 48)),
        "affinity, official": ((8, 16, 16), (8, 64, 16), (8, 64, 24)),
    }
    pairs: dict[str, tuple[Loss, Loss]] = {
        "nst": (objectives.nst, plain_nst),
        "affinity": (objectives.affinity, plain_affinity),
        "affinity, official": (
            lambda s, t: objectives.affinity(s, t, official=True),
            plain_official_affinity,
        ),
    }
    for name, (ours, plain) in pairs.items():
        for batch, channels, side in sizes[name]:
            shape = (batch, channels, side, side)
            teacher = torch.randn(shape)
            yield Comparison(
                name,
                f"[{', '.join(map(str, shape))}]",
                torch.randn(shape),
                lambda s, t=teacher, f=ours: f(s, t),
                lambda s, t=teacher, f=plain: f(s, t),
            )


def contrasts() -> Iterator[Comparison]:
    for count, population, negatives in (
        (32, 5_000, 1024),
        (32, 50_000, 4096),
        (32, 50_000, 16384),
    ):
        student = F.normalize(rows(count, 128), dim=1)
        bank = F.normalize(rows(population, 128), dim=1)
        index = torch.randint(0, population, (count, 1 + negatives))
        constant = objectives.crd_log_normaliser(student, bank, index=index)
        yield Comparison(
            "crd",
            f"{count} samples, {negatives} negatives of {population}",
            student,
            lambda s, b=bank, i=index, z=constant: objectives.crd(s, b, index=i, log_normaliser=z),
            lambda s, b=bank, i=index, z=constant: plain_crd(s, b, i, z),
        )


def transports() -> Iterator[Comparison]:
    for count, classes in ((32, 10), (64, 100), (256, 1000)):
        teacher = 3 * rows(count, classes)
        yield Comparison(
            "sinkhorn",
            f"{count} samples, {classes} classes",
            3 * rows(count, classes),
            lambda s, t=teacher: objectives.sinkhorn(s, t),
            lambda s, t=teacher: plain_sinkhorn(s, t),
        )


def round_of(loss: Loss, student: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return value and gradient."""
    leaf = student.detach().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def seconds(loss: Loss, student: torch.Tensor) -> float:
    """Return the processor time of a round, repeated until it can be measured."""
    round_of(loss, student)  # the first touches memory that later ones reuse
    repeats, started = 0, time.process_time()
    while (spent := time.process_time() - started) < 0.02:
        round_of(loss, student)
        repeats += 1
    return spent / repeats


def peak(loss: Loss, student: torch.Tensor) -> int:
    """Return the most bytes that were allocated at once during a round."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        round_of(loss, student)
    changes = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def check(comparison: Comparison) -> None:
    """Refuse to compare what does not agree."""
    ours, plain = (round_of(f, comparison.student) for f in (comparison.ours, comparison.plain))
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-3, atol=1e-5)
    scale = plain[1].abs().max().item()
    if math.isfinite(scale):
        # Autograd through a decomposition of low rank is not finite, or noise; ours is exact there.
        low_rank = comparison.name == "procrustes" and "64 rows" in comparison.size
        if not low_rank:
            torch.testing.assert_close(ours[1], plain[1], rtol=0, atol=5e-3 * scale)


def measured(comparison: Comparison, rounds: int) -> str:
    """Return a line of the table."""
    contenders = (comparison.ours, comparison.plain)
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for found, loss in zip(times, contenders, strict=True):
            found.append(seconds(loss, comparison.student))
    ours, plain = (statistics.median(found) * 1e3 for found in times)
    bytes_ours, bytes_plain = (peak(loss, comparison.student) / 2**20 for loss in contenders)
    return (
        f"| `{comparison.name}` | {comparison.size} | {ours:.3g} | {plain:.3g} | {plain / ours:.1f} "
        f"| {bytes_ours:.3g} | {bytes_plain:.3g} | {bytes_plain / bytes_ours:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", default="", help="measure only objectives whose name starts with this"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| objective | size | ms | plain, ms | ratio | MiB | plain, MiB | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for group in (geometry, relations, maps, contrasts, transports):
        for comparison in group():
            if comparison.name.startswith(arguments.only):
                check(comparison)
                print(measured(comparison, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
