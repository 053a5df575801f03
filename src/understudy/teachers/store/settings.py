"""Where a store lies, and what is written into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from understudy.errors import StoreError

Dtype = Literal["float32", "bf16", "float16", "int8"]


@dataclass
class StoreSettings:
    """A store of teacher outputs. Training needs the path only; the rest is what `understudy label` writes.

    Attributes:
        path: a folder, or a URL that fsspec knows, such as s3://bucket/folder.
        top_k: keep only this many of the largest logits, and a tail for the rest; None for all.
        keep: what is kept of a language model's tokens: its last hidden "hidden" states, with the head beside them, or
            all "logits"; None for hidden states, or for the largest logits with `top_k`.
        dtype: in what logits or hidden states are kept: float32, bf16, float16 or int8 (with a scale).
        feature_dtype: in what features are kept; None for the same as logits.
        taps: features to keep beside those that the recipe's methods ask for.
        temperatures: for which a tail is kept beside 1 and those of the recipe's methods.
        precision: how the teacher runs.
        batch_size: samples in one pass of the teacher.
        shard_samples: samples in a shard; None for a size that suits the disk and a crash.
    """

    path: str
    top_k: int | None = None
    keep: Literal["hidden", "logits"] | None = None
    dtype: Dtype = "float32"
    feature_dtype: Dtype | None = None
    taps: Sequence[str] = ()
    temperatures: Sequence[float] = ()
    precision: Literal["float32", "bf16"] = "float32"
    batch_size: int = 256
    shard_samples: int | None = None

    def __post_init__(self) -> None:
        """Check what cannot be right."""
        if not self.path:
            raise StoreError("A store needs a path.")
        for name in ("top_k", "batch_size", "shard_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise StoreError(f"{name} of a store is {value}; it must be at least 1")
        if self.keep == "hidden" and self.top_k is not None:
            raise StoreError(
                f"A store keeps hidden states or the {self.top_k} largest logits, not both; leave out one."
            )
        if any(not temperature > 0 for temperature in self.temperatures):
            raise StoreError(
                f"temperatures of a store are {list(self.temperatures)}; they must be greater than 0"
            )
