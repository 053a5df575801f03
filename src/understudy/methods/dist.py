"""DIST: correlations instead of divergences."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step


class DIST(Method, name="dist"):
    """Correlate the class probabilities with the teacher's, within each sample and within each class over the batch.

    Paper: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, L_inter and L_intra.
    Equation: T^2 * (beta * (1 - mean over samples of r_i) + gamma * (1 - mean over classes of r_c)), where r_i is
    Pearson's correlation of the rows and r_c that of the columns of softmax(s / T) and softmax(t / T), [B, C].
    Labels: not used; add `supervised`.
    Deviation: a guard against vectors of length 0 below the lengths, where the authors add one to their product.
    Weight: 2 beside `supervised` at 1 (CIFAR-100 and ImageNet, authors' code).
    Cost: none beside the teacher's forward pass.
    Fails when: batches are small: a class is correlated over the part of a batch that one process holds at a time, so
    accumulation and more processes change the loss; with one sample the second term is constant. A shift or scale of
    the probabilities is not learnt, so labels have to set the confidence.

    Args:
        beta: weight of the relations between classes (rows); 1 is the authors'.
        gamma: weight of the relations between samples (columns); 1 is the authors'.
        temperature: T; 4 is the authors' for CIFAR-100, 1 for ImageNet.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0) -> None:
        """Keep the configuration."""
        super().__init__()
        for name, value in (("beta", beta), ("gamma", gamma)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def loss(self, step: Step) -> torch.Tensor:
        """Return the loss of the batch."""
        return objectives.dist(
            *step.logits(),
            beta=self.beta,
            gamma=self.gamma,
            temperature=self.temperature,
            weight=step.batch.weight,
        )
