"""From a split to batches: slices, workers, encoders, mixing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch

from understudy.data.batch import Batch
from understudy.data.fetching import LocalFetcher, ResidentFetcher, WorkerFetcher, fetcher
from understudy.data.loader import EvaluationLoader, TrainingLoader
from understudy.data.order import SampleOrder
from understudy.data.source import Raw, Split
from understudy.data.transforms.cutmix import Cutmix
from understudy.data.transforms.horizontal_flip import HorizontalFlip
from understudy.data.transforms.mixup import Mixup
from understudy.data.transforms.rand_augment import RandAugment
from understudy.data.transforms.random_crop import RandomCrop
from understudy.data.views import Views
from understudy.errors import DataError, UnderstudyError

COUNT, CLASSES = 37, 4


class Pictures:
    """Small pictures, made from their position."""

    kind = "image"
    identity = "pictures"

    def __init__(self, in_memory: bool = True, broken: int | None = None, wrong: str = "") -> None:
        self.in_memory = in_memory
        self.broken = broken
        self.wrong = wrong

    def __len__(self) -> int:
        return 100

    def fetch(self, positions: torch.Tensor) -> torch.Tensor:
        if self.broken is not None and (positions == self.broken).any():
            if self.wrong == "bug":
                raise ZeroDivisionError("a bug in the samples")
            raise DataError(f"Image {self.broken}.png is damaged.")
        base = torch.arange(3 * 8 * 8).view(1, 3, 8, 8)
        return ((base * 7 + positions[:, None, None, None] * 31) % 256).to(torch.uint8)


class Sentences:
    """Texts."""

    kind = "text"
    in_memory = True
    identity = "sentences"

    def __len__(self) -> int:
        return 100

    def fetch(self, positions: torch.Tensor) -> list[str]:
        return [f"sentence {place}" for place in positions.tolist()]


class Scale:
    """An encoder that counts its calls."""

    def __init__(self, by: float) -> None:
        self.by = by
        self.calls = 0

    def __call__(self, raw: Any, device: torch.device) -> torch.Tensor:
        self.calls += 1
        scaled: torch.Tensor = raw.to(device, torch.float32) * self.by
        return scaled

    def config(self) -> dict[str, Any]:
        return {"by": self.by}


def split_of(samples: Any = None, labelled: int = COUNT) -> Split:
    labels = torch.arange(COUNT) % CLASSES
    labels[labelled:] = -1
    positions = torch.arange(COUNT).flip(0) + 5
    return Split(samples or Pictures(), positions, labels, positions * 10)


def loader_of(
    split: Split | None = None,
    parts: Any = None,
    batch_size: int = 8,
    views: int | None = None,
    order: SampleOrder | None = None,
    **keywords: Any,
) -> TrainingLoader:
    split = split or split_of()
    parts = [RandomCrop(padding=1), HorizontalFlip()] if parts is None else parts
    encoders = keywords.pop("encoders", None) or {"student": Scale(1.0)}
    return TrainingLoader(
        split,
        order or SampleOrder.over(split, batch_size=batch_size, seed=1),
        Views(parts, seed=1, count=views),
        encoders,
        device="cpu",
        classes=CLASSES,
        **keywords,
    )


def same(first: Batch, second: Batch) -> bool:
    labels = first.labels is second.labels is None or (
        first.labels is not None
        and second.labels is not None
        and torch.equal(first.labels, second.labels)
    )
    return (
        labels
        and first.inputs.keys() == second.inputs.keys()
        and all(torch.equal(first.inputs[role], second.inputs[role]) for role in first.inputs)
        and torch.equal(first.index, second.index)
        and torch.equal(first.view, second.view)
    )


def joined(parts: list[Batch]) -> Batch:
    return Batch(
        inputs={role: torch.cat([p.inputs[role] for p in parts]) for role in parts[0].inputs},
        labels=torch.cat([p.labels for p in parts if p.labels is not None]),
        index=torch.cat([p.index for p in parts]),
        view=torch.cat([p.view for p in parts]),
    )


def test_a_batch_holds_the_views_of_its_samples() -> None:
    split = split_of()
    loader = loader_of(split, views=2)
    for step, [batch] in enumerate(loader.steps(0, 12)):
        indices, passes = loader.order.batch(step)
        assert torch.equal(batch.index, split.ids[indices])
        assert batch.labels is not None and torch.equal(batch.labels, split.labels[indices])
        assert torch.equal(batch.view, passes % 2)
        raw = split.fetch(indices)
        expected = Views([RandomCrop(padding=1), HorizontalFlip()], seed=1, count=2)(
            raw, batch.index, batch.view
        )
        assert torch.equal(batch.inputs["student"], expected.float())  # type: ignore[union-attr]
        assert (batch.weight, batch.mask) == (None, None)


def test_iteration_can_begin_anywhere() -> None:
    walked = [parts for parts in loader_of().steps(0, 11)]
    for start in (0, 3, 10):
        for parts, wanted in zip(loader_of().steps(start, 11), walked[start:], strict=True):
            assert same(parts[0], wanted[0])
    assert list(loader_of().steps(4, 4)) == []


@pytest.mark.parametrize("parts", [None, [RandomCrop(), Mixup(), HorizontalFlip()], [Cutmix()]])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 3), (2, 1), (3, 2), (8, 1)])
def test_slices_make_up_the_whole_batch(parts: Any, world: int, accumulate: int) -> None:
    whole = list(loader_of(parts=parts).steps(2, 7))
    ranks = [
        list(loader_of(parts=parts, rank=rank, world=world, accumulate=accumulate).steps(2, 7))
        for rank in range(world)
    ]
    for step, [wanted] in enumerate(whole):
        pieces = [part for rank in ranks for part in rank[step]]
        assert len(pieces) == world * accumulate
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 2
        assert same(joined(pieces), wanted)


def test_workers_change_nothing() -> None:
    parts = [RandomCrop(padding=1), RandAugment(), Mixup()]
    split = split_of(Pictures(in_memory=False), labelled=20)
    here = list(loader_of(split, parts, workers=0, accumulate=2).steps(0, 9))
    state = torch.get_rng_state()
    loader = loader_of(split, parts, workers=2, accumulate=2)
    there = list(loader.steps(0, 4)) + list(loader.steps(4, 9))
    assert torch.equal(state, torch.get_rng_state())
    loader.close()
    assert all(
        same(one, other)
        for left, right in zip(here, there, strict=True)
        for one, other in zip(left, right, strict=True)
    )
    with pytest.raises(UnderstudyError, match="was closed"):
        next(loader.steps(0, 1))


def test_an_abandoned_iteration_with_workers_leaves_nothing_behind() -> None:
    loader = loader_of(workers=1)
    wanted = list(loader_of().steps(0, 6))
    abandoned = loader.steps(0, 6)
    next(abandoned)
    again = list(loader.steps(1, 6))
    assert all(same(a[0], b[0]) for a, b in zip(again, wanted[1:], strict=True))
    with pytest.raises(UnderstudyError, match="second iteration"):
        list(abandoned)
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_named(workers: int) -> None:
    loader = loader_of(split_of(Pictures(broken=20)), workers=workers)
    with pytest.raises(DataError, match=r"^Image 20.png is damaged\.$"):
        list(loader.steps(0, 5))
    loader.close()


def test_a_bug_in_a_worker_is_told() -> None:
    loader = loader_of(split_of(Pictures(broken=20, wrong="bug")), workers=1)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug in the samples"):
        list(loader.steps(0, 5))
    loader.close()


def test_workers_are_chosen_by_where_the_samples_are() -> None:
    cpu = torch.device("cpu")
    assert isinstance(fetcher(split_of(), cpu, "auto"), LocalFetcher)
    assert isinstance(fetcher(split_of(Pictures(in_memory=False)), cpu, "auto"), WorkerFetcher)
    assert isinstance(fetcher(split_of(Pictures(in_memory=False)), cpu, 0), LocalFetcher)
    with pytest.raises(UnderstudyError, match="workers"):
        fetcher(split_of(), cpu, -1)


def test_a_resident_copy_gives_the_same_samples() -> None:
    split = split_of()
    resident = ResidentFetcher(split, torch.device("cpu"))

    class Want:
        indices = torch.tensor([3, 3, 36, 0])

    [(_, raw)] = resident.stream([Want()])
    assert isinstance(raw, torch.Tensor)
    assert torch.equal(raw, split.fetch(Want.indices))  # type: ignore[arg-type]


def test_equal_encoders_run_once() -> None:
    student, teacher, other = Scale(2.0), Scale(2.0), Scale(3.0)
    encoders = {"student": student, "teacher": teacher, "other": other}
    [[batch]] = loader_of(encoders=encoders).steps(0, 1)
    assert batch.inputs["student"] is batch.inputs["teacher"]
    assert torch.equal(batch.inputs["other"], batch.inputs["student"] * 1.5)
    assert (student.calls, teacher.calls, other.calls) == (1, 0, 1)


def test_functions_without_config_run_for_themselves() -> None:
    encoders = {"a": lambda raw, device: raw.float(), "b": lambda raw, device: raw.float() + 1}
    [[batch]] = loader_of(encoders=encoders).steps(0, 1)
    assert torch.equal(batch.inputs["a"] + 1, batch.inputs["b"])


def test_texts_go_to_the_encoder_as_they_are() -> None:
    def encode(raw: Raw, device: torch.device) -> Raw:
        return raw

    loader = loader_of(split_of(Sentences()), parts=[], encoders={"student": encode})
    [[batch]] = loader.steps(0, 1)
    assert batch.inputs["student"] == [f"sentence {i // 10}" for i in batch.index.tolist()]
    assert (batch.view == 0).all()


@pytest.mark.parametrize("labelled", [COUNT, COUNT - 3, 0])
def test_a_batch_says_whether_every_sample_has_a_label(labelled: int) -> None:
    for [batch] in loader_of(split_of(labelled=labelled)).steps(0, 3):
        assert batch.all_labelled == (labelled == COUNT)


def test_labels_are_none_when_nothing_is_labelled() -> None:
    for parts in ([], [Mixup()]):
        [[batch]] = loader_of(split_of(labelled=0), parts=parts).steps(0, 1)
        assert batch.labels is None
        assert (batch.labelled == 0).all()


def test_mixed_batches_have_soft_labels() -> None:
    for [batch] in loader_of(parts=[Cutmix()]).steps(0, 4):
        assert batch.labels is not None
        assert batch.labels.shape == (8, CLASSES) and batch.labels.dtype == torch.float32
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(8))
        assert (batch.labelled == 1).all()


def test_mixing_keeps_scarce_labels() -> None:
    split = split_of(labelled=5)
    label = dict(zip(split.ids.tolist(), split.labels.tolist(), strict=True))
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for [batch] in loader_of(split, parts=[Mixup()]).steps(0, 12):
        assert batch.labels is not None
        known = torch.tensor([label[i] >= 0 for i in batch.index.tolist()])
        assert torch.equal(batch.labelled == 1, known)
        for place in torch.nonzero(known).flatten().tolist():
            pair = (int(batch.index[place]), int(batch.view[place]))
            seen[pair] = batch.inputs["student"][place]
    # A stage that sees labelled samples only shows the very same mixtures.
    order = SampleOrder.over(split, batch_size=8, seed=1, labelled_only=True)
    met = 0
    for [batch] in loader_of(split, parts=[Mixup()], order=order).steps(0, 12):
        assert (batch.labelled == 1).all()
        for place, pair in enumerate(zip(batch.index.tolist(), batch.view.tolist(), strict=True)):
            if pair in seen:
                met += 1
                assert torch.equal(batch.inputs["student"][place], seen[pair])
    assert met > 3


def test_impossible_slices_are_refused() -> None:
    with pytest.raises(UnderstudyError, match="8 samples cannot be cut into 3 x 3"):
        loader_of(world=3, accumulate=3)
    tail = SampleOrder.over(split_of(), batch_size=12, seed=0, drop_last=False)
    with pytest.raises(UnderstudyError, match="1 samples cannot be cut into 1 x 2"):
        loader_of(order=tail, accumulate=2)
    with pytest.raises(UnderstudyError, match="rank must be from 0 to 1"):
        loader_of(rank=2, world=2)
    with pytest.raises(UnderstudyError, match="accumulate"):
        loader_of(accumulate=0)
    with pytest.raises(DataError, match="reaches sample 99"):
        loader_of(order=SampleOrder(torch.arange(100), batch_size=8, seed=0))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_through_the_split_in_order(workers: int) -> None:
    split = split_of(labelled=30)
    loader = EvaluationLoader(
        split, {"student": Scale(1.0)}, batch_size=10, device="cpu", workers=workers
    )
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 4
        assert [len(batch) for batch in batches] == [10, 10, 10, 7]
        whole = joined(batches)
        assert torch.equal(whole.index, split.ids)
        assert whole.labels is not None and torch.equal(whole.labels, split.labels)
        assert (whole.view == -1).all()
        expected = split.fetch(torch.arange(COUNT))
        assert torch.equal(whole.inputs["student"], expected.float())  # type: ignore[union-attr]
    loader.close()


def test_evaluation_of_an_unlabelled_split() -> None:
    loader = EvaluationLoader(
        split_of(labelled=0), {"student": Scale(1.0)}, batch_size=50, device="cpu"
    )
    [batch] = loader
    assert batch.labels is None
    with pytest.raises(UnderstudyError, match="batch_size"):
        EvaluationLoader(split_of(), {}, batch_size=0, device="cpu")


def test_steps_are_made_when_asked_for() -> None:
    fetched: list[int] = []

    class Watched(Pictures):
        def fetch(self, positions: torch.Tensor) -> torch.Tensor:
            fetched.append(len(positions))
            return super().fetch(positions)

    steps: Iterator[list[Batch]] = loader_of(split_of(Watched())).steps(0, 10**9)
    assert len(list(islice(steps, 3))) == 3
    assert fetched == [8, 8, 8]


def test_workers_leave_interrupts_to_the_trainer() -> None:
    class Interrupting(Pictures):
        def fetch(self, positions: torch.Tensor) -> torch.Tensor:
            os.kill(os.getpid(), signal.SIGINT)
            return super().fetch(positions)

    loader = loader_of(split_of(Interrupting()), workers=1)
    wanted = list(loader_of().steps(0, 3))
    got = list(loader.steps(0, 3))
    assert all(same(one[0], other[0]) for one, other in zip(got, wanted, strict=True))
    loader.close()


def test_what_is_looked_up_goes_with_its_samples_into_every_slice() -> None:
    made = split_of()
    views = Views([HorizontalFlip()], seed=0, count=3)

    def lookup(ids: torch.Tensor, view: torch.Tensor) -> dict[str, torch.Tensor]:
        assert ids.device.type == view.device.type == "cpu"
        return {"sum": 10 * ids + view, "pair": torch.stack([ids, view], dim=1)}

    for rank in (0, 1):
        loader = TrainingLoader(
            made,
            SampleOrder.over(made, batch_size=8, seed=0),
            views,
            {"student": lambda raw, device: raw},
            device="cpu",
            classes=2,
            rank=rank,
            world=2,
            accumulate=2,
            lookups={"teacher": lookup},
        )
        for parts in loader.steps(2, 5):
            for batch in parts:
                found = batch.inputs["teacher"]
                assert torch.equal(found["sum"], 10 * batch.index + batch.view)
                assert torch.equal(found["pair"], torch.stack([batch.index, batch.view], dim=1))
                assert len(batch.inputs["student"]) == len(batch) == 2
        loader.close()
