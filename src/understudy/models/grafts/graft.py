"""What a graft is."""

from __future__ import annotations

from typing import Any

import torch

from understudy.models.rebuildable import Rebuildable
from understudy.registry import Registry

grafts: Registry[type[Graft]] = Registry("graft", "understudy.models.grafts")
"""All grafts by name; one file each in `models/grafts/`."""


class Graft(Rebuildable):
    """A module whose output replaces what another module of the student returned.

    A graft is trained with the student, saved and exported with it, and needs neither teacher nor labels. What losses
    want to read of it, it computes in submodules, which can be tapped like any other. A class of this package enters
    itself into the registry with `class Templates(Graft, name="templates")`; one from elsewhere goes by
    `py:module:class`.

    Attributes:
        spliced: whether it sits in a model, behind the module whose child it is.
    """

    spliced: bool

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        """Enter the class into the registry under `name`."""
        super().__init_subclass__(**kwargs)
        cls.entry = name
        if name is not None:
            grafts.add(name, cls)

    def __init__(self) -> None:
        """Start outside of any model."""
        super().__init__()
        self.spliced = False

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Return what the rest of the student goes on with, given what the module before returned, [B, ...]."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward.")
