"""Checkpoints: atomic, checked, the last few kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from understudy.errors import RunDirectoryError

logger = logging.getLogger("understudy")


class Checkpoints:
    """The checkpoints of one member of a run.

    Each is a file of tensors and plain values beside a JSON companion with its checksum. The file
    is written under another name, flushed
    to the disk and renamed, and its companion follows; one without a companion, or whose checksum
    differs, does not count.

    Args:
        folder: where they lie.
        member: the member's name; part of the file names.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, member: str, keep: int) -> None:
        """Remember the place; nothing is written yet."""
        self.folder, self.member, self.keep = folder, member, max(1, keep)

    def save(self, number: int, state: Mapping[str, Any]) -> Path:
        """Write checkpoint `number` (a step count over the whole member) and drop the oldest.

        Raises:
            RunDirectoryError: the file could not be written, as on a full disk; the ones before are untouched.
        """
        path = self.folder / f"{self.member}-{number:09d}.pt"
        partial = path.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            companion = {"sha256": _checksum(partial), "number": number}
            os.replace(partial, path)
            write_atomic(path.with_suffix(".json"), json.dumps(companion))
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            kept = self._paths()
            held = f"The last good one is {kept[-1]}." if kept else "There is none before it."
            raise RunDirectoryError(
                f"Checkpoint {path} could not be written: {error}. {held}"
            ) from error
        for old in self._paths()[: -self.keep]:
            _remove(old)
        return path

    def load(self) -> dict[str, Any] | None:
        """Return the newest sound checkpoint's state, or None when there never was one.

        A damaged one is named in the log and the one before it is taken.

        Raises:
            RunDirectoryError: there are checkpoints, and all are damaged.
        """
        damaged = []
        for path in reversed(self._paths()):
            try:
                expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
                if _checksum(path) != expected:
                    raise RunDirectoryError("its checksum differs")
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return state
            except (OSError, ValueError, KeyError, RuntimeError, RunDirectoryError) as error:
                damaged.append(path)
                logger.warning("Checkpoint %s is damaged (%s); trying the one before.", path, error)
        if damaged:
            names = ", ".join(path.name for path in damaged)
            raise RunDirectoryError(
                f"Every checkpoint of '{self.member}' in {self.folder} is damaged: {names}. "
                "Delete them to train this member from its start."
            )
        return None

    def newest(self) -> Path | None:
        """Return the newest checkpoint's path, or None."""
        paths = self._paths()
        return paths[-1] if paths else None

    def clear(self) -> None:
        """Delete all of this member's checkpoints."""
        for path in self.folder.glob(f"{self.member}-*"):
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        found = sorted(self.folder.glob(f"{self.member}-*.pt"))
        return [path for path in found if path.with_suffix(".json").exists()]


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
