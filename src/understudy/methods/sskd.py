"""Self-supervised knowledge distillation."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.data.batch import UNLABELLED, Batch
from understudy.errors import UnderstudyError
from understudy.methods._rotations import by_image, check_square, rotated
from understudy.methods.method import Method
from understudy.methods.sskd_head import SSKDHead, embedding_head
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring


class SSKD(Method, name="sskd"):
    """Match the teacher on upright and turned images, and on how it finds the upright image of a turned one.

    Paper: Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020, L_kd, L_T and L_ss.
    Equation: upright * `kd` on upright images + transformed * `kd` on images turned by 90, 180 and 270 degrees +
    similarity * T_ss^2 * KL(softmax_j(cos(e_iv, e_j0) / T_ss)), teacher's against student's, in nats. e_iv is what a
    head makes of the embedding of image i turned by v quarters, and j runs over the upright images of the batch. The
    last two are means over the turned images on which the teacher is right (about the label, about the image) and
    the best ranked share of the others. The teacher's head was trained by `sskd_head`, the student's trains along.
    Labels: used where there are any, to rank turned images when `transformed_ratio` is below 1; those of an unlabelled
    image do not count then. Of soft (mixed) labels the largest share is the truth.
    Deviation: an image is cropped once and then turned; the authors turn it first and crop each turn by itself. Between
    turned images of equal rank the teacher's probability of the truth decides.
    Official: the authors' code lets the position in the batch decide between equal ranks.
    Use: after a stage with `sskd_head` in the same arm. Every model and every other method of the stage sees four rows
    for each image: itself, and its turns without a label. So `supervised` learns from upright images only, as in the
    paper, while `kd` beside it averages over all four rows: `kd` at weight 3.6 is what `upright` and `transformed` are
    together by default. Batch statistics are over all rows. Methods that keep something per sample id (`crd`) would
    mix an image with its turns; do not combine them.
    Weight: 1 beside `supervised` at 0.1 (authors' code; the published papers have other weights: 0.9, 5 and 3 in ECCV's
    supplement, 0.9, 10 and 2.7 on arXiv, in the order of the keywords).
    Cost: four passes of teacher and student over every image; a head of two linear maps of the width for each model, in
    training only.
    Fails when: images are not square (refused), or turning them changes what they are (a 6 is a 9); lower `transformed`
    then. The candidates are the part of a batch that one process holds at a time, and have to be 2 at least.

    Args:
        upright: weight of the first term.
        transformed: weight of the second term.
        similarity: weight of the third term.
        temperature: T of the first two terms.
        similarity_temperature: T_ss.
        transformed_ratio: share that is kept of the turned images that the teacher misclassifies.
        similarity_ratio: share that is kept of those whose upright image the teacher does not find first.
        official: True for the authors' choice between equal ranks.
        student_tap: module path of the student's embedding, or "auto" for what goes into its classifier. Maps are
            averaged over their places.
        teacher_tap: module path of the teacher's embedding, as given to `sskd_head`.
    """

    family = "self-supervision"
    follows = ("sskd_head",)

    def __init__(
        self,
        upright: float = 0.9,
        transformed: float = 2.7,
        similarity: float = 10.0,
        temperature: float = 4.0,
        similarity_temperature: float = 0.5,
        transformed_ratio: float = 1.0,
        similarity_ratio: float = 0.75,
        official: bool = False,
        student_tap: str = "auto",
        teacher_tap: str = "auto",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        weights = {"upright": upright, "transformed": transformed, "similarity": similarity}
        for name, value in weights.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more")
        temperatures = {
            "temperature": temperature,
            "similarity_temperature": similarity_temperature,
        }
        for name, value in temperatures.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        ratios = {"transformed_ratio": transformed_ratio, "similarity_ratio": similarity_ratio}
        for name, value in ratios.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be in [0, 1]")
        self.upright, self.transformed, self.similarity = upright, transformed, similarity
        self.temperature, self.similarity_temperature = temperature, similarity_temperature
        self.transformed_ratio, self.similarity_ratio = transformed_ratio, similarity_ratio
        self.official, self.student_tap, self.teacher_tap = official, student_tap, teacher_tap

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps, size the student's head and take over the teacher's."""
        for side in (wiring.student, wiring.teacher):
            check_square(side.inputs, role=side.role, method=self.name)
        if self._ranks and wiring.train is not None and not len(wiring.train.labelled):
            raise UnderstudyError(
                f"Method '{self.name}' ranks turned images by their label when transformed_ratio is below 1 (it is "
                f"{self.transformed_ratio}), and no training sample has one. Leave it at 1."
            )
        student, teacher = wiring.embeddings(self.student_tap, self.teacher_tap)
        self.places, self.role = (student.name, teacher.name), wiring.teacher.role
        self.student_head, self.teacher_head = embedding_head(student), embedding_head(teacher)
        wiring.take_over(self.teacher_head, method=SSKDHead.name, attribute="head")

    def inputs(self, batch: Batch) -> Batch:
        """Add every image's rotations."""
        return rotated(batch, method=self.name)

    def loss(self, step: Step) -> dict[str, torch.Tensor]:
        """Return the three terms, weighted."""
        student, teacher = (by_image(logits) for logits in step.logits())
        given = step.batch.weight
        weight = None if given is None else by_image(given)[:, 0]
        ours, theirs = step.features(*self.places)
        upright = objectives.kd(
            student[:, 0], teacher[:, 0], temperature=self.temperature, weight=weight
        )
        transformed = objectives.sskd_transformed(
            student,
            teacher,
            labels=self._truth(step),
            temperature=self.temperature,
            ratio=self.transformed_ratio,
            official=self.official,
            weight=weight,
        )
        similarity = objectives.sskd_similarity(
            by_image(self.student_head(step.pooled(ours))),
            by_image(self.teacher_head(step.pooled(theirs, self.role))),
            temperature=self.similarity_temperature,
            ratio=self.similarity_ratio,
            official=self.official,
            weight=weight,
        )
        return {
            "upright": self.upright * upright,
            "transformed": self.transformed * transformed,
            "similarity": self.similarity * similarity,
        }

    @property
    def _ranks(self) -> bool:
        """Whether turned images are ranked by their label; otherwise all count, labelled or not."""
        return self.transformed_ratio < 1

    def _truth(self, step: Step) -> torch.Tensor:
        """Return the class [B] by which an image's turns are ranked, -1 for none."""
        if not self._ranks:
            return torch.zeros_like(by_image(step.batch.index)[:, 0])
        labels = by_image(step.labels_for(self.name))[:, 0]
        if labels.is_floating_point():
            labelled = labels.sum(dim=1) > 0.5
            return labels.argmax(dim=1).masked_fill(~labelled, UNLABELLED)
        return labels
