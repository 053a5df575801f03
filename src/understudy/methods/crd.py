"""Contrastive representation distillation."""

from __future__ import annotations

import math
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from understudy import objectives, seeding
from understudy.data.batch import UNLABELLED
from understudy.data.source import Split
from understudy.errors import UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.objectives.norms import unit
from understudy.objectives.shapes import check_choice


class CRD(Method, name="crd"):
    """Tell the teacher's embedding of a sample from those of many other samples, and the student's likewise.

    Paper: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, section 3.
    Equation: -log(P_0 / (P_0 + c)) - sum_{k=1..K} log(c / (P_k + c)) per sample, P_k = exp(s.b_k / T) / Z, c = K / N,
    of the student's embeddings against a bank of the teacher's, plus that of the teacher's against a bank of the
    student's. Z is set from the first batch.
    Labels: only to leave samples of the same class out of the negatives, where both labels are visible.
    Weight: 0.8, beside `supervised` at 1 and perhaps `kd` at 1 (the authors, CIFAR-100).
    Deviation: the K negatives are one each from K equal parts of all that may be drawn: every one is as likely as in
    the authors' draw, with less variance. Where there are fewer than K, K is smaller.
    Cost: two linear maps to `dimensions`, two banks of N x dimensions numbers (in every checkpoint) and 2 B (K + 1)
    scores per step, in training only. The plan tells the size.
    Fails when: N is so large that the banks do not fit (10^6 samples: 1 GB); use `bank: batch` then. That contrasts
    within the batch (of one process), same classes included, and wants large batches.

    Args:
        student_tap: module path in the student, or "auto" for what goes into its classifier. A map is averaged over
            its places, a sequence over its tokens.
        teacher_tap: the same for the teacher.
        dimensions: width of the embeddings; the authors' 128.
        negatives: K; the authors' 16384. Of no effect with `bank: batch`.
        temperature: T; the authors' 0.07.
        momentum: share of its old row that a bank keeps when its sample is seen; the authors' 0.5.
        bank: "memory" for rows of all training samples, "batch" for those of the batch.
        negatives_from: "other_classes" leaves out samples that are known to be of the same class; "other_samples"
            leaves out the sample itself only. Of no effect with `bank: batch`.
    """

    family = "relation"
    reads_logits = False
    reads_student_logits = False
    student_bank: torch.Tensor
    teacher_bank: torch.Tensor
    log_normalisers: torch.Tensor
    steps: torch.Tensor
    ids: torch.Tensor
    by_class: torch.Tensor
    left_out: torch.Tensor

    def __init__(
        self,
        student_tap: str = "auto",
        teacher_tap: str = "auto",
        dimensions: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        bank: Literal["memory", "batch"] = "memory",
        negatives_from: Literal["other_classes", "other_samples"] = "other_classes",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        for name, value in (("dimensions", dimensions), ("negatives", negatives)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be in [0, 1)")
        check_choice(bank, ("memory", "batch"), "bank")
        check_choice(negatives_from, ("other_classes", "other_samples"), "negatives_from")
        self.student_tap, self.teacher_tap, self.dimensions = student_tap, teacher_tap, dimensions
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.bank, self.negatives_from = bank, negatives_from
        self._seed, self._drawn = 0, 0
        self._followed: WeakKeyDictionary[Step, tuple[torch.Tensor, torch.Tensor]] = (
            WeakKeyDictionary()
        )
        # Whether the buffer is known to hold numbers: asking it would make the processor wait for the device.
        self._normalised = False

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps, size the embeddings and fill the banks with random rows."""
        student, teacher = wiring.embeddings(self.student_tap, self.teacher_tap)
        self.places, self.role = (student.name, teacher.name), wiring.teacher.role
        self.student_embedding = nn.Linear(student.width, self.dimensions)
        self.teacher_embedding = nn.Linear(teacher.width, self.dimensions)
        if self.bank == "memory":
            if wiring.train is None:
                raise UnderstudyError(
                    "Method 'crd' keeps a bank with a row for every training sample, and outside of a run it is not "
                    "told which there are. Use `bank: batch`."
                )
            self._fill_banks(wiring.train, wiring)

    def loss(self, step: Step) -> dict[str, torch.Tensor]:
        """Return the contrast of the student's embeddings and that of the teacher's."""
        student, teacher = self._embeddings(step)
        weight, temperature = step.batch.weight, self.temperature
        if self.bank == "batch":
            sides = {"student": (student, teacher), "teacher": (teacher, student)}
            return {
                name: objectives.crd(*pair, temperature=temperature, weight=weight)
                for name, pair in sides.items()
            }
        self._followed[step] = student.detach(), teacher.detach()
        index = self._draw(step.batch.index)
        sides = {
            "student": (student, self.teacher_bank),
            "teacher": (teacher, self.student_bank),
        }
        if not self._normalised:
            found = [
                objectives.crd_log_normaliser(
                    *pair, index=index, temperature=temperature, weight=weight
                )
                for pair in sides.values()
            ]
            unknown = self.log_normalisers.isnan()
            self.log_normalisers.copy_(
                torch.where(unknown, torch.stack(found), self.log_normalisers)
            )
        return {
            name: objectives.crd(
                *pair,
                index=index,
                log_normaliser=log_normaliser,
                temperature=temperature,
                weight=weight,
            )
            for (name, pair), log_normaliser in zip(
                sides.items(), self.log_normalisers.clone(), strict=True
            )
        }

    def after_step(self, step: Step) -> None:
        """Bring the rows of the batch's samples up to date, and count."""
        if step not in self._followed:
            return  # no bank, or the weight was 0 and nothing was compared
        student, teacher = map(step.gather, self._followed.pop(step))
        rows = self._rows(step.gather(step.batch.index))
        weight = step.batch.weight
        seen = None if weight is None else step.gather(weight) != 0
        self._follow(self.student_bank, rows, student, seen)
        self._follow(self.teacher_bank, rows, teacher, seen)
        if not self._normalised:
            # Every process has set them from its own part of the first batch; those of the first process count.
            self.log_normalisers.copy_(step.gather(self.log_normalisers.unsqueeze(0))[0])
            self._normalised = True
        self.steps += 1

    def _fill_banks(self, train: Split, wiring: Wiring) -> None:
        self._seed, self._normalised = wiring.seed, False
        count = len(train)
        reach = 1 / math.sqrt(self.dimensions / 3)
        generator = seeding.stream(wiring.seed, "bank")
        for name in ("student_bank", "teacher_bank"):
            drawn = torch.rand(count, self.dimensions, generator=generator)
            self.register_buffer(name, (2 * drawn - 1) * reach)
        self.register_buffer("log_normalisers", torch.full((2,), torch.nan))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        ids, order = train.ids.sort()
        labels = train.labels[order]
        if self.negatives_from == "other_samples":
            labels = torch.full_like(labels, UNLABELLED)
        by_class, left_out = _without_own_class(labels)
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("by_class", by_class, persistent=False)
        self.register_buffer("left_out", left_out, persistent=False)
        fewest = count - int(left_out[:, 1].max())
        if fewest < 1:
            raise UnderstudyError(
                f"Method 'crd' has nothing to contrast with: of {count} training samples, some have no sample of "
                "another class. Use `negatives_from: other_samples`, or more data."
            )
        self._drawn = min(self.negatives, fewest)
        if self._drawn < self.negatives:
            wiring.notes.append(
                f"crd: {self._drawn} negatives instead of {self.negatives}: of {count} samples, no more can be drawn "
                "for every one"
            )
        megabytes = 2 * 4 * count * self.dimensions / 1e6
        wiring.notes.append(
            f"crd: two banks of {count} x {self.dimensions} numbers, {megabytes:.1f} MB, also in each checkpoint"
        )

    def _embeddings(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both embeddings [B, dimensions] with length 1, in float32 whatever the models run in."""
        student, teacher = step.features(*self.places)
        student, teacher = step.pooled(student), step.pooled(teacher, self.role)
        with torch.autocast(student.device.type, enabled=False):
            return (
                unit(self.student_embedding(student.float())),
                unit(self.teacher_embedding(teacher.float())),
            )

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self.ids, ids)

    def _draw(self, ids: torch.Tensor) -> torch.Tensor:
        """Return rows of the banks [B, 1 + K]: each sample's own, and negatives by (seed, sample id, step)."""
        rows = self._rows(ids)
        first, size = self.left_out[rows].unsqueeze(2).unbind(dim=1)
        width = (len(self.ids) - size).double() / self._drawn
        within = seeding.uniform_on_device(
            self._seed, ids, self.steps.expand_as(ids), "negatives", self._drawn
        )
        parts = torch.arange(self._drawn, device=ids.device)
        place = ((parts + within.double()) * width).long()
        drawn = self.by_class[torch.where(place < first, place, place + size)]
        return torch.cat([rows.unsqueeze(1), drawn], dim=1)

    def _follow(
        self,
        bank: torch.Tensor,
        rows: torch.Tensor,
        embeddings: torch.Tensor,
        seen: torch.Tensor | None,
    ) -> None:
        """Move rows [B] of a bank towards embeddings [B, D], where they were seen."""
        old = bank[rows]
        new = unit(self.momentum * old + (1 - self.momentum) * embeddings)
        if seen is not None:
            new = torch.where(seen.unsqueeze(1), new, old)
        # A sample may be in a batch twice. All write what the last one has, or the order of writing would decide.
        same = rows.unsqueeze(1) == rows
        last = (same * torch.arange(len(rows), device=rows.device)).amax(dim=1)
        bank[rows] = new[last]


def _without_own_class(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort rows by class, so that what a row is not contrasted with lies in one piece.

    Args:
        labels: int64 [N], -1 for none.

    Returns:
        The rows in order of their class, int64 [N], and for each row where in that order the piece begins and how long
        it is, int64 [N, 2]: its class for a row with a label, the row alone for one without.
    """
    by_class = labels.argsort(stable=True)
    place = torch.empty_like(by_class)
    place[by_class] = torch.arange(len(labels))
    _, inverse, sizes = labels.unique(return_inverse=True, return_counts=True)
    begins = sizes.cumsum(dim=0) - sizes
    alone = labels == UNLABELLED
    first = torch.where(alone, place, begins[inverse])
    size = torch.where(alone, torch.ones_like(place), sizes[inverse])
    return by_class, torch.stack([first, size], dim=1)
