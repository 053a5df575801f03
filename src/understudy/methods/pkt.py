"""Probabilistic knowledge transfer."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring


class PKT(Method, name="pkt"):
    """Match the probabilities with which the samples of a batch are each other's neighbours.

    Paper: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    section 3 with the cosine kernel.
    Equation: mean over pairs of samples of p_ij log((p_ij + eps) / (q_ij + eps)), where p (teacher) and q (student) are
    (1 + cos(x_i, x_j)) / 2 with rows that sum to 1.
    Labels: not used.
    Weight: 30000, beside `supervised` at 1 (RepDistiller and mdistiller on CIFAR-100, batch 64). The mean over pairs
    makes the value small: of the order of 1e-5.
    Cost: no parameters; products of all pairs of samples.
    Fails when: the batch is small against the number of classes, so that hardly any neighbours are in it. A batch of
    one sample teaches nothing.

    Args:
        student_tap: module path in the student, or "auto" for what goes into its classifier. A map is averaged over
            its places, a sequence over its tokens.
        teacher_tap: the same for the teacher. Widths may differ.
        eps: added to the probabilities and to the lengths of vectors; the authors' 1e-7.
    """

    family = "relation"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self, student_tap: str = "auto", teacher_tap: str = "auto", eps: float = 1e-7
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not eps > 0:
            raise ValueError(f"eps is {eps}; it must be greater than 0")
        self.student_tap, self.teacher_tap, self.eps = student_tap, teacher_tap, eps

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps."""
        student, teacher = wiring.embeddings(self.student_tap, self.teacher_tap)
        self.places, self.role = (student.name, teacher.name), wiring.teacher.role

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the pairs of the batch."""
        student, teacher = step.features(*self.places)
        return objectives.pkt(
            step.pooled(student),
            step.pooled(teacher, self.role),
            eps=self.eps,
            weight=step.batch.weight,
        )
