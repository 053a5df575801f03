"""What a model gave for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from understudy.errors import ModelError, StoreError

if TYPE_CHECKING:
    # A saved model is used where only this room is there.
    from understudy.objectives import Head


@dataclass(slots=True)
class TopK:
    """The largest k of C logits of each sample, and one number for all that is left.

    The rest is one further class, the tail. At temperature T its logit is T * log sum exp(z_j / T) over the classes
    that are not among the k, so that dividing values and tail by T and taking the softmax gives the teacher's
    softened probabilities of the k classes and of the rest, exactly.

    Attributes:
        values: [B, k], logits less the sample's largest logit.
        indices: int64 [B, k], which classes they belong to, ascending.
        tails: temperature -> [B], the tail's logit less the sample's largest logit; -inf when k = C.
        entropy: [B], the entropy of the teacher's C probabilities at temperature 1, in nats.
        classes: C.
    """

    values: torch.Tensor
    indices: torch.Tensor
    tails: dict[float, torch.Tensor]
    entropy: torch.Tensor
    classes: int

    def tail(self, temperature: float) -> torch.Tensor:
        """Return the tail's logit [B] at a temperature.

        Raises:
            StoreError: it was not kept for that temperature, and cannot be had from another.
        """
        if float(temperature) not in self.tails:
            kept = ", ".join(f"{known:g}" for known in self.tails)
            raise StoreError(
                f"The teacher's tail is stored for the temperatures {kept}, not for {temperature:g}, and does not "
                f"follow from them. Use one of them, or label again with temperatures=[{temperature:g}]."
            )
        return self.tails[float(temperature)]


@dataclass(slots=True)
class Outputs:
    """What one model gave for one batch.

    Attributes:
        logits: [B, C], raw scores before the softmax; None when the pass stopped before them. Of a language model
            [N, C], a row for every predicted token.
        features: tap name -> tensor, in the shape that the tapped module gave or took.
        top_k: the largest logits in place of all, where a store holds no more; None otherwise.
        hidden: [N, H], what a language model's head makes the logits of; None for other models.
        head: that head, so that a loss need not hold all logits; None for other models.
    """

    logits: torch.Tensor | None = None
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    top_k: TopK | None = None
    hidden: torch.Tensor | None = None
    head: Head | None = None

    def tensors(self) -> list[torch.Tensor]:
        """Return the logits, where there are any, and the features."""
        logits = [] if self.logits is None else [self.logits]
        return [*logits, *self.features.values()]


class TokenOutputs(Outputs):
    """What a language model gave: its last hidden states and its head, of which logits are made when they are wanted.

    Args:
        hidden: [N, H], hidden states that predict a token; None where they are not known apart from the logits.
        head: the head; None without hidden states.
        logits: [N, C] where they are there anyway.
        features: see `Outputs`.
        top_k: see `Outputs`.
    """

    __slots__ = ("_logits",)

    def __init__(
        self,
        hidden: torch.Tensor | None = None,
        head: Head | None = None,
        logits: torch.Tensor | None = None,
        features: dict[str, torch.Tensor] | None = None,
        top_k: TopK | None = None,
    ) -> None:
        """Keep what is given."""
        self.hidden, self.head, self._logits = hidden, head, logits
        self.features, self.top_k = features or {}, top_k

    @property
    def logits(self) -> torch.Tensor | None:  # type: ignore[override]
        """All logits [N, C], made once."""
        if self._logits is None and self.hidden is not None and self.head is not None:
            self._logits = self.head.logits(self.hidden)
        return self._logits

    def tensors(self) -> list[torch.Tensor]:
        """Return what is there without making logits."""
        found = [one for one in (self.hidden, self._logits) if one is not None]
        return [*found, *self.features.values()]


def logits_of(raw: Any) -> torch.Tensor:
    """Find the logits in what a classifier returned: a tensor, `.logits`, `["logits"]` or a tuple's first item."""
    if isinstance(raw, torch.Tensor):
        return raw
    found = raw
    if hasattr(raw, "logits"):
        found = raw.logits
    elif isinstance(raw, Mapping) and "logits" in raw:
        found = raw["logits"]
    elif isinstance(raw, tuple | list) and raw:
        found = raw[0]
    if not isinstance(found, torch.Tensor):
        raise ModelError(
            f"The model returned a {type(raw).__name__} in which no logits can be found. "
            "It should return a tensor, an object with `.logits`, or a tuple that starts with the logits."
        )
    return found


def call(module: torch.nn.Module | Any, inputs: Any) -> Any:
    """Call `module` on what a batch holds for it: keywords for a mapping, one argument otherwise."""
    # A tensor first: whether something is a mapping takes longer to find out.
    if isinstance(inputs, torch.Tensor) or not isinstance(inputs, Mapping):
        return module(inputs)
    return module(**inputs)
