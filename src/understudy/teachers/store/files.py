"""The files of a store: in a folder of this machine, or behind any URL that fsspec knows."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from understudy.errors import StoreError

PARTIAL = ".partial"
"""How the name of a file ends that is being written."""


class Files(Protocol):
    """Named files. A file is there as a whole or not at all."""

    place: str

    def sizes(self) -> dict[str, int]:
        """Return name -> bytes of all files that are there, from one look at the folder."""

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None when it is not there."""

    def read(self, name: str) -> bytes:
        """Return a file's contents; `FileNotFoundError` when it is not there."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all; `OSError` when that cannot be."""

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""

    def local(self, name: str) -> Path:
        """Return a path on this machine with the file's contents; `FileNotFoundError` when it is not there."""

    def free(self) -> int | None:
        """Return how many bytes can still be written; None when nobody knows."""

    def close(self) -> None:
        """Give back what is held."""


def open_files(place: str | Path) -> Files:
    """Return the files at a path or URL; nothing need be there yet.

    Raises:
        StoreError: the URL's scheme is unknown, or its library is not installed.
    """
    text = str(place)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" not in text:
        return LocalFiles(Path(text))
    return RemoteFiles(text)


class LocalFiles:
    """Files in a folder; memory-mapped where they lie."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder; it need not exist."""
        self.folder, self.place = folder, str(folder)

    def sizes(self) -> dict[str, int]:
        """Return name -> bytes of all whole files."""
        if not self.folder.is_dir():
            return {}
        with os.scandir(self.folder) as found:
            return {
                entry.name: entry.stat().st_size
                for entry in found
                if entry.is_file() and not entry.name.endswith(PARTIAL)
            }

    def size(self, name: str) -> int | None:
        """Return the bytes of a file."""
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """Return a file's contents."""
        return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write beside its place, flush to the disk, rename."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.{os.getpid()}{PARTIAL}"
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self.folder / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what killed processes were writing."""
        for path in self.folder.glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)

    def local(self, name: str) -> Path:
        """Return the file itself."""
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def free(self) -> int | None:
        """Return the free bytes of the disk that the folder is on."""
        existing = self.folder.absolute()
        while not existing.exists():
            existing = existing.parent
        return shutil.disk_usage(existing).free

    def close(self) -> None:
        """Hold nothing."""


class RemoteFiles:
    """Files behind an fsspec URL. What is memory-mapped is fetched once, into a temporary folder (see TMPDIR)."""

    def __init__(self, url: str) -> None:
        """Find the file system of the URL."""
        import fsspec

        self.place = url.rstrip("/")
        try:
            self._system, self._root = fsspec.core.url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            raise StoreError(
                f"'{url}' cannot be opened: {error}. For s3:// install understudy[store]; other schemes need the "
                "library that fsspec names."
            ) from error
        self._fetched: Path | None = None

    def sizes(self) -> dict[str, int]:
        """Return name -> bytes of all files."""
        self._system.invalidate_cache(self._root)
        try:
            found = self._system.ls(self._root, detail=True)
        except FileNotFoundError:
            return {}
        return {
            str(entry["name"]).rsplit("/", 1)[-1]: int(entry["size"])
            for entry in found
            if entry["type"] == "file"
        }

    def size(self, name: str) -> int | None:
        """Return the bytes of a file."""
        try:
            return int(self._system.size(self._path(name)))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """Return a file's contents."""
        return bytes(self._system.cat_file(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Put a file; object stores do so whole or not at all."""
        with contextlib.suppress(FileExistsError):
            self._system.makedirs(self._root, exist_ok=True)
        self._system.pipe_file(self._path(name), data)

    def delete(self, name: str) -> None:
        """Delete a file."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def local(self, name: str) -> Path:
        """Fetch a file once and return the copy."""
        if self._fetched is None:
            self._fetched = Path(tempfile.mkdtemp(prefix="understudy-store-"))
        copy = self._fetched / name
        if not copy.exists():
            partial = copy.with_name(copy.name + PARTIAL)
            self._system.get_file(self._path(name), str(partial))
            os.replace(partial, copy)
        return copy

    def free(self) -> int | None:
        """Return None: nobody knows."""
        return None

    def close(self) -> None:
        """Delete the copies."""
        if self._fetched is not None:
            shutil.rmtree(self._fetched, ignore_errors=True)
            self._fetched = None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


@contextlib.contextmanager
def writing(files: Files, what: str, advice: str) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StoreError` that says what could not be written and what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"{what} in {files.place} could not be written: {reason}. {advice}"
        ) from error


def array_bytes(array: np.ndarray) -> bytes:
    """Return an array as the contents of a `.npy` file, which holds no pickle."""
    import io

    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def mapped(path: Path) -> np.ndarray[Any, Any]:
    """Return the array in a `.npy` file, memory-mapped for reading."""
    found: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found.view(np.ndarray)


def checksum(data: bytes) -> str:
    """Return the checksum of a file's contents."""
    return hashlib.sha256(data).hexdigest()


def file_checksum(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
