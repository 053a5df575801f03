"""Features of a teacher on disk, row by sample id: for what needs the features themselves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from understudy.data.source import Split
from understudy.errors import DataError, UnderstudyError
from understudy.teachers.accumulating import Statistic
from understudy.teachers.readings import Reading, Seen

ROWS, IDS = "rows.npy", "ids.npy"


class Features(Statistic):
    """What a reading gives for every sample, written through to memory-mapped arrays.

    `ids.npy` holds the sample ids in ascending order, `rows.npy` the values in the same order; maps lie there as
    [N, H, W, C], so that their places are rows without a copy.

    Args:
        reading: what is read. Every sample has to give the same shape.
        dtype: what is written, "float32" or "float16".
    """

    kind = "features"

    def __init__(
        self, reading: Reading | str, *, dtype: Literal["float32", "float16"] = "float32"
    ) -> None:
        if dtype not in ("float32", "float16"):
            raise UnderstudyError(f"features are kept in float32 or float16, not in {dtype}.")
        self.reading = Reading.of(reading)
        self.dtype = dtype
        self._folder: Path | None = None
        self._wanted: np.ndarray[Any, Any] | None = None
        self._ids: np.ndarray[Any, Any] | None = None
        self._rows: np.ndarray[Any, Any] | None = None
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The one reading."""
        return (self.reading,)

    def config(self) -> dict[str, Any]:
        """Return the reading and the type."""
        return {**self.reading.config(), "dtype": self.dtype}

    @property
    def files(self) -> tuple[str, ...]:
        """The two arrays."""
        return (ROWS, IDS)

    def size(self, samples: int) -> int:
        """Return the bytes of the two arrays for `samples` samples."""
        ids, rows = self._open()
        return samples * (
            ids.itemsize + rows.itemsize * int(np.prod(rows.shape[1:], dtype=np.int64))
        )

    def begin(self, folder: Path, split: Split) -> None:
        """Write the ids; the rows' file is made by the first batch, which tells their shape."""
        self._folder = folder
        self._rows = None
        self._ids = np.sort(split.ids.numpy())
        doubled = self._ids[1:][self._ids[1:] == self._ids[:-1]]
        if len(doubled):
            raise DataError(f"Sample id {int(doubled[0])} stands for two samples of the split.")
        np.save(folder / IDS, self._ids, allow_pickle=False)

    def update(self, seen: Seen) -> None:
        """Write one batch's rows to their places."""
        values = seen.values(self.reading)
        if values.dim() == 4:
            values = values.permute(0, 2, 3, 1)
        part = values.cpu().numpy()
        assert self._folder is not None and self._ids is not None
        if self._rows is None:
            shape = (len(self._ids), *part.shape[1:])
            self._rows = _reserved(self._folder / ROWS, np.dtype(self.dtype), shape)
        if part.shape[1:] != self._rows.shape[1:]:
            raise DataError(
                f"The teacher's tap '{self.reading.tap}' gave {part.shape[1:]} for sample {int(seen.batch.index[0])} "
                f"after {self._rows.shape[1:]}. Features on disk have one shape: read the mean or the first token."
            )
        if self.dtype == "float16" and np.abs(part).max(initial=0.0) > np.finfo(np.float16).max:
            raise DataError(
                f"The teacher's tap '{self.reading.tap}' has values beyond the range of float16; keep float32."
            )
        self._rows[self._places(seen.batch.index.cpu().numpy())] = part

    def state(self) -> dict[str, torch.Tensor]:
        """Flush the rows to the disk; they are the state."""
        if isinstance(self._rows, np.memmap):
            self._rows.flush()
        return {}

    def load(self, state: Mapping[str, torch.Tensor], folder: Path) -> None:
        """Open the arrays: for reading, or for writing on when the folder was begun with."""
        mode: Literal["r+", "r"] = "r+" if folder == self._folder else "r"
        self._ids = np.load(folder / IDS, allow_pickle=False)
        self._rows = np.load(folder / ROWS, mmap_mode=mode, allow_pickle=False)

    @property
    def ids(self) -> torch.Tensor:
        """Sample ids in ascending order, int64 [N]."""
        return torch.from_numpy(self._open()[0].copy())

    @property
    def shape(self) -> tuple[int, ...]:
        """What one sample gives: (D,), (C, H, W) or (T, D)."""
        shape = self._open()[1].shape[1:]
        return (shape[2], shape[0], shape[1]) if len(shape) == 3 else tuple(shape)

    @property
    def rows_per_sample(self) -> int:
        """Places of a map or tokens of a sequence; 1 for vectors."""
        shape = self._open()[1].shape[1:]
        return int(np.prod(shape[:-1], dtype=np.int64))

    def flat(self) -> np.ndarray[Any, Any]:
        """Return all rows [N * places, D], memory-mapped: samples in order of id, places in row-major order."""
        rows = self._open()[1]
        return rows.reshape(-1, rows.shape[-1])

    def chunks(self, size: int = 4096) -> Iterator[torch.Tensor]:
        """Yield all rows, float32 [<= size, D]."""
        flat = self.flat()
        for start in range(0, len(flat), size):
            yield torch.from_numpy(np.array(flat[start : start + size], dtype=np.float32))

    def per_row(self, split_ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return a per-sample value, such as its label, for every row of `flat`.

        Args:
            split_ids: int64 [N], the ids that the values belong to, in any order.
            values: [N].
        """
        order = split_ids.argsort()
        places = torch.searchsorted(split_ids[order], self.ids).clamp_max(len(order) - 1)
        found = order[places]
        wrong = split_ids[found] != self.ids
        if bool(wrong.any()):
            raise DataError(f"There is no value for sample {int(self.ids[wrong][0])}.")
        return values[found].repeat_interleave(self.rows_per_sample)

    def keep_on(self, device: torch.device) -> None:
        """Copy everything to a device, so that `rows_for` needs no other memory and waits for nothing there."""
        ids, rows = self._open()
        values = torch.from_numpy(np.array(rows, dtype=np.float32))
        self._kept = (torch.from_numpy(ids.copy()).to(device), values.to(device))

    def rows_for(self, index: torch.Tensor) -> torch.Tensor:
        """Return what was read for samples, joined by id.

        Args:
            index: int64 [B], sample ids, as `batch.index`.

        Returns:
            float32 [B, D], [B, C, H, W] or [B, T, D] on the device of `index`.

        Raises:
            DataError: there is no row for an id, which is named. After `keep_on` its values are NaN instead, since
                looking would make the device wait; the loss then is not finite, which a run refuses with the ids.
        """
        if self._kept is not None and self._kept[0].device == index.device:
            return _as_maps(self._kept_rows(*self._kept, index))
        rows = self._open()[1]
        places = self._places(index.cpu().numpy())
        values = torch.from_numpy(np.array(rows[places], dtype=np.float32))
        return _as_maps(values).to(index.device)

    def _kept_rows(
        self, ids: torch.Tensor, rows: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        places = torch.searchsorted(ids, index).clamp_max(len(ids) - 1)
        values = rows[places]
        if self.provisional:
            return values
        found = (ids[places] == index).view(-1, *[1] * (values.dim() - 1))
        return torch.where(found, values, torch.nan)

    def _places(self, index: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert self._ids is not None
        places = np.searchsorted(self._ids, index)
        if self.provisional:
            # An example stands for all samples.
            return np.asarray(places % len(self._ids))
        wrong = (places == len(self._ids)) | (self._ids[places % len(self._ids)] != index)
        if wrong.any():
            raise DataError(
                f"There are no features of sample {int(index[wrong][0])}: they were collected over "
                f"{len(self._ids)} samples, and it is none of them."
            )
        return np.asarray(places)

    def _open(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        if self._ids is None or self._rows is None:
            raise UnderstudyError(
                f"The features of '{self.reading.tap}' are empty; give them to `study.collect` first."
            )
        return self._ids, self._rows


def _reserved(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Make an array on disk with all of its space, since a disk that is full later would kill the process."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UnderstudyError(
            f"Features of {shape[0]} samples need {size / 1e9:.1f} GB in {path.parent.parent}, where "
            f"{free / 1e9:.1f} GB are free. Read less (`form`, `pool`, float16), or name another `cache`."
        )
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return rows


def _as_maps(values: torch.Tensor) -> torch.Tensor:
    """Return [B, H, W, C] as [B, C, H, W]; anything else as it is."""
    return values.permute(0, 3, 1, 2).contiguous() if values.dim() == 4 else values
