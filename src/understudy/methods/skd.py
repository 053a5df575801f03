"""Streamlined knowledge distillation."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step


class SKD(Method, name="skd"):
    """Match each sample's class probabilities, and the directions of the batch's logits relative to each other.

    Paper: Jeong, Lee and Choi, "Streamlined Knowledge Distillation", CVPR 2026, L_INS and L_DIR.
    Equation: instance * T^2 * KL(softmax(t / T) || softmax(s / T)) + direction * mean_i sqrt(D_i^T (cov(D) + lambda
    I)^-1 D_i), where D [B, B] is the difference of the matrices of cosines between the logits of a batch's samples,
    divided by the number of classes C, and cov(D) the covariance of its rows. The first term in nats.
    Labels: not used; add `supervised`.
    Official: T^2 and the division by C are those of the authors' code, and so the default. Without `official` both are
    left out, as in torchdistill; with the same weights the student then learns several times more slowly.
    Deviation: the authors' two masks are averaged over the batch before they meet a sample, so that they halve both
    terms and choose nothing. They are left out.
    Weight: 0.45 beside `supervised` at 0.1 (CIFAR-100; 0.9 in the authors' code, halved by the masks).
    Cost: a factorisation of a [B, B] matrix per step, B^3 / 3 operations.
    Fails when: a batch has one sample. The second term compares the part of a batch that one process holds at a time,
    so accumulation and more processes change it.

    Args:
        instance: weight of the first term.
        direction: weight of the second term.
        temperature: T of the first term; 4 is the authors'.
        tikhonov: lambda > 0, what keeps the covariance invertible; 0.1 is the authors'.
        official: False for the terms as torchdistill has them.
    """

    family = "relation"

    def __init__(
        self,
        instance: float = 1.0,
        direction: float = 1.0,
        temperature: float = 4.0,
        tikhonov: float = 0.1,
        official: bool = True,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        for name, value in (("instance", instance), ("direction", direction)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more")
        for name, value in (("temperature", temperature), ("tikhonov", tikhonov)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        self.instance, self.direction = instance, direction
        self.temperature, self.tikhonov, self.official = temperature, tikhonov, official

    def loss(self, step: Step) -> dict[str, torch.Tensor]:
        """Return both terms, weighted."""
        student, teacher = step.logits()
        classes, weight = student.shape[1], step.batch.weight
        compare = objectives.kd if self.official else objectives.skd_instance
        instance = compare(student, teacher, temperature=self.temperature, weight=weight)
        # Cosines divided by C count as much against lambda as cosines do against lambda C^2.
        tikhonov = self.tikhonov * classes**2 if self.official else self.tikhonov
        direction = objectives.skd_direction(student, teacher, tikhonov=tikhonov, weight=weight)
        return {"instance": self.instance * instance, "direction": self.direction * direction}
