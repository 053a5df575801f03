"""Self-distillation from labels that the student itself makes soft."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.objectives.shapes import check_choice


class USKD(Method, name="uskd"):
    """Learn soft labels made from the student's own confidence and a weak head's ranking of classes.

    Paper: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels", ICCV 2023.
    Equation: alpha * target + beta * others + mu * weak, in nats (see `objectives.uskd`): the label's probability
    towards its own square, smoothed over the batch; the other classes, normalised, towards 1 / rank; and the
    smoothed label for a linear head on an earlier stage, which is ranked by too.
    Labels: needed, hard or mixed from two.
    Official: `rank: official` ranks by logarithms of probabilities as the code does that made the published numbers,
    `rank: softmax` by probabilities as the paper says.
    Weight: 1 with `supervised` at 1; no teacher. For ImageNet alpha, beta and mu are 1, 0.1 and 0.005.
    Cost: a linear map of a stage's width x classes, in training only.
    Fails when: the batch is small, whose mean smooths the target; the published gain on CIFAR-100 is said to vary
    from run to run.

    Args:
        alpha: weight of the label's part; the authors' 0.1 for CIFAR-100, as for the other two.
        beta: weight of the other classes.
        mu: weight of the weak head.
        student_tap: where the weak head reads, pooled, or "auto" for the last stage but one; of a transformer the
            block at three quarters of its depth.
        rank: by what classes are ranked.
    """

    needs_labels = True
    needs_teacher = False

    needs_classes = True

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 0.1,
        mu: float = 0.1,
        student_tap: str = "auto",
        rank: Literal["official", "softmax"] = "official",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta), ("mu", mu)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must not be negative")
        check_choice(rank, ("official", "softmax"), "rank")
        self.alpha = alpha
        self.beta = beta
        self.mu = mu
        self.student_tap = student_tap
        self.rank: Literal["official", "softmax"] = rank

    def wire(self, wiring: Wiring) -> None:
        """Resolve the tap and size the weak head."""
        if wiring.classes < 2:
            raise UnderstudyError("Method 'uskd' ranks classes, and there is one only.")
        tap = self.student_tap
        if tap == "auto":
            stages = wiring.student.description.main_stages
            if len(stages) < 2:
                raise UnderstudyError(
                    f"Method 'uskd' reads the last stage but one, and the student has {len(stages)} stage(s) that "
                    "were found. Name the student_tap."
                )
            before = len(stages) - 1 if stages[0].stride is not None else round(0.75 * len(stages))
            tap = stages[max(1, before) - 1].tap
            wiring.notes.append(f"weak head on student '{tap}'")
        place = wiring.student.tap(tap)
        self.place = place.name
        self.weak = nn.Linear(place.width, wiring.classes)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the labelled samples."""
        student = step.student
        if step.labels is None or student.logits is None:
            raise UnderstudyError(
                "Method 'uskd' needs logits and labels, and this batch lacks one."
            )
        return objectives.uskd(
            student.logits,
            self.weak(step.pooled(student.features[self.place])),
            step.labels,
            alpha=self.alpha,
            beta=self.beta,
            mu=self.mu,
            rank=self.rank,
            weight=step.batch.weight,
        )
