"""Patient knowledge distillation: the direction of every layer's summary vector."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.rows import width_of
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring


class PKD(Method, name="pkd"):
    """Match the direction of the teacher's summary vector at several layers.

    Paper: Sun et al., "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019, equation 7.
    Equation: mean over samples and pairs of layers of |s / |s| - t / |t||^2, where s and t are the [CLS] states. A
    learned linear map brings s to the teacher's width where the widths differ.
    Labels: not used.
    Deviation: the mean over the pairs of layers instead of their sum, so that the size does not depend on the depth.
    Weight: 10 to 1000 in the paper, chosen by task, beside `kd` and `supervised`.
    Cost: a linear map of student width x teacher width per pair where widths differ, in training only.
    Fails when: the layers of the two models do not correspond, as with another number of layers and no thought.

    Args:
        student_taps: module paths in the student, or "auto" for every block (stage) but the last.
        teacher_taps: as many paths in the teacher, or "auto" for those at the same relative depth ("PKD-skip").
        summary: "first" (the first token), or "pooled" (the mean over tokens that are no padding, or a map's places).
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        summary: Literal["first", "pooled"] = "pooled",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if summary not in ("first", "pooled"):
            raise ValueError(f"summary is '{summary}'; it must be 'first' or 'pooled'")
        self.student_taps, self.teacher_taps, self.summary = student_taps, teacher_taps, summary

    def wire(self, wiring: Wiring) -> None:
        """Resolve the pairs and size the maps."""
        pairs = wiring.pairs(self.student_taps, self.teacher_taps, but_deepest=True)
        self.places = [(student.name, teacher.name) for student, teacher in pairs]
        self.maps = nn.ModuleList()
        for student, teacher in pairs:
            ours, theirs = width_of(student), width_of(teacher)
            self.maps.append(nn.Identity() if ours == theirs else nn.Linear(ours, theirs))

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the pairs."""
        terms = []
        for places, change in zip(self.places, self.maps, strict=True):
            student, teacher = step.features(*places)
            if self.summary == "first" and student.dim() == teacher.dim() == 3:
                student, teacher = student[:, 0], teacher[:, 0]
            student, teacher = step.pooled(student), step.pooled(teacher, "teacher")
            terms.append(
                objectives.normalised_mse(change(student), teacher, weight=step.batch.weight)
            )
        return torch.stack(terms).mean()
