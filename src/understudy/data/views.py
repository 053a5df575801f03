"""Views: what random transforms make of a sample, as a function of seed, sample id and view."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch

from understudy.data.batch import UNLABELLED
from understudy.data.draws import Draw
from understudy.data.global_state import no_global_draws
from understudy.data.source import Raw
from understudy.errors import DataError, UnderstudyError
from understudy.registry import Registry


class Augmentation(ABC):
    """What transforms and mixing have in common: a name and a configuration.

    The configuration is the constructor's signature: it keeps each keyword under its own name, as
    scikit-learn's estimators do.

    Attributes:
        name: the class's name in snake case; part of what its draws depend on.
        stochastic: whether two views of a sample can differ by it.
    """

    name: ClassVar[str]
    stochastic: bool = True

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Derive the name."""
        super().__init_subclass__(**keywords)
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def config(self) -> dict[str, Any]:
        """Return the name and the constructor's keywords, from which it can be made again."""
        return {"name": self.name} | {
            keyword: getattr(self, keyword) for keyword in inspect.signature(type(self)).parameters
        }


class Transform(Augmentation):
    """A change of images, sample by sample."""

    @abstractmethod
    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Return the transformed images.

        Args:
            images: uint8 or float [B, C, H, W], float in [0, 1]. Not to be changed in place.
            draw: the only allowed origin of random numbers.

        Returns:
            [B, C, H', W']. What becomes of a sample may not depend on which others are in the
            batch.
        """


class Mixing(Augmentation):
    """A change that puts a second sample, the partner, into each one."""

    @abstractmethod
    def mix(
        self, images: torch.Tensor, partners: torch.Tensor, draw: Draw
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix each image with its partner.

        Args:
            images: uint8 or float [B, C, H, W].
            partners: the partners' images, same shape and type.
            draw: the only allowed origin of random numbers.

        Returns:
            The mixed images, and float32 [B] in [0, 1]: the share of each sample that is its own.
        """


class Deterministic(Transform):
    """A function of a batch of images that draws nothing, such as a centre crop."""

    stochastic = False

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Wrap `function`, images [B, C, H, W] -> images."""
        if not callable(function):
            raise UnderstudyError(f"Deterministic needs a function, not {function!r}.")
        self.function = function

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Apply the function."""
        return self.function(images)

    def config(self) -> dict[str, Any]:
        """Return the name and where the function is defined."""
        kind = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return {"name": self.name, "function": f"{kind.__module__}.{kind.__qualname__}"}


transforms: Registry[Callable[..., Transform | Mixing]] = Registry(
    "transform", "understudy.data.transforms"
)
"""Classes that make a `Transform` or a `Mixing`; one file each in `data/transforms/`."""


class Views:
    """A pipeline of transforms with a seed.

    View v of a sample is the same tensor, bit for bit, in any batch, process and order of calls.

    Args:
        transforms: the parts, in order; at most one of them mixes.
        seed: the run's seed.
        count: how many views a sample has, or None for a new one on every pass.

    Attributes:
        transforms: the parts, in order.
        seed: the run's seed.
        count: how many views a sample has, or None for a new one on every pass.
        mixing: the part that mixes, or None.
        stochastic: whether views differ at all.
    """

    def __init__(
        self, transforms: Sequence[Transform | Mixing], *, seed: int, count: int | None = None
    ) -> None:
        """Check the parts: at most one mixes, and none is a bare callable."""
        if count is not None and count < 1:
            raise UnderstudyError(f"views must be at least 1 (or none for no limit), not {count}.")
        for position, part in enumerate(transforms):
            if not isinstance(part, Transform | Mixing):
                raise UnderstudyError(
                    f"Transform {position} is {part!r}, which does not say how it draws, so its "
                    "views could not be rebuilt. If it is random, write it as a subclass of "
                    "Transform that draws from `draw`; if it is not, wrap it: "
                    "Deterministic(function)."
                )
        mixing = [place for place, part in enumerate(transforms) if isinstance(part, Mixing)]
        if len(mixing) > 1:
            names = " and ".join(f"'{transforms[place].name}'" for place in mixing)
            raise UnderstudyError(
                f"The transforms {names} both mix samples; a pipeline can have one. To choose "
                "between MixUp and CutMix for each sample use 'mixup_or_cutmix'."
            )
        self.transforms = tuple(transforms)
        self.seed = seed
        self.count = count
        self.mixing = self.transforms[mixing[0]] if mixing else None
        self.stochastic = any(part.stochastic for part in transforms)
        self._mixing_position = mixing[0] if mixing else len(self.transforms)

    def config(self) -> dict[str, Any]:
        """Return everything that decides what view v of a sample is."""
        return {
            "seed": self.seed,
            "count": self.count,
            "transforms": [part.config() for part in self.transforms],
        }

    def number(self, passes: torch.Tensor) -> torch.Tensor:
        """Return which view each pass (int64 [B]) shows: the pass itself, modulo `count`.

        Without a random transform there is only view 0.
        """
        if not self.stochastic:
            return torch.zeros_like(passes)
        return passes if self.count is None else passes % self.count

    def __call__(self, raw: Raw, ids: torch.Tensor, views: torch.Tensor) -> Raw:
        """Return view `views` of each sample.

        Args:
            raw: what the samples are: images uint8 or float [B, C, H, W], on any device; anything
                when there are no transforms.
            ids: int64 [B] on the CPU, stable sample ids.
            views: int64 [B] on the CPU, view numbers.

        Raises:
            UnderstudyError: a part mixes (use `mixed`), or draws from global random state.
            DataError: there are transforms, and `raw` holds no images.
        """
        if self.mixing is not None:
            raise UnderstudyError(f"'{self.mixing.name}' needs a partner for each sample.")
        if not self.transforms:
            return raw
        return self._run(self._images(raw), ids, views, 0, len(self.transforms))

    def partner_positions(
        self, ids: torch.Tensor, views: torch.Tensor, population: int
    ) -> torch.Tensor:
        """Draw with whom each sample is mixed.

        Args:
            ids: int64 [B] on the CPU, stable sample ids.
            views: int64 [B] on the CPU, view numbers.
            population: how many samples there are to choose from.

        Returns:
            int64 [B] in [0, population).
        """
        draw = self._draw(self._mixing_position, ids, views, torch.device("cpu"))
        return draw.integers("partner", population)[:, 0]

    def mixed(
        self,
        raw: Raw,
        ids: torch.Tensor,
        views: torch.Tensor,
        partner_raw: Raw,
        partner_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return view `views` of each sample, mixed with the same view of its partner.

        Args:
            raw: images uint8 or float [B, C, H, W].
            ids: int64 [B] on the CPU.
            views: int64 [B] on the CPU.
            partner_raw: the partners' images.
            partner_ids: int64 [B] on the CPU.

        Returns:
            The images, and float32 [B]: each sample's own share, for `soft_labels`.
        """
        if not isinstance(self.mixing, Mixing):
            raise UnderstudyError("No transform mixes samples; call the views without partners.")
        # Transforms treat every sample for itself, so both sides can go through them as one batch.
        both = self._run(
            torch.cat([self._images(raw), self._images(partner_raw)]),
            torch.cat([ids, partner_ids]),
            torch.cat([views, views]),
            0,
            self._mixing_position,
        )
        images, partners = both.chunk(2)
        draw = self._draw(self._mixing_position, ids, views, images.device)
        with _watch(self.mixing, images.device):
            images, share = self.mixing.mix(images, partners, draw)
        after = self._mixing_position + 1
        return self._run(images, ids, views, after, len(self.transforms)), share

    def _run(
        self, images: torch.Tensor, ids: torch.Tensor, views: torch.Tensor, start: int, stop: int
    ) -> torch.Tensor:
        for position in range(start, stop):
            part = self.transforms[position]
            assert isinstance(part, Transform)
            draw = self._draw(position, ids, views, images.device)
            with _watch(part, images.device):
                images = part(images, draw)
            if images.dim() != 4 or len(images) != len(ids):
                raise UnderstudyError(
                    f"The transform '{part.name}' made {tuple(images.shape)} of {len(ids)} images; "
                    "it has to return [B, C, H, W] with the same B."
                )
        return images

    def _draw(
        self, position: int, ids: torch.Tensor, views: torch.Tensor, device: torch.device
    ) -> Draw:
        scope = f"{position}.{self.transforms[position].name}"
        return Draw(self.seed, ids, views, scope, device)

    def _images(self, raw: Raw) -> torch.Tensor:
        if not isinstance(raw, torch.Tensor) or raw.dim() != 4:
            found = f"a tensor {tuple(raw.shape)}" if isinstance(raw, torch.Tensor) else "text"
            names = ", ".join(f"'{part.name}'" for part in self.transforms)
            raise DataError(
                f"The transforms {names} work on images [B, C, H, W], but the data is {found}. "
                "Leave them out."
            )
        return raw


def soft_labels(
    labels: torch.Tensor, partners: torch.Tensor, share: torch.Tensor, classes: int
) -> torch.Tensor:
    """Return the labels of mixed samples.

    Args:
        labels: int64 [B], -1 for none.
        partners: int64 [B], the partners' labels, -1 for none.
        share: float [B], each sample's own share.
        classes: the number of classes C.

    Returns:
        float32 [B, C]; rows are all 0 where either label is missing, since then nobody knows the
        mixture's label.
    """
    names = torch.arange(classes, device=labels.device)
    own, other = (column[:, None] == names for column in (labels, partners))
    known = (labels != UNLABELLED) & (partners != UNLABELLED)
    share = share[:, None]
    return (own * share + other * (1 - share)) * known[:, None]


def _watch(part: Augmentation, device: torch.device) -> AbstractContextManager[None]:
    if isinstance(part, Deterministic):
        return no_global_draws(f"The function {part.config()['function']} in Deterministic", device)
    if type(part).__module__.startswith("understudy."):
        return nullcontext()
    return no_global_draws(f"The transform '{part.name}'", device)
