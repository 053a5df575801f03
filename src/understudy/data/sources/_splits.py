"""Which split plays which role, the ids of samples, and the last steps that all sources share."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from understudy.data.labels import carve
from understudy.data.source import Kind, Source, Split
from understudy.errors import DataError, suggestion

_ALIASES = (("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing"))
_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Roles:
    """Where the samples of each role come from: the name of a split, or a fraction of the training split."""

    train: str
    test: str | float
    validation: str | float | None
    available: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Return the splits in use, the training split first."""
        return [role for role in (self.train, self.validation, self.test) if isinstance(role, str)]


def choose_roles(
    available: Collection[str],
    *,
    train: str,
    test: str | float | None,
    validation: str | float | None,
    what: str,
) -> Roles:
    """Settle which split is used for what.

    Args:
        available: names of the splits that there are.
        train: name of the training split.
        test: name of the test split, a fraction to take out of the training split, or None: the split called
            "test", and when the training split is the only one, a fifth of it.
        validation: the same for selection; None: the split called "validation" (or "val", "valid", "dev") unless it
            is the test split, else none.
        what: what messages call the source.

    Raises:
        DataError: a split that does not exist, none to test on, one split in two roles, a fraction outside (0, 1).
    """
    chosen_train = _named(train, available, "training", what)
    others = [name for name in available if name != chosen_train]
    if test is None:
        found = _alias("test", others)
        if found is None and others:
            raise DataError(
                f"{what} has no split called 'test'; its splits are {_quoted(available)}. Say which one to test "
                "on, for example "
                f"test='{_alias('validation', others) or others[0]}', or test={_TEST_FRACTION} to take a part of the "
                "training split."
            )
        chosen_test: str | float = found if found is not None else _TEST_FRACTION
    else:
        chosen_test = _named(test, available, "test", what) if isinstance(test, str) else test
    if validation is None:
        chosen_validation: str | float | None = _alias(
            "validation", [name for name in others if name != chosen_test]
        )
    elif isinstance(validation, str):
        chosen_validation = _named(validation, available, "validation", what)
    else:
        chosen_validation = validation
    for role, value in (("test", chosen_test), ("validation", chosen_validation)):
        if value is not None and not isinstance(value, str) and not 0 < value < 1:
            raise DataError(
                f"{role}={value} is no fraction of the training split; it must lie between 0 and 1."
            )
    roles = Roles(chosen_train, chosen_test, chosen_validation, tuple(available))
    if len(set(roles.names)) != len(roles.names):
        raise DataError(
            f"The training, validation and test splits of {what} must differ, but are {_quoted(roles.names)}."
        )
    return roles


def assemble(
    name: str,
    kind: Kind,
    splits: Mapping[str, Split],
    roles: Roles,
    classes: tuple[str, ...],
    split_seed: int = 0,
) -> Source:
    """Build the source: take out what is asked for as a fraction, and check that there is something to test on.

    Raises:
        DataError: a test or validation split without any label, ids that occur twice.
    """
    what = f"'{name}'"
    train = splits[roles.train]
    held_out: dict[str, Split | None] = {"test": None, "validation": None}
    for role, value in (("test", roles.test), ("validation", roles.validation)):
        if isinstance(value, str):
            held_out[role] = _with_labels_only(splits[value], role, roles, what)
        elif value is not None:
            train, held_out[role] = carve(train, value, seed=split_seed)
    test = held_out["test"]
    assert test is not None, "a test role is a name or a fraction"
    check_ids([part for part in (train, test, held_out["validation"]) if part is not None], what)
    return Source(name, kind, train, test, held_out["validation"], classes)


def row_ids(split: str, rows: torch.Tensor) -> torch.Tensor:
    """Return ids for numbered samples: the row itself in "train", and apart from it in every other split.

    Args:
        split: the split's own name, whatever role it plays.
        rows: int64 [N], each below 2^32.
    """
    known = {"train": 0, "validation": 1, "test": 2}
    block = known[split] if split in known else 3 + (zlib.crc32(split.encode()) >> 2)
    return rows + (block << 32)


def hash_id(text: str) -> int:
    """Return a 63-bit id for a text that names a sample."""
    return (
        int.from_bytes(
            hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big"
        )
        >> 1
    )


def check_ids(parts: list[Split], what: str) -> None:
    """Refuse ids that occur twice."""
    ids = torch.cat([part.ids for part in parts])
    values, counts = torch.unique(ids, return_counts=True)
    if len(values) != len(ids):
        twice = values[counts > 1]
        raise DataError(
            f"{len(twice)} sample ids of {what} occur more than once, the first is {int(twice[0])}. "
            "Ids must be unique over all splits."
        )


def _with_labels_only(split: Split, role: str, roles: Roles, what: str) -> Split:
    name = getattr(roles, role)
    labelled = split.labelled
    if len(split) and not len(labelled):
        others = [other for other in roles.available if other not in (roles.train, name)]
        named = f"{role}='{_alias('validation', others) or others[0]}'" if others else ""
        raise DataError(
            f"The split '{name}' of {what} has no labels, so nothing can be measured on it. Use "
            f"{named}{', or ' if named else ''}{role}=0.1 to take a part of the training split."
        )
    if len(labelled) < len(split):
        logging.getLogger("understudy").warning(
            "%d of %d samples in the split '%s' of %s have no label; %s leaves them out.",
            len(split) - len(labelled),
            len(split),
            name,
            what,
            role,
        )
        return split.subset(labelled)
    return split


def _alias(role: str, names: Collection[str]) -> str | None:
    """Return the first of `names` that usually stands for `role`."""
    group = next(group for group in _ALIASES if role in group)
    return next((name for name in group if name in names), None)


def _named(name: str, available: Collection[str], role: str, what: str) -> str:
    if name in available:
        return name
    for group in _ALIASES:
        if name in group:
            found = _alias(name, available)
            if found is not None:
                return found
    raise DataError(f"{what} has no split '{name}' for {role}. {suggestion(name, available)}")


def _quoted(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
