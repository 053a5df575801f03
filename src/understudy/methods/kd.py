"""Classical knowledge distillation."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step


class KD(Method, name="kd"):
    """Match the teacher's softened class probabilities.

    Paper: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    Equation: T^2 * KL(softmax(t / T) || softmax(s / T)), mean over samples, in nats.
    Top k: where a store holds the k largest logits and a tail, the divergence is that of the k classes and the rest
    (`objectives.kd_top_k`), for the temperatures that the tail is stored for.
    Labels: not used; add `supervised` to use them (the paper's sum is `supervised` at 1 - alpha and `kd` at alpha).
    Cost: none beside the teacher's forward pass.
    Fails when: the teacher is worse than the student would be alone, or so confident that its probabilities say
    no more than its top class; raise the temperature then.

    Args:
        temperature: T; 4 is the usual value for CIFAR-100, 1 to 2 for few classes.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        """Keep the configuration."""
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        self.temperature = temperature

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the samples."""
        top_k = step.teacher.top_k
        if top_k is None:
            student, teacher = step.logits()
            return objectives.kd(
                student, teacher, temperature=self.temperature, weight=step.batch.weight
            )
        assert step.student.logits is not None
        return objectives.kd_top_k(
            step.student.logits,
            top_k.values,
            top_k.indices,
            top_k.tail(self.temperature),
            temperature=self.temperature,
            weight=step.batch.weight,
        )
