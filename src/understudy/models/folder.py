"""Folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from understudy.errors import ModelError
from understudy.models.optional import first_line

DESCRIPTIONS = ("config.json", "understudy.json")
"""Files by which a folder is known as one that understudy wrote."""


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """Give an empty folder to write into, which takes the place of `folder` when the block ends well.

    After an error nothing is left of it, and what was in `folder` before is still there. A folder that holds something
    else than a model by understudy is not replaced.

    Raises:
        ModelError: the folder is taken by other files, or cannot be written.
    """
    target = Path(folder).absolute()
    _check_replaceable(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(
            tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent)
        )
    except OSError as error:
        raise ModelError(f"The folder {target} cannot be written: {error.strerror}.") from error
    try:
        yield fresh
        _flush(fresh)
        fresh.chmod(0o777 & ~_umask())
        _swap(fresh, target)
    except OSError as error:
        raise ModelError(
            f"The folder {target} cannot be written: {error.strerror or error}."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelError(f"{file} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is damaged: it holds no JSON object.")
    return content


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, readable, with its keys in the given order.

    Raises:
        ModelError: it holds something that JSON cannot say.
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{file.name} can only hold JSON values: {first_line(error)}") from error
    file.write_text(text + "\n", encoding="utf-8")


def _check_replaceable(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise ModelError(f"{target} is a file; a model is written into a folder.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    for name in DESCRIPTIONS:
        file = target / name
        if file.is_file() and str(read_json(file).get("format", "")).startswith("understudy-"):
            return
    raise ModelError(
        f"The folder {target} holds other files, which would be lost; choose a new or empty one."
    )


def _swap(fresh: Path, target: Path) -> None:
    """Put `fresh` in the place of `target`. A crash in between leaves the old content beside it, complete."""
    if target.is_dir():
        old = fresh.with_suffix(".old")
        target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        fresh.rename(target)
    _flush_one(target.parent)


def _flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _flush_one(path)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Return the process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
