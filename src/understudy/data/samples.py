"""Raw samples in memory and encoded images that are decoded when they are asked for."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from understudy.data.source import Kind
from understudy.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Channels = Literal[1, 3]

_ORIENTATION_TAG = 0x0112
_UPRIGHT = 1


@dataclass(frozen=True)
class TensorSamples:
    """Images or plain tensors, all of one shape, in one tensor.

    Attributes:
        data: [N, C, H, W] uint8 or float in [0, 1] for images, [N, ...] for plain tensors.
        kind: "image" or "tensor".
        content: the identity when it is known from elsewhere (the encoded files); otherwise the bytes of `data` are
            hashed.
    """

    data: torch.Tensor
    kind: Kind
    content: str | None = None

    @property
    def in_memory(self) -> bool:
        """Return True: an index into a tensor needs no workers."""
        return True

    @cached_property
    def identity(self) -> str:
        """Return the hash of shape, type and content."""
        if self.content is not None:
            return self.content
        digest = TensorHash(self.data.shape, self.data.dtype)
        digest.update(self.data)
        return digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.data)

    def fetch(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the samples at `positions` (int64 [B]) as one tensor [B, ...]; plain integers become float32."""
        # On rows of images this is many times faster than indexing.
        rows = self.data.index_select(0, positions)
        if self.kind == "tensor" and not rows.is_floating_point():
            return rows.float()
        return rows


@dataclass(frozen=True)
class TextSamples:
    """Texts or pairs of texts."""

    texts: Sequence[str] | Sequence[tuple[str, str]]

    @property
    def kind(self) -> Kind:
        """Return "text"."""
        return "text"

    @property
    def in_memory(self) -> bool:
        """Return True."""
        return True

    @cached_property
    def identity(self) -> str:
        """Return the hash of all texts."""
        parts: list[bytes] = []
        for text in self.texts:
            pieces = (text,) if isinstance(text, str) else text
            parts.append(
                hash_parts([piece.encode("utf-8", "surrogatepass") for piece in pieces]).encode()
            )
        return hash_parts(parts)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.texts)

    def fetch(self, positions: torch.Tensor) -> list[str] | list[tuple[str, str]]:
        """Return the texts, or the pairs, at `positions` (int64 [B])."""
        return [self.texts[position] for position in positions.tolist()]


class Encoded(Protocol):
    """Image files as bytes, wherever they lie. Must be picklable, for worker processes."""

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, position: int) -> bytes:
        """Return the file's bytes; raises OSError or ValueError when there are none."""

    def name(self, position: int) -> str:
        """Return what an error message calls the image."""


@dataclass(frozen=True)
class EncodedImages:
    """Images that are decoded when fetched, for sets that don't fit in memory.

    Attributes:
        files: the encoded images.
        size: height and width after scaling the shorter side and cropping the centre; None: as they are, all equal.
        channels: 3 for RGB, 1 for grey.
        identity: a hash over the encoded images, size and channels.
    """

    files: Encoded
    size: int | None
    channels: Channels
    identity: str

    @property
    def kind(self) -> Kind:
        """Return "image"."""
        return "image"

    @property
    def in_memory(self) -> bool:
        """Return False: decoding is worth worker processes."""
        return False

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def fetch(self, positions: torch.Tensor) -> torch.Tensor:
        """Return uint8 [B, C, H, W]; an image that cannot be read any more raises `DataError` with its name."""
        images = []
        for position in positions.tolist():
            try:
                images.append(
                    decode(self.files.read(position), size=self.size, channels=self.channels)
                )
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{self.files.name(position)} can no longer be read: {error}."
                ) from error
        return torch.stack(images)


def decode(data: bytes, *, size: int | None, channels: Channels) -> torch.Tensor:
    """Decode an image file.

    Args:
        data: the file's bytes, in any format that Pillow reads.
        size: see `to_tensor`.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 [C, H, W].

    Raises:
        ValueError: the file is damaged, no image, or holds values that don't fit in 8 bits.
    """
    with _damage_as_value_error(), _open(data) as image:
        return to_tensor(image, size=size, channels=channels)


def probe(data: bytes, *, size: int | None) -> tuple[int, int]:
    """Read an image file to its end, and return (height, width) of what `decode` gives.

    Raises:
        ValueError: as `decode`.
    """
    with _damage_as_value_error(), _open(data) as image:
        _refuse_wide_values(image.mode)
        shape = _upright_size(image)
        # Lets a JPEG decode at an eighth of its size: the whole stream is still read, so damage shows.
        image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
    return shape if size is None else (size, size)


def to_tensor(image: Image.Image, *, size: int | None, channels: Channels) -> torch.Tensor:
    """Turn a Pillow image into uint8 [C, H, W].

    The picture is turned upright (EXIF), transparency is dropped. With a `size`, the shorter side is scaled to it
    (bicubic, antialiased) and the centre is cropped to `size` x `size`. Values of 16 bits are reduced to their
    upper 8.

    Raises:
        ValueError: the image is damaged or holds 32-bit values, whose range is unknown.
    """
    import numpy as np
    from PIL import Image, ImageOps

    _refuse_wide_values(image.mode)
    if _orientation(image) != _UPRIGHT:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        # Scaling the central square alone gives the same as scaling all and cropping, also for very long images.
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        square = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=square)
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def hash_parts(parts: Sequence[bytes]) -> str:
    """Return a hash over `parts` and their boundaries, as 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


class TensorHash:
    """The hash of a tensor that comes in pieces, along its first dimension."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Begin with the shape and type of the whole."""
        self._digest = hashlib.blake2b(f"{tuple(shape)}:{dtype}:".encode(), digest_size=16)

    def update(self, piece: torch.Tensor) -> None:
        """Add the next piece (on the CPU)."""
        flat = piece.detach().contiguous().flatten().view(torch.uint8)
        self._digest.update(flat.numpy().data)

    def hexdigest(self) -> str:
        """Return the hash as 32 hexadecimal digits."""
        return self._digest.hexdigest()


@contextmanager
def _damage_as_value_error() -> Iterator[None]:
    """Turn what Pillow raises on a damaged file, which may be of many types, into a ValueError."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(str(error).rstrip(".") or type(error).__name__) from error


def _open(data: bytes) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ValueError("the file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=_formats(data))
    except UnidentifiedImageError:
        raise ValueError("not an image, or in a format that Pillow does not read") from None


def _formats(data: bytes) -> list[str] | None:
    """Name the format of the usual files, which spares Pillow trying one after another; None for others."""
    if data.startswith(b"\x89PNG"):
        return ["PNG"]
    if data.startswith(b"\xff\xd8\xff"):
        return ["JPEG"]
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return ["WEBP"]
    return None


def _orientation(image: Image.Image) -> int:
    """Return how the picture lies in the file, as EXIF numbers it from 1 to 8."""
    return int(image.getexif().get(_ORIENTATION_TAG, _UPRIGHT))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) after the EXIF orientation was applied."""
    sideways = _orientation(image) > 4
    return (image.width, image.height) if sideways else (image.height, image.width)


def _refuse_wide_values(mode: str) -> None:
    if mode in ("I", "F"):
        raise ValueError(
            f"it holds 32-bit values (Pillow mode '{mode}') whose range is unknown; convert it to 8 or 16 bits"
        )
