"""Low-rank adapters (LoRA, Hu et al. 2022): put into a model by peft, and merged into its weights again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError
from understudy.models.configured import construct
from understudy.models.optional import first_line, require


@dataclass(frozen=True)
class Lora:
    """What adapters are asked for.

    Attributes:
        rank: r, the rank of each adapter.
        alpha: adapters are scaled by alpha / rank; None for 2 * rank.
        targets: names of the linear layers that get one, as they end; "all-linear" for all but the output head.
        dropout: before each adapter, in training.
    """

    rank: int
    alpha: float | None = None
    targets: str | list[str] | tuple[str, ...] = "all-linear"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that make no adapter."""
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ModelError(f"'rank' of `lora` is {self.rank!r}; it is a whole number from 1.")
        if self.alpha is not None and not self.alpha > 0:
            raise ModelError(f"'alpha' of `lora` is {self.alpha}; it must be greater than 0.")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"'dropout' of `lora` is {self.dropout}; it must be in [0, 1).")

    @classmethod
    def read(cls, settings: Any) -> Lora:
        """Read the keyword `lora` of a model.

        Raises:
            ModelError: it is no mapping, or has no rank.
            UnknownName: there is no such setting.
        """
        if not isinstance(settings, Mapping) or "rank" not in settings:
            raise ModelError(
                f"`lora` is {settings!r}; it is written {{rank: 8, alpha: 16, targets: [q_proj, v_proj]}}."
            )
        return construct(cls, "lora", settings)

    def described(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "targets": targets,
            "dropout": self.dropout,
        }


def add_adapters(module: nn.Module, lora: Lora, name: str) -> None:
    """Put adapters into a transformers model. It stays the model that it is; only the adapters are trained.

    Their parameters are in float32 whatever the model's are. Initial ones are drawn from torch's global generator; an
    adapter adds nothing at first.

    Args:
        module: the model; changed.
        lora: what is asked for.
        name: what an error calls the model.

    Raises:
        ModelError: no layer is called so, or peft has no adapter for one.
    """
    peft = require("peft", "lora")
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    if isinstance(targets, str) and targets != "all-linear":
        targets = [targets]
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=2 * lora.rank if lora.alpha is None else lora.alpha,
        target_modules=targets,
        lora_dropout=lora.dropout,
    )
    if targets == "all-linear":
        config.target_modules = _linear_layers(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tied heads; `merge_adapters` unties them
            peft.inject_adapter_in_model(config, module)
    except (ValueError, TypeError) as error:
        raise ModelError(f"'{name}' cannot get adapters: {first_line(error)}") from error
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def has_adapters(module: nn.Module) -> bool:
    """Tell whether there are adapters in a model."""
    return any(hasattr(part, "base_layer") and hasattr(part, "merge") for part in module.modules())


def merge_adapters(module: nn.Module) -> None:
    """Add adapters to the weights that they belong to and take them out; the model computes what it did.

    A weight that two layers share, of which only one has an adapter, is shared no longer.
    """
    for path, part in list(module.named_modules()):
        layer: Any = part
        if not (hasattr(layer, "base_layer") and hasattr(layer, "merge")):
            continue
        base = layer.get_base_layer()
        if _shared(module, base.weight) > 1:
            base.weight = nn.Parameter(base.weight.detach().clone())
            _untie(module)
        with torch.no_grad():
            layer.merge(safe_merge=True)
        above, _, own = path.rpartition(".")
        setattr(module.get_submodule(above), own, base)


def _linear_layers(module: Any) -> set[str]:
    """Return the paths of all linear layers but the output head."""
    from transformers.pytorch_utils import Conv1D

    output = module.get_output_embeddings()
    return {
        path
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and part is not output
    }


def _shared(module: nn.Module, weight: torch.Tensor) -> int:
    return sum(own is weight for part in module.modules() for own in part.parameters(recurse=False))


def _untie(module: Any) -> None:
    config = getattr(module, "config", None)
    if config is not None:
        config.tie_word_embeddings = False
