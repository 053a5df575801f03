"""One for all: exits of the student learn the teacher's answer, whatever the two look like inside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from understudy import objectives
from understudy.errors import ModelError, UnderstudyError
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Side, Taps, TapShape, Wiring
from understudy.models.exits import MapExit, TokenExit


class OFA(Method, name="ofa"):
    """Pull the student's logits and those of exits from its stages to the teacher's, more on the label.

    Paper: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    NeurIPS 2023.
    Equation: L(s) + exit_weight * sum over stages of L(exit), with L = mean over labelled samples of
    -sum_c w_c log softmax(s / T)_c; w is (1 + p)^gamma - 1 for the label and p^gamma for other classes, p the
    teacher's softmax(t / T). Nothing of the teacher but its logits is compared, so that a CNN may learn from a
    transformer and the other way round.
    Labels: needed; of soft ones only the largest counts.
    Deviation: as the authors' code, not the paper: other classes are at p^gamma (`power_others: false` for p), and
    only the final logits have a cross-entropy with the label, which is `supervised`.
    Weight: 1 with `supervised` at 1. The authors' CIFAR-100 numbers had exit_weight 0.1, their code's default is 1.
    Cost: one branch per stage, with as much as a small network; in training only.
    Fails when: gamma is large and the student far behind, which gives large gradients: clip them at 5. Exits need the
    batch of several samples that their batch norm needs.

    Args:
        gamma: exponent for all logits, or one for each stage and, last, one for the final logits. The paper has 1 to
            1.5, less for better teachers.
        temperature: T.
        exit_weight: factor on the exits' sum; 0 for the final logits alone.
        student_taps: module paths from shallow to deep, or "auto": the last module at each resolution; of a
            transformer the blocks at a sixth, a third, five sixths and the end, such as 2, 4, 10 and 12 of 12.
        power_others: whether gamma also holds for classes other than the label.
    """

    needs_labels = True

    def __init__(
        self,
        gamma: float | Sequence[float] = 1.0,
        temperature: float = 1.0,
        exit_weight: float = 0.1,
        student_taps: Taps = "auto",
        power_others: bool = True,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        for value in gamma if isinstance(gamma, Sequence) else [gamma]:
            if not value > 0:
                raise ValueError(f"gamma is {value}; it must be greater than 0")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        if not exit_weight >= 0:
            raise ValueError(f"exit_weight is {exit_weight}; it must not be negative")
        self.gamma = gamma
        self.temperature = temperature
        self.exit_weight = exit_weight
        self.student_taps = student_taps
        self.power_others = power_others

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps and build an exit for each."""
        side = wiring.student
        stages = _stages(side) if self.exit_weight > 0 else []
        names = stages if self.student_taps == "auto" else list(self.student_taps)
        names = names if self.exit_weight > 0 else []
        if self.exit_weight > 0 and not names:
            raise UnderstudyError(
                "Method 'ofa' found no stages in the student to put exits behind. Name the student_taps, or set "
                "exit_weight to 0 to compare the final logits alone."
            )
        taps = [side.tap(name) for name in names]
        self.places = names
        self.gammas = self._gammas(len(names))
        self.exits = nn.ModuleList()
        for number, tap in enumerate(taps):
            # How many stages follow; what is no stage counts by its place in the list.
            left = (
                len(stages) - stages.index(tap.name) if tap.name in stages else len(taps) - number
            )
            self.exits.append(self._exit(tap, taps, left - 1, wiring))
        if names:
            wiring.notes.append(f"exits from {', '.join(names)}")

    def loss(self, step: Step) -> Mapping[str, torch.Tensor]:
        """Return the means over the labelled samples: of the final logits, and of the exits together."""
        student, teacher = step.logits()
        terms = {"final": self._compare(student, teacher, step, self.gammas[-1])}
        exits = [
            self._compare(leave(step.student.features[place]), teacher, step, gamma)
            for leave, place, gamma in zip(self.exits, self.places, self.gammas, strict=False)
        ]
        if exits:
            terms["exits"] = self.exit_weight * torch.stack(exits).sum()
        return terms

    def _compare(
        self, student: torch.Tensor, teacher: torch.Tensor, step: Step, gamma: float
    ) -> torch.Tensor:
        if step.labels is None:
            raise UnderstudyError("Method 'ofa' needs labels, and this batch has none.")
        return objectives.ofa(
            student,
            teacher,
            step.labels,
            gamma=gamma,
            temperature=self.temperature,
            power_others=self.power_others,
            weight=step.batch.weight,
        )

    def _gammas(self, exits: int) -> list[float]:
        if not isinstance(self.gamma, Sequence):
            return [self.gamma] * (exits + 1)
        if len(self.gamma) != exits + 1:
            raise UnderstudyError(
                f"Method 'ofa' has {len(self.gamma)} values of gamma for {exits} exits and the final logits; "
                f"give one number, or {exits + 1}."
            )
        return list(self.gamma)

    def _exit(self, tap: TapShape, taps: list[TapShape], left: int, wiring: Wiring) -> nn.Module:
        """Build the exit from a tap that `left` stages follow."""
        ours = wiring.student.description.pooled_width or taps[-1].width
        if len(tap.shape) == 3:
            theirs = wiring.teacher.description.pooled_width or ours
            shapes = [other.shape for other in taps]
            shapes += [stage.shape for stage in wiring.student.description.main_stages]
            last = min(shape[1] for shape in shapes if len(shape) == 3)
            halvings = max(0, round(math.log2(tap.shape[1] / last)))
            return MapExit(tap.width, halvings, max(ours, theirs), wiring.classes)
        if len(tap.shape) != 2 or wiring.student.input_height is None:
            raise UnderstudyError(
                f"Method 'ofa' has exits for feature maps (C, H, W) and for the tokens (T, D) of an image, but the "
                f"student's tap '{tap.name}' gives {tap.shape} per sample of something else. Set exit_weight to 0 to "
                "compare the final logits alone."
            )
        if wiring.student.inputs.shape[2] != wiring.student.inputs.shape[3]:
            raise UnderstudyError(
                "Method 'ofa' takes the tokens of an image for a square grid, and the images are not square. Set "
                "exit_weight to 0 to compare the final logits alone."
            )
        try:
            return TokenExit(*tap.shape, ours, max(left, 1), wiring.classes)
        except ModelError as error:
            raise UnderstudyError(f"Student tap '{tap.name}': {error}") from error


def _stages(side: Side) -> list[str]:
    """Return the taps of the student's stages; of a transformer, four of its blocks."""
    stages = [stage.tap for stage in side.description.main_stages]
    if not stages or side.description.main_stages[0].stride is not None:
        return stages
    places = [max(1, round(len(stages) * share)) - 1 for share in (1 / 6, 1 / 3, 5 / 6, 1)]
    return [stages[place] for place in dict.fromkeys(places)]
