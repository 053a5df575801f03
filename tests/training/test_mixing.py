"""Stages whose domain mixture follows the student."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from corpora import FILE, go, lines, model, recipe, reference
from safetensors.torch import load_file

from understudy.data.mixed_order import MixedOrder
from understudy.data.mixture import Mixture
from understudy.errors import PreflightError, RecipeError
from understudy.models import Model
from understudy.recipe import from_values
from understudy.training.context import Context
from understudy.training.distribution import World
from understudy.training.mixing import Mixing, domain_losses
from understudy.training.plan import make_plan
from understudy.training.splits import make_splits
from understudy.training.stage_run import StageRun

MIXTURE = {"name": "ddk", "every": 3, "smoothing": 0.5, "documents": 4}
ARMS = {
    "ddk": {"methods": ["kd", "supervised"], "mixture": MIXTURE},
    "equal": {"methods": ["supervised"], "mixture": {"name": "equal"}},
}
CPU = torch.device("cpu")


def weights(directory: Path, arm: str) -> dict[str, torch.Tensor]:
    return load_file(directory / "student" / arm / "seed-0" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of 8 steps, and its recipe."""
    folder = tmp_path_factory.mktemp("mixing")
    values = recipe(folder, ARMS, steps=8)
    go(values, folder / "whole")
    return folder / "whole", values


def test_every_update_is_recorded_and_follows_the_ratios(
    done: tuple[Path, dict[str, Any]],
) -> None:
    directory, _ = done
    found = lines(directory, "mixture")
    assert [(line["arm"], line["step"]) for line in found] == [("ddk", 0), ("ddk", 3), ("ddk", 6)]
    first, second, third = found
    # The first interval is as the data is; the weights of equation 1 are where equation 2 begins.
    assert first["weights"]["tales"] > 0.45
    start = torch.tensor(list(first["ratios"].values()), dtype=torch.float64)
    history = start.log_softmax(dim=0)
    for line in (second, third):
        ratios = torch.tensor(list(line["ratios"].values()), dtype=torch.float64)
        shares = 0.5 * (history + ratios).softmax(dim=0) + 0.5 / 3
        assert list(line["weights"].values()) == pytest.approx(shares.tolist(), rel=1e-9)
        history = shares.log()
    assert all(line["passes"].keys() == line["weights"].keys() for line in found)
    assert third["passes"]["sums"] > second["passes"]["sums"]


def started(values: dict[str, Any], arm: str, folder: Path) -> tuple[StageRun, Context, Model]:
    """Build a stage with an untrained teacher."""
    experiment = from_values(values).build(folder)
    context = Context(experiment, make_splits(experiment), World(0, 1, CPU))
    student, other = context.build_student(0), context.build_student(1)
    (stage,) = experiment.arms[arm]()
    run = context.stage_run(
        stage,
        student=student,
        teacher={"teacher": other},
        split=context.splits.train,
        seed=0,
        number=0,
    )
    return run, context, student


def test_ratios_are_those_of_the_validation_documents(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, values = done
    run, context, student = started(values, "ddk", tmp_path)
    recorded: list[dict[str, Any]] = []
    assert run.mixing is not None
    run.mixing.record = lambda **fields: recorded.append(fields)
    next(run.batches(1))
    validation = context.splits.validation
    assert validation is not None
    domains = context.classes
    for number, domain in enumerate(domains):
        own = (validation.labels == number).nonzero().flatten()[: MIXTURE["documents"]]
        nats = [
            float(context.predictions(each, each.module, validation.subset(own)).scores.nats.mean())  # type: ignore[union-attr]
            for each in (student, context.build_student(1))
        ]
        assert recorded[0]["ratios"][domain] == pytest.approx(math.exp(nats[0] - nats[1]), rel=1e-5)
    run.close()


def test_batches_follow_the_mixture(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, values = done
    values = {**values, "batch_size": 60, "steps": 4}
    run, _, _ = started(values, "equal", tmp_path)
    shares = torch.zeros(3)
    for parts in run.batches(4):
        run.step += 1
        shares += torch.bincount(parts[0].labels, minlength=3)
    torch.testing.assert_close(shares / shares.sum(), torch.full((3,), 1 / 3), atol=0.1, rtol=0)
    run.close()


def test_a_stage_that_is_taken_up_again_draws_and_measures_the_same(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    expected, values = done
    # A checkpoint in every step, and a stop in the third: an update is due when it goes on.
    (tmp_path / "recipe.json").write_text(json.dumps({**values, "checkpoint_every": 1}))
    script = (
        "import sys; sys.path.insert(0, sys.argv[4]); import corpora, json, os, signal\n"
        "from understudy.training import loop, member\n"
        "train = loop.train\n"
        "def stopping(run, *a, **k):\n"
        "    given = k['stop']\n"
        "    due = run.mixing is not None and run.mixing.settings.name == 'ddk'\n"
        "    k['stop'] = lambda: given() or (due and run.step == int(sys.argv[5]))\n"
        "    return train(run, *a, **k)\n"
        "member.train = stopping\n"
        "values = json.load(open(sys.argv[3]))\n"
        "from pathlib import Path\n"
        "corpora.go(values, Path(sys.argv[1]), resume=sys.argv[2] == 'resume')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for at, directory in ((3, tmp_path / "boundary"), (4, tmp_path / "within")):
        arguments = [str(tmp_path / "recipe.json"), str(FILE.parent)]

        def call(way: str, until: int, place: str = str(directory), given: Any = arguments) -> int:
            command = [sys.executable, "-c", script, place, way, *given, str(until)]
            return subprocess.run(command, env=environment, timeout=300, check=False).returncode

        assert call("fresh", at) != 0
        assert call("resume", -1) == 0
        assert same(weights(expected, "ddk"), weights(directory, "ddk"))
        ours, theirs = ([{k: v for k, v in line.items() if k != "time"} for line in lines(d, "mixture")]
                        for d in (directory, expected))  # fmt: skip
        assert ours == theirs


def test_without_the_key_nothing_changes(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, values = done
    resolved = from_values({**values, "arms": {"kd": ["kd", "supervised"]}}).resolved()
    assert "mixture" not in resolved["arms"]["kd"]["stages"][0]
    run, _, _ = started({**values, "arms": {"kd": ["kd"]}}, "kd", tmp_path)
    assert run.mixing is None and "mixing" not in run.state()
    run.close()


def test_the_plan_says_how_often_it_changes(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, values = done
    rare = {"methods": ["supervised"], "mixture": {"name": "ddk"}}
    arms = {**ARMS, "rare": rare}
    plan = make_plan(from_values({**values, "arms": arms}).build(tmp_path / "r"), tmp_path / "r")
    notes = {stage.arm: "\n".join(stage.notes) for stage in plan.stages}
    assert "2 updates, one every 3 steps" in notes["ddk"] and "follow chance" in notes["ddk"]
    assert "draws equally from tales, sums, noise" in notes["equal"]
    assert "the mixture never changes: the stage has 8 steps" in notes["rare"]


def test_what_cannot_be_is_refused(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, values = done
    with pytest.raises(RecipeError, match="the arms mixed learn from one"):
        arms = {"mixed": {"methods": ["supervised"], "mixture": {"name": "ddk"}}}
        given = {key: value for key, value in values.items() if key != "teacher"}
        from_values({**given, "arms": arms})
    data = {**values["data"], "validation": 0}
    with pytest.raises(PreflightError, match=r"Set data\.validation"):
        started({**values, "data": data}, "ddk", tmp_path)
    few = {**values, "data": {**values["data"], "validation": 1}}
    with pytest.raises(PreflightError, match="there is none of"):
        started(few, "ddk", tmp_path)
    other = {**values, "student": {"model": model(12, train={"size": 270})}, "arms": {"ddk": {
        "methods": ["supervised"], "mixture": MIXTURE}}}  # fmt: skip
    with pytest.raises(PreflightError, match="read different tokens"):
        go(other, tmp_path / "other")


def test_losses_of_a_domain_without_tokens_are_no_number() -> None:
    scores = SimpleNamespace(nats=torch.tensor([1.0, 3.0], dtype=torch.float64))
    given: Any = SimpleNamespace(domains=torch.tensor([0, 0]), scores=scores)
    found = domain_losses(given, ("a", "b"), ("a", "b"))
    assert found["a"] == 2 and math.isnan(found["b"])


class Second(World):
    """The second of two processes, whose measurements differ in the last bits from the first one's."""

    def gather(self, value: Any) -> list[Any]:
        return [{name: loss + 1e-9 for name, loss in value.items()}, value]


def test_processes_draw_by_what_the_first_one_measured() -> None:
    made = []
    for world, off in ((World(0, 1, CPU), 1e-9), (Second(1, 2, CPU), 0.0)):
        order = MixedOrder(
            torch.arange(40) % 2, torch.arange(40), names=("a", "b"), batch_size=8, seed=0
        )
        mixing = Mixing(
            Mixture("ddk", every=2),
            order,
            world,
            lambda off=off: {"a": 3.0 + off, "b": 2.0 + off},
            lambda off=off: {"a": 1.0 + off, "b": 1.5 + off},
        )
        for step in (0, 2, 4):
            mixing.update(step)
        made.append([column.tolist() for column in order.batch(4)] + [order.mixture])
    assert made[0] == made[1]


def test_two_processes_select_and_mix_as_one_does(tmp_path: Path) -> None:
    arms = {
        "best": {"methods": ["supervised"], "select": {"name": "difference", "ratio": 0.5}},
        "ddk": {"methods": ["kd", "supervised"], "mixture": MIXTURE},
    }
    found = {}
    for name, ranks in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
    ):
        folder = tmp_path / name
        values = recipe(folder, arms, reference=reference())
        (folder / "recipe.json").write_text(json.dumps(values))
        process = subprocess.run(
            [
                sys.executable,
                *ranks,
                str(FILE),
                str(folder / "r"),
                "fresh",
                str(folder / "recipe.json"),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        found[name] = {
            event: lines(folder / "r", event) for event in ("step", "selection", "mixture")
        }
    one, two = found["one"], found["two"]
    assert len(one["step"]) == len(two["step"]) > 0
    for first, second in zip(one["step"], two["step"], strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-3)
    (chosen,), (again,) = one["selection"], two["selection"]
    assert again["kept_by_class"] == chosen["kept_by_class"]
    assert len(one["mixture"]) == len(two["mixture"]) == 2
    for first, second in zip(one["mixture"], two["mixture"], strict=True):
        for part in ("ratios", "weights"):
            assert list(second[part].values()) == pytest.approx(
                list(first[part].values()), rel=1e-3
            )
