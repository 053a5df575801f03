"""SimCLR: training a backbone without labels."""

from __future__ import annotations

import torch
from torch import nn

from understudy import objectives
from understudy.data.batch import Batch
from understudy.methods._image_views import Augment, by_image, check_images, views_of
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring

VIEWS = 2


class SimCLR(Method, name="simclr"):
    """Tell the two views of an image from those of the others, without labels or a teacher.

    Paper: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, equation 1.
    Equation: -log(e^{cos(p_i, p_j) / T} / sum_{k != i} e^{cos(p_i, p_k) / T}) in nats, averaged over the 2 B views of a
    batch, where p is what a projector makes of the embedding of a view and j is the other view of the same image.
    Labels: not used.
    Use: for a teacher's own training, `teacher: {train: {methods: [simclr]}}`, for methods such as `tcs` that read its
    features only. Its classifier is not trained. Every method of the stage sees both views of an image. The negatives
    are the part of a batch that one process holds at a time.
    Deviation: the run's transforms come first. Views are crops of one aspect ratio, mirrored, with another brightness
    and contrast; the paper also changes saturation and hue, drops colours and blurs.
    Weight: 1, alone.
    Cost: two passes of the model over every image; a projector of width^2 + width * dimensions values, in training
    only.
    Fails when: batches are small (two images are the least), or a crop or a flip makes another class of an image.

    Args:
        temperature: T (the paper's choice for CIFAR-10).
        dimensions: width of p (the paper's).
        scale: smallest share of the image's area that a view shows (the paper's).
        flip: share of views that are mirrored.
        jitter: strength of the changes of brightness and contrast, in [0, 1] (the paper's for CIFAR-10).
    """

    family = "self-supervision"
    needs_teacher = False
    reads_student_logits = False

    counter: torch.Tensor

    def __init__(
        self,
        temperature: float = 0.5,
        dimensions: int = 128,
        scale: float = 0.08,
        flip: float = 0.5,
        jitter: float = 0.4,
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be greater than 0")
        if dimensions < 1:
            raise ValueError(f"dimensions is {dimensions}; it must be at least 1")
        self.temperature, self.dimensions = temperature, dimensions
        self.scale, self.flip, self.jitter = scale, flip, jitter
        self._augment = Augment(scale, flip, jitter)

    def wire(self, wiring: Wiring) -> None:
        """Find the embedding and size the projector."""
        check_images(wiring.student.inputs, role="student", method=self.name)
        tap = wiring.student.tap(wiring.student.embedding)
        self.place, self._seed = tap.name, wiring.seed
        self.projector = nn.Sequential(
            nn.Linear(tap.width, tap.width), nn.ReLU(), nn.Linear(tap.width, self.dimensions)
        )
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def inputs(self, batch: Batch) -> Batch:
        """Make two views of every image."""
        return views_of(
            batch, [self._augment] * VIEWS, seed=self._seed, count=self.counter, method=self.name
        )

    def loss(self, step: Step) -> torch.Tensor:
        """Return the mean over the images and their views."""
        projected = self.projector(step.pooled(step.student.features[self.place]))
        weight = step.batch.weight
        return objectives.nt_xent(
            by_image(projected, VIEWS),
            temperature=self.temperature,
            weight=None if weight is None else by_image(weight, VIEWS)[:, 0],
        )

    def after_step(self, step: Step) -> None:
        """Count, so that the next time an image comes it is seen otherwise."""
        self.counter += 1
