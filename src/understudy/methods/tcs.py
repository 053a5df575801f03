"""A tailored coordinate system."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods._tailoring import Tailoring, round_sizes
from understudy.methods.method import Method
from understudy.methods.step import Step
from understudy.methods.wiring import Wiring
from understudy.models.heads import LinearChain
from understudy.seeding import stream
from understudy.teachers.features import Features
from understudy.teachers.medians import projected_medians
from understudy.teachers.readings import Reading
from understudy.teachers.statistics import Moments
from understudy.teachers.study import Study

logger = logging.getLogger("understudy")
HASHES_PER_DIMENSION, MOST_HASHES = 32, 16_384
ENOUGH = 5
"""Samples for each coordinate below which a basis is warned of."""
ON_DEVICE = 2**31
"""Bytes of cached features up to which they are copied to the device."""


class TCS(Method, name="tcs"):
    """Classify in a coordinate system of the teacher's features, from which the useful coordinates are selected.

    Paper: Zhou, Zhu and Wu, "All You Need in Knowledge Distillation Is a Tailored Coordinate System", AAAI 2025. Its
    method section could not be read; what follows was built from its abstract and summaries. The mimicking is
    Wang, Ge and Wu, "Distilling Knowledge by Mimicking Features", TPAMI 2021, and its authors' code.
    Equation: logits = C (m * f * V^T (P s + p - mu)) + c, where s goes into the student's classifier, mu and V are mean
    and principal directions of the teacher's features t, f scales and m selects. The loss is mean_d (a_d - t_d)^2 +
    mean_n BCE(h_n.a + b_n, [h_n.t + b_n > 0]) with a = P s + p and b_n = -median(h_n.t), per sample, in nats. After
    each round the coordinates with the lowest sum of |m_j dL/dm_j| over its steps are dropped for good.
    Labels: not used by the loss. The classifier C needs a method beside it that trains logits: `supervised`.
    Use: `[supervised, {name: tcs, weight: 6}]`. The teacher sees every training sample once, as it is, before the
    stage; its features are joined to augmented batches by sample id, so it is not run in training. It needs no
    classifier.
    Deviation: with `mimic: none` and a trained alignment the basis cannot matter: V^T P then starts and trains alike
    for every orthonormal V. What breaks this symmetry in the paper is not known, so basis, alignment and scaling
    are options, and `random` and `pca` without mimicking are controls.
    Weight: 6 on CIFAR-100, 5 on ImageNet (the mimicking's paper).
    Cost: one pass of the teacher; N d_T values for the hash and n d_T cached features, in training only. The
    student's head has d_S d_T + d_T k + k C more values until it is folded into one linear layer for export.
    Fails when: there are fewer than five samples for each coordinate (warned of), or a mixing transform makes the
    cached features belong to no image (refused).

    Args:
        coordinates: k; None for as many as the samples span, d_T at most.
        basis: V: "pca", "random" (orthonormal), or "identity" (the axes of largest variance).
        alignment: P: "trainable", "fixed" (drawn, orthonormal) or "none" (both widths are equal).
        scaling: f: "none", "eigenvalues" (the standard deviation, 1 for the largest) or "whitened" (1 over it).
        keep: share of the coordinates that is kept at the end, in (0, 1]; at least one. 1 for no selection.
        drop: share of the present coordinates that a round drops, in (0, 1).
        until: progress, in (0, 1), at which the last round ends; the mask is fixed from then on.
        mimic: "lshl2" as above, "lsh" without the squared error, or "none".
        hashes: N; None for 32 d_T (the mimicking's paper), at most 16384.
        hash_std: standard deviation of h; None for 1 over the root mean square length of t.
        teacher_tap: module path of t, or "auto" for what goes into the teacher's classifier.
        pooling: how t becomes a vector: "mean" over places or tokens, or "first" token.
    """

    family = "structure"
    needs_teacher = False
    reads_logits = False
    reads_student_logits = False

    directions: torch.Tensor
    hash_scale: torch.Tensor
    hash_bias: torch.Tensor

    def __init__(
        self,
        coordinates: int | None = None,
        basis: Literal["pca", "random", "identity"] = "pca",
        alignment: Literal["trainable", "fixed", "none"] = "trainable",
        scaling: Literal["none", "eigenvalues", "whitened"] = "none",
        keep: float = 0.5,
        drop: float = 0.2,
        until: float = 0.5,
        mimic: Literal["lshl2", "lsh", "none"] = "lshl2",
        hashes: int | None = None,
        hash_std: float | None = None,
        teacher_tap: str = "auto",
        pooling: Literal["mean", "first"] = "mean",
    ) -> None:
        """Keep the configuration."""
        super().__init__()
        choices = {
            "basis": (basis, ("pca", "random", "identity")),
            "alignment": (alignment, ("trainable", "fixed", "none")),
            "scaling": (scaling, ("none", "eigenvalues", "whitened")),
            "mimic": (mimic, ("lshl2", "lsh", "none")),
            "pooling": (pooling, ("mean", "first")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} is '{value}'; it must be one of {', '.join(allowed)}")
        for name, count in {"coordinates": coordinates, "hashes": hashes}.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} is {count}; it must be at least 1")
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}; it must be in (0, 1]")
        for name, share in {"drop": drop, "until": until}.items():
            if not 0 < share < 1:
                raise ValueError(f"{name} is {share}; it must be in (0, 1)")
        if hash_std is not None and not hash_std > 0:
            raise ValueError(f"hash_std is {hash_std}; it must be greater than 0")
        self.coordinates, self.basis, self.alignment = coordinates, basis, alignment
        self.scaling, self.keep, self.drop, self.until = scaling, keep, drop, until
        self.mimic, self.hashes, self.hash_std = mimic, hashes, hash_std
        self.teacher_tap, self.pooling = teacher_tap, pooling
        # Without mimicking there is nothing to learn from a sample that has no label.
        self.needs_labels = mimic == "none"

    def wire(self, wiring: Wiring) -> None:
        """Replace the student's classifier and draw the hash."""
        tap = wiring.teacher.embedding if self.teacher_tap == "auto" else self.teacher_tap
        shape = wiring.teacher.tap(tap)
        self.reading = Reading(tap, form=self.pooling if len(shape.shape) > 1 else "rows")
        wiring.notes.append(
            f"coordinates of the teacher's '{tap}' {shape.shape}, of tokens and maps the {self.pooling}"
        )
        width, size = shape.width, self._size(wiring, shape.width)
        self.head = wiring.head(lambda inputs, classes: self._chain(inputs, width, size, classes))
        aligned = self.head.tap("@input" if self.alignment == "none" else "align")
        if len(aligned.shape) != 1:
            raise UnderstudyError(
                f"Method '{self.name}' needs a student whose classifier reads one vector per sample; it reads "
                f"{aligned.shape}."
            )
        self.place = aligned.name
        self.tailoring: Tailoring | None = None
        if self.keep < 1:
            sizes = round_sizes(size, max(1, round(self.keep * size)), self.drop)
            mask = self.head.module.get_parameter("mask.weight")
            self.tailoring = Tailoring(mask, sizes, self.until)
            wiring.notes.append(f"keeps {sizes[-1]} of {size} coordinates, in {len(sizes)} rounds")
        hashes = self.hashes or min(HASHES_PER_DIMENSION * width, MOST_HASHES)
        hashes = hashes if self.mimic != "none" else 0
        # Drawn again from the seed instead of being kept in every checkpoint.
        drawn = torch.randn(hashes, width, generator=stream(wiring.seed, "hash"))
        self.register_buffer("directions", drawn, persistent=False)
        self.register_buffer("hash_scale", torch.ones(()))
        self.register_buffer("hash_bias", torch.zeros(hashes))

    def fit(self, study: Study) -> None:
        """Learn the coordinate system and the hash from one pass; keep the features."""
        mixing = getattr(study.views, "mixing", None)
        if mixing is not None and self.mimic != "none":
            raise UnderstudyError(
                f"Method '{self.name}' mimics features of images as they are, and the transform '{mixing.name}' mixes "
                "images: no cached feature belongs to a mixture. Remove it, or set mimic: none."
            )
        moments, self.features = Moments(self.reading), Features(self.reading)
        mimics = self.mimic != "none"
        study.collect(moments, *([self.features] if mimics else []))
        if self.head.new:
            self._set_head(moments, study)
        if not mimics:
            return
        square = moments.covariance.trace() + moments.mean.square().sum()
        std = self.hash_std or float(square.clamp_min(1e-12).rsqrt())
        medians = projected_medians(self.features, self.directions.T)
        self.hash_scale.fill_(std)
        self.hash_bias.copy_(-std * medians)
        if self.features.ids.numel() * len(moments.mean) * 4 <= ON_DEVICE:
            self.features.keep_on(study.device)

    def loss(self, step: Step) -> dict[str, torch.Tensor]:
        """Return how far the aligned feature is from the teacher's."""
        if self.mimic == "none":
            return {}
        aligned = step.student.features[self.place]
        mimicked = objectives.lsh(
            aligned,
            self.features.rows_for(step.batch.index),
            hash_weight=self.directions * self.hash_scale,
            hash_bias=self.hash_bias,
            squared_error=self.mimic == "lshl2",
            weight=step.batch.weight,
        )
        return {"mimic": mimicked}

    def after_step(self, step: Step) -> None:
        """Count the importance of each coordinate, and drop the least when a round ends."""
        if self.tailoring is not None:
            chain = self.head.module
            mask, selected = chain.get_parameter("mask.weight"), chain.get_buffer("selected.weight")
            self.tailoring.follow(mask, selected, step.progress)

    def _size(self, wiring: Wiring, width: int) -> int:
        """Return k; refuse more than the teacher's features have."""
        asked = self.coordinates
        samples = None if wiring.train is None else len(wiring.train)
        rank = width
        # Directions of variance: n samples around their mean span n - 1.
        if samples is not None and self.basis == "pca":
            rank = max(1, min(width, samples - 1))
        if asked is not None and asked > rank:
            why = f"the teacher's features have {width} dimensions" + (
                "" if rank == width else f" and {samples} samples span at most {rank}"
            )
            raise UnderstudyError(
                f"Method '{self.name}' was asked for {asked} coordinates, but {why}. Ask for at most {rank}, or leave "
                "`coordinates` out."
            )
        size = rank if asked is None else asked
        if size < width and asked is None:
            wiring.notes.append(f"{samples} samples span {size} of {width} coordinates")
        if samples is not None and self.basis == "pca" and samples < ENOUGH * size:
            wiring.notes.append(
                f"only {samples} samples for {size} principal coordinates, fewer than {ENOUGH} for each"
            )
        return size

    def _chain(self, inputs: int, width: int, size: int, classes: int) -> LinearChain:
        """Return the head, before anything is known of the teacher's features."""
        parts: list[dict[str, Any]] = []
        if self.alignment == "none":
            if inputs != width:
                raise UnderstudyError(
                    f"Method '{self.name}' with alignment 'none' needs features of one width, but the student's has "
                    f"{inputs} dimensions and the teacher's {width}. Use 'trainable' or 'fixed'."
                )
        else:
            frozen = self.alignment == "fixed"
            parts.append({"name": "align", "kind": "linear", "size": width, "frozen": frozen})
        parts.append({"name": "centre", "kind": "shift", "frozen": True})
        parts.append(
            {"name": "axes", "kind": "linear", "size": size, "bias": False, "frozen": True}
        )
        parts.append({"name": "scaling", "kind": "scale", "frozen": True})
        if self.keep < 1:
            parts.append({"name": "mask", "kind": "scale"})
        # A part of its own: what is dropped is multiplied by 0, whatever an optimiser or an average does to the mask.
        parts.append({"name": "selected", "kind": "scale", "frozen": True})
        parts.append({"name": "classifier", "kind": "linear", "size": classes})
        chain = LinearChain(inputs, parts)
        if self.alignment == "fixed":
            drawn = torch.nn.init.orthogonal_(torch.empty(width, inputs))
            chain.assign("align", weight=drawn, bias=torch.zeros(width))
        return chain

    def _set_head(self, moments: Moments, study: Study) -> None:
        """Put mean, basis and scaling into the head."""
        chain, covariance = self.head.module, moments.covariance
        size, width = chain.get_buffer("axes.weight").shape
        found = moments.principal()  # refuses features that do not vary
        if self.basis == "pca":
            if self.coordinates is not None:
                found = moments.principal(size)
            axes = torch.zeros(width, size, dtype=torch.float64)
            known = found.basis[:, :size]
            axes[:, : known.shape[1]] = known
            if found.rank < size and not study.provisional:
                logger.info("TCS: the features have rank %d, not %d", found.rank, size)
        elif self.basis == "random":
            drawn = torch.randn(width, size, generator=study.stream("basis"), dtype=torch.float64)
            axes = torch.linalg.qr(drawn)[0]
        else:
            largest = covariance.diagonal().argsort(descending=True, stable=True)[:size]
            axes = torch.eye(width, dtype=torch.float64)[:, largest.sort().values]
        if self.basis == "pca" and not study.provisional and moments.count < ENOUGH * size:
            logger.warning(
                "TCS: %d samples for %d principal coordinates, fewer than %d for each, are noisy directions.",
                moments.count,
                size,
                ENOUGH,
            )
        variances = ((axes.T @ covariance) * axes.T).sum(dim=1).clamp_min(0)
        alive = axes.square().sum(dim=0) > 0
        chain.assign("centre", bias=-moments.mean)
        chain.assign("axes", weight=axes.T)
        chain.assign("scaling", weight=_factors(self.scaling, variances))
        chain.assign("selected", weight=alive.double())


def _factors(scaling: str, variances: torch.Tensor) -> torch.Tensor:
    """Return what each coordinate is multiplied by, float64 [k]; 0 where a wanted scale does not exist."""
    if scaling == "none":
        return torch.ones_like(variances)
    deviations = variances.sqrt()
    if scaling == "eigenvalues":
        return deviations / deviations.max().clamp_min(1e-30)
    return torch.where(deviations > 0, 1 / deviations.clamp_min(1e-30), 0.0)
