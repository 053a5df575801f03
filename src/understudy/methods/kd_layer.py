"""The KD layer with visual words: letKD-1."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods._layers import Point, count_places, place_layer
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, TapShape, Wiring
from understudy.teachers.study import Study
from understudy.teachers.vocabulary import ROWS_PER_CENTRE, visual_words


class VisualWordLayer(Method, name="kd_layer"):
    """Splice a layer of templates into the student, and have it tell the visual words that the teacher sees.

    Paper: Gorgun, Gurbuz and Alatan, "Knowledge Distillation Layer that Lets the Student Decide", BMVC 2023 (letKD-1).
    Equation: x + alpha * V(ReLU(BN(a))) goes on in place of the map x, with a = s_1 cos(x, templates) and
    V = s_2 cos(., vectors) at every place; mean over samples and places of KL(p || softmax(a)) in nats,
    p = softmax_k(-sharpness * |t - rho_k|^2), t the teacher's feature at the place and rho its k-means centres over
    the training samples without transforms.
    Labels: not used; without `supervise` a stage draws as if it had the other methods only.
    Use: `kd_layer_subclass` in the same stage makes it letKD-2.
    Deviation: a zero vector gets no gradient from a cosine (1e12 in the authors' code); a teacher's map of any larger
    size is averaged to the student's, in their code one of twice the size.
    Weight: 1, beside `supervised` at 1 (paper, all settings).
    Cost: 2 K D + 2 K + 2 parameters and 2 K D multiplications at every place, which stay in the student and are
    exported: with the paper's 4096 templates more than kd:resnet20 has. In training also K D_t multiplications and
    K numbers at every place.
    Fails when: training is short: in 150 steps the words teach less than the labels would. Where the teacher's features
    have a large norm every p is one-hot at sharpness 1; the fit notes the mean largest probability. The batch norm
    sees padding tokens in training.

    Args:
        student_taps: module paths in the student that get a layer each, or "auto" for its last stage, as published.
        teacher_taps: as many in the teacher, or "auto" for the stages that correspond.
        templates: K, 4096 in the paper; fewer where there are less than 39 places of the training set for each.
        alpha: factor of what is added: 1 in the paper, for pairs of different families 0.1 to 0.5. At 0 nothing is,
            which is QuEST (Jain et al., ECCV 2020).
        sharpness: tau, which multiplies the squared distances; 1 in the paper.
        supervise: whether the words are taught; without, the layer is capacity and the loss is 0.
    """

    family = "structure"
    reads_logits = False

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        templates: int = 4096,
        alpha: float = 1.0,
        sharpness: float = 1.0,
        supervise: bool = True,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if templates < 1:
            raise ValueError(f"templates is {templates}; it must be at least 1")
        if not sharpness > 0:
            raise ValueError(f"sharpness is {sharpness}; it must be greater than 0")
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        self.templates, self.alpha, self.sharpness = templates, alpha, sharpness
        self.supervise = self.needs_teacher = supervise
        self.reads_student_logits = not supervise
        # Without words no sample is of use to it, so those without a label are for the others to ask for.
        self.needs_labels = not supervise

    @property
    def fits(self) -> bool:
        """Whether there are words to be found."""
        return self.supervise

    def wire(self, wiring: Wiring) -> None:
        """Put the layers in."""
        places: list[tuple[TapShape, TapShape | None]]
        if self.supervise:
            places = [*wiring.pairs(self.student_taps, self.teacher_taps, last=1)]
        else:
            places = [(wiring.student.tap(name), None) for name in self._alone(wiring)]
        self.points: list[Point] = []
        for number, (student, teacher) in enumerate(places):
            count = self._count(wiring, count_places(student.shape))
            point = place_layer(wiring, student.name, teacher, templates=count, alpha=self.alpha)
            self.points.append(point)
            if self.supervise:
                self.register_buffer(f"words_{number}", torch.zeros(count, point.width))

    def fit(self, study: Study) -> None:
        """Find the visual words of each point."""
        for number, point in enumerate(self.points):
            words = self.get_buffer(f"words_{number}")
            words.copy_(
                visual_words(
                    study,
                    point.reading,
                    len(words),
                    sharpness=self.sharpness,
                    sequence=point.sequence,
                )
            )

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over the points of the mean over samples and places."""
        if not self.supervise:
            assert step.student.logits is not None
            return step.student.logits.sum() * 0.0
        terms = []
        for number, point in enumerate(self.points):
            scores, features = step.features(point.scores, point.teacher)
            terms.append(
                objectives.visual_words(
                    scores,
                    point.places(features),
                    centres=self.get_buffer(f"words_{number}"),
                    sharpness=self.sharpness,
                    weight=step.weight_of(scores),
                )
            )
        return torch.stack(terms).sum()

    def _alone(self, wiring: Wiring) -> list[str]:
        """Return the student's taps without a teacher to pair them with."""
        if self.student_taps != "auto":
            return list(self.student_taps)
        stages = wiring.student.description.stages
        if not stages:
            raise UnderstudyError("The student has no stages that were found; name student_taps.")
        return [stages[-1].tap]

    def _count(self, wiring: Wiring, places: int) -> int:
        """Return how many templates the training set can tell apart."""
        if wiring.train is None:
            return self.templates
        rows = len(wiring.train) * places
        count = min(self.templates, max(1, rows // ROWS_PER_CENTRE))
        if count < self.templates:
            wiring.notes.append(
                f"{self.name}: {count} templates instead of {self.templates}: {len(wiring.train)} samples have {rows} "
                f"places, and a visual word stands for {ROWS_PER_CENTRE} at least"
            )
        return count
