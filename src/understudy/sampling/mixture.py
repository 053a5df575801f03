"""A second model that has a say in each token, as in sampling from a mixture of student and teacher."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from understudy.errors import ModelError


class Mixture:
    """Gives what a second model would write next, step by step, with a cache of its own.

    Args:
        module: the second model, in evaluation mode; it reads the same tokens.
        share: its share of the probability, in (0, 1).
        mask: int64 [B, T], which tokens of the prompts are no padding.
    """

    def __init__(self, module: nn.Module, share: float, mask: torch.Tensor) -> None:
        """Start before the prompts."""
        self._module, self.share, self._mask = module, share, mask
        self._cache: Any = None

    def mixed(
        self, log_probs: torch.Tensor, input_ids: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Return the logarithm of (1 - share) * q + share * p.

        Args:
            log_probs: [B, V], of the first model.
            input_ids: int64 [B, T], all tokens so far; one more in each call.
            temperature: what the second model's logits are divided by.
        """
        logits = self._next(input_ids)[:, : log_probs.shape[1]].float()
        if logits.shape != log_probs.shape:
            raise ModelError(
                f"The two models of a mixture have {log_probs.shape[1]} and {logits.shape[1]} tokens; they have to "
                "have the same vocabulary."
            )
        # What is padding of the output layer for the first model is not written by the second either.
        logits = logits.masked_fill(log_probs == -torch.inf, -torch.inf)
        theirs = (logits / temperature).log_softmax(dim=1)
        return torch.logaddexp(log_probs + math.log1p(-self.share), theirs + math.log(self.share))

    def _next(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits that predict the next token [B, V]."""
        new = input_ids
        if self._cache is not None:
            new = input_ids[:, -1:]
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(new), 1)], dim=1)
        positions = (self._mask.cumsum(dim=1) - 1).clamp_min(0)[:, -new.shape[1] :]
        found = self._module(
            input_ids=new,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = getattr(found, "past_key_values", None)
        if self._cache is None:
            raise ModelError(
                f"{type(self._module).__name__} keeps no keys and values from token to token, so it cannot "
                "take part in a mixture. Set the teacher's share to 0."
            )
        logits: torch.Tensor = found.logits[:, -1]
        return logits
