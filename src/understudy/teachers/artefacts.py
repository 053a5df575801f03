"""What was fitted, on disk: found again by what it was made from, checked, never half written."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from understudy.errors import UnderstudyError

logger = logging.getLogger("understudy")
FORMAT = 1
TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"
_LOCK_WAIT = 0.5
_sound: dict[tuple[str, int, int], str] = {}
"""(path, bytes, time of change) -> checksum, of the files that this process has read."""


@dataclass(frozen=True)
class Key:
    """What an artefact was made from.

    Attributes:
        kind: what it is.
        parts: everything that decides its values, as JSON: readable, so that a difference can be told.
    """

    kind: str
    parts: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """A hash over the parts."""
        text = json.dumps({"format": FORMAT, "kind": self.kind, **self.parts}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.kind}-{self.digest}"


class Artefacts:
    """A folder of artefacts: one folder each, with safetensors, plain arrays, and a manifest with checksums.

    An artefact is written under another name and renamed, so that it is there as a whole or not at all.

    Args:
        folder: where they lie; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        """Remember the place."""
        self.folder = folder

    def path(self, key: Key) -> Path:
        """Return where an artefact lies, whether it is there or not."""
        return self.folder / key.name

    def partial(self, key: Key) -> Path:
        """Return where an artefact lies until it is complete."""
        return self.folder / f"{key.name}.partial"

    def holds(self, key: Key, *, says: bool = True) -> bool:
        """Tell whether an artefact is there and sound.

        Args:
            key: the artefact.
            says: whether a damaged one is named in the log.
        """
        path = self.path(key)
        if not path.exists():
            return False
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            for name, facts in manifest["files"].items():
                if checksum(path / name) != facts["sha256"]:
                    raise UnderstudyError(f"the checksum of {name} differs")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UnderstudyError) as error:
            if says:
                logger.warning("The fitted %s is damaged (%s); it is made anew.", path, error)
            return False
        return True

    def tensors(self, key: Key) -> dict[str, torch.Tensor]:
        """Return the tensors of an artefact that `holds` has found sound."""
        try:
            return load_file(self.path(key) / TENSORS)
        except (OSError, SafetensorError) as error:
            raise UnderstudyError(
                f"{self.path(key)} cannot be read: {error}. All processes of a run have to see the same folder."
            ) from error

    def write(
        self, key: Key, tensors: Mapping[str, torch.Tensor], files: tuple[str, ...] = ()
    ) -> None:
        """Complete an artefact.

        Args:
            key: what it was made from.
            tensors: its tensors, on the CPU.
            files: names of files that lie in `partial(key)` already.

        Raises:
            UnderstudyError: it could not be written, as on a full disk.
        """
        partial, path = self.partial(key), self.path(key)
        with self.writing():
            partial.mkdir(parents=True, exist_ok=True)
            save_file({n: value.contiguous() for n, value in tensors.items()}, partial / TENSORS)
            facts = {}
            for name in (TENSORS, *files):
                flush(partial / name)
                size = (partial / name).stat().st_size
                facts[name] = {"sha256": checksum(partial / name), "bytes": size}
            manifest = {
                "format": FORMAT,
                "kind": key.kind,
                "parts": key.parts,
                "files": facts,
                "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "torch": torch.__version__,
            }
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            flush(partial / MANIFEST)
            if path.exists():  # damaged
                shutil.rmtree(path)
            os.replace(partial, path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Say of anything in the block that the disk refuses where it was to be written."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise UnderstudyError(f"{self.folder} cannot be written: {error}.") from error

    def difference(self, key: Key) -> str | None:
        """Tell from what else the nearest artefact of the same kind and settings was made; None when there is none."""
        best: list[str] | None = None
        for path in sorted(self.folder.glob(f"{key.kind}-*/{MANIFEST}")):
            try:
                parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
            except (OSError, ValueError, KeyError):
                continue
            if parts.get("fit") != key.parts["fit"]:
                continue
            found = list(_differences(parts, dict(key.parts)))
            if found and (best is None or len(found) < len(best)):
                best = found
        return None if best is None else "; ".join(best)

    @contextlib.contextmanager
    def locked(self, key: Key, tick: Callable[[], None]) -> Iterator[None]:
        """Keep other processes from making the same artefact; wait for one that does.

        Args:
            key: the artefact.
            tick: called again and again while waiting; may raise.
        """
        with self.writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / f"{key.name}.lock").open("w")
        with file:
            waiting = False
            while True:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if not waiting:
                        logger.info("Another process is fitting %s; waiting for it.", key.name)
                    waiting = True
                    time.sleep(_LOCK_WAIT)
                    tick()
            yield


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file; one that did not change since is not read again."""
    facts = path.stat()
    known = (str(path.resolve()), facts.st_size, facts.st_mtime_ns)
    if known not in _sound:
        with path.open("rb") as file:
            _sound[known] = hashlib.file_digest(file, "sha256").hexdigest()
    return _sound[known]


def flush(path: Path) -> None:
    """Write a file through to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            inner = f"{place}.{name}" if place else name
            yield from _differences(before.get(name), now.get(name), inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            yield from _differences(*pair, f"{place}.{number}")
    elif before != now:
        yield f"{place}: {_short(before)} there, {_short(now)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
