"""A teacher that begins a step early gives the same, asks for nothing in vain, and leaves nothing running."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from understudy.data.batch import Batch
from understudy.models.outputs import Outputs
from understudy.teachers.ahead import Ahead

CPU = torch.device("cpu")


def batch(number: int) -> Batch:
    ids = torch.tensor([number])
    return Batch({"teacher": ids.float()}, None, ids, torch.zeros(1, dtype=torch.long))


class Loader:
    """Two parts a step; says where it was read and whether it is closed."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.closed = False

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        for step in range(start, stop):
            self.read.append(step)
            yield [batch(2 * step), batch(2 * step + 1)]

    def close(self) -> None:
        self.closed = True


class Teacher:
    """Doubles a number; remembers for which it did, and in which thread."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.threads: set[str] = set()

    def targets(self, given: Batch) -> Outputs:
        self.seen.append(int(given.index))
        self.threads.add(threading.current_thread().name)
        return Outputs(given.inputs["teacher"][:, None] * 2)


def ahead(wanted: object = None) -> tuple[Ahead, Loader, Teacher]:
    loader, teacher = Loader(), Teacher()
    every = wanted if callable(wanted) else (lambda name, step: True)
    return Ahead(loader, {"teacher": teacher.targets}, every, [CPU]), loader, teacher


def test_every_part_gets_its_own_outputs_once() -> None:
    runs, loader, teacher = ahead()
    found = []
    for step, parts in enumerate(runs.steps(3, 6)):
        assert loader.read[-1] == min(step + 4, 5)  # one step in advance
        found += [float(runs.targets["teacher"](part).logits) for part in parts]
    assert found == [2.0 * number for number in range(6, 12)]
    assert teacher.seen == list(range(6, 12))
    assert all(name.startswith("teacher") for name in teacher.threads)
    runs.close()
    assert loader.closed


def test_a_step_that_does_not_ask_costs_nothing() -> None:
    runs, _, teacher = ahead(lambda name, step: step % 2 == 1)
    for step, parts in enumerate(runs.steps(0, 4)):
        for part in parts if step % 2 else ():
            runs.targets["teacher"](part)
    runs.close()
    assert teacher.seen == [2, 3, 6, 7]


def test_what_was_not_begun_is_computed_when_asked_for() -> None:
    runs, _, teacher = ahead(lambda name, step: False)
    assert float(runs.targets["teacher"](batch(21)).logits) == 42
    (parts,) = runs.steps(0, 1)
    assert float(runs.targets["teacher"](parts[1]).logits) == 2
    runs.close()
    assert teacher.seen == [21, 1]


def test_leaving_early_waits_for_what_runs() -> None:
    loader = Loader()
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def targets(given: Batch) -> Outputs:
        begun.set()
        assert go_on.wait(10)
        ended.set()
        return Outputs()

    runs = Ahead(loader, {"teacher": targets}, lambda name, step: True, [CPU])
    steps = runs.steps(0, 9)
    next(steps)
    assert begun.wait(10) and not ended.is_set()
    threading.Timer(0.05, go_on.set).start()
    steps.close()
    assert ended.is_set()
    runs.close()


def test_an_error_comes_up_where_the_outputs_are_asked_for() -> None:
    def targets(given: Batch) -> Outputs:
        raise ValueError("broken teacher")

    runs = Ahead(Loader(), {"teacher": targets}, lambda name, step: True, [CPU])
    parts = next(runs.steps(0, 2))
    with pytest.raises(ValueError, match="broken teacher"):
        runs.targets["teacher"](parts[0])
    runs.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_stream_of_its_own() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(2048, 2048, device=device)

    def targets(given: Batch) -> Outputs:
        rows = matrix
        for _ in range(20):
            rows = torch.nn.functional.normalize(rows @ matrix)
        return Outputs(rows + given.index.to(device).view(-1, 1))

    loader = Loader()
    runs = Ahead(loader, {"teacher": targets}, lambda name, step: True, [device])
    for parts in runs.steps(0, 4):
        for part in parts:
            found = runs.targets["teacher"](part).logits
            assert found is not None
            torch.testing.assert_close(found, targets(part).logits)
    runs.close()
