"""Codecs: how numbers become records of a fixed length, and back, and how far they are from what they were."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from understudy.errors import StoreError
from understudy.models.outputs import TopK
from understudy.teachers.store.deviation import Deviation
from understudy.teachers.store.dtypes import IN_NUMPY, LARGEST, bf16_above, to_numpy, to_torch
from understudy.teachers.store.opened import Opened
from understudy.teachers.store.packing import pack, packed_bytes

_STEPS = 254
"""Steps between the smallest and the largest value of a vector in int8: codes from -127 to 127."""


class Codec(Protocol):
    """One kind of record."""

    @property
    def record(self) -> np.dtype[Any]:
        """The type of one record, without the shape of `row_shape`."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row of the array, without the row itself."""

    def encode(self, values: torch.Tensor) -> tuple[np.ndarray, Deviation]:
        """Return the records [B, *row_shape] of a batch, and how far they are from it."""

    def opened(self, rows: np.ndarray) -> np.ndarray:
        """Return records as memory holds them: what takes long to decode is decoded, at the stored precision."""

    def columns(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Return records, opened or not, as tensors on the CPU, still in their stored precision."""

    def restore(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor | TopK:
        """Return the numbers from what `columns` gave, on whatever device it is now."""

    def config(self) -> dict[str, Any]:
        """Return JSON values from which `codec_of` makes the codec again."""


def record_bytes(codec: Codec) -> int:
    """Return the bytes of one row."""
    return int(codec.record.itemsize * math.prod(codec.row_shape))


def codec_of(config: Mapping[str, Any]) -> Dense | Sparse:
    """Return the codec that a configuration describes."""
    if "k" in config:
        temperatures, dtype = tuple(config["temperatures"]), config["dtype"]
        found = Sparse(config["classes"], config["k"], dtype, temperatures)
        # Without a word on the scale it is that of older stores.
        return replace(found, scale=config.get("scale", "float32")) if dtype == "int8" else found
    return Dense(tuple(config["shape"]), config["dtype"])


@dataclass(frozen=True)
class Dense:
    """All numbers of a tensor.

    In int8 every vector has a scale and an offset of its own: the whole of a logit vector, each channel of a map,
    each token of a sequence. The error is then at most half of 1/254 of the vector's range.

    Args:
        shape: of one sample.
        dtype: one of `dtypes.DTYPES`.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def record(self) -> np.dtype[Any]:
        """A plain number, or scales, offsets and codes together."""
        if self.dtype != "int8":
            return np.dtype(IN_NUMPY[self.dtype])
        fields = [("scale", "<f4", (self._vectors,)), ("offset", "<f4", (self._vectors,))]
        return np.dtype([*fields, ("codes", "i1", (math.prod(self.shape),))])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The sample's shape; a packed record has none."""
        return () if self.dtype == "int8" else self.shape

    @property
    def _vectors(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    def encode(self, values: torch.Tensor) -> tuple[np.ndarray, Deviation]:
        """Encode [B, *shape].

        Raises:
            StoreError: values are too large for the type.
        """
        values = values.detach().float().cpu()
        if values.shape[1:] != self.shape:
            raise StoreError(
                f"The teacher gave {tuple(values.shape[1:])} where {self.shape} was measured before. Only what has "
                "one shape for all samples can be stored."
            )
        if self.dtype == "int8":
            rows = self._encode_int8(values)
        else:
            largest = float(values.abs().max()) if values.numel() else 0.0
            if largest > LARGEST[self.dtype]:
                raise StoreError(
                    f"A value of {largest:.4g} is beyond {self.dtype}, which ends at {LARGEST[self.dtype]:.4g}; "
                    "keep it as bf16 or float32."
                )
            rows = to_numpy(values.contiguous(), self.dtype)
        return rows, Deviation.between(values, self.restore(self.columns(rows)))

    def _encode_int8(self, values: torch.Tensor) -> np.ndarray:
        vectors = values.reshape(len(values), self._vectors, -1)
        low, high = vectors.amin(dim=-1), vectors.amax(dim=-1)
        # Halves first: the range of float32 values may be beyond float32.
        scale = (high / _STEPS - low / _STEPS).clamp_min(torch.finfo(torch.float32).tiny)
        offset = low / 2 + high / 2
        codes = ((vectors - offset[..., None]) / scale[..., None]).round().clamp(-127, 127)
        rows = np.empty(len(values), dtype=self.record)
        rows["scale"], rows["offset"] = scale.numpy(), offset.numpy()
        rows["codes"] = codes.to(torch.int8).flatten(1).numpy()
        return rows

    def opened(self, rows: np.ndarray) -> np.ndarray:
        """Return the records as they are."""
        return rows

    def columns(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the numbers, or the parts of an int8 record."""
        if self.dtype != "int8":
            return {"values": to_torch(rows, self.dtype)}
        return {name: torch.from_numpy(rows[name].copy()) for name in ("scale", "offset", "codes")}

    def restore(self, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return float32 [B, *shape]."""
        if self.dtype != "int8":
            return columns["values"].float()
        codes = columns["codes"].reshape(len(columns["codes"]), self._vectors, -1).float()
        vectors = codes * columns["scale"][..., None] + columns["offset"][..., None]
        return vectors.reshape(len(codes), *self.shape)

    def config(self) -> dict[str, Any]:
        """Return shape and type."""
        return {"shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class Sparse:
    """The k largest of C logits, a tail for the rest, and the entropy.

    Args:
        classes: C.
        k: how many are kept.
        dtype: one of `dtypes.DTYPES`, for the kept logits. Each tail and the entropy are float16.
        temperatures: for which the tail is kept.
        scale: in what the scale of int8 is kept: "bf16", or "float32" as in older stores.
    """

    classes: int
    k: int
    dtype: str
    temperatures: tuple[float, ...]
    scale: str = "bf16"

    @cached_property
    def record(self) -> np.dtype[Any]:
        """Values, tails, entropy and packed ids together."""
        fields: list[tuple[str, str, tuple[int, ...]]] = []
        if self.dtype == "int8":
            fields += [("scale", IN_NUMPY[self.scale], ()), ("values", "u1", (self.k,))]
        else:
            fields += [("values", IN_NUMPY[self.dtype], (self.k,))]
        fields += [("tails", "<f2", (len(self.temperatures),)), ("entropy", "<f2", ())]
        return np.dtype([*fields, ("ids", "u1", (packed_bytes(self.k, self.classes),))])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """A record has no further dimensions."""
        return ()

    def encode(self, values: torch.Tensor) -> tuple[np.ndarray, Deviation]:
        """Encode logits [B, C].

        Raises:
            StoreError: values are too large for the type.
        """
        found = top_k_of(values, self.k, self.temperatures)
        kept = found.values.cpu()
        if self.dtype in LARGEST and float(kept.abs().max()) > LARGEST[self.dtype]:
            raise StoreError(
                f"A logit lies {float(kept.abs().max()):.4g} below the largest one, which is beyond {self.dtype}; "
                "keep it as bf16 or float32."
            )
        rows = np.empty(len(kept), dtype=self.record)
        if self.dtype == "int8":
            scale = (-kept.amin(dim=-1) / 255).clamp_min(torch.finfo(torch.float32).tiny)
            if self.scale == "bf16":
                scale = bf16_above(scale)
            rows["scale"] = to_numpy(scale, self.scale)
            rows["values"] = (-kept / scale[:, None]).round().clamp(0, 255).to(torch.uint8).numpy()
        else:
            rows["values"] = to_numpy(kept.contiguous(), self.dtype)
        tails = torch.stack(list(found.tails.values()), dim=1).cpu()
        # A tail of next to no mass may lie beyond float16; -inf says that there is none at all.
        lowest = tails.clamp_min(-LARGEST["float16"])
        rows["tails"] = torch.where(tails == -torch.inf, tails, lowest).half().numpy()
        rows["entropy"] = found.entropy.half().cpu().numpy()
        rows["ids"] = pack(found.indices.cpu().numpy(), self.classes)
        back = self.restore(self.columns(rows))
        deviation = Deviation.between(kept, back.values)
        if self.k < self.classes:
            for t in self.temperatures:
                deviation = deviation.with_part(tail_name(t), found.tails[t], back.tails[t])
        if 1.0 in found.tails:
            share = found.tails[1.0].exp()
            whole = share + found.values.exp().sum(dim=-1)
            deviation = deviation.with_mean("tail mass", share / whole)
        return rows, deviation.with_mean("entropy", found.entropy)

    @cached_property
    def _opened(self) -> Opened:
        parts = {"values": self.dtype, "scale": self.scale}
        bf16 = [name for name, dtype in parts.items() if dtype == "bf16"]
        return Opened(self.record, self.k, self.classes, bf16)

    def opened(self, rows: np.ndarray) -> np.ndarray:
        """Return records with their ids unpacked, as bytes (see `Opened`)."""
        return self._opened.open(rows)

    def columns(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Return opened records as bytes: one tensor, which goes to a device in one piece."""
        if rows.dtype != np.uint8:
            rows = self.opened(rows)
        return {"record": torch.from_numpy(rows)}

    def restore(self, columns: Mapping[str, torch.Tensor]) -> TopK:
        """Return the kept logits in float32."""
        part = self._opened.parts(columns["record"])
        values = part["values"].float()
        if self.dtype == "int8":
            values = -values * part["scale"].float()
        tails = part["tails"].float().unbind(dim=1)
        return TopK(
            values,
            part["ids"].long(),
            dict(zip(self.temperatures, tails, strict=True)),
            part["entropy"].float().squeeze(1),
            self.classes,
        )

    def config(self) -> dict[str, Any]:
        """Return classes, k, type and temperatures, and of int8 in what the scale is."""
        found = {
            "classes": self.classes,
            "k": self.k,
            "dtype": self.dtype,
            "temperatures": list(self.temperatures),
        }
        return found if self.dtype != "int8" else {**found, "scale": self.scale}


def top_k_of(logits: torch.Tensor, k: int, temperatures: Sequence[float]) -> TopK:
    """Return the `k` largest logits of each sample with the tails at `temperatures`.

    Args:
        logits: [B, C], on any device.
        k: from 1 to C.
        temperatures: for which a tail is computed.
    """
    logits = logits.detach().float()
    largest = logits.amax(dim=-1, keepdim=True)
    indices = logits.topk(k, dim=-1).indices.sort(dim=-1).values
    relative = logits - largest
    rest = relative.scatter(-1, indices, -torch.inf)
    log_p = torch.log_softmax(logits, dim=-1)
    return TopK(
        relative.gather(-1, indices),
        indices,
        {float(t): t * torch.logsumexp(rest / t, dim=-1) for t in temperatures},
        -(log_p.exp() * log_p).sum(dim=-1),
        logits.shape[-1],
    )


def tail_name(temperature: float) -> str:
    """Return what the tail at a temperature is called."""
    return f"tail at {temperature:g}"


def as_temperatures(given: Iterable[float]) -> tuple[float, ...]:
    """Return the temperatures of a sparse codec: 1, and those that are given, ascending."""
    return tuple(sorted({1.0, *map(float, given)}))
