"""Decoupled knowledge distillation."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring


class DKD(Method, name="dkd"):
    """Match the probability of the labelled class and the distribution over the others, each with its own weight.

    Paper: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7.
    Equation: T^2 * (alpha * KL(b(t) || b(s)) + beta * KL(softmax(t' / T) || softmax(s' / T))), mean over labelled
    samples, in nats. b is the two-way distribution of the label against the rest at temperature T, and t' and s' are
    the logits without the label's.
    Labels: needed. Of soft (mixed) labels only the largest share counts.
    Deviation: the labelled class is removed from the logits, where the authors' code subtracts 1000 from it.
    Weight: 1 beside `supervised` at 1, after a warm-up over the first 20 of 240 epochs (CIFAR-100), which is the ramp
    {start: 0, end: 1, finish: 0.0833}.
    Cost: none beside the teacher's forward pass.
    Fails when: beta is large beside a teacher that is unsure: the other classes then drown the label. The authors
    choose beta by the teacher's confidence, from 0.5 (ImageNet) over 2 (resnet56) to 8. Without the warm-up a large
    beta makes the first epochs unstable.

    Args:
        alpha: weight of the labelled class against the rest; 1 is the authors' throughout.
        beta: weight of the distribution over the other classes; 8 is the authors' usual value for CIFAR-100.
        temperature: T; 4 is the authors' for CIFAR-100, 1 for ImageNet.
    """

    needs_labels = True

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        """Keep the configuration."""
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def wire(self, wiring: Wiring) -> None:
        """Refuse a single class."""
        wiring.check_classes(2, method=self.name)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the labelled samples."""
        return objectives.dkd(
            *step.logits(),
            step.labels_for(self.name),
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            weight=step.batch.weight,
        )
