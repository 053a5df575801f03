"""Prime-aware distillation: the student says how far it trusts itself."""

from __future__ import annotations

import torch
from torch import nn

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring


class PAD(Method, name="pad"):
    """Regress the teacher's embedding, with less weight where the student expects a large error.

    Paper: Zhang et al., "Prime-Aware Adaptive Distillation", ECCV 2020 (its PAD-L2).
    Equation: mean over samples and elements of (F_t - F_s)^2 / (e^v + eps) + v, where a branch of the student, a
    linear map and batch norm on its embedding, gives v, the logarithm of a variance.
    Labels: not used.
    Use: in a second stage, after one with `adaptive: false`, which is plain regression: variances that are learnt
    from the first step are as arbitrary as the embeddings. With both stages, the projector goes on.
    Deviation: where the widths differ, the student's embedding goes through a linear map (torchdistill, where the
    other details are from, has none and wants equal widths).
    Weight: 1 for this and 15 for the plain regression, with `supervised` at 1 (torchdistill's for ImageNet).
    Cost: a linear map of student width x teacher width, or two, in training only.
    Fails when: few samples share a batch, which batch norm needs; a batch of one is refused. From the start of
    training: see Use.

    Args:
        adaptive: whether variances are learnt; without them every element counts the same.
        student_tap: module path in the student, or "auto" for what goes into its classifier. Maps are pooled.
        teacher_tap: the same in the teacher.
        eps: floor of the variance, torchdistill's; it bounds what confidence in a perfect match can gain.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        adaptive: bool = True,
        student_tap: str = "auto",
        teacher_tap: str = "auto",
        eps: float = 1e-6,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not eps > 0:
            raise ValueError(f"eps is {eps}; it must be greater than 0")
        self.adaptive = adaptive
        self.student_tap = student_tap
        self.teacher_tap = teacher_tap
        self.eps = eps

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and size the branch, and the projector where one is needed."""
        student, teacher = wiring.embeddings(self.student_tap, self.teacher_tap)
        self.places = (student.name, teacher.name)
        self.teacher_role = wiring.teacher.role
        self.projector: nn.Module = nn.Identity()
        if student.width != teacher.width:
            self.projector = nn.Linear(student.width, teacher.width)
            wiring.notes.append(f"projector {student.width} -> {teacher.width}")
            if self.name in wiring.earlier:
                wiring.take_over(self.projector, method=self.name, attribute="projector")
                self.projector.requires_grad_(True)
        if self.adaptive:
            # No running statistics: the branch is never evaluated, and there is nothing to synchronise.
            norm = nn.BatchNorm1d(teacher.width, track_running_stats=False)
            self.log_variance = nn.Sequential(nn.Linear(student.width, teacher.width), norm)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the samples."""
        ours, theirs = step.features(*self.places)
        ours, theirs = step.pooled(ours), step.pooled(theirs, self.teacher_role)
        projected = self.projector(ours)
        if not self.adaptive:
            return objectives.mse(projected, theirs, weight=step.batch.weight)
        if len(ours) < 2:
            raise UnderstudyError(
                "Method 'pad' normalises variances over the batch, and this part of a batch has one sample. "
                "Use larger batches, or accumulate over fewer parts."
            )
        return objectives.pad(
            projected,
            theirs,
            log_variance=self.log_variance(ours),
            eps=self.eps,
            weight=step.batch.weight,
        )
