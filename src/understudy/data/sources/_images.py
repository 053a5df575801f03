"""From encoded images to samples: decoded into one tensor when they fit, checked one by one in either case."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import torch

from understudy.data.samples import (
    Channels,
    Encoded,
    EncodedImages,
    TensorSamples,
    decode,
    hash_parts,
    probe,
)
from understudy.data.source import Samples
from understudy.data.sources._extras import need
from understudy.errors import DataError

_LISTED = 10
_SHARE = 256
"""Images that one thread takes at a time."""


@dataclass
class _Progress:
    """What reading the images has shown so far; threads write to places of their own."""

    digests: list[bytes]
    shapes: list[tuple[int, int] | None]
    problems: dict[int, str] = field(default_factory=dict)


def load_images(
    files: Encoded,
    *,
    size: int | None,
    channels: Channels,
    memory_limit_mb: int,
    on_error: Literal["raise", "skip"],
    what: str,
) -> tuple[Samples, torch.Tensor]:
    """Read every image once, and keep all of them decoded when they fit.

    Args:
        files: the encoded images.
        size: height and width to scale and crop to; None: as they are, and then all must be of one size.
        channels: 3 for RGB, 1 for grey.
        memory_limit_mb: the most that decoded images may take, in MiB; above it they are decoded when fetched.
        on_error: whether a damaged image is refused or left out with a warning.
        what: what messages call the whole.

    Returns:
        The samples, at the positions of `files`, and bool [N]: which of them are good.

    Raises:
        DataError: damaged images (named), images of several sizes, nothing left.
    """
    need("PIL", "Decoding images")
    if size is not None and size < 1:
        raise DataError(f"The image size of {what} is {size}; it must be at least 1 pixel.")
    progress = _Progress([b""] * len(files), [None] * len(files))
    pixels = None
    height, width = _first_shape(files, size)
    if decoded_bytes(files, len(files), size, channels) <= memory_limit_mb * 2**20:
        pixels = torch.empty(len(files), channels, height, width, dtype=torch.uint8)

    def read(position: int) -> None:
        data = files.read(position)
        progress.digests[position] = hashlib.blake2b(data, digest_size=16).digest()
        if pixels is None:
            progress.shapes[position] = probe(data, size=size)
            return
        image = decode(data, size=size, channels=channels)
        progress.shapes[position] = (image.shape[1], image.shape[2])
        if image.shape == pixels.shape[1:]:
            pixels.numpy()[position] = image.numpy()

    _for_all(len(files), read, progress.problems)
    good = torch.ones(len(files), dtype=torch.bool)
    good[list(progress.problems)] = False
    _report(files, progress.problems, on_error, what)
    if not good.any():
        raise DataError(f"No image of {what} can be read.")
    _check_one_size(files, progress.shapes, what)
    digests = [digest for digest, use in zip(progress.digests, good.tolist(), strict=True) if use]
    identity = hash_parts([f"{size}:{channels}".encode(), *digests])
    if pixels is None:
        return EncodedImages(files, size, channels, identity), good
    return TensorSamples(pixels, "image", identity), good


def decoded_bytes(files: Encoded, count: int, size: int | None, channels: Channels) -> int:
    """Return how many bytes `count` images take when decoded, judging by the first of `files`."""
    height, width = _first_shape(files, size)
    return count * channels * height * width


def _first_shape(files: Encoded, size: int | None) -> tuple[int, int]:
    """Return (height, width) of the first image that can be read, (0, 0) when none can."""
    if size is not None:
        return size, size
    for position in range(len(files)):
        try:
            return probe(files.read(position), size=None)
        except (OSError, ValueError):
            continue
    return 0, 0


def _for_all(count: int, read: Callable[[int], None], problems: dict[int, str]) -> None:
    """Call `read` for every position, in threads: Pillow decodes without holding the interpreter's lock."""

    def share(positions: Iterable[int]) -> None:
        for position in positions:
            try:
                read(position)
            except (OSError, ValueError) as error:
                problems[position] = str(error).rstrip(".")

    shares = [range(start, min(start + _SHARE, count)) for start in range(0, count, _SHARE)]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(share, shares):
            pass


def _report(
    files: Encoded, problems: dict[int, str], on_error: Literal["raise", "skip"], what: str
) -> None:
    """Refuse damaged images, or say which are left out."""
    if not problems:
        return
    listed = [f"{files.name(position)}: {problems[position]}" for position in sorted(problems)]
    count = f"{len(problems)} of {len(files)} images of {what} cannot be read"
    if on_error == "skip":
        logging.getLogger("understudy").warning(
            "%s and are left out:\n  %s", count, "\n  ".join(listed)
        )
        return
    more = f"\n  and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    shown = "\n  ".join(listed[:_LISTED])
    raise DataError(
        f"{count}:\n  {shown}{more}\nRepair or remove them, or leave them out with on_error='skip'."
    )


def _check_one_size(files: Encoded, shapes: list[tuple[int, int] | None], what: str) -> None:
    first: int | None = None
    for position, shape in enumerate(shapes):
        if shape is None:
            continue
        if first is None:
            first = position
        elif shape != shapes[first]:
            one, other = shapes[first] or (0, 0), shape
            raise DataError(
                f"The images of {what} differ in size: {files.name(first)} has {one[0]}x{one[1]} pixels (height "
                "x width), "
                f"{files.name(position)} {other[0]}x{other[1]}. Set `size` to scale and crop them to one size."
            )
