"""The first half of knowledge adaptation: a code of the teacher's features."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from understudy import objectives
from understudy.methods.ft_paraphraser import FTParaphraser
from understudy.methods.step import Step


class KTAADTranslator(FTParaphraser, name="ktaad_translator"):
    """Learn a narrow code of the teacher's last map, which `ktaad` has the student follow.

    Paper: He et al., "Knowledge Adaptation for Efficient Semantic Segmentation", CVPR 2019, section 3.1.
    Equation: mean over samples and elements of (D(E(F_t)) - F_t)^2 + penalty times the mean over samples of
    |E(F_t)|_1. E is three 3x3 convolutions to `rate` times the channels, D three transposed ones back, each followed by
    batch norm and a leaky ReLU of slope 0.1.
    Labels: not used.
    Use: in a stage of its own, which leaves the student as it is; a later stage has `ktaad`.
    Deviation: the layers, at stride 1, are torchdistill's, and the penalty is a mean over samples, not of the batch.
    Weight: 1; torchdistill trains one epoch at rate 0.1.
    Cost: about 18 (1 + k + k^2) C^2 parameters for k the rate, in training only.
    Fails when: the learning rate is one for fine-tuning, with which an epoch is too short.

    Args:
        teacher_tap: module path in the teacher, or "auto" for the partner of the student's last stage.
        rate: channels of the code over those of the teacher; torchdistill's 0.5.
        penalty: factor on the code's absolute values; torchdistill's.
    """

    def __init__(self, teacher_tap: str = "auto", rate: float = 0.5, penalty: float = 1e-7) -> None:
        """Keep the configuration."""
        super().__init__(teacher_tap, rate, batch_norm=True)
        if not penalty >= 0:
            raise ValueError(f"penalty is {penalty}; it must not be negative")
        self.penalty = penalty

    def loss(self, step: Step) -> Mapping[str, torch.Tensor]:  # type: ignore[override]
        """Return the means over the samples, of the error and of the penalty."""
        features, weight = step.teacher.features[self.place], step.batch.weight
        code = self.encoder(features)
        return {
            "error": objectives.mse(self.decoder(code), features, weight=weight),
            "penalty": self.penalty * objectives.norm_penalty(code, weight=weight),
        }
