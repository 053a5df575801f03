"""Relational knowledge distillation."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring


class RKD(Method, name="rkd"):
    """Match the distances between the samples of a batch, and the angles that they make.

    Paper: Park, Kim, Lu and Cho, "Relational Knowledge Distillation", CVPR 2019, section 3.2.
    Equation: distance * mean_ij huber(d_ij / mean(d) - d'_ij / mean(d')) + angle * mean_ijk huber(cos_ijk - cos'_ijk),
    d the distances between embeddings, cos_ijk the cosine of the angle that samples j and k make at i.
    Labels: not used.
    Weight: 1, beside `supervised` at 1 (RepDistiller and mdistiller on CIFAR-100).
    Deviation: distances come from inner products in float64, since those of near duplicates lose their digits in less.
    Cost: no parameters; all triples of samples, B^3 cosines, never stored at once.
    Fails when: the batch is large (a thousand samples make 10^9 triples; set `angle` to 0 then). A batch of one sample
    is refused.

    Args:
        student_tap: module path in the student, or "auto" for what goes into its classifier. A map is averaged over
            its places, a sequence over its tokens.
        teacher_tap: the same for the teacher. Widths may differ.
        distance: factor of the distances; 25 in RepDistiller and mdistiller, 1 in the paper's metric learning.
        angle: factor of the angles; 50 in RepDistiller and mdistiller, 2 in the paper's metric learning.
    """

    family = "relation"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_tap: str = "auto",
        teacher_tap: str = "auto",
        distance: float = 25.0,
        angle: float = 50.0,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not (distance >= 0 and angle >= 0 and distance + angle > 0):
            raise ValueError(
                f"distance is {distance} and angle {angle}; both must be at least 0, and one greater than 0"
            )
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.distance, self.angle = distance, angle

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps."""
        student, teacher = wiring.embeddings(self.student_tap, self.teacher_tap)
        self.places, self.role = (student.name, teacher.name), wiring.teacher.role

    def loss(self, step: Step) -> dict[str, torch.Tensor]:
        """Return the terms whose factor is not 0, factors included."""
        student, teacher = step.features(*self.places)
        pair = step.pooled(student), step.pooled(teacher, self.role)
        terms = {}
        for name, factor, objective in (
            ("distance", self.distance, objectives.rkd_distance),
            ("angle", self.angle, objectives.rkd_angle),
        ):
            if factor:
                terms[name] = factor * objective(*pair, weight=step.batch.weight)
        return terms
