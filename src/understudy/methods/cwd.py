"""Channel-wise distillation: where each channel looks."""

from __future__ import annotations

import torch
from torch import nn

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring
from understudy.models.projectors import align_widths, to_smaller


class CWD(Method, name="cwd"):
    """Match each channel of the teacher's map as a distribution over places.

    Paper: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021.
    Equation: sum over pairs of maps, mean over samples and channels of T^2 KL(softmax(t / T) || softmax(s / T)) over
    places, in nats.
    Labels: not used.
    Deviation: as in the paper, the student goes through a bare 1x1 convolution where widths differ; the authors' code
    adds a batch norm and a ReLU to it.
    Weight: 3 for maps of logits at T = 4 (the authors' command for segmentation); their runs on features have 35 to 40.
    Cost: a 1x1 convolution of student width x teacher width where widths differ, in training only.
    Fails when: maps have few places, or their values are so small that every channel looks everywhere; a lower
    temperature helps.

    Args:
        student_taps: module paths in the student, or "auto" for the last stage, as published for features.
        teacher_taps: as many paths in the teacher, or "auto" for the stages that correspond.
        temperature: T; 4 in the authors' command.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        temperature: float = 4.0,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        self.temperature = temperature

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and align widths that differ."""
        pairs = wiring.maps(
            self.student_taps, self.teacher_taps, method=self.name, last=1, places=2
        )
        self.places = [(student.name, teacher.name) for student, teacher in pairs]
        # No bias: a number added to a channel does not change where it looks.
        self.align = nn.ModuleList(
            align_widths(student.shape[0], teacher.shape[0], bias=False)
            for student, teacher in pairs
        )

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over the pairs of the mean over the samples."""
        terms = []
        for align, place in zip(self.align, self.places, strict=True):
            student, teacher = to_smaller(*step.features(*place))
            terms.append(
                objectives.cwd(
                    align(student),
                    teacher,
                    temperature=self.temperature,
                    weight=step.batch.weight,
                )
            )
        return torch.stack(terms).sum()
