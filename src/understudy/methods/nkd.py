"""Normalised knowledge distillation."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring


class NKD(Method, name="nkd"):
    """Weight the label's cross-entropy by the teacher's confidence, and match the other classes renormalised to 1.

    Paper: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023, L_nkd.
    Equation: -p_y(t) log p_y(s) - gamma * T^2 * sum softmax(t' / T) log softmax(s' / T), mean over labelled samples, in
    nats. The label's probabilities p_y are at temperature 1; t' and s' are the logits without the label's.
    Labels: needed. Of soft (mixed) labels only the largest share counts: the second class is learnt as one of the
    others.
    Deviation: no gradient reaches the teacher's logits, as one does in the authors' code where they carry any.
    Weight: 1 beside `supervised` at 1.
    Cost: none beside the teacher's forward pass.
    Fails when: gamma is kept while the temperature rises: the factor of the other classes is gamma * T^2, 1.5 by
    default and 31.5 in the authors' setting for CIFAR-100 (T = 3, gamma = 3.5). The value does not go to 0 where the
    student equals the teacher.

    Args:
        gamma: weight of the other classes; 1.5 is the authors' default (ImageNet), 3.5 theirs for CIFAR-100.
        temperature: T of the other classes; 1 is the authors' default (ImageNet), 3 theirs for CIFAR-100.
    """

    needs_labels = True

    def __init__(self, gamma: float = 1.5, temperature: float = 1.0) -> None:
        """Keep the configuration."""
        super().__init__()
        if not gamma >= 0:
            raise ValueError(f"gamma is {gamma}; it must be 0 or more")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        self.gamma, self.temperature = gamma, temperature

    def wire(self, wiring: Wiring) -> None:
        """Refuse a single class."""
        wiring.check_classes(2, method=self.name)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the labelled samples."""
        return objectives.nkd(
            *step.logits(),
            step.labels_for(self.name),
            gamma=self.gamma,
            temperature=self.temperature,
            weight=step.batch.weight,
        )
