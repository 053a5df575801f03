"""Similarity-preserving knowledge distillation."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring


class SP(Method, name="sp"):
    """Match the similarities between the activations of a batch's samples.

    Paper: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, section 3.
    Equation: |N(X_s X_s^T) - N(X_t X_t^T)|_F^2 / B^2, X [B, C H W] the flattened activations, N(.) with rows of length
    1; summed over pairs of taps.
    Labels: not used.
    Weight: 3000, beside `supervised` at 1 (the paper; RepDistiller and mdistiller on CIFAR-100).
    Official: rows have L2 length 1, as in the paper; `official` brings torchdistill's value, with rows of L1 length 1.
    Cost: no parameters; products of all pairs of samples.
    Fails when: the activations are all positive and much alike, so that every similarity is near 1 and the differences
    are small against rounding; the deepest taps are the safest. A batch of one sample teaches nothing.

    Args:
        student_taps: module paths in the student, or "auto" for its deepest stage (the paper's last convolutional
            activation). A sequence with padding is averaged over its tokens.
        teacher_taps: as many in the teacher, or "auto" for the stages that correspond. Shapes may differ.
        official: divide rows by their L1 norm.
    """

    family = "relation"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self, student_taps: Taps = "auto", teacher_taps: Taps = "auto", official: bool = False
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        self.student_taps, self.teacher_taps, self.official = student_taps, teacher_taps, official

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps."""
        pairs = wiring.pairs(self.student_taps, self.teacher_taps, last=1)
        self.places = [(student.name, teacher.name) for student, teacher in pairs]
        self.role = wiring.teacher.role

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over the taps of the mean over the pairs of the batch."""
        return torch.stack([self._compare(step, *place) for place in self.places]).sum()

    def _compare(self, step: Step, student_tap: str, teacher_tap: str) -> torch.Tensor:
        student, teacher = step.features(student_tap, teacher_tap)
        return objectives.similarity_preserving(
            _without_padding(step, student, "student"),
            _without_padding(step, teacher, self.role),
            official=self.official,
            weight=step.batch.weight,
        )


def _without_padding(step: Step, feature: torch.Tensor, role: str) -> torch.Tensor:
    """Return the feature; where it has padding, the mean over the tokens."""
    return feature if step.token_mask(feature, role) is None else step.pooled(feature, role)
