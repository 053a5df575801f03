"""LELP: more classes than there are, from where the teacher's embeddings lie within each class."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, NoReturn

import torch
from torch import nn

from understudy import objectives
from understudy.errors import DataError, UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.models.heads import MarginalHead
from understudy.models.taps import find_module
from understudy.seeding import uniform_on_device
from understudy.teachers.directions import null_basis, orthonormal
from understudy.teachers.features import Features
from understudy.teachers.notes import Note
from understudy.teachers.principal import principal, signs
from understudy.teachers.readings import LOGITS, Reading, Seen
from understudy.teachers.statistics import ClassMoments
from understudy.teachers.study import Study

MANY = 1000
"""Outputs of the student beyond which a note says that the gain is gone by then."""
LOOKED_AT = 1000
"""Training samples, evenly spread, on which the entropy of the split is measured."""
HEALTHY = (0.2, 0.9)
"""Mean entropy of the split, as a share of log S, outside of which a note says that beta is to blame."""


class LELP(Method, name="lelp"):
    """Match the teacher on sub-classes that its embeddings, projected on a few directions, make of every class.

    Paper: Loo et al., "Linear Projections of Teacher Embeddings for Few-Class Distillation", 2024 (arXiv 2409.20449).
    Equation: T^2 * KL(q || softmax(s / T)), mean over samples, in nats, where s are C * S outputs of the student and
    q[c, s] = softmax(t / T)[c] * softmax over s of <u_cs, h - mu_c> / (beta * sigma_c). h is what goes into the
    teacher's classifier, mu_c its mean in class c; u_c1 .. u_cS are the S directions of largest variance of the class,
    in the null space of the classifier's weight and turned by a random rotation, so that each has the same variance in
    expectation. A class's logit is the log of the sum over its sub-classes.
    Labels: not used; add `supervised` at alpha (and `lelp` at 1 - alpha) for its cross-entropy with the marginal.
    Deviation: sigma_c, the root mean square of the class's own coordinates, makes beta a number without a unit
    (`scale: raw` leaves it out, as in the paper). The entropy of q, which has no gradient, is taken off the paper's
    cross-entropy: with one sub-class this is `kd`. There is no official code; how the split is tempered was inferred.
    Weight: 1, alone, in all published experiments.
    Cost: one pass of the teacher before training; C * D * S numbers, and S times the student's classifier, which stays
    in the deployed student. While fitting, C * D^2 numbers in float64 for embeddings of width D.
    Fails when: there are many classes, which say enough by themselves; or the split is one-hot or even: see the mean
    entropy that is noted when it is fitted, 0.2 to 0.9 of log S is healthy.

    Args:
        subclasses: S, the sub-classes of every class; 1 is `kd`. The paper searches a grid; 5 is this library's choice.
        beta: temperature of the split.
        temperature: T, of the classes.
        scale: whether coordinates are divided by sigma_c ("unit"), or are as large as the embedding ("raw").
        null_space: whether directions lie in the null space of the teacher's linear classifier, so that they say what
            its logits do not. Left out, with a note, where there is no such classifier or no such space.
        rotate: whether directions are turned at random; else the first one decides almost alone.
        membership: what tells the class of a training sample when directions are fitted: the class that the "teacher"
            puts first, or the "labels" that may be seen.
        directions: "principal"; or, for comparison, "random" directions of the same space, or "drawn": none, every
            sample is given coordinates at random for good.
        targets: "live" for the teacher's answer to the batch as the student sees it, "stored" for its answer to the
            samples as they are, kept by the fit; the teacher is then not run in the steps.
        teacher_tap: module path of the embedding, or "auto" for what goes into the teacher's classifier. Maps and
            sequences are averaged.
    """

    family = "structure"
    reads_student_logits = False
    basis: torch.Tensor
    centres: torch.Tensor
    scales: torch.Tensor

    def __init__(
        self,
        subclasses: int = 5,
        beta: float = 0.1,
        temperature: float = 1.0,
        scale: Literal["unit", "raw"] = "unit",
        null_space: bool = True,
        rotate: bool = True,
        membership: Literal["teacher", "labels"] = "teacher",
        directions: Literal["principal", "random", "drawn"] = "principal",
        targets: Literal["live", "stored"] = "live",
        teacher_tap: str = "auto",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if subclasses < 1:
            raise ValueError(f"subclasses is {subclasses}; it must be at least 1")
        for name, value in (("beta", beta), ("temperature", temperature)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        for name, chosen, known in (
            ("scale", scale, ("unit", "raw")),
            ("membership", membership, ("teacher", "labels")),
            ("directions", directions, ("principal", "random", "drawn")),
            ("targets", targets, ("live", "stored")),
        ):
            if chosen not in known:
                raise ValueError(f"{name} is '{chosen}'; it must be one of {', '.join(known)}")
        self.subclasses, self.beta, self.temperature = subclasses, beta, temperature
        self.scale, self.null_space, self.rotate = scale, null_space, rotate
        self.membership = membership
        self.directions, self.targets, self.teacher_tap = directions, targets, teacher_tap
        self.needs_teacher = targets == "live"

    def wire(self, wiring: Wiring) -> None:
        """Give the student its sub-classes and find the space of the directions."""
        classes, count = wiring.classes, self.subclasses
        side = wiring.teacher
        self.embedding = side.embedding if self.teacher_tap == "auto" else self.teacher_tap
        shape = side.tap(self.embedding).shape
        width = shape[0] if len(shape) == 3 else shape[-1]
        space = torch.eye(width, dtype=torch.float64)
        if self.null_space:
            path = side.description.classifier
            linear = None if path is None else find_module(side.module, path)
            if not isinstance(linear, nn.Linear) or self.embedding != f"{path}@input":
                wiring.notes.append(
                    f"{self.name}: no null space, since '{self.embedding}' does not go into a linear classifier"
                )
            elif (free := null_basis(linear.weight)).shape[1] == 0:
                wiring.notes.append(
                    f"{self.name}: no null space, since the teacher's {tuple(linear.weight.shape)} classifier sees all "
                    "of its embedding"
                )
            else:
                space = free
        if count > space.shape[1]:
            raise UnderstudyError(
                f"Method '{self.name}' was asked for {count} subclasses, which need as many directions; the teacher's "
                f"embedding '{self.embedding}' of width {width} has {space.shape[1]}"
                + (" that its classifier does not see" if space.shape[1] < width else "")
                + f". Ask for at most {space.shape[1]}."
            )
        if classes * count > MANY:
            wiring.notes.append(
                f"{self.name}: {classes} classes x {count} sub-classes are {classes * count:,} outputs; it is made for "
                "few classes, and hardly helps with many"
            )
        self.space = space
        self.seed = wiring.seed
        self.head = wiring.head(lambda inner, outer: MarginalHead(inner, outer, count))
        self.outputs = self.head.tap("subclasses").name
        device = next(wiring.student.module.parameters()).device
        self.register_buffer("basis", torch.zeros(classes, width, count, device=device))
        self.register_buffer("centres", torch.zeros(classes, count, device=device))
        self.register_buffer("scales", torch.ones(classes, device=device))

    def fit(self, study: Study) -> None:
        """Find the directions of every class from its teacher's embeddings, and say how evenly they split it."""
        reading = Reading(self.embedding, form="mean")
        moments = ClassMoments(reading, by=self.membership)
        self.stored = (Features(reading), Features(LOGITS))
        study.collect(moments, *(self.stored if self.targets == "stored" else ()))
        for features in self.stored if self.targets == "stored" else ():
            features.keep_on(study.device)
        means, count = moments.mean, self.subclasses
        covariances = self.space.T @ moments.covariance @ self.space
        # One sub-class needs no direction, and so no sample.
        lenient = moments.provisional or count == 1 or self.directions == "drawn"
        for number, rows in enumerate(moments.count.tolist()):
            if not lenient and rows <= count:
                self._refuse(study, number, rows)
            if self.directions == "principal":
                inner = principal(
                    means[number] @ self.space,
                    covariances[number],
                    rows,
                    count,
                    what=f"the embeddings of class '{study.classes[number]}'",
                    provisional=lenient,
                ).basis
            else:
                inner = orthonormal(self.space.shape[1], count, study.stream("space", number))
            variances = (inner * (covariances[number] @ inner)).sum(dim=0)
            turned = self.space @ inner
            turned = turned * signs(turned)
            if self.rotate:
                turned = turned @ orthonormal(count, count, study.stream("rotation", number))
            spread = float(variances.mean().clamp_min(0.0).sqrt())
            self.basis[number].copy_(turned)
            self.centres[number].copy_(means[number] @ turned)
            if self.scale == "unit":
                # Without any variance (seen from an example only) there is nothing to divide by.
                self.scales[number] = spread or 1.0
        if study.mode == "real" and self.subclasses > 1:
            self._note_entropy(study, reading)

    def coordinates(self, embedding: torch.Tensor) -> torch.Tensor:
        """Return where embeddings [B, D] lie along the directions of every class, [B, C, S], before beta."""
        with torch.autocast(embedding.device.type, enabled=False):
            along = torch.einsum("bd,cds->bcs", embedding.float(), self.basis)
            return (along - self.centres) / self.scales.unsqueeze(1)

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the samples."""
        if self.targets == "stored":
            embedding, logits = (found.rows_for(step.batch.index) for found in self.stored)
        else:
            teacher = step.teacher
            if teacher.logits is None:
                raise UnderstudyError(
                    f"Method '{self.name}' needs the teacher's logits, and it gives none."
                )
            logits = teacher.logits
            embedding = step.pooled(teacher.features[self.embedding], "teacher")
        targets = objectives.subclass_logits(
            logits,
            self._places(embedding, step.batch.index),
            temperature=self.temperature,
            beta=self.beta,
        )
        return objectives.kd(
            step.student.features[self.outputs],
            targets,
            temperature=self.temperature,
            weight=step.batch.weight,
        )

    def _places(self, embedding: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        if self.directions != "drawn":
            return self.coordinates(embedding)
        drawn = uniform_on_device(
            self.seed, ids, torch.zeros_like(ids), "subclasses", self.subclasses
        )
        # Variance 1, as coordinates in units of sigma have.
        return ((drawn - 0.5) * math.sqrt(12)).unsqueeze(1).expand(-1, len(self.scales), -1)

    def _refuse(self, study: Study, number: int, rows: int) -> NoReturn:
        by_teacher = self.membership == "teacher"
        what = "the teacher puts it first for" if by_teacher else "its labels may be seen for"
        other = "labels" if by_teacher else "teacher"
        raise DataError(
            f"Method '{self.name}' cannot split class '{study.classes[number]}' into {self.subclasses} subclasses, "
            f"which takes at least {self.subclasses + 1} samples: {what} {rows} of {len(study.split)}. Ask for fewer "
            f"subclasses, or say membership: {other}."
        )

    def _note_entropy(self, study: Study, reading: Reading) -> None:
        """Note how evenly samples are split, on some of them."""
        rows = torch.linspace(0, len(study.split) - 1, min(LOOKED_AT, len(study.split))).long()
        part = replace(study, split=study.split.subset(rows), notes=[])
        entropies = []
        for batch, outputs in part.passes(reading):
            seen = Seen(batch, outputs, len(study.classes))
            places = self._places(seen.values(reading), batch.index)
            split = torch.log_softmax(places / self.beta, dim=2)
            classes = torch.softmax(seen.values(Reading(LOGITS)) / self.temperature, dim=1)
            entropies.append(-(classes * (split.exp() * split).sum(dim=2)).sum(dim=1))
        share = float(torch.cat(entropies).mean()) / math.log(self.subclasses)
        held = (self.basis, self.centres, self.scales)
        what = (
            f"{self.subclasses} sub-classes of each class, mean entropy of the split {share:.2f} of log "
            f"{self.subclasses}"
        )
        if not HEALTHY[0] <= share <= HEALTHY[1]:
            what += (
                f" (a {'larger' if share < HEALTHY[0] else 'smaller'} beta is likely to be better)"
            )
        study.notes.append(Note(self.name, what, 0, sum(value.nbytes for value in held)))
