"""MI-alpha: a bound on the mutual information of student and teacher."""

from __future__ import annotations

import torch
from torch import nn

from understudy import objectives
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring


class MIAlpha(Method, name="mi_alpha"):
    """Raise a lower bound on the mutual information between the student's and the teacher's features.

    Paper: He et al., "Distiller: A Systematic Study of Model Distillation Methods in NLP", 2021 (MI-alpha), after Poole
    et al., "On Variational Bounds of Mutual Information", ICML 2019, equation 9.
    Equation: minus I_alpha = 1 + mean(F_ii - u_ij) - mean(exp(F_ij - u_ii)) over i != j, F_ij = g(s_i).h(t_j) the
    critic's scores within the batch, u_ij = log(alpha mean_{k != j} exp F_ik + (1 - alpha) exp b(t_i)); summed over
    pairs of taps.
    Labels: not used.
    Use: beside `kd` or `supervised`, never alone. The student only has to contain the teacher's information, in
    whatever form, so nothing here teaches its classifier: without a prediction loss its answers are lost.
    Weight: 1 in the paper (GLUE); has to be tuned. On small images 0.1 did no harm, and 1 cost accuracy.
    Deviation: a critic for each pair of taps instead of one for all, since widths differ; multilayer perceptrons on
    averaged features (the paper's for single layers), not the authors' Transformer, whose code contrasts positions.
    Cost: for each pair three perceptrons, about hidden x (student + 2 teacher + 4 hidden) weights, in training only.
    Fails when: alpha is 0 and scores are large (exp overflows), or the batch is small: at alpha 1 the bound cannot pass
    log(B - 1). A batch of one sample is refused.

    Args:
        student_taps: module paths in the student, or "auto" for the deepest stage at each resolution (every block of a
            model without maps). A map is averaged over its places, a sequence over its tokens.
        teacher_taps: as many in the teacher, or "auto" for the stages that correspond.
        alpha: 1 is InfoNCE (low variance), 0 the bound with the learnt baseline alone (low bias); the paper's 0.9.
        hidden: width of the perceptrons; the authors' 512.
        dimensions: width of the critic's embeddings; the authors' 64.
    """

    family = "information"
    reads_logits = False
    reads_student_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        alpha: float = 0.9,
        hidden: int = 512,
        dimensions: int = 64,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must be in [0, 1]")
        for name, value in (("hidden", hidden), ("dimensions", dimensions)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        self.alpha, self.hidden, self.dimensions = alpha, hidden, dimensions

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and size the critics and baselines."""
        pairs = wiring.pairs(self.student_taps, self.teacher_taps)
        self.places = [(student.name, teacher.name) for student, teacher in pairs]
        self.role = wiring.teacher.role
        self.student_critics = nn.ModuleList(
            self._perceptron(student.width, self.dimensions) for student, _ in pairs
        )
        self.teacher_critics = nn.ModuleList(
            self._perceptron(teacher.width, self.dimensions) for _, teacher in pairs
        )
        self.baselines = nn.ModuleList(
            self._perceptron(teacher.width, 1) for _, teacher in (pairs if self.alpha < 1 else [])
        )

    def loss(self, step: Step) -> torch.Tensor:
        """Return minus the sum of the bounds, in nats."""
        terms = []
        for number, place in enumerate(self.places):
            student, teacher = step.features(*place)
            student, teacher = step.pooled(student), step.pooled(teacher, self.role)
            # Scores go through an exponential: bfloat16 would not do.
            with torch.autocast(student.device.type, enabled=False):
                student, teacher = student.float(), teacher.detach().float()
                ours = self.student_critics[number](student)
                scores = ours @ self.teacher_critics[number](teacher).mT
                baseline = scores.new_zeros(len(scores))
                if self.alpha < 1:
                    baseline = self.baselines[number](teacher).squeeze(1)
            terms.append(
                objectives.mi_alpha(scores, baseline, alpha=self.alpha, weight=step.batch.weight)
            )
        return torch.stack(terms).sum()

    def _perceptron(self, inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, outputs),
        )
