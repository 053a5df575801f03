"""The error of sparse targets, as an error of the gradient.

    python benchmarks/top_k_gradient.py [--classes 100] [--samples 2000]

A teacher's C logits are cut to the k largest, and the gradient of the distillation loss in the student's logits is
compared with the gradient that all logits give: the root of the mean squared difference over that of the exact
gradient, by row. Four ways of using k numbers:

- `tail`: k classes and one for the rest (`objectives.kd_top_k`), what understudy does.
- `renormalised`: the k probabilities divided by their sum, so that the rest is impossible.
- `zero`: the k probabilities as they are, the rest 0; they do not sum to 1.
- `uniform`: what is left is spread evenly over the rest.

Teachers: random logits of several spreads, and peaked ones with a clear first class and a few rivals, as networks
trained on CIFAR-100 give. Students: the teacher with noise (late in training), and one that knows nothing (the
beginning).
"""

from __future__ import annotations

import argparse

import torch

from understudy import objectives
from understudy.models.outputs import TopK
from understudy.teachers.store.codecs import Sparse, top_k_of

KEPT = (1, 2, 5, 10, 16, 32, 64)
TEMPERATURES = (1.0, 4.0)


def teachers(samples: int, classes: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return name -> logits [samples, classes]."""
    noise = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    peaked = 1.5 * noise
    # A first class well above the rest and a few that compete with it.
    order = torch.rand(samples, classes, generator=generator).argsort(dim=1)
    peaked.scatter_(1, order[:, :1], 11.0 + noise[:, :1])
    peaked.scatter_(1, order[:, 1:5], 5.0 + 2 * noise[:, 1:5])
    return {"random, spread 1": noise, "random, spread 3": 3 * noise, "peaked": peaked}


def gradients(
    student: torch.Tensor, teacher: torch.Tensor, k: int, temperature: float
) -> dict[str, torch.Tensor]:
    """Return way -> gradient of the summed loss in the student's logits."""
    found = top_k_of(teacher, k, (temperature,))
    tail = tail_gradient(student, found, temperature)
    # The others have no normalised target, or none of k + 1 classes; their gradient is T (sum(p) q - p).
    p = (teacher / temperature).softmax(-1)
    q = (student.detach() / temperature).softmax(-1)
    kept = torch.zeros_like(p).scatter(-1, found.indices, p.gather(-1, found.indices))
    mass = kept.sum(-1, keepdim=True)
    left = torch.where(kept > 0, 0.0, (1 - mass) / max(1, p.shape[-1] - k))
    targets = {"renormalised": kept / mass, "zero": kept, "uniform": kept + left}
    return {"tail": tail} | {
        way: temperature * (target.sum(-1, keepdim=True) * q - target)
        for way, target in targets.items()
    }


def tail_gradient(student: torch.Tensor, found: TopK, temperature: float) -> torch.Tensor:
    """Return the gradient of the summed loss from k classes and one for the rest."""
    student = student.clone().requires_grad_()
    loss = objectives.kd_top_k(
        student,
        found.values.double(),
        found.indices,
        found.tail(temperature).double(),
        temperature=temperature,
        reduction="sum",
    )
    return torch.autograd.grad(loss, student)[0]


def stored_error(
    student: torch.Tensor, teacher: torch.Tensor, codec: Sparse, temperature: float
) -> float:
    """Return the error of the gradient from what a store gives back of the teacher."""
    exact = exact_gradient(student, teacher, temperature)
    found = codec.restore(codec.columns(codec.encode(teacher)[0]))
    return float((tail_gradient(student, found, temperature) - exact).norm() / exact.norm())


def exact_gradient(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> torch.Tensor:
    student = student.clone().requires_grad_()
    loss = objectives.kd(student, teacher, temperature=temperature, reduction="sum")
    return torch.autograd.grad(loss, student)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--samples", type=int, default=2000)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    ways = ("tail", "renormalised", "zero", "uniform")
    print(
        f"{given.classes} classes, {given.samples} samples; error of the gradient relative to the exact one"
    )
    for name, teacher in teachers(given.samples, given.classes, generator).items():
        noise = torch.randn(teacher.shape, generator=generator, dtype=torch.float64)
        students = {"teacher and noise 0.7": teacher + 0.7 * noise, "knows nothing": 0.1 * noise}
        for title, student in students.items():
            for temperature in TEMPERATURES:
                print(f"\n{name}; student: {title}; T = {temperature:g}")
                print(f"{'k':>4}{'mass':>8}" + "".join(f"{way:>14}" for way in ways))
                exact = exact_gradient(student, teacher, temperature)
                for k in (k for k in KEPT if k < given.classes):
                    found = gradients(student, teacher, k, temperature)
                    mass = (teacher / temperature).softmax(-1).topk(k).values.sum(-1).mean()
                    errors = [float((found[way] - exact).norm() / exact.norm()) for way in ways]
                    print(f"{k:>4}{mass:>8.3f}" + "".join(f"{error:>14.4f}" for error in errors))


if __name__ == "__main__":
    main()
