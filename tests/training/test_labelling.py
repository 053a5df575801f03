"""What is labelled depends neither on crashes nor on processes; training from it is training with the teacher."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import TOY_FILE, experiment, model, source

from understudy import seeding
from understudy.data.batch import Batch
from understudy.data.draws import Draw
from understudy.data.transforms.horizontal_flip import HorizontalFlip
from understudy.data.views import Transform
from understudy.errors import PreflightError, StoreError, UnderstudyError
from understudy.evaluation import geometry
from understudy.methods import KD, Method, Ramp, Step
from understudy.teachers.store import Store
from understudy.teachers.store.files import LocalFiles, open_files
from understudy.teachers.store.maintenance import merge
from understudy.teachers.store.manifest import file_of, read_ids
from understudy.teachers.store.writer import Writer
from understudy.training.labelling import label
from understudy.training.run import run
from understudy.training.splits import make_splits
from understudy.training.store_check import verify

ARMS: dict[str, list[dict[str, Any]]] = {"kd": [{"methods": ["kd", "supervised"], "epochs": 4}]}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a teacher with batch statistics that are not those of a fresh one."""
    with seeding.isolated(0, "labelling"):
        module = model("resnet14", 0.5).module
        module.train()
        for _ in range(5):
            module(torch.randn(16, 1, 8, 8))
        file = tmp_path_factory.mktemp("teacher") / "model.safetensors"
        save_file(module.state_dict(), file)
    return str(file)


def options(teacher_file: str | None, **changes: Any) -> dict[str, Any]:
    """Return the options of an experiment with two random views; the preflight only warns of the random teacher."""
    given = {"arms": ARMS, "teacher_file": teacher_file, "augment": True, "views": 2}
    return {**given, "preflight": "warn", **changes}


def weights(directory: Path, arm: str = "kd", seed: int = 0) -> dict[str, torch.Tensor]:
    return load_file(directory / "student" / arm / f"seed-{seed}" / "model.safetensors")


def metrics(directory: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    # A store has no embeddings to compare geometries with.
    return [
        {name: value for name, value in line["metrics"].items() if name not in geometry.METRICS}
        for line in lines
        if line["event"] == "result"
    ]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_training_from_the_store_is_training_with_the_teacher(
    tmp_path: Path, teacher_file: str
) -> None:
    given = options(teacher_file, seeds=(1,))  # another seed than that of the views
    store = {"path": str(tmp_path / "store")}
    label(experiment(**given, store=store))
    run(experiment(**given), tmp_path / "live")
    run(experiment(**given, store=store), tmp_path / "beside")
    alone = experiment(**{**given, "teacher_file": None}, teacher=None, store=store)
    run(alone, tmp_path / "alone")
    expected = weights(tmp_path / "live", seed=1)
    assert_equal(expected, weights(tmp_path / "beside", seed=1))
    assert_equal(expected, weights(tmp_path / "alone", seed=1))
    assert metrics(tmp_path / "live") == metrics(tmp_path / "alone")


def test_what_says_how_a_teacher_runs_is_named_where_none_runs(
    tmp_path: Path, teacher_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = experiment(**options(teacher_file), store={"path": str(tmp_path / "store")})
    label(given)
    only = next(iter(given.teachers.values()))
    only.ahead, only.device = True, "cpu"
    run(given, tmp_path / "run")
    said = "Nothing comes of `ahead` and `device`: the outputs of the teacher are stored"
    assert any(message.startswith(said) for message in caplog.messages)


def test_the_store_holds_every_view_of_every_training_sample(
    tmp_path: Path, teacher_file: str
) -> None:
    label(experiment(**options(teacher_file, store={"path": str(tmp_path / "s")})))
    store = Store(tmp_path / "s")
    assert (store.samples, store.views) == (84, 2)
    assert set(store.manifest.parts) == {"train", "validation", "test"}
    assert store.manifest.deviation("train", "logits").maximum == 0
    both = [store.lookup(store.ids, torch.full((84,), view))["logits/values"] for view in (0, 1)]
    assert not torch.equal(*both)


def test_killed_labelling_goes_on_to_the_same_bytes(tmp_path: Path, teacher_file: str) -> None:
    given = options(teacher_file, views=6, arms={"hint": [{"methods": ["kd", ["fitnet", 0.1]]}]})
    settings = {"shard_samples": 4, "batch_size": 5}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    label(experiment(**given, store={"path": str(whole), **settings}))
    expected = contents(whole)
    words = json.dumps({**given, "store": {"path": str(broken), **settings}})
    chooser = random.Random(3)
    for _ in range(2):
        process = subprocess.Popen([sys.executable, str(TOY_FILE), "-", "label", words])
        target = len(list(broken.glob("*.json"))) + chooser.randint(2, 8)
        while process.poll() is None and len(list(broken.glob("*.json"))) < target:
            time.sleep(0.001)
        time.sleep(chooser.random() * 0.01)
        assert process.poll() is None, "labelling was over before it could be killed"
        process.kill()
        process.wait(timeout=60)
        for path in broken.glob("*.json"):  # what is finished is finished
            assert path.name == "manifest.json" or path.read_bytes() == expected[path.name]
    finished = [path for path in broken.glob("*.json") if path.name != "manifest.json"]
    arrays = [broken / f"{path.stem}.logits.npy" for path in finished]
    stamps = [path.stat().st_mtime_ns for path in arrays]
    assert 0 < len(arrays) < len(expected) // 4
    label(experiment(**given, store={"path": str(broken), **settings}))
    assert contents(broken) == expected
    assert [path.stat().st_mtime_ns for path in arrays] == stamps, "a finished shard was redone"


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, teacher_file: str) -> None:
    given = options(teacher_file, arms={"hint": [{"methods": ["kd", ["fitnet", 0.1]]}]})
    one, two = (
        {"path": str(tmp_path / name), "shard_samples": 7, "batch_size": 5} for name in "12"
    )
    label(experiment(**given, store=one))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(TOY_FILE), "-", "label", json.dumps({**given, "store": two})],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) > 40


def test_parts_of_machines_without_a_common_disk_make_the_same_store(
    tmp_path: Path, teacher_file: str
) -> None:
    def store(name: str) -> dict[str, Any]:
        return {"path": str(tmp_path / name), "shard_samples": 20}

    label(experiment(**options(teacher_file, store=store("whole"))))
    for number in (1, 2):
        made = label(
            experiment(**options(teacher_file, store=store(str(number)))), part=(number, 2)
        )
        assert not made.complete
    merge(tmp_path / "merged", [tmp_path / "1", tmp_path / "2"])
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_a_damaged_shard_stops_a_run_and_is_made_again_on_request(
    tmp_path: Path, teacher_file: str
) -> None:
    given = options(teacher_file, store={"path": str(tmp_path / "s"), "shard_samples": 20})
    label(experiment(**given))
    before = contents(tmp_path / "s")
    path = sorted((tmp_path / "s").glob("train-*.logits.npy"))[1]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    shard = path.name.split(".")[0]
    with pytest.raises(StoreError, match=rf"--repair(.|\n)*{shard}: the checksum"):
        run(experiment(**given), tmp_path / "r")
    assert not (tmp_path / "r").exists()
    label(experiment(**given))
    assert contents(tmp_path / "s") != before  # only asked for does it read what is finished
    stamp = (tmp_path / "s" / f"{shard}.ids.npy").stat().st_mtime_ns
    others = [p for p in (tmp_path / "s").glob("*.npy") if not p.name.startswith(shard)]
    stamps = [p.stat().st_mtime_ns for p in others]
    label(experiment(**given), repair=True)
    assert contents(tmp_path / "s") == before
    assert (tmp_path / "s" / f"{shard}.ids.npy").stat().st_mtime_ns != stamp
    assert [p.stat().st_mtime_ns for p in others] == stamps


def test_a_disk_that_is_too_small_is_refused_before_anything_runs(
    tmp_path: Path, teacher_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(teacher_file, store={"path": str(tmp_path / "s")})
    monkeypatch.setattr(LocalFiles, "free", lambda self: 1000)
    with pytest.raises(StoreError, match=r"needs 0 MB more, and only 0 MB are free.*top_k"):
        label(experiment(**given))
    assert not list((tmp_path / "s").glob("*.npy"))


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"teacher_file": None}, "the teacher's weights: the store was filled"),
    "preprocessing": ({"teacher_mean": 0.4}, r"the teacher's preprocessing: mean\.0 is 0\.25"),
    "data": ({"source_override": source(count=90)}, "the data: samples or ids"),
    "views": ({"views": 3}, "the views: count is 2 in the store, here 3"),
    "transforms": (
        {"transforms": [HorizontalFlip()]},
        "the views: transforms is",
    ),
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_store_of_something_else_is_refused_with_the_difference(
    tmp_path: Path, teacher_file: str, part: str
) -> None:
    store = {"path": str(tmp_path / "s")}
    label(experiment(**options(teacher_file, store=store)))
    change, named = CHANGES[part]
    with pytest.raises(StoreError, match=f"does not match this run(.|\n)*{named}"):
        run(experiment(**{**options(teacher_file, store=store), **change}), tmp_path / "r")
    with pytest.raises(StoreError, match=f"begun with something else(.|\n)*{named}"):
        label(experiment(**{**options(teacher_file, store=store), **change}))
    assert not (tmp_path / "r").exists()


def test_samples_that_are_not_stored_are_named_before_training(
    tmp_path: Path, teacher_file: str
) -> None:
    store = {"path": str(tmp_path / "s")}
    label(experiment(**options(teacher_file, store=store)))
    given = experiment(**options(teacher_file, store=store))
    given.data.validation = 0.25  # other samples are set aside
    label_ids = make_splits(given).train.ids
    assert len(label_ids) == 72
    given.data.validation = None
    with pytest.raises(StoreError, match=r"does not hold sample \d+ \(nor 11 others of 96\)"):
        run(given, tmp_path / "r")


def test_views_without_number_and_unseeded_transforms_are_refused(
    tmp_path: Path, teacher_file: str
) -> None:
    store = {"path": str(tmp_path / "s")}
    for act in (label, lambda given: run(given, tmp_path / "r")):
        if act is not label:
            label(experiment(**options(teacher_file, store=store)))
        with pytest.raises(
            StoreError, match="With `views: null` the random transforms 'random_crop'"
        ):
            act(experiment(**options(teacher_file, views=None, store=store)))
    with pytest.raises(UnderstudyError, match="does not say how it draws"):
        label(experiment(**options(teacher_file, store=store, transforms=[torch.relu])))
    with pytest.raises(UnderstudyError, match="'unseeded' drew from the global generator"):
        other = {"path": str(tmp_path / "other")}
        label(experiment(**options(teacher_file, store=other, transforms=[Unseeded()])))


class Unseeded(Transform):
    """Draws from torch's global generator, which no store can replay."""

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        return images.flip(-1) if torch.rand(()) < 0.5 else images


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"top_k": 3}, 1e-5),
        ({"dtype": "float16"}, 2e-3),
        ({"dtype": "bf16"}, 2e-2),
        ({"dtype": "int8"}, 2e-2),
        ({"top_k": 3, "dtype": "float16"}, 2e-3),
    ],
)
def test_other_forms_train_to_the_stated_tolerance(
    tmp_path: Path, teacher_file: str, settings: dict[str, Any], tolerance: float
) -> None:
    # With all classes kept, top k says what dense logits do, up to rounding. No batch statistics, few steps.
    given = options(teacher_file, student="steady", arms={"kd": [{"methods": ["kd"], "epochs": 1}]})
    run(experiment(**given), tmp_path / "live")
    store = {"path": str(tmp_path / "s"), **settings}
    label(experiment(**given, store=store))
    run(experiment(**given, store=store), tmp_path / "stored")
    expected, found = weights(tmp_path / "live"), weights(tmp_path / "stored")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=tolerance)


class WholeLogits(Method):
    """A method that is at home with all logits only, and that rises from weight 0."""

    def loss(self, step: Step) -> torch.Tensor:
        assert step.student.logits is not None and step.teacher.logits is not None
        return (step.student.logits - step.teacher.logits).square().mean()


class Turning(Method):
    """A method that changes what both models see."""

    def inputs(self, batch: Batch) -> Batch:
        return batch

    def loss(self, step: Step) -> torch.Tensor:
        assert step.student.logits is not None and step.teacher.logits is not None
        return (step.student.logits - step.teacher.logits).square().mean()


def test_methods_that_a_store_has_no_answer_for_are_refused(
    tmp_path: Path, teacher_file: str
) -> None:
    store = {"path": str(tmp_path / "s"), "top_k": 2}
    label(experiment(**options(teacher_file, store=store)))

    def attempt(*methods: Any) -> None:
        arms = {"kd": [{"methods": list(methods), "epochs": 1}]}
        run(experiment(**options(teacher_file, arms=arms, store=store)), tmp_path / "r")

    for weight in (1.0, Ramp(0.0, 1.0, 0.8, 1.0), Ramp(1.0, 0.0, 0.0, 0.2)):
        with pytest.raises(
            StoreError, match="'wholelogits': all 3 logits.*the 2 largest and a tail"
        ):
            attempt("kd", WholeLogits().weighted(weight))
    with pytest.raises(PreflightError, match="turning, which changes what the teacher sees"):
        attempt(Turning())
    with pytest.raises(StoreError, match="does not hold the teacher's tap 'layer2'.*taps"):
        attempt("kd", "fitnet")
    with pytest.raises(StoreError, match="stored for the temperatures 1, 4, not for 3"):
        attempt(KD(temperature=3.0))
    assert not (tmp_path / "r").exists()


def test_one_sample_of_a_shard_says_what_it_says_among_others(
    tmp_path: Path, teacher_file: str
) -> None:
    few = source(count=16)
    built = experiment(**options(teacher_file)).teacher
    assert built is not None and built.build is not None
    teacher = built.build()
    images = teacher.preprocess(few.train.fetch(torch.arange(16)), torch.device("cpu"))
    module = teacher.module.eval()
    with torch.no_grad():
        together = module(images)
        apart = torch.cat([module(images[first : first + 2]) for first in range(0, 16, 2)])
    if not torch.equal(together, apart):
        pytest.skip("this processor computes with other roundings in batches of another size")
    for samples in (1, 99):
        store = {"path": str(tmp_path / str(samples)), "shard_samples": samples}
        given = options(teacher_file, views=1, store=store, source_override=few, batch_size=4)
        label(experiment(**given))
    stores = [Store(tmp_path / name) for name in ("1", "99")]
    ids = stores[0].ids
    zero = torch.zeros(len(ids), dtype=torch.int64)
    one, other = (store.lookup(ids, zero)["logits/values"] for store in stores)
    assert torch.equal(one, other)


def test_nan_of_the_teacher_is_not_stored(tmp_path: Path, teacher_file: str) -> None:
    given = experiment(**options(teacher_file, store={"path": str(tmp_path / "s")}))
    assert given.teacher is not None and given.teacher.build is not None
    made = given.teacher.build()
    with torch.no_grad():
        next(iter(made.module.parameters())).fill_(float("nan"))
    given.teacher.build = lambda: made
    with pytest.raises(StoreError, match="logits are NaN or infinite for .* samples, such as"):
        label(given)


def test_the_store_may_lie_behind_a_url(tmp_path: Path, teacher_file: str) -> None:
    given = options(teacher_file, arms={"kd": [{"methods": ["kd"], "epochs": 1}]})
    for path in (f"memory://{tmp_path.name}", f"file://{tmp_path}/s"):
        label(experiment(**given, store={"path": path}))
        run(experiment(**given, store={"path": path}), tmp_path / path.partition(":")[0])
    assert_equal(weights(tmp_path / "memory"), weights(tmp_path / "file"))


def test_the_teacher_is_compared_with_what_it_said(tmp_path: Path, teacher_file: str) -> None:
    arms = {"hint": [{"methods": ["kd", ["fitnet", 0.1]]}]}
    for settings in ({}, {"top_k": 2, "dtype": "float16"}, {"dtype": "int8"}):
        store = {"path": str(tmp_path / str(len(str(settings)))), **settings}
        given = options(teacher_file, arms=arms, store=store)
        label(experiment(**given))
        checks = verify(experiment(**given), samples=40)
        assert {check.column for check in checks} >= {"logits", "tap:layer2"}
        assert all(check.sound for check in checks)
        assert all(check.found.count for check in checks)
    # Contents that the teacher did not say, under checksums that hold.
    folder = tmp_path / str(len(str({})))
    writer = Writer(open_files(folder), Store(folder).manifest)
    shard = writer.manifest.shards[0]
    wrong = {name: np.load(folder / file_of(shard, name)) + 1 for name in ("logits", "tap:layer2")}
    ids = read_ids(writer.files, shard)
    finished = writer.manifest.finished[shard.name]
    writer.forget([shard])
    writer.write(shard, ids, wrong, finished.deviations)
    writer.complete()
    given = options(teacher_file, arms=arms, store={"path": str(folder)})
    assert not any(check.sound for check in verify(experiment(**given), samples=40))


def test_what_cannot_be_labelled_is_said(tmp_path: Path, teacher_file: str) -> None:
    with pytest.raises(
        StoreError, match=r"give teacher\.store=PATH\. Its teacher is trained by the run"
    ):
        label(experiment())
    with pytest.raises(StoreError, match=r"no teacher\.model"):
        label(experiment(teacher=None, store={"path": str(tmp_path / "s")}))
    with pytest.raises(StoreError, match="top_k of the store is 4, but the teacher has 3"):
        label(experiment(**options(teacher_file, store={"path": str(tmp_path), "top_k": 4})))
    with pytest.raises(StoreError, match="no store in"):
        run(
            experiment(**options(teacher_file, store={"path": str(tmp_path / "no")})),
            tmp_path / "r",
        )
