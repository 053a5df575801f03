"""The output head of a language model: everything between its last hidden states and its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LowRank:
    """An addition to a head's weight of low rank, as LoRA trains it: scale * up @ down.

    Attributes:
        down: A [r, H].
        up: B [V, r].
        scale: alpha / r.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Head:
    """Logits z = cap(scale * (h (W + low rank)^T + bias)) of hidden states h [..., H], cap(x) = c * tanh(x / c).

    The tensors are those of the model, not copies: a weight that is tied to an embedding or stands still
    (`requires_grad` is False) is given as it is.

    Attributes:
        weight: W [V, H].
        bias: [V] or None. At -inf a class is masked.
        scale: factor of the logits before the cap (Cohere's `logit_scale`).
        soft_cap: c > 0 (Gemma's `final_logit_softcapping`), or None for no cap.
        low_rank: LoRA's addition to the weight, or None.
        vocabulary: how many leading rows are tokens. The rest is padding, which no softmax sees. None for all V.

    Raises:
        ValueError: a shape or a number does not fit.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    low_rank: LowRank | None = None
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        """Refuse shapes and numbers that do not fit."""
        shape = tuple(self.weight.shape)
        if len(shape) != 2:
            raise ValueError(f"the head's weight has shape {shape}; it must be [vocabulary, width]")
        if self.bias is not None and tuple(self.bias.shape) != shape[:1]:
            raise ValueError(
                f"the head's bias has shape {tuple(self.bias.shape)} and its weight {shape}; "
                f"the bias must be {shape[:1]}"
            )
        if self.low_rank is not None:
            down, up = tuple(self.low_rank.down.shape), tuple(self.low_rank.up.shape)
            if len(down) != 2 or up != (shape[0], down[0]) or down[1] != shape[1]:
                raise ValueError(
                    f"the low rank pair has shapes {down} (down) and {up} (up) and the head's weight {shape}; "
                    f"they must be [rank, {shape[1]}] and [{shape[0]}, rank]"
                )
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"soft_cap is {self.soft_cap}; it must be greater than 0, or None")
        if self.vocabulary is not None and not 0 < self.vocabulary <= shape[0]:
            raise ValueError(
                f"vocabulary is {self.vocabulary} and the head's weight has shape {shape}; "
                f"it must be between 1 and {shape[0]}"
            )

    @property
    def size(self) -> int:
        """How many tokens there are, without padding."""
        return self.weight.shape[0] if self.vocabulary is None else self.vocabulary

    @property
    def width(self) -> int:
        """The width H of the hidden states that it takes."""
        return self.weight.shape[1]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return all logits [..., size] of hidden states [..., H] at once, by plain operations with autograd.

        This is the formula that the fused loss computes without holding its result; use it to generate, and where
        there are few tokens.
        """
        logits = hidden @ self.weight[: self.size].to(hidden.dtype).mT
        if self.low_rank is not None:
            low = self.low_rank.scale * (hidden @ self.low_rank.down.to(hidden.dtype).mT)
            logits = logits + low @ self.low_rank.up[: self.size].to(hidden.dtype).mT
        if self.bias is not None:
            logits = logits + self.bias[: self.size].to(hidden.dtype)
        if self.scale != 1:
            logits = self.scale * logits
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        return logits
