"""The teacher's side of self-supervised knowledge distillation."""

from __future__ import annotations

import torch
from torch import nn

from understudy import objectives
from understudy.data.batch import Batch
from understudy.methods._rotations import by_image, check_square, rotated
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import TapShape, Wiring


class SSKDHead(Method, name="sskd_head"):
    """Train a head on the teacher's embedding to tell which upright image a turned one came from.

    Paper: Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020, the teacher's self-supervised task.
    Equation: mean over images i and their three turns v of -log softmax_j(cos(e_iv, e_j0))_i in nats, where e_iv is
    what the head makes of the teacher's embedding of image i turned by v quarters and j runs over the upright images
    of the batch.
    Labels: not used.
    Deviation: an image is cropped once and then turned; the authors turn it first and crop each turn by itself.
    Use: in a stage of its own before the one with `sskd`; neither the teacher nor the student changes. The authors
    train it for 60 epochs on CIFAR-100 at rate 0.05, a tenth of it after 30 and again after 45.
    Weight: 1, alone.
    Cost: two linear maps of teacher width x teacher width, in training only; four teacher passes over every batch.
    Fails when: images are not square (refused), look the same whichever way they are turned, or come one by one: the
    candidates are the part of a batch that one process holds at a time, and have to be 2 at least.

    Args:
        teacher_tap: module path of the teacher's embedding, or "auto" for what goes into its classifier. Maps are
            averaged over their places.
    """

    family = "self-supervision"
    reads_logits = False
    reads_student_logits = False
    trains_student = False

    def __init__(self, teacher_tap: str = "auto") -> None:
        """Keep the configuration."""
        super().__init__()
        self.teacher_tap = teacher_tap

    def wire(self, wiring: Wiring) -> None:
        """Resolve the tap and size the head."""
        side = wiring.teacher
        check_square(side.inputs, role=side.role, method=self.name)
        tap = side.tap(side.embedding if self.teacher_tap == "auto" else self.teacher_tap)
        self.place, self.role = tap.name, side.role
        self.head = embedding_head(tap)

    def inputs(self, batch: Batch) -> Batch:
        """Add every image's rotations."""
        return rotated(batch, method=self.name)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the images and their turns."""
        feature = step.pooled(step.teacher.features[self.place], self.role)
        weight = step.batch.weight
        return objectives.sskd_auxiliary(
            by_image(self.head(feature)), weight=None if weight is None else by_image(weight)[:, 0]
        )


def embedding_head(tap: TapShape) -> nn.Sequential:
    """Return the paper's head for a tap's pooled feature: two linear maps of its width with a ReLU between."""
    width = tap.shape[0] if len(tap.shape) == 3 else tap.shape[-1]
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
