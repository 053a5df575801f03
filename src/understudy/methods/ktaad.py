"""Knowledge adaptation: a code of the teacher's map that a student of another resolution can follow."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods.method import Method, Step
from understudy.methods.rows import width_of
from understudy.methods.wiring import TapShape, Wiring


class Autoencoder(nn.Module):
    """Three 3x3 convolutions to a narrower code and three transposed ones back, at one resolution.

    Each is followed by batch norm and a leaky ReLU.

    Args:
        channels: of the map.
        code: channels of the code.
    """

    def __init__(self, channels: int, code: int) -> None:
        """Make the layers."""
        super().__init__()
        self.encoder = _layers(nn.Conv2d, [channels, channels, code, code])
        self.decoder = _layers(nn.ConvTranspose2d, [code, code, channels, channels])


def _layers(kind: type[nn.Conv2d | nn.ConvTranspose2d], widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [
            kind(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1),
        ]
    return nn.Sequential(*layers)


class KTAADTranslator(Method, name="ktaad_translator"):
    """Learn a code of the teacher's last map, for a stage before `ktaad`.

    Paper: He et al., "Knowledge Adaptation for Efficient Semantic Segmentation", CVPR 2019, section 3.1.
    Equation: |F_t - D(E(F_t))|^2 as a mean over elements + penalty * |E(F_t)|_1 per sample, both means over samples.
    Labels: not used.
    Use: as a stage of its own, which leaves the student as it is; torchdistill trains it for one epoch.
    Deviation: layers are torchdistill's, at stride 1.
    Weight: 1.
    Cost: six 3x3 convolutions of the map's width and the teacher's forward pass; nothing remains in the student.
    Fails when: the learning rate is one for fine-tuning, too low for one epoch; torchdistill has 0.1.

    Args:
        teacher_tap: module path in the teacher, or "auto" for the stage that corresponds to the student's last.
        rate: width of the code as a share of the map's, torchdistill's.
        penalty: weight of the code's absolute values, torchdistill's.
    """

    family = "feature"
    trains_student = False

    def __init__(self, teacher_tap: str = "auto", rate: float = 0.5, penalty: float = 1e-7) -> None:
        """Keep the configuration."""
        super().__init__()
        _check_rate(rate)
        if not penalty >= 0:
            raise ValueError(f"penalty is {penalty}; it must not be negative")
        self.teacher_tap = teacher_tap
        self.rate = rate
        self.penalty = penalty

    def wire(self, wiring: Wiring) -> None:
        """Resolve the tap and size the autoencoder."""
        place = _teacher_map(wiring, self.teacher_tap, self.name)
        self.place = place.name
        self.autoencoder = Autoencoder(width_of(place), _code_width(place, self.rate))

    def loss(self, step: Step) -> Mapping[str, torch.Tensor]:
        """Return the mean over the samples, of the error and of the code's penalty."""
        target = step.teacher.features[self.place]
        code = self.autoencoder.encoder(target)
        weight = step.batch.weight
        return {
            "reconstruction": objectives.mse(self.autoencoder.decoder(code), target, weight=weight),
            "penalty": self.penalty * objectives.norm_penalty(code, power=1, weight=weight),
        }

    def after_step(self, step: Step) -> None:
        """Average the running statistics over the processes: `ktaad` encodes by them."""
        for value in self.autoencoder.buffers():
            if value.is_floating_point():
                value.copy_(step.gather(value.unsqueeze(0)).mean(dim=0))


class KTAAD(Method, name="ktaad"):
    """Match a learnt code of the teacher's last map, and the affinities between its positions.

    Paper: He et al., "Knowledge Adaptation for Efficient Semantic Segmentation", CVPR 2019, sections 3.1
    and 3.2.
    Equation: adaptation * |A(F_s) / |A(F_s)|_2 - E(F_t) / |E(F_t)|_2|_1, a mean over elements, + affinity times the
    distance of the cosines between all pairs of positions of B(F_s) and E(F_t). A and B are 3x3 convolutions, A with
    batch norm and ReLU; E is the encoder that `ktaad_translator` trained.
    Labels: not used.
    Use: after a stage with `ktaad_translator`. It was made for segmentation, where the student's map is coarser than
    the teacher's, on the last maps; for classification it is a comparison of last maps like others, not published.
    Official: `official` takes affinities channel by channel, as torchdistill does.
    Deviation: maps of different sizes are averaged down to the smaller one.
    Weight: 1, with `supervised` at 1; the factors 50 and 1 are inside.
    Cost: two 3x3 convolutions of student width x code width, the encoder, and (H W)^2 affinities or their
    equivalent, in training only.
    Fails when: the last maps have few positions, whose affinities say little.

    Args:
        student_tap: module path in the student, or "auto" for the last stage with a map.
        teacher_tap: the one that `ktaad_translator` had, or "auto" for the corresponding stage.
        rate: what `ktaad_translator` had.
        adaptation: weight of the codes' distance, torchdistill's.
        affinity: weight of the affinities' distance, torchdistill's.
        official: see `objectives.affinity`.
    """

    family = "feature"
    follows = (KTAADTranslator.name,)

    def __init__(
        self,
        student_tap: str = "auto",
        teacher_tap: str = "auto",
        rate: float = 0.5,
        adaptation: float = 50.0,
        affinity: float = 1.0,
        official: bool = False,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        _check_rate(rate)
        for name, value in (("adaptation", adaptation), ("affinity", affinity)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must not be negative")
        self.student_tap = student_tap
        self.teacher_tap = teacher_tap
        self.rate = rate
        self.adaptation = adaptation
        self.affinity = affinity
        self.official = official

    def wire(self, wiring: Wiring) -> None:
        """Resolve the taps, take the encoder over and size the adapters."""
        teacher = _teacher_map(wiring, self.teacher_tap, self.name)
        tap = self.student_tap
        if tap == "auto":
            tap = wiring.student.description.main_stages[-1].tap
        student, _ = wiring.maps([tap], [teacher.name], method=self.name)[0]
        self.places = (student.name, teacher.name)
        code = _code_width(teacher, self.rate)
        self.encoder = Autoencoder(width_of(teacher), code).encoder
        wiring.take_over(self.encoder, method=KTAADTranslator.name, attribute="autoencoder.encoder")
        self.encoder.eval()
        self.feature_adapter = nn.Sequential(
            nn.Conv2d(width_of(student), code, 3, padding=1),
            nn.BatchNorm2d(code, track_running_stats=False),
            nn.ReLU(),
        )
        self.affinity_adapter = nn.Conv2d(width_of(student), code, 3, padding=1)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the adapters; the encoder stays as it was trained, statistics and all."""
        super().train(mode)
        for name, part in self.named_children():
            if name == "encoder":
                part.eval()
        return self

    def loss(self, step: Step) -> Mapping[str, torch.Tensor]:
        """Return the means over the samples of both distances."""
        student, teacher = step.features(*self.places)
        with torch.no_grad():
            code = self.encoder(teacher)
        size = (min(student.shape[2], code.shape[2]), min(student.shape[3], code.shape[3]))
        code, weight = F.adaptive_avg_pool2d(code, size), step.batch.weight
        ours = F.adaptive_avg_pool2d(student, size)
        translated = objectives.knowledge_translation(
            self.feature_adapter(ours), code, weight=weight
        )
        related = objectives.affinity(
            self.affinity_adapter(ours), code, official=self.official, weight=weight
        )
        return {
            "adaptation": self.adaptation * translated,
            "affinity": self.affinity * related,
        }


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; it must be in (0, 1]")


def _code_width(place: TapShape, rate: float) -> int:
    return max(1, int(width_of(place) * rate))


def _teacher_map(wiring: Wiring, tap: str, method: str) -> TapShape:
    """Return the named tap, or that of the teacher's stage that corresponds to the student's last one."""
    place = wiring.teacher.tap(wiring.stage_pairs()[-1][1].tap if tap == "auto" else tap)
    if len(place.shape) != 3:
        raise UnderstudyError(
            f"Method '{method}' needs a feature map (C, H, W), but the teacher's tap '{place.name}' gives "
            f"{place.shape} per sample. Name a tap that gives a map."
        )
    return place
