"""The second half of knowledge adaptation: the student follows the code of the teacher's features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import nn

from understudy import objectives
from understudy.methods.ft_paraphraser import checked_rate, encoder, factor_width
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.models.projectors import to_smaller


class KTAAD(Method, name="ktaad"):
    """Match a learnt code of the teacher's last map, and the affinities between its places.

    Paper: He et al., "Knowledge Adaptation for Efficient Semantic Segmentation", CVPR 2019, sections 3.1 and 3.2.
    Equation: adaptation * mean over elements of |a / |a|_2 - e / |e|_2| + affinity * |A_b - A_e|_F / (H W), means over
    samples. e = E(F_t) is the code that `ktaad_translator` has learnt; a and b are 3x3 convolutions of F_s, a with
    batch norm and ReLU; A holds the cosines between all pairs of places.
    Labels: not used.
    Use: after a stage with `ktaad_translator` on the same tap and with the same rate. It was published for
    segmentation, where the student's map is coarser than the teacher's; for classification there are no published
    numbers, and it is one more comparison of last maps.
    Deviation: maps of different sizes are averaged down to the smaller one.
    Official: `official` takes affinities channel by channel, as torchdistill does.
    Weight: 1 beside `supervised` at 1; torchdistill's factors 50 and 1 are inside.
    Cost: two 3x3 convolutions of student width x code width, the teacher's encoder, and the affinities of (H W)^2
    pairs of places, in training only.
    Fails when: the last maps have few places, whose affinities say little; or the code was trained too little, or on
    another tap.

    Args:
        student_tap: module path in the student, or "auto" for its last stage.
        teacher_tap: module path in the teacher, or "auto" for the stage that corresponds; the translator's.
        rate: channels of the code over those of the teacher; the translator's.
        adaptation: factor on the distance of codes; torchdistill's.
        affinity: factor on the distance of affinities; torchdistill's.
        official: see above.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False
    follows = ("ktaad_translator",)

    def __init__(
        self,
        student_tap: str = "auto",
        teacher_tap: str = "auto",
        rate: float = 0.5,
        adaptation: float = 50.0,
        affinity: float = 1.0,
        official: bool = False,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        for name, value in (("adaptation", adaptation), ("affinity", affinity)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must not be negative")
        self.student_tap, self.teacher_tap, self.rate = student_tap, teacher_tap, checked_rate(rate)
        self.adaptation, self.affinity, self.official = adaptation, affinity, official

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps, take the teacher's encoder over and size the adapters."""
        ((student, teacher),) = wiring.maps(
            "auto" if self.student_tap == "auto" else [self.student_tap],
            "auto" if self.teacher_tap == "auto" else [self.teacher_tap],
            method=self.name,
            last=1,
        )
        self.places = (student.name, teacher.name)
        code = factor_width(teacher.width, self.rate)
        self.encoder = encoder(teacher.width, code, batch_norm=True)
        wiring.take_over(self.encoder, method="ktaad_translator", attribute="encoder")
        self.encoder.eval()
        self.feature_adapter = nn.Sequential(
            nn.Conv2d(student.width, code, 3, padding=1),
            # The adapter is never evaluated, so that running statistics would only have to be synchronised.
            nn.BatchNorm2d(code, track_running_stats=False),
            nn.ReLU(),
        )
        self.affinity_adapter = nn.Conv2d(student.width, code, 3, padding=1)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the adapters; the teacher's encoder keeps its statistics."""
        super().train(mode)
        if hasattr(self, "encoder"):
            self.encoder.eval()
        return self

    def loss(self, step: Step) -> Mapping[str, torch.Tensor]:
        """Return the means over the samples, of both distances."""
        student, teacher = step.features(*self.places)
        with torch.no_grad():
            code = self.encoder(teacher)
        student, code = to_smaller(student, code)
        weight = step.batch.weight
        adapted = objectives.knowledge_translation(
            self.feature_adapter(student), code, weight=weight
        )
        related = objectives.affinity(
            self.affinity_adapter(student), code, official=self.official, weight=weight
        )
        return {"adaptation": self.adaptation * adapted, "affinity": self.affinity * related}
