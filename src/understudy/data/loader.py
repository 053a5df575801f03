"""Loaders: from a split to the batches that models and methods see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch

from understudy.data.batch import UNLABELLED, Batch
from understudy.data.fetching import fetcher
from understudy.data.order import Order
from understudy.data.placement import place
from understudy.data.source import Raw, Split
from understudy.data.views import Views, soft_labels
from understudy.errors import DataError, UnderstudyError

Encoder = Callable[[Any, torch.device], Any]
"""Raw samples and a device -> what one model's forward takes; usually a model's `Preprocess`.

One that draws at random, such as which tokens are masked, has the attribute `draws = True`, and is given the samples'
ids and view numbers as `ids` and `views`."""

Lookup = Callable[[torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]]
"""Sample ids and view numbers, both int64 [B] on the CPU -> what is known of them already, on the CPU."""

EVALUATION_VIEW = -1
"""The view number of a sample as it is, without transforms."""
BLOCK = 64
"""Steps whose samples are looked up at once: in one step alone the look-ups would cost more than a small model."""


class TrainingLoader:
    """Batches of seeded views, addressed by step.

    What a step's batch holds depends on the split, the order, the views and the encoders, not on
    where iteration began, on the number of workers, or on earlier steps. With several ranks or
    accumulation the batch is cut into contiguous slices: first one for each rank, then each of
    those into micro-batches.

    When a transform mixes, a labelled sample's partner is drawn from the labelled samples of the
    split, so that its label is not lost, and an unlabelled sample's from all of it. A mixed view
    therefore doesn't depend on what population a stage draws from. Labels become soft.

    Args:
        split: the training samples.
        order: which of them make up a step.
        views: what is done to them.
        encoders: role -> how that model's inputs are made. Encoders of the same configuration
            run once.
        device: where the batches go, and where transforms run.
        classes: number of classes C, for soft labels.
        workers: processes that fetch and decode; "auto" for none when the samples are in
            memory, else two.
        rank: which slice of each batch this process gets.
        world: how many processes share a batch.
        accumulate: micro-batches in one optimiser step of this process.
        lookups: role -> where that model's inputs are looked up instead, by id and view.

    Raises:
        UnderstudyError: a batch cannot be cut into world * accumulate parts.
        DataError: the order reaches beyond the split.
    """

    def __init__(
        self,
        split: Split,
        order: Order,
        views: Views,
        encoders: Mapping[str, Encoder],
        *,
        device: torch.device | str,
        classes: int,
        workers: int | Literal["auto"] = "auto",
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        lookups: Mapping[str, Lookup] | None = None,
    ) -> None:
        """Check the arguments against each other."""
        if not 0 <= rank < world:
            raise UnderstudyError(f"rank must be from 0 to {world - 1}, not {rank}.")
        if accumulate < 1:
            raise UnderstudyError(f"accumulate must be at least 1, not {accumulate}.")
        if order.smallest_batch < world * accumulate:
            raise UnderstudyError(
                f"A batch of {order.smallest_batch} samples cannot be cut into {world} x "
                f"{accumulate} parts (ranks x micro-batches). Use a larger batch_size or fewer "
                "parts."
            )
        if int(order.population.max()) >= len(split):
            raise DataError(
                f"The order reaches sample {int(order.population.max())}, but the split has "
                f"{len(split)}."
            )
        self.order = order
        self._split = split
        self._views = views
        self._encoding = _Encoding(encoders, torch.device(device))
        self._lookups = dict(lookups or {})
        self._classes = classes
        self._rank, self._world, self._accumulate = rank, world, accumulate
        self._labelled = split.labelled
        self._any_labelled = len(self._labelled) > 0
        self._all_labelled = len(self._labelled) == len(split)
        self._fetcher = fetcher(split, self._encoding.device, workers)

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Iterate over the steps from `start` up to, not including, `stop`.

        Each item is the list of this rank's micro-batches, `accumulate` of them.
        """
        parts: list[Batch] = []
        wants = (
            want
            for first in range(start, stop, BLOCK)
            for want in self._wants(range(first, min(first + BLOCK, stop)))
        )
        for want, raw in self._fetcher.stream(wants):
            parts.append(self._batch(want, raw))
            if len(parts) == self._accumulate:
                yield parts
                parts = []

    def close(self) -> None:
        """Stop the workers and free what is kept on the device."""
        self._fetcher.close()

    def _wants(self, steps: range) -> Iterator[_Want]:
        pieces = [piece for step in steps for piece in self._pieces(*self.order.batch(step))]
        sizes = [own.numel() for own, _ in pieces]
        own, passes = (torch.cat(column) for column in zip(*pieces, strict=True))
        columns = [own, self._views.number(passes), self._split.ids.index_select(0, own)]
        if self._any_labelled:
            columns.append(self._split.labels.index_select(0, own))
        for column in zip(*(column.split(sizes) for column in columns), strict=True):
            want = _Want(*column)
            if self._views.mixing is not None:
                want = want._replace(partners=self._partners(want))
            yield want

    def _pieces(
        self, indices: torch.Tensor, passes: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Cut what this rank sees of a step into micro-batches."""
        if self._world > 1:
            indices = indices.tensor_split(self._world)[self._rank]
            passes = passes.tensor_split(self._world)[self._rank]
        if self._accumulate == 1:
            return [(indices, passes)]
        cut = (column.tensor_split(self._accumulate) for column in (indices, passes))
        return list(zip(*cut, strict=True))

    def _partners(self, want: _Want) -> torch.Tensor:
        split, views = self._split, self._views
        anyone = views.partner_positions(want.ids, want.view, len(split))
        if len(self._labelled) in (0, len(split)):
            return anyone
        chosen = views.partner_positions(want.ids, want.view, len(self._labelled))
        labelled = self._labelled[chosen]
        return torch.where(split.labels[want.own] != UNLABELLED, labelled, anyone)

    def _batch(self, want: _Want, raw: Raw) -> Batch:
        split, device, ids = self._split, self._encoding.device, want.ids
        given = None if want.labels is None else place(want.labels, device)
        if isinstance(raw, torch.Tensor):
            raw = place(raw, device)
        if want.partners is None:
            raw = self._views(raw, ids, want.view)
        else:
            count = len(want.own)
            raw, share = self._views.mixed(
                raw[:count], ids, want.view, raw[count:], split.ids[want.partners]
            )
            if given is not None:
                others = place(split.labels[want.partners], device)
                given = soft_labels(given, others, share, self._classes)
        inputs = self._encoding(raw, ids, want.view)
        for role, lookup in self._lookups.items():
            columns = lookup(ids, want.view)
            inputs[role] = {name: place(column, device) for name, column in columns.items()}
        return Batch(
            inputs=inputs,
            labels=given,
            index=place(ids, device),
            view=place(want.view, device),
            complete=given if self._all_labelled else None,
        )


class EvaluationLoader:
    """All samples of a split, in order, as they are; view -1.

    Args:
        split: the samples.
        encoders: role -> how that model's inputs are made. Encoders of the same configuration
            run once.
        batch_size: samples in a batch; the last one may hold fewer.
        device: where the batches go.
        workers: as for `TrainingLoader`.
    """

    def __init__(
        self,
        split: Split,
        encoders: Mapping[str, Encoder],
        *,
        batch_size: int,
        device: torch.device | str,
        workers: int | Literal["auto"] = "auto",
    ) -> None:
        """Choose the split and how it is cut."""
        if batch_size < 1:
            raise UnderstudyError(f"batch_size must be at least 1, not {batch_size}.")
        self._split = split
        self._batch_size = batch_size
        self._encoding = _Encoding(encoders, torch.device(device))
        self._labelled = bool((split.labels != UNLABELLED).any())
        self._fetcher = fetcher(split, self._encoding.device, workers)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._split) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches."""
        split, device = self._split, self._encoding.device
        wants = (
            _Want(indices, torch.full_like(indices, EVALUATION_VIEW), split.ids[indices])
            for indices in torch.split(torch.arange(len(split)), self._batch_size)
        )
        for want, raw in self._fetcher.stream(wants):
            if isinstance(raw, torch.Tensor):
                raw = place(raw, device)
            yield Batch(
                inputs=self._encoding(raw, split.ids[want.own], want.view),
                labels=place(split.labels[want.own], device) if self._labelled else None,
                index=place(want.ids, device),
                view=place(want.view, device),
            )

    def close(self) -> None:
        """Stop the workers and free what is kept on the device."""
        self._fetcher.close()


class _Want(NamedTuple):
    """The samples of one micro-batch, what is known of them, and with whom they are mixed."""

    own: torch.Tensor
    view: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor | None = None
    partners: torch.Tensor | None = None

    @property
    def indices(self) -> torch.Tensor:
        """Everything that has to be fetched: the samples, then their partners."""
        return self.own if self.partners is None else torch.cat([self.own, self.partners])


class _Encoding:
    """Raw samples -> inputs of every role, each distinct encoder run once."""

    def __init__(self, encoders: Mapping[str, Encoder], device: torch.device) -> None:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self._groups: list[tuple[Encoder, list[str]]] = []
        for role, encoder in encoders.items():
            for known, roles in self._groups:
                if _same(known, encoder):
                    roles.append(role)
                    break
            else:
                self._groups.append((encoder, [role]))

    def __call__(self, raw: Raw, ids: torch.Tensor, view: torch.Tensor) -> dict[str, Any]:
        inputs = {}
        for encoder, roles in self._groups:
            if getattr(encoder, "draws", False):
                encoded = encoder(raw, self.device, ids=ids, views=view)  # type: ignore[call-arg]
            else:
                encoded = encoder(raw, self.device)
            inputs.update(dict.fromkeys(roles, encoded))
        return inputs


def _same(first: Encoder, second: Encoder) -> bool:
    if first is second:
        return True
    if type(first) is not type(second) or not hasattr(first, "config"):
        return False
    return bool(first.config() == second.config())  # type: ignore[attr-defined]
