"""A projector, a normalisation and a soft maximum: simple recipe distillation."""

from __future__ import annotations

import torch
from torch import nn

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.objectives.norms import check_power


class SRD(Method, name="srd"):
    """Match batch-normalised embeddings under the logarithm of their summed differences.

    Paper: Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024.
    Equation: 2 log(sum over samples and elements of |N(P F_s) - N(F_t)|^a), with a linear map P and batch norm N
    without scale and shift. The factor 2 is the authors' code's.
    Labels: not used.
    Use: the authors add `kd` at temperature 1 and `supervised`, each at weight 1.
    Weight: 1. The logarithm makes the gradient independent of the size of batch and embedding.
    Cost: a linear map of student width x teacher width, in training only.
    Fails when: few samples share a batch, which batch norm and the sum need: parts of a batch are normalised each for
    itself, and a batch of one is refused.

    Args:
        exponent: a; the authors' 4 looks mainly at the largest differences, which they found to help where student and
            teacher differ much in size.
        student_tap: module path in the student, or "auto" for what goes into its classifier. Maps are pooled.
        teacher_tap: the same in the teacher.
    """

    family = "feature"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self, exponent: float = 4.0, student_tap: str = "auto", teacher_tap: str = "auto"
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        check_power(exponent)
        self.exponent = exponent
        self.student_tap = student_tap
        self.teacher_tap = teacher_tap

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and size the projector and the normalisations."""
        student, teacher = wiring.embeddings(self.student_tap, self.teacher_tap)
        self.places = (student.name, teacher.name)
        self.teacher_role = wiring.teacher.role
        self.projector = nn.Linear(student.width, teacher.width)
        wiring.notes.append(f"projector {student.width} -> {teacher.width}")
        self.student_norm = _norm(teacher.width)
        self.teacher_norm = _norm(teacher.width)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the logarithm of the batch's sum."""
        ours, theirs = step.features(*self.places)
        if len(ours) < 2:
            raise UnderstudyError(
                "Method 'srd' normalises embeddings over the batch, and this part of a batch has one sample. "
                "Use larger batches, or accumulate over fewer parts."
            )
        ours, theirs = step.pooled(ours), step.pooled(theirs, self.teacher_role)
        return objectives.srd(
            self.student_norm(self.projector(ours)),
            self.teacher_norm(theirs),
            exponent=self.exponent,
            weight=step.batch.weight,
        )


def _norm(width: int) -> nn.BatchNorm1d:
    # The eps is the authors'. Running statistics would never be read.
    return nn.BatchNorm1d(width, eps=1e-4, affine=False, track_running_stats=False)
