"""Knowledge review: shallow stages of the teacher are learnt by deep ones of the student too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring


class AttentionFusion(nn.Module):
    """Fuses a stage's map with what came from the deeper stages, gated position by position.

    Args:
        inputs: channels of the stage's map.
        width: channels of fused maps.
        outputs: channels of the teacher's map.
        gated: whether there is a deeper map to fuse with; false for the deepest stage.
    """

    def __init__(self, inputs: int, width: int, outputs: int, *, gated: bool) -> None:
        """Make the layers, initialised as the authors do."""
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), _norm(width))
        self.expand = nn.Sequential(
            nn.Conv2d(width, outputs, 3, padding=1, bias=False), _norm(outputs)
        )
        self.gate = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if gated else None
        for layer in (*self.reduce, *self.expand):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(
        self, feature: torch.Tensor, deeper: torch.Tensor | None, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the map to compare [B, outputs, *size] and the fused one [B, width, *size] for the next stage.

        Args:
            feature: [B, inputs, H, W].
            deeper: the fused map of the stage below [B, width, h, w]; None for the deepest.
            size: height and width of the teacher's map.
        """
        fused = self.reduce(feature)
        if self.gate is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            gate = self.gate(torch.cat([fused, deeper], dim=1))
            fused = fused * gate[:, :1] + deeper * gate[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.expand(fused), fused


class Review(Method, name="review"):
    """Compare the teacher's stages with student stages into which all deeper ones were fused.

    Paper: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3.
    Equation: sum over stages of the hierarchical context loss (`objectives.review`) of the teacher's map and the
    fused student map. From deep to shallow, a stage's map (1x1 convolution) and the nearest-upsampled fused map of
    the stage below are added with two gates, a sigmoid of a 1x1 convolution of both; a 3x3 convolution then gives
    the teacher's width. The deepest stage is the pooled embedding.
    Labels: not used.
    Deviation: stages pair by resolution. For students of another build (ShuffleNet, MobileNet) the authors pair
    them by number from the last and stretch maps to the teacher's size; name the taps for that.
    Weight: for CIFAR-100 0.6 (resnet56 -> resnet20), 1 (resnet110 -> resnet32), 5 (resnet32x4 -> resnet8x4, WRN,
    ShuffleNetV1) or 8 (ShuffleNetV2), rising from 0 over the first 20 of 240 epochs, with `supervised` at 1.
    Cost: a 1x1 and a 3x3 convolution per stage, which may be more than the student itself, in training only.
    Fails when: models have no maps. A weight from one pair of models may be far too large for another.

    Args:
        student_taps: module paths in the student from shallow to deep, or "auto" for the last module at each
            resolution.
        teacher_taps: as many in the teacher, or "auto" for the stages that correspond.
        before_activation: take the teacher's maps before the activations that end its stages, as the authors do.
        max_width: most channels of fused maps; they have as many as the student's embedding up to the authors' 512.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        before_activation: bool = True,
        max_width: int = 512,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if max_width < 1:
            raise ValueError(f"max_width is {max_width}; it must be at least 1")
        self.student_taps = student_taps
        self.teacher_taps = teacher_taps
        self.before_activation = before_activation
        self.max_width = max_width

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and size one fusion per stage, the deepest first."""
        pairs = wiring.maps(self.student_taps, self.teacher_taps, method=self.name)
        if self.before_activation:
            before = wiring.teacher.description.before_activation
            pairs = [(ours, wiring.teacher.tap(before(theirs.name))) for ours, theirs in pairs]
            wiring.notes.append(f"teacher taps {', '.join(theirs.name for _, theirs in pairs)}")
        embedding = wiring.embeddings()
        self.teacher_role = wiring.teacher.role
        self.embedding = (embedding[0].name, embedding[1].name)
        self.places = [(ours.name, theirs.name) for ours, theirs in reversed(pairs)]
        width = min(self.max_width, embedding[0].width)
        self.fusions = nn.ModuleList(
            AttentionFusion(ours.width, width, theirs.width, gated=number > 0)
            for number, (ours, theirs) in enumerate([embedding, *reversed(pairs)])
        )

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over stages of the means over the samples."""
        ours, theirs = step.features(*self.embedding)
        pairs = [
            (
                step.pooled(ours)[:, :, None, None],
                step.pooled(theirs, self.teacher_role)[:, :, None, None],
            )
        ]
        pairs += [step.features(*places) for places in self.places]
        fused: torch.Tensor | None = None
        terms = []
        for fusion, (feature, target) in zip(self.fusions, pairs, strict=True):
            output, fused = fusion(feature, fused, target.shape[2:])
            terms.append(objectives.review(output, target, weight=step.batch.weight))
        return torch.stack(terms).sum()


def _norm(channels: int) -> nn.BatchNorm2d:
    # Fusions are never evaluated, so that running statistics would only have to be synchronised.
    return nn.BatchNorm2d(channels, track_running_stats=False)
