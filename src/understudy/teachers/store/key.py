"""The key: what a store's contents depend on. A store whose key differs is refused, with the difference named."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from understudy.data.source import Source, Split
from understudy.data.views import Deterministic, Mixing, Transform, Views
from understudy.errors import StoreError

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class Key:
    """What the outputs in a store depend on.

    Attributes:
        teacher: the fingerprint of the teacher's parameters and buffers; None where there is no teacher to compare.
        preprocess: the configuration of its preprocessing; None likewise.
        data: the identity of the raw samples and of their ids (see `data_identity`).
        views: what makes view v of a sample (see `view_recipe`).
    """

    teacher: str | None
    preprocess: Mapping[str, Any] | None
    data: str
    views: Mapping[str, Any]

    def json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "teacher": self.teacher,
            "preprocess": self.preprocess,
            "data": self.data,
            "views": self.views,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Key:
        """Return the key from its JSON values."""
        return cls(values["teacher"], values["preprocess"], values["data"], values["views"])

    def differences(self, wanted: Key) -> list[str]:
        """Return a sentence for every part in which this key, a store's, differs from the one that is wanted."""
        found = []
        if wanted.teacher is not None and self.teacher != wanted.teacher:
            found.append(
                f"the teacher's weights: the store was filled with the fingerprint {self.teacher}, this teacher has "
                f"{wanted.teacher}"
            )
        if wanted.preprocess is not None:
            found += _unlike("the teacher's preprocessing", self.preprocess, wanted.preprocess)
        if self.data != wanted.data:
            found.append(
                f"the data: samples or ids have the identity {self.data} in the store, here {wanted.data}"
            )
        return found + _unlike("the views", self.views, wanted.views)


def plain(value: Any) -> Any:
    """Return a configuration as the JSON values that it is read back as."""
    return json.loads(json.dumps(value))


def data_identity(source: Source) -> str:
    """Return a hash over raw samples and their ids. Labels, class names and how splits are cut do not count."""
    digest = hashlib.blake2b(digest_size=16)
    for split in (source.train, source.validation, source.test):
        if split is not None:
            digest.update(split.samples.identity.encode())
            for column in (split.positions, split.ids):
                digest.update(column.numpy().tobytes())
    return digest.hexdigest()


def view_recipe(views: Views, split: Split) -> dict[str, Any]:
    """Return, as JSON values, everything that decides what view v of a sample of `split` is.

    Seed and number of views count only where something is random. Where samples are mixed, it matters which others
    there are and which of them have labels. Of transforms from outside the package, the source code counts too.

    Raises:
        StoreError: there is no telling whether a transform from outside would still do the same tomorrow; or views
            are random and without number.
    """
    config = views.config()
    if not views.stochastic:
        config |= {"seed": None, "count": 1}
    elif views.count is None:
        names = ", ".join(f"'{part.name}'" for part in views.transforms if part.stochastic)
        raise StoreError(
            f"With `views: null` the random transforms {names} show every sample in a new view on each pass, and a "
            "store can hold only so many. Set data.views to a number M: epoch e then shows view e mod M."
        )
    config["code"] = [
        _code(part)
        for part in views.transforms
        if not _ours(part) or isinstance(part, Deterministic)
    ]
    if views.mixing is not None:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(split.ids.numpy().tobytes())
        digest.update((split.labels >= 0).numpy().tobytes())
        config["mixed_with"] = digest.hexdigest()
    return dict(plain(config))


def _ours(part: Transform | Mixing) -> bool:
    return type(part).__module__.startswith("understudy.")


def _code(part: Transform | Mixing) -> str:
    """Return a hash over the source of a transform from outside, and over the settings of a wrapped object."""
    described: Any = type(part)
    settings = ""
    if isinstance(part, Deterministic):
        described = part.function
        if not inspect.isroutine(described):
            described, settings = type(part.function), repr(part.function)
    try:
        if _ADDRESS.search(settings):
            raise TypeError("its repr does not tell its settings")
        source = inspect.getsource(described)
    except (OSError, TypeError) as error:
        raise StoreError(
            f"The transform '{part.name}' ({part.config()}) cannot go with a store: {error}, so nobody could tell "
            "when it changes. Write it as a class or function in a file."
        ) from error
    return hashlib.blake2b((source + settings).encode(), digest_size=16).hexdigest()


def _unlike(what: str, stored: Any, wanted: Any) -> list[str]:
    return [
        f"{what}: {place or 'the whole'} is {_shown(before)} in the store, here {_shown(after)}"
        for place, before, after in _pairs(stored, wanted, "")
        if before != after
    ]


def _pairs(stored: Any, wanted: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Walk through two JSON values; yield what stands at each place of one kind in both."""
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        for key in dict.fromkeys([*stored, *wanted]):
            yield from _pairs(stored.get(key), wanted.get(key), f"{place}.{key}".strip("."))
    elif isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        for number, (before, after) in enumerate(zip(stored, wanted, strict=True)):
            yield from _pairs(before, after, f"{place}.{number}".strip("."))
    else:
        yield place, stored, wanted


def _shown(value: Any, length: int = 120) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= length else text[: length - 3] + "..."
