"""Distillation of standardised logits."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step


class LogitStandardisedKD(Method, name="logit_standardised_kd"):
    """Match the teacher's softened class probabilities after bringing each sample's logits to mean 0 and deviation 1.

    Paper: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, the Z-score before the softmax.
    Equation: T^2 * KL(softmax(z(t) / T) || softmax(z(s) / T)) with z(l) = (l - mean(l)) / std(l) over the classes, mean
    over samples, in nats.
    Labels: not used; add `supervised`, which sees the logits as they are.
    Weight: 9 beside `supervised` at 0.1 (CIFAR-100, authors' code). It is ten times that of `kd`, since standardised
    logits are small and so are their gradients.
    Cost: none beside the teacher's forward pass.
    Fails when: the teacher's confidence is what the student should learn: standardising takes the size of the logits
    away, and the student's own calibration is left to `supervised`. With two classes nothing but the order is left.

    Args:
        temperature: T of standardised logits, the paper's base temperature; 2 is the authors' for CIFAR-100, 3 for
            some of their pairs.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        """Keep the configuration."""
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        self.temperature = temperature

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the samples."""
        return objectives.logit_standardised_kd(
            *step.logits(), temperature=self.temperature, weight=step.batch.weight
        )
