"""Inter-channel correlation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring


class ICKD(Method, name="ickd"):
    """Match how the channels of a feature map correlate with each other.

    Paper: Liu et al., "Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge Distillation", ICCV 2021,
    section 3 (ICKD-C).
    Equation: |N(F_s F_s^T) - N(F_t F_t^T)|_F^2 / C per sample, F [C, H W], N(.) with rows of length 1, F_s the
    student's map after a convolution and batch normalisation to the teacher's channels; summed over pairs of taps.
    Labels: not used.
    Weight: 2.5, beside `supervised` at 1 and perhaps `kd` at 1 (the authors' CIFAR-100 code, last stage).
    Deviation: the batch normalisation always uses the batch's statistics and keeps no running ones.
    Official: `official` divides by the batch size a second time, as the authors' ImageNet code and torchdistill do (a
    weight of 1 at 256 samples is 1/256 without it). Their CIFAR-100 code divides once, as the default does.
    Cost: a convolution of student width x teacher width for each pair, in training only; C^2 correlations per sample.
    Fails when: the maps have few places (of one place, every correlation is equal but for its sign). A model without
    maps is refused.

    Args:
        student_taps: module paths in the student, or "auto" for its deepest stage.
        teacher_taps: as many in the teacher, or "auto" for the stages that correspond. Places may differ in number.
        kernel: side of the convolution: 1 as in the authors' code, 3 as in torchdistill.
        official: divide by the batch size twice.
    """

    family = "relation"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        kernel: Literal[1, 3] = 1,
        official: bool = False,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if kernel not in (1, 3):
            raise ValueError(f"kernel is {kernel}; it must be 1 or 3")
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        self.kernel, self.official = kernel, official

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and size the convolutions."""
        pairs = wiring.maps(self.student_taps, self.teacher_taps, method=self.name, last=1)
        self.places = [(student.name, teacher.name) for student, teacher in pairs]
        self.align = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    student.width,
                    teacher.width,
                    self.kernel,
                    padding=self.kernel // 2,
                    bias=False,
                ),
                nn.BatchNorm2d(teacher.width, track_running_stats=False),
            )
            for student, teacher in pairs
        )

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over the taps of the mean over the samples."""
        terms = []
        for place, align in zip(self.places, self.align, strict=True):
            student, teacher = step.features(*place)
            terms.append(
                objectives.ickd(
                    align(student), teacher, official=self.official, weight=step.batch.weight
                )
            )
        return torch.stack(terms).sum()
