"""Masked generative distillation: the teacher's map from a part of the student's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from understudy import objectives, seeding
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring
from understudy.models.projectors import align_widths, to_smaller


class MGD(Method, name="mgd"):
    """Generate the teacher's whole map from the student's with a part of it masked.

    Paper: Yang et al., "Masked Generative Distillation", ECCV 2022.
    Equation: sum over pairs of maps, mean over samples of |G(mask * A(F_s)) - F_t|^2, summed over elements; G is a 3x3
    convolution, a ReLU and a 3x3 convolution, A a 1x1 convolution where widths differ.
    Labels: not used.
    Official: the paper masks places (`mask: places`), and so does the authors' code for detection and segmentation;
    their code for classification masks channels (`mask: channels`).
    Weight: 7e-5 for classification, 2e-5 for detection and segmentation (the authors' code).
    Cost: 18 C^2 parameters for C channels of the teacher, and C_s C where widths differ, in training only.
    Fails when: the generation block is strong enough to make up for a student that knows little; a larger ratio helps.

    Args:
        student_taps: module paths in the student, or "auto" for the last stage, as published for classification.
        teacher_taps: as many paths in the teacher, or "auto" for the stages that correspond.
        ratio: share that is masked, in [0, 1); 0.15 is the authors' for classification, 0.65 for detection, 0.75 for
            segmentation.
        mask: what is masked, "channels" or "places"; see above.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        ratio: float = 0.15,
        mask: Literal["channels", "places"] = "channels",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio is {ratio}; it must be in [0, 1)")
        if mask not in ("channels", "places"):
            raise ValueError(f"mask is '{mask}'; it must be 'channels' or 'places'")
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        self.ratio, self.mask = ratio, mask

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and size the generation blocks."""
        pairs = wiring.maps(self.student_taps, self.teacher_taps, method=self.name, last=1)
        self.places = [(student.name, teacher.name) for student, teacher in pairs]
        self.align = nn.ModuleList(
            align_widths(student.shape[0], teacher.shape[0]) for student, teacher in pairs
        )
        self.generation = nn.ModuleList(_block(teacher.shape[0]) for _, teacher in pairs)
        self.draws = wiring.seed

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over the pairs of the mean over the samples."""
        terms = []
        for number, place in enumerate(self.places):
            student, teacher = to_smaller(*step.features(*place))
            student = self.align[number](student)
            kept = self.kept(step, student.shape, number)
            generated = self.generation[number](student * kept)
            terms.append(objectives.mgd(generated, teacher, weight=step.batch.weight))
        return torch.stack(terms).sum()

    def kept(self, step: Step, shape: torch.Size, number: int) -> torch.Tensor:
        """Return which channels [B, C, 1, 1] or places [B, 1, H, W] of a map are not masked.

        Args:
            step: the step. Its progress stands for its number: it is checkpointed, and one for all parts of a batch.
            shape: [B, C, H, W].
            number: which pair of taps.
        """
        _, channels, height, width = shape
        inner = (channels, 1, 1) if self.mask == "channels" else (1, height, width)
        drawn = seeding.uniform_on_device(
            self.draws,
            step.batch.index,
            step.batch.view,
            f"mask {number} at {step.progress.hex()}",
            channels if self.mask == "channels" else height * width,
        )
        return (drawn >= self.ratio).reshape(-1, *inner)


def _block(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
    )
