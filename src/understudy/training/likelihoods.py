"""How likely a model finds every training document: measured once, kept in a file, shared by all runs beside it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import nn

from understudy.data.loader import EvaluationLoader
from understudy.data.source import Split
from understudy.errors import ModelError
from understudy.evaluation.tokens import predict_tokens
from understudy.models.model import Model, fingerprint
from understudy.tasks.language import tokens_of
from understudy.teachers.together import Together
from understudy.training.checkpoint import write_atomic

if TYPE_CHECKING:
    from understudy.training.context import Context

logger = logging.getLogger("understudy")
FOLDER = "likelihoods"
RECORD = np.dtype([("id", "<i8"), ("tokens", "<i8"), ("nats", "<f8")])
"""What the file holds of each document, one after the other in the order of the split."""
FLUSHED_BATCHES = 64
"""Batches after which the file is forced to the disk; a killed process loses nothing that was written."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Likelihoods:
    """What a model says about documents.

    Attributes:
        ids: int64 [N], their ids.
        tokens: int64 [N], how many tokens of each are predicted.
        nats: float64 [N], log-likelihood of each, the sum over those tokens; at most 0.
    """

    ids: torch.Tensor
    tokens: torch.Tensor
    nats: torch.Tensor

    @classmethod
    def of(cls, records: np.ndarray[Any, Any]) -> Likelihoods:
        """Return what records of a file say."""
        columns = (torch.from_numpy(records[name].copy()) for name in ("id", "tokens", "nats"))
        return cls(*columns)


def measure_likelihoods(
    context: Context, model: Model, split: Split, stop: Callable[[], None], *, whom: str
) -> Likelihoods:
    """Return a model's likelihoods of all documents of a split, from the file where they are there.

    The file's name is a hash of the weights, the preprocessing, the documents and their ids. An interrupted pass goes
    on at its last whole batch, and its file has the same bytes in the end. The first of several processes does the
    work.

    Args:
        context: the run.
        model: the model, on the device.
        split: the documents.
        stop: called between two batches; raises when the run is to stop.
        whom: what the log calls the model.

    Raises:
        ModelError: a likelihood is not finite; names the document.
    """
    if context.cache is None:
        return Likelihoods.of(np.concatenate(list(_batches(context, model, split, 0))))
    path = likelihood_file(context, model, split)
    together = Together(context.world, stop)
    together.do(lambda: _fill(context, model, split, path, together.tick, whom))
    return Likelihoods.of(np.fromfile(path, RECORD))


def likelihood_file(context: Context, model: Model, split: Split) -> Path:
    """Return where a model's likelihoods of a split lie, or will."""
    assert context.cache is not None
    documents = hashlib.blake2b(digest_size=16)
    for column in (split.positions, split.ids):
        documents.update(column.numpy().tobytes())
    key = {
        "weights": fingerprint(model.module),
        "preprocess": model.preprocess.config(),
        "task": context.experiment.task.name,
        "samples": split.samples.identity,
        "documents": documents.hexdigest(),
        # The last bits of a sum depend on what stands beside it.
        "batch": context.experiment.settings.evaluation_batch_size,
    }
    text = json.dumps(key, sort_keys=True)
    name = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    return context.cache / FOLDER / f"{name}.bin"


def is_complete(path: Path) -> bool:
    """Tell whether a file of likelihoods is finished and as it was written."""
    try:
        expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
        with path.open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fill(
    context: Context,
    model: Model,
    split: Split,
    path: Path,
    tick: Callable[[], None],
    whom: str,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file, _locked(file, tick):
        if is_complete(path):
            logger.info("The %s's likelihoods of %d documents are known.", whom, len(split))
            return
        done = _usable(context, path, split)
        file.truncate(done * RECORD.itemsize)
        begin = time.perf_counter()
        logger.info("Scoring documents %d to %d with the %s", done, len(split), whom)
        for number, records in enumerate(_batches(context, model, split, done), start=1):
            file.write(records.tobytes())
            file.flush()
            if number % FLUSHED_BATCHES == 0:
                os.fsync(file.fileno())
            tick()
        os.fsync(file.fileno())
        file.seek(0)
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        companion = {"sha256": checksum, "documents": len(split), "model": model.name}
        write_atomic(path.with_suffix(".json"), json.dumps(companion))
        logger.info("Scored in %.1f s", time.perf_counter() - begin)


def _usable(context: Context, path: Path, split: Split) -> int:
    """Return how many documents at the beginning of a file need not be scored again: whole batches of the right ids."""
    if path.with_suffix(".json").exists():
        logger.warning("%s is damaged; its documents are scored again.", path)
        path.with_suffix(".json").unlink()
        return 0
    known = np.fromfile(path, RECORD, count=path.stat().st_size // RECORD.itemsize)[: len(split)]
    size = context.experiment.settings.evaluation_batch_size
    right = (known["id"] == split.ids[: len(known)].numpy()) & np.isfinite(known["nats"])
    count = len(known) if right.all() else int(right.argmin())
    return count - count % size if count < len(split) else count


def _batches(
    context: Context, model: Model, split: Split, start: int
) -> Iterator[np.ndarray[Any, Any]]:
    """Give the records of the documents from `start` on, batch by batch, in evaluation mode and float32."""
    if start >= len(split):
        return
    settings, task = context.experiment.settings, context.experiment.task
    loader = EvaluationLoader(
        split.subset(torch.arange(start, len(split))),
        {"student": model.preprocess},
        batch_size=settings.evaluation_batch_size,
        device=context.world.device,
        workers=settings.workers,
    )
    tapped = task.tapped(model.module)
    try:
        with _evaluating(model.module):
            for batch in loader:
                tokens = tokens_of(batch)
                nats = torch.zeros(len(batch), dtype=torch.float64)
                owners = tokens.owners.cpu()
                counts = torch.bincount(owners, minlength=len(batch))
                if len(tokens.labels):
                    found = predict_tokens(
                        lambda each: task.forward_tapped(tapped, each, "student"), [batch]
                    )
                    nats.index_add_(0, owners, -found.scores.nats)
                records = np.empty(len(batch), RECORD)
                for name, column in (("id", batch.index.cpu()), ("tokens", counts), ("nats", nats)):
                    records[name] = column.numpy()
                yield records
    except ModelError as error:
        raise ModelError(f"Documents cannot be scored with '{model.name}': {error}") from error
    finally:
        tapped.close()
        loader.close()


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    flags = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in flags.items():
            part.training = training


@contextlib.contextmanager
def _locked(file: BinaryIO, tick: Callable[[], None]) -> Iterator[None]:
    """Keep other runs from writing the same file; wait while one does."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            tick()
            time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
