"""What passes from one stage of an arm to the next, and what follows the student after a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from toy import experiment

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods import Method, Step, Supervised, Wiring
from understudy.training.loop import Interrupted
from understudy.training.run import run


class Prepare(Method):
    """Learns a map of the teacher's embedding; the student has no part in it."""

    trains_student = False

    def wire(self, wiring: Wiring) -> None:
        tap = wiring.teacher.tap(wiring.teacher.embedding)
        self.place, self.map = tap.name, nn.Linear(tap.shape[0], 3)

    def loss(self, step: Step) -> torch.Tensor:
        target = torch.zeros(len(step.batch), 3)
        return objectives.mse(self.map(step.teacher.features[self.place]), target)


class Use(Method):
    """Takes the map over."""

    def wire(self, wiring: Wiring) -> None:
        tap = wiring.teacher.tap(wiring.teacher.embedding)
        self.place, self.map = tap.name, nn.Linear(tap.shape[0], 3)
        wiring.take_over(self.map, method="prepare", attribute="map")

    def loss(self, step: Step) -> torch.Tensor:
        seen.append(self.map.weight.detach().clone())
        code = self.map(step.teacher.features[self.place])
        return objectives.mse(step.student.logits, code)


seen: list[torch.Tensor] = []


def arms() -> dict[str, list[dict[str, object]]]:
    return {"two": [{"methods": [Prepare()], "name": "one"}, {"methods": [Use()], "name": "two"}]}


def state(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next((path / "student" / "two" / "seed-0").glob("*.safetensors")))


def test_a_stage_goes_on_from_what_an_earlier_one_learnt(tmp_path: Path) -> None:
    seen.clear()
    run(experiment(arms()), tmp_path / "r")
    # The plan's step and the probes see an untrained map; training sees one and the same trained one.
    assert torch.equal(seen[-1], seen[-10]) and not torch.equal(seen[-1], seen[0])


def test_a_stage_without_the_student_leaves_it_as_it_is(tmp_path: Path) -> None:
    built = experiment(
        {"two": [{"methods": [Prepare()]}], "none": [{"methods": [Prepare()], "steps": 1}]}
    )
    run(built, tmp_path / "r")
    from safetensors.torch import load_file

    files = [
        next((tmp_path / "r" / "student" / arm / "seed-0").glob("*.safetensors"))
        for arm in ("two", "none")
    ]
    trained, fresh = map(load_file, files)
    assert all(torch.equal(trained[name], fresh[name]) for name in fresh)


@pytest.mark.parametrize("calls", [9, 20])
def test_resuming_in_either_stage_gives_the_same_weights(tmp_path: Path, calls: int) -> None:
    run(experiment(arms(), checkpoint_every=2), tmp_path / "whole")

    class Stops(Use):
        count = 0

        def after_step(self, step: Step) -> None:
            type(self).count += 1
            if type(self).count == calls - 8:
                raise Interrupted("here")

    class StopsFirst(Prepare):
        count = 0

        def after_step(self, step: Step) -> None:
            type(self).count += 1
            if type(self).count == calls:
                raise Interrupted("here")

    Stops.name, StopsFirst.name = "use", "prepare"
    first = {
        "two": [
            {"methods": [StopsFirst() if calls < 15 else Prepare()], "name": "one"},
            {"methods": [Stops()], "name": "two"},
        ]
    }
    with pytest.raises(Interrupted):
        run(experiment(first, checkpoint_every=2), tmp_path / "cut")
    run(experiment(arms(), checkpoint_every=2), tmp_path / "cut", resume=True)
    whole, cut = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_stage_that_has_nothing_to_go_on_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnderstudyError, match="no earlier stage has that method"):
        run(experiment({"two": [{"methods": [Use()]}]}), tmp_path / "r")


def test_after_step_sees_every_part_of_a_batch_and_nothing_of_trials(tmp_path: Path) -> None:
    followed: list[list[int]] = []

    class Follow(Supervised):
        def after_step(self, step: Step) -> None:
            followed.append(step.batch.index.tolist())

    run(experiment({"f": [{"methods": [Follow()], "accumulate": 4, "steps": 3}]}), tmp_path / "r")
    assert len(followed) == 12 and all(len(part) == 4 for part in followed)
    assert len({sample for part in followed[:4] for sample in part}) == 16
