"""What is measured of each predicted token, as a column: enough to evaluate a teacher whose logits are not kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from understudy.teachers.store.deviation import Deviation

_FIELDS = {"label": "<i4", "best": "<i4", "nats": "<f4", "confidence": "<f4"}


@dataclass(frozen=True)
class TokenScores:
    """The token, the most likely token, the nats of the former and the probability of the latter: 16 bytes, exact.

    As numbers they are float64 [B, 4], in that order.
    """

    @property
    def record(self) -> np.dtype[Any]:
        """The four together."""
        return np.dtype(list(_FIELDS.items()))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """A record has no further dimensions."""
        return ()

    def encode(self, values: torch.Tensor) -> tuple[np.ndarray, Deviation]:
        """Encode float64 [B, 4]."""
        given = values.detach().cpu().numpy()
        rows = np.empty(len(given), dtype=self.record)
        for number, name in enumerate(_FIELDS):
            rows[name] = given[:, number]
        return rows, Deviation.between(values.detach().cpu(), self.restore(self.columns(rows)))

    def opened(self, rows: np.ndarray) -> np.ndarray:
        """Return the records as they are."""
        return rows

    def columns(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the four by name."""
        return {name: torch.from_numpy(rows[name].copy()) for name in _FIELDS}

    def restore(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return float64 [B, 4]."""
        return torch.stack([columns[name].double() for name in _FIELDS], dim=1)

    def config(self) -> dict[str, Any]:
        """Return what tells the column from others."""
        return {"scores": list(_FIELDS)}
