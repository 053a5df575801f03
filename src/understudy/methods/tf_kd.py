"""Teacher-free knowledge distillation."""

from __future__ import annotations

from typing import Literal

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring


class TfKD(Method, name="tf_kd"):
    """Learn from an earlier copy of the student itself, or from a made-up teacher that is equally sure of every label.

    Paper: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, Tf-KD_self
    (form "self") and Tf-KD_reg (form "virtual").
    Equation: T^2 * KL(softmax(t / T) || softmax(s / T)), mean over samples, in nats. Form "self": t are the logits of
    the stage's teacher, which has to be a trained network of the student's own architecture. Form "virtual": t are the
    logarithms of a teacher that gives `correct` to the label and shares the rest equally; there is no network.
    Labels: form "self": not used. Form "virtual": needed; of soft (mixed) labels only the largest share counts.
    Official: the authors' code averages over the classes too, and in the form "virtual" takes the made-up
    probabilities for logits, softens them alone and leaves T^2 out, which is hardly more than label smoothing.
    Weight: alpha beside `supervised` at 1 - alpha. With `official` the authors have alpha 0.95 on CIFAR-100: T = 20 for
    MobileNetV2 and ShuffleNetV2 in the form "self", T = 40 and 10 in the form "virtual". For ResNet18 they multiply the
    loss by another 50 (T = 6, "self") and 100 (alpha 0.1, T = 20, "virtual").
    Cost: form "self": a teacher as large as the student, trained before. Form "virtual": none.
    Fails when: the student underfits: both forms regularise. With a teacher of another architecture the form "self" is
    plain `kd`.

    Args:
        form: "self" for a trained copy of the student as the stage's teacher, "virtual" for no network at all. Only
            "self" needs a teacher, only "virtual" needs labels.
        temperature: T; the paper has 20 for most networks, in both forms.
        correct: the made-up teacher's probability of the label, in (0, 1), at least 0.9 in the paper; 0.99 is that of
            the authors' code. Form "virtual" only.
        official: the authors' code instead of the paper's equations, for comparison.
    """

    def __init__(
        self,
        form: Literal["self", "virtual"] = "self",
        temperature: float = 20.0,
        correct: float = 0.99,
        official: bool = False,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if form not in ("self", "virtual"):
            raise ValueError(f"form is '{form}'; it must be 'self' or 'virtual'")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        if not 0 < correct < 1:
            raise ValueError(f"correct is {correct}; it must lie between 0 and 1")
        self.form, self.temperature = form, temperature
        self.correct, self.official = correct, official
        self.needs_teacher = form == "self"
        self.needs_labels = form == "virtual"

    def wire(self, wiring: Wiring) -> None:
        """Refuse a single class in the form "virtual": beside the label there has to be another."""
        if self.form == "virtual":
            wiring.check_classes(2, method=self.name)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the samples, or over the labelled ones."""
        weight = step.batch.weight
        if self.form == "self":
            student, teacher = step.logits()
            loss = objectives.kd(student, teacher, temperature=self.temperature, weight=weight)
            return loss / student.shape[1] if self.official else loss
        assert step.student.logits is not None
        return objectives.label_smoothing_teacher(
            step.student.logits,
            step.labels_for(self.name),
            correct=self.correct,
            temperature=self.temperature,
            official=self.official,
            weight=weight,
        )
