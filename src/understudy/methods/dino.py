"""DINO: training a backbone without labels, as the student of its own average."""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
from torch import nn

from understudy import objectives
from understudy.data.batch import Batch
from understudy.methods._image_views import (
    Augment,
    by_image,
    check_images,
    first_views,
    views_of,
)
from understudy.methods._moving_average import MovingAverage
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.objectives.norms import unit
from understudy.objectives.shapes import blank, divisor, sample_weights

GLOBAL = 2


class DINO(Method, name="dino"):
    """Predict what a moving average of the model says of other views of an image, without labels or a teacher.

    Paper: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, equations 1 to 4.
    Equation: -sum_k p_k log softmax(h(x') / T)_k in nats, p = softmax((h'(x) - c) / T'), averaged over the two global
    views x of an image and its other views x', local ones included. h is the model with a head, h' the moving average
    of both, w' <- m w' + (1 - m) w; c that of the batches' means of h'. m rises to 1 along a cosine.
    Labels: not used.
    Use: for a teacher's own training, `teacher: {train: {methods: [dino]}}`, for methods that read its features only.
    Its classifier is not trained. Every method of the stage sees all views of an image. What is kept is the model; for
    its average, which the paper evaluates, give the stage an `ema`.
    Deviation: local views are resized to the size of the image, so that any model can take them; the paper's are
    smaller. Of the changes of colour, brightness and contrast are there. Settings that the paper has in epochs are
    shares of the stage. Batch norms take the statistics of one process.
    Official: the mean over the pairs of views, as the authors' code has it; equation 3 has the sum.
    Weight: 1, alone.
    Cost: 2 + `local` passes of the model over every image, two more of its average; a copy of the model in memory and
    in checkpoints; a head and its copy, in training only.
    Fails when: the optimiser is SGD at the rate of a supervised stage (use AdamW), the average has no time to move (a
    stage of s steps wants 1 / (1 - m) far below s), T' is too high (all outputs become equal: the loss stays at log K),
    or a crop or a flip makes another class of an image.

    Args:
        prototypes: K, the number of outputs. The paper has 65536 for ImageNet; with 1024 it is two points worse.
        hidden: width of the head's two hidden layers. The paper has 2048.
        bottleneck: width of what is normalised before the last layer (the paper's).
        temperature: T (the paper's).
        teacher_temperature: T' after its warm-up (the paper's).
        warmup_temperature: T' at the beginning (the paper's).
        warmup: share of the stage in which T' rises (the paper's, 30 of 300 epochs).
        momentum: m at the beginning. The paper has 0.996 for 125 000 steps with batches of 1024.
        centre_momentum: share of the centre that is kept in a step (the paper's).
        frozen: share of the stage in which the last layer does not move. The paper has one epoch.
        local: number of local views. The paper has 8.
        scale: smallest share of the image's area in a global view, and the largest in a local one (the paper's with
            local views; without them its authors recommend 0.14).
        local_scale: smallest share in a local view (the paper's).
        flip: share of views that are mirrored (the paper's).
        jitter: strength of the changes of brightness and contrast, in [0, 1] (the paper's).
    """

    family = "self-supervision"
    needs_teacher = False
    reads_student_logits = False

    counter: torch.Tensor
    centre: torch.Tensor

    def __init__(
        self,
        prototypes: int = 1024,
        hidden: int = 512,
        bottleneck: int = 256,
        temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_temperature: float = 0.04,
        warmup: float = 0.1,
        momentum: float = 0.99,
        centre_momentum: float = 0.9,
        frozen: float = 0.05,
        local: int = 0,
        scale: float = 0.4,
        local_scale: float = 0.05,
        flip: float = 0.5,
        jitter: float = 0.4,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        sizes = {"prototypes": prototypes, "hidden": hidden, "bottleneck": bottleneck}
        for name, size in sizes.items():
            least = 2 if name == "prototypes" else 1
            if size < least:
                raise ValueError(f"{name} is {size}; it must be at least {least}")
        _check_temperatures(temperature, teacher_temperature, warmup_temperature)
        for name, value in {"momentum": momentum, "centre_momentum": centre_momentum}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be in [0, 1)")
        for name, value in {"warmup": warmup, "frozen": frozen}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be in [0, 1]")
        if local < 0:
            raise ValueError(f"local is {local}; it must be at least 0")
        if not 0 < local_scale <= scale:
            raise ValueError(f"local_scale is {local_scale}; it must be in (0, scale]")
        self.prototypes, self.hidden, self.bottleneck = prototypes, hidden, bottleneck
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.warmup_temperature, self.warmup = warmup_temperature, warmup
        self.momentum, self.centre_momentum, self.frozen = momentum, centre_momentum, frozen
        self.local, self.scale, self.local_scale = local, scale, local_scale
        self.flip, self.jitter = flip, jitter
        self._augments = [Augment(scale, flip, jitter)] * GLOBAL
        self._augments += [Augment(local_scale, flip, jitter, largest=scale)] * local
        self._said: WeakKeyDictionary[Step, torch.Tensor] = WeakKeyDictionary()
        self._base: tuple[torch.Tensor, torch.Tensor] | None = None

    def wire(self, wiring: Wiring) -> None:
        """Find the embedding, size the head, and copy both."""
        side = wiring.student
        check_images(side.inputs, role=side.role, method=self.name)
        tap = side.tap(side.embedding)
        self.place, self._seed = tap.name, wiring.seed
        self.head = Head(tap.width, self.hidden, self.bottleneck, self.prototypes)
        self.average = MovingAverage(side.module, [tap.name], side.copied & {tap.name})
        self.average_head = MovingAverage(self.head)
        self.register_buffer("centre", torch.zeros(self.prototypes))
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def inputs(self, batch: Batch) -> Batch:
        """Make the views of every image."""
        return views_of(
            batch, self._augments, seed=self._seed, count=self.counter, method=self.name
        )

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the images and their pairs of views."""
        views = len(self._augments)
        ours = self.head(
            step.pooled(step.student.features[self.place]), fixed=step.progress < self.frozen
        )
        images = first_views(step.batch.inputs["student"], views, GLOBAL)
        _, features = self.average(images)
        theirs = by_image(self.average_head(step.pooled(features[self.place])), GLOBAL)
        weight = step.batch.weight
        weight = None if weight is None else by_image(weight, views)[:, 0]
        counted = sample_weights(weight, theirs)
        # What the centre needs of this part of the batch: a sum, and over how many.
        total = counted @ blank(theirs, weight).mean(dim=1)
        self._said[step] = torch.cat([total, counted.sum().unsqueeze(0)])
        self._base = None
        return objectives.dino(
            by_image(ours, views),
            theirs,
            centre=self.centre,
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature_at(step.progress),
            weight=weight,
        )

    def after_step(self, step: Step) -> None:
        """Let the average and the centre follow, once for all parts of a batch, and count."""
        if step not in self._said:
            return  # the weight was 0 and nothing was compared
        said = step.gather(self._said.pop(step).unsqueeze(0)).sum(dim=0)
        if self._base is None:
            momentum = self.momentum_at(step.progress)
            self.average.follow(momentum)
            self.average_head.follow(momentum)
            self.counter += 1
            self._base = self.centre.clone(), torch.zeros_like(said)
        before, sums = self._base
        sums += said
        share = (1 - self.centre_momentum) * (sums[-1] > 0)
        self.centre.copy_(before.lerp(sums[:-1] / divisor(sums[-1]), share))

    def momentum_at(self, progress: float) -> float:
        """Return m at `progress` in [0, 1]."""
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2

    def teacher_temperature_at(self, progress: float) -> float:
        """Return T' at `progress` in [0, 1]."""
        share = min(1.0, progress / self.warmup) if self.warmup else 1.0
        return self.warmup_temperature + share * (
            self.teacher_temperature - self.warmup_temperature
        )


class Head(nn.Module):
    """A perceptron with two hidden layers, then the cosines with the prototypes.

    Args:
        width: of the embedding.
        hidden: of the hidden layers.
        bottleneck: of what is compared with the prototypes.
        prototypes: their number.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        """Draw the initial weights as the paper's code does."""
        super().__init__()
        self.perceptron = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.perceptron:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, embedding: torch.Tensor, fixed: bool = False) -> torch.Tensor:
        """Return cosines [B, K] in float32; the gradient of the prototypes is 0 when they are `fixed`.

        It is not left out: processes that train together expect one of every parameter.
        """
        found = self.perceptron(embedding)
        with torch.autocast(found.device.type, enabled=False):
            prototypes: torch.Tensor = self.prototypes
            if fixed:
                prototypes = prototypes.detach() + 0 * prototypes
            return unit(found.float()) @ unit(prototypes).mT


def _check_temperatures(student: float, teacher: float, warmup: float) -> None:
    """Refuse what cannot keep the outputs apart.

    Raises:
        ValueError: a temperature is not positive, or the teacher is no sharper than the student.
    """
    named = {"temperature": student, "teacher_temperature": teacher, "warmup_temperature": warmup}
    for name, value in named.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be greater than 0")
        if value > student:
            raise ValueError(
                f"{name} is {value}; it must be at most the student's temperature, {student}"
            )
