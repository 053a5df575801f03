"""A data set of responses that a model wrote: sequence-level distillation.

Source: Kim and Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016.

    FOLDER/
      manifest.json       what was asked for; when all is done, what there is, and how many each filter dropped
      shard-00000.jsonl   every response to a fixed range of prompts, as written
      pairs.jsonl         the responses that the filters kept: {"prompt", "response", "id"}, a table to train on

Each file is written whole or not at all. A shard that is there is not written again, so a call that was interrupted is
taken up by the same call, and other filters cost no new response.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from understudy.errors import DataError, SamplingError
from understudy.sampling.filters import Filter
from understudy.sampling.records import Kept, Prompt, Written, check_prompts
from understudy.sampling.settings import Sampler, Sampling
from understudy.seeding import derive

MANIFEST = "manifest.json"
PAIRS = "pairs.jsonl"
_FORMAT = 1
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Report:
    """What `write` did.

    Attributes:
        folder: where it lies.
        written: responses in the shards.
        kept: responses in `pairs.jsonl`.
        dropped: filter -> responses that it dropped, each counted at the first that did.
        new: shards that this call wrote.
    """

    folder: Path
    written: int
    kept: int
    dropped: dict[str, int]
    new: int


def write(
    folder: str | Path,
    prompts: Iterable[Prompt],
    sampler: Sampler,
    settings: Sampling,
    *,
    filters: Sequence[Filter] = (),
    shard_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Write responses to prompts into a folder, and select those to learn from.

    Args:
        folder: an empty or new folder, or one in which the same call was interrupted.
        prompts: the prompts, in a fixed order.
        sampler: what writes.
        settings: how it draws. Log-probabilities are not kept.
        filters: what a response has to be like, asked in this order. Others may be given later.
        shard_size: prompts whose responses share a file. What is lost when a call is killed is less than a shard.
        progress: called with the number of shards that are there, and of all.

    Raises:
        DataError: there is no prompt, an id occurs twice, the folder holds something else (names the difference), or
            another process is writing into it.
        SamplingError: the sampler stopped; what is finished stays, and the same call goes on from there.
    """
    asked = list(prompts)
    check_prompts(asked)
    names = [json.dumps(each.config(), sort_keys=True) for each in filters]
    if len(set(names)) < len(names):
        raise DataError("The same filter is given twice.")
    for each in filters:
        each.check(asked)
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; it must be at least 1")
    place = Path(folder)
    settings = replace(settings, log_probs=False)
    plan = {
        "format": _FORMAT,
        "sampling": settings.config(),
        "sampler": sampler.describe(),
        "prompts": {"count": len(asked), "identity": _identity(asked)},
        "shard_size": shard_size,
    }
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        _prepare(place, plan)
        return _fill(place, plan, asked, sampler, settings, filters, progress)


def _fill(
    place: Path,
    plan: dict[str, Any],
    asked: Sequence[Prompt],
    sampler: Sampler,
    settings: Sampling,
    filters: Sequence[Filter],
    progress: Callable[[int, int], None] | None,
) -> Report:
    """Write the shards that are not there yet, and select from all."""
    shard_size = plan["shard_size"]
    ranges = [
        (f"shard-{number:05d}.jsonl", asked[begin : begin + shard_size])
        for number, begin in enumerate(range(0, len(asked), shard_size))
    ]
    new = 0
    for done, (name, part) in enumerate(ranges):
        if not (place / name).is_file():
            try:
                records = _respond(part, sampler, settings)
            except SamplingError as error:
                raise SamplingError(
                    f"{error} {done} of {len(ranges)} shards in {place} are finished; the same call goes on there."
                ) from error
            _save(place / name, _lines(record.as_json() for record in records))
            new += 1
        if progress is not None:
            progress(done + 1, len(ranges))
    written, kept, dropped = _select(place, [name for name, _ in ranges], filters)
    pairs = _lines(
        {"prompt": record.prompt, "response": record.response, "id": _pair_id(record, settings)}
        for record in kept
    )
    _save(place / PAIRS, pairs)
    files = [*(name for name, _ in ranges), PAIRS]
    result = {
        "filters": [each.config() for each in filters],
        "written": written,
        "kept": len(kept),
        "dropped": dropped,
        "files": {name: _checksum((place / name).read_bytes()) for name in files},
    }
    _save(place / MANIFEST, _pretty({**plan, "result": result}))
    return Report(place, written, len(kept), dropped, new)


def _respond(prompts: Sequence[Prompt], sampler: Sampler, settings: Sampling) -> list[Written]:
    """Return the responses to the prompts of one shard. Draws depend on a prompt's id, not on its place."""
    samples = sampler.sample(
        [prompt.text if prompt.ids is None else prompt.ids for prompt in prompts],
        settings,
        [derive(0, "prompt", prompt.id) for prompt in prompts],
    )
    records = []
    for place, sample in enumerate(samples):
        prompt = prompts[sample.prompt]
        records.append(
            Written(
                id=prompt.id,
                sample=place % settings.samples,
                prompt=prompt.text,
                response=_encodable(sampler.text_of(sample, settings)),
                finished=sample.finished,
                expected=prompt.expected,
                tokens=None if sample.ids is None else tuple(sample.ids.tolist()),
            )
        )
    return records


def _encodable(text: str) -> str:
    """Return a text that UTF-8 can hold: a server's JSON may carry one half of a pair of surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _select(
    folder: Path, shards: Sequence[str], filters: Sequence[Filter]
) -> tuple[int, Kept, dict[str, int]]:
    """Return how many responses there are, those that all filters keep, and how many each one dropped."""
    kept = Kept()
    dropped = {json.dumps(each.config(), sort_keys=True): 0 for each in filters}
    written = 0
    for shard in shards:
        for record in _read(folder / shard):
            written += 1
            for name, each in zip(dropped, filters, strict=True):
                if not each.keeps(record, kept):
                    dropped[name] += 1
                    break
            else:
                kept.add(record)
    return written, kept, dropped


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into the folder; the lock goes with the process, and leaves no file.

    Raises:
        DataError: another process has it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"Another process is writing into {folder}. Wait for it or stop it."
            ) from error
        yield
    finally:
        os.close(handle)


def _prepare(folder: Path, plan: dict[str, Any]) -> None:
    """Make the folder ready, or check that what it holds is what is asked for."""
    for partial in folder.glob(f"*{_PARTIAL}"):
        partial.unlink(missing_ok=True)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if any(folder.iterdir()):
            raise DataError(
                f"{folder} holds files, but no {MANIFEST}: it was not written by this. Name an empty folder."
            )
        _save(manifest, _pretty(plan))
        return
    try:
        there = json.loads(manifest.read_bytes())
    except ValueError as error:
        raise DataError(
            f"{manifest} is damaged: {error}. Delete the folder to begin anew."
        ) from error
    before = {name: value for name, value in there.items() if name != "result"}
    # As JSON gives it back: a tuple is a list there.
    differences = list(_differences(before, json.loads(json.dumps(plan))))
    if differences:
        raise DataError(
            f"{folder} was written for something else: {'; '.join(differences[:5])}. Name another folder."
        )


def _differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Name what differs between two JSON values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}):
            yield from _differences(
                before.get(name), now.get(name), f"{place}.{name}" if place else name
            )
    elif before != now:
        yield f"{place} was {json.dumps(before)} and is {json.dumps(now)}"


def _pair_id(record: Written, settings: Sampling) -> int | str:
    """Return an id for a pair: the prompt's, with the sample's number where there are several."""
    return record.id if settings.samples == 1 else f"{record.id}/{record.sample}"


def _identity(prompts: Sequence[Prompt]) -> str:
    """Return a hash over ids, texts, expected answers and tokens, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        ids = None if prompt.ids is None else prompt.ids.tolist()
        digest.update(json.dumps([prompt.id, prompt.text, prompt.expected, ids]).encode() + b"\n")
    return digest.hexdigest()


def _read(path: Path) -> Iterator[Written]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            yield Written.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}, is damaged ({error!r}). Delete this file, and the same call writes it again."
            ) from error


def _lines(values: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def _pretty(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _save(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside its place, flushed to the disk, renamed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
