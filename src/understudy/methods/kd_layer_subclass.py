"""The KD layer with sub-classes, the other half of letKD-2."""

from __future__ import annotations

import torch

from understudy import objectives
from understudy.errors import DataError
from understudy.methods._layers import Point, first_blocks, place_layer
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Taps, Wiring
from understudy.teachers.study import Study
from understudy.teachers.vocabulary import sub_classes

FITTED = ("mean", "directions", "centres", "table")


class SubClassLayer(Method, name="kd_layer_subclass"):
    """Splice a layer of templates into the student, and have it tell the sub-classes that the teacher sees.

    Paper: Gorgun, Gurbuz and Alatan, "Knowledge Distillation Layer that Lets the Student Decide", BMVC 2023 (with
    `kd_layer` in the same stage letKD-2).
    Equation: the layer is that of `kd_layer` with a template for each sub-class; mean over labelled samples and places
    of KL(P_k* || softmax(a)) in nats. The teacher's features over the training samples without transforms, projected
    to linear discriminants z, are clustered class by class; k* is the nearest sub-class of the true class; P_ab is the
    share of sub-class a's features that are nearest to b of all.
    Labels: needed in training, one class a sample; not at inference.
    Use: list it before `kd_layer`, whose point is deeper.
    Deviation: the authors' code takes sub-class 0 of class 0 where all sub-classes of the true class are as far as the
    farthest of all, and leaves the last rows (up to 10 000) out of the table; `kd_layer`'s hold as well.
    Weight: 1, beside `supervised` and `kd_layer` at 1 (paper, all settings).
    Cost: as `kd_layer` with K = C S templates, which stay in the student and are exported.
    Fails when: a class has fewer different places than sub-classes (refused, with its name).

    Args:
        student_taps: module paths in the student that get a layer each, or "auto" for the first block of its last
            stage, as published (of a model without maps the last block but one).
        teacher_taps: as many in the teacher, or "auto" for the places that correspond.
        subclasses: S, sub-classes of each class; 8 in the paper.
        directions: linear discriminants; 60 in the paper on CIFAR-100, fewer where there are fewer classes or channels.
        alpha: factor of what is added: 1 in the paper, for pairs of different families 0.2 to 1. At 0 nothing is.
    """

    family = "structure"
    reads_logits = False
    reads_student_logits = False
    needs_labels = True

    needs_classes = True

    def __init__(
        self,
        student_taps: Taps = "auto",
        teacher_taps: Taps = "auto",
        subclasses: int = 8,
        directions: int = 60,
        alpha: float = 1.0,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        for name, value in (("subclasses", subclasses), ("directions", directions)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        self.subclasses, self.directions, self.alpha = subclasses, directions, alpha

    def wire(self, wiring: Wiring) -> None:
        """Put the layers in."""
        wiring.check_classes(2, method=self.name)
        taps = first_blocks(wiring, self.student_taps, self.teacher_taps)
        self.points: list[Point] = []
        size = wiring.classes * self.subclasses
        for number, (student, teacher) in enumerate(wiring.pairs(*taps)):
            point = place_layer(wiring, student.name, teacher, templates=size, alpha=self.alpha)
            count = min(self.directions, wiring.classes - 1, point.width)
            if count < self.directions:
                wiring.notes.append(
                    f"{self.name}: {count} linear discriminants instead of {self.directions}: {wiring.classes} classes "
                    f"and {point.width} channels of teacher '{point.teacher}' have no more"
                )
            self.points.append(point)
            shapes = {
                "mean": (point.width,),
                "directions": (point.width, count),
                "centres": (wiring.classes, self.subclasses, count),
                "table": (size, size),
            }
            for name, shape in shapes.items():
                self.register_buffer(f"{name}_{number}", torch.zeros(shape))

    def fit(self, study: Study) -> None:
        """Find the sub-classes at each point."""
        for number, point in enumerate(self.points):
            mean, directions, centres, table = self._fitted(number)
            found = sub_classes(
                study,
                point.reading,
                self.subclasses,
                directions.shape[1],
                sequence=point.sequence,
            )
            mean.copy_(found.mean)
            directions.copy_(found.directions)
            centres.copy_(found.centres)
            table.copy_(found.table)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the sum over the points of the mean over labelled samples and places."""
        labels = step.labels_for(self.name)
        if labels.is_floating_point():
            raise DataError(
                f"Method '{self.name}' needs one class a sample, and the labels are mixed. Leave the mixing out."
            )
        terms = []
        for number, point in enumerate(self.points):
            scores, features = step.features(point.scores, point.teacher)
            mean, directions, centres, table = self._fitted(number)
            with torch.autocast(scores.device.type, enabled=False):
                projected = (point.places(features).float() - mean) @ directions
            terms.append(
                objectives.subclass_scores(
                    scores,
                    projected,
                    centres=centres,
                    table=table,
                    labels=labels,
                    weight=step.weight_of(scores),
                )
            )
        return torch.stack(terms).sum()

    def _fitted(self, number: int) -> list[torch.Tensor]:
        """Return what was fitted at one point: mean, directions, centres, table."""
        return [self.get_buffer(f"{name}_{number}") for name in FITTED]
