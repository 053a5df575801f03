"""Images in folders named after their classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from understudy.data.batch import UNLABELLED
from understudy.data.source import Source, Split, sources
from understudy.data.sources._images import load_images
from understudy.data.sources._splits import assemble, choose_roles, hash_id
from understudy.errors import DataError, suggestion

_SUFFIXES = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
    }
)


@dataclass(frozen=True)
class _Files:
    """Image files under one folder."""

    root: str
    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> bytes:
        return Path(self.root, self.paths[position]).read_bytes()

    def name(self, position: int) -> str:
        return f"'{Path(self.root, self.paths[position])}'"


@dataclass
class _Found:
    """The images of all splits in one list, with a class index each and the stretch of every split."""

    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    parts: dict[str, slice] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)

    def add(self, paths: list[str], label: int) -> None:
        self.paths += paths
        self.labels += [label] * len(paths)


@sources.register("folder")
def folder(
    path: str,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    train: str = "train",
    test: str | float | None = None,
    validation: str | float | None = None,
    unlabelled: str | None = None,
    classes: list[str] | None = None,
    split_seed: int = 0,
    memory_limit_mb: int = 2048,
    on_error: Literal["raise", "skip"] = "raise",
) -> Source:
    """Load a folder of images by class.

    Two layouts are read: `train/CLASS/IMAGE` with `test/CLASS/IMAGE`, `validation/...` or `val/...` beside it, and
    `CLASS/IMAGE` alone. Images may lie in folders below their class folder. Names that begin with a dot and files
    that are no images by their suffix are passed over.

    Args:
        path: the folder.
        size: height and width; the shorter side is scaled to it and the centre cropped. None: the images are all of
            one size and stay as they are.
        channels: 3 for RGB, 1 for grey.
        train: name of the training folder in the first layout.
        test: name of the test folder, or a fraction of every class to take out of the training images. None: the
            folder `test`; with class folders alone, a fifth.
        validation: the same for selection. None: the folder `validation` or `val` unless it is the test folder, else
            none.
        unlabelled: name of a folder whose images join the training images without a label.
        classes: the names of all class folders in the order that is wanted, for instance the teacher's; None: sorted.
        split_seed: which images a fraction takes; independent of the run's seed. The choice in a class changes little
            when files are added.
        memory_limit_mb: decoded images up to this size (in MiB) are kept in memory; more are decoded when needed.
        on_error: whether a damaged image is refused ("raise"), or left out and named in a warning ("skip").

    Every image is read once at the start, so that a damaged one is found before anything is trained. An image's id
    is a hash of its path relative to the folder: it stays the same when files are added or the folder is moved.

    Raises:
        DataError: no such folder, no class folders, a class without images, damaged images, images of several sizes.
    """
    root = Path(path).expanduser()
    what = f"Folder '{path}'"
    if not root.is_dir():
        raise DataError(f"{what} {'is a file' if root.exists() else 'does not exist'}.")
    layout = _layout(root, train, unlabelled, what)
    roles = choose_roles(list(layout), train=train, test=test, validation=validation, what=what)
    folders = {split: layout[split] for split in roles.names}
    found = _collect(root, folders, unlabelled, classes, what)
    samples, good = load_images(
        _Files(str(root), found.paths),
        size=size,
        channels=channels,
        memory_limit_mb=memory_limit_mb,
        on_error=on_error,
        what=what,
    )
    positions = torch.arange(len(found.paths))
    everything = Split(
        samples,
        positions,
        torch.tensor(found.labels, dtype=torch.int64),
        torch.tensor([hash_id(name) for name in found.paths], dtype=torch.int64),
    )
    splits = {
        split: everything.subset(positions[part][good[part]]) for split, part in found.parts.items()
    }
    _check_no_class_lost(splits[roles.train], found.classes, what)
    return assemble(path, "image", splits, roles, tuple(found.classes), split_seed)


def _layout(root: Path, train: str, unlabelled: str | None, what: str) -> dict[str, Path]:
    """Return split name -> folder. A folder called `train` that holds images is a class (of trains), not a split."""
    subfolders = [name for name in _subfolders(root) if name != unlabelled]
    if any(name in subfolders and _subfolders(root / name) for name in {train, "training"}):
        return {name: root / name for name in subfolders}
    if not subfolders:
        images = len(_images(root, root))
        held = (
            f"{images} images but no class folders"
            if images
            else "neither class folders nor images"
        )
        raise DataError(
            f"{what} holds {held}. Expected CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE, inside it."
        )
    return {train: root}


def _collect(
    root: Path,
    folders: Mapping[str, Path],
    unlabelled: str | None,
    classes: list[str] | None,
    what: str,
) -> _Found:
    """List the images of every split; `folders` begins with the training split, whose subfolders are the classes."""
    found = _Found()
    for split, parent in folders.items():
        begin = len(found.paths)
        names = [name for name in _subfolders(parent) if parent != root or name != unlabelled]
        if not names:
            raise DataError(f"{what} has no class folders in '{parent}'.")
        if not found.parts:
            found.classes = names if classes is None else classes
            if sorted(found.classes) != names:
                raise DataError(
                    f"`classes` must name every class folder in '{parent}' once: {', '.join(names)}."
                )
            if unlabelled is not None:
                found.add(_images_or_error(root, root / unlabelled), UNLABELLED)
        for name in names:
            if name not in found.classes:
                raise DataError(
                    f"{what} has the class '{name}' in '{split}' but not among the training images. "
                    f"{suggestion(name, found.classes)}"
                )
            found.add(_images_or_error(root, parent / name), found.classes.index(name))
        found.parts[split] = slice(begin, len(found.paths))
    return found


def _subfolders(parent: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in parent.iterdir()
        if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    )


def _images(root: Path, parent: Path) -> list[str]:
    """Return the images below `parent` as sorted paths relative to `root`, with forward slashes."""
    found = []
    for place, below, names in os.walk(parent, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _SUFFIXES:
                found.append(Path(place, name).relative_to(root).as_posix())
    return sorted(found)


def _images_or_error(root: Path, parent: Path) -> list[str]:
    images = _images(root, parent)
    if not images:
        raise DataError(
            f"The folder '{parent}' holds no images (files ending in "
            f"{', '.join(sorted(_SUFFIXES))}). Fill it or remove it."
            if parent.is_dir()
            else f"There is no folder '{parent}'."
        )
    return images


def _check_no_class_lost(train: Split, classes: list[str], what: str) -> None:
    present = set(train.labels.tolist())
    lost = [name for index, name in enumerate(classes) if index not in present]
    if lost:
        raise DataError(f"{what}: no readable training image is left of the class '{lost[0]}'.")
