"""A study's pass: every sample once, kept, gone on with, found again, and not mistaken for another."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from study_kit import COUNT, counted, everything, split, study, teacher

from understudy.data.transforms.horizontal_flip import HorizontalFlip
from understudy.data.transforms.mixup import Mixup
from understudy.data.views import Views
from understudy.errors import DataError, UnderstudyError
from understudy.models.model import Model, fingerprint
from understudy.models.preprocess import ImagePreprocess
from understudy.teachers import artefacts, passes
from understudy.teachers.clustering import class_kmeans, score_table
from understudy.teachers.discriminants import discriminants
from understudy.teachers.features import Features
from understudy.teachers.readings import LOGITS, Reading
from understudy.teachers.statistics import ClassMoments, Moments
from understudy.teachers.study import Study
from understudy.teachers.together import Alone, Together


class Stopped(Exception):
    """The run was asked to stop."""


def stopping(after: int) -> Together:
    calls = iter(range(1000))

    def stop() -> None:
        if next(calls) == after:
            raise Stopped

    return Together(Alone(), stop)


def launched(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start a process that has the kit and is told a folder."""
    begin = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from study_kit import everything, study\n"
        "from understudy.teachers.together import Alone, Together\n"
    )
    command = [sys.executable, "-c", begin + code, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json",) and path.suffix != ".lock"
    }


def test_every_sample_is_seen_once_by_position(tmp_path: Path) -> None:
    made = study(tmp_path)
    seen = [(batch.index, outputs["teacher"]) for batch, outputs in made.passes("fc@input", LOGITS)]
    assert torch.equal(torch.cat([index for index, _ in seen]), made.split.ids)
    assert [len(index) for index, _ in seen] == [8] * 6 + [2], "the tail is not lost"
    logits = torch.cat([outputs.logits for _, outputs in seen])
    features = torch.cat([outputs.features["fc@input"] for _, outputs in seen])
    assert logits.shape == (COUNT, 3) and not logits.requires_grad
    torch.testing.assert_close(made.teacher().fc(features), logits)


def test_the_teacher_is_as_it_was(tmp_path: Path) -> None:
    made = study(tmp_path)
    module = made.teacher().train()
    before, state = fingerprint(module), torch.get_rng_state()
    made.collect(*everything())
    assert fingerprint(module) == before and torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in module.modules())
    for part in module.modules():
        assert not part._forward_hooks and not part._forward_pre_hooks
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_batch_size_does_not_matter(tmp_path: Path) -> None:
    found = []
    for size in (1, 7, 64):
        moments = Moments("norm")
        study(tmp_path / str(size), batch_size=size).collect(moments)
        found.append(moments)
    for other in found[1:]:
        # The teacher's own arithmetic is float32.
        torch.testing.assert_close(other.covariance, found[0].covariance, rtol=1e-5, atol=1e-6)
        assert other.count == found[0].count == COUNT * 24


def test_what_was_collected_is_found_again_without_the_teacher(tmp_path: Path) -> None:
    first, second = study(tmp_path), study(tmp_path)
    before, after = everything(), everything()
    first.collect(*before)
    assert counted(first) == COUNT + 2, "one pass for all of them"
    second.collect(*after)
    assert counted(second) == 0
    for one, other in zip(before, after, strict=True):
        for name, value in one.state().items():
            assert torch.equal(value, other.state()[name])
    assert [(note.found, note.samples) for note in first.notes] == [(False, COUNT)]
    assert [(note.found, note.samples) for note in second.notes] == [(True, 0)]
    third = study(tmp_path)
    extra = Moments("fc@input")
    third.collect(everything()[0], extra, everything()[2])
    assert counted(third) == COUNT + 2
    assert [(note.what, note.found) for note in third.notes] == [
        ("moments of fc@input", False),
        ("moments of norm, features of norm", True),
    ]


@pytest.mark.parametrize("stops", range(4))
def test_an_interrupted_pass_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, stops: int
) -> None:
    study(tmp_path / "whole").collect(*everything())
    chooser = random.Random(stops)
    runs, seen, batches = 0, 0, 0
    while True:
        after = chooser.randrange(4)
        made = study(tmp_path / "broken", together=stopping(after))
        try:
            made.collect(*everything())
            break
        except Stopped:
            runs += 1
            batches += after + 1
        finally:
            seen += counted(made) - 2
    assert runs >= 1 and seen == COUNT, "no sample was seen twice"
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_killed_pass_goes_on_from_its_last_snapshot(tmp_path: Path) -> None:
    study(tmp_path / "whole").collect(*everything())
    code = (
        "import os, pathlib, signal\n"
        "from understudy.teachers import snapshots\n"
        "snapshots.SNAPSHOT_SECONDS = snapshots.MOST_SHARE = 0\n"
        "calls = iter(range(99))\n"
        "def stop():\n"
        "    if next(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "study(pathlib.Path(sys.argv[1]), together=Together(Alone(), stop)).collect(*everything())\n"
    )
    with launched(code, tmp_path / "broken") as killed:
        assert killed.wait(timeout=300) == -signal.SIGKILL
    made = study(tmp_path / "broken")
    made.collect(*everything())
    assert counted(made) == COUNT + 2 - 5 * 8
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_damaged_snapshot_or_another_batch_size_begins_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted() -> None:
        with pytest.raises(Stopped):
            study(tmp_path / "r", together=stopping(2)).collect(Moments("norm"))

    interrupted()
    (snapshot,) = (tmp_path / "r").glob("pass-*.safetensors")
    data = bytearray(snapshot.read_bytes())
    data[-5] ^= 0xFF
    snapshot.write_bytes(data)
    made = study(tmp_path / "r")
    made.collect(Moments("norm"))
    assert counted(made) == COUNT + 2
    assert snapshot.name in caplog.text and "damaged" in caplog.text
    shutil.rmtree(tmp_path / "r")
    interrupted()
    made = study(tmp_path / "r", batch_size=16)
    made.collect(Moments("norm"))
    assert counted(made) == COUNT + 2


@pytest.mark.parametrize("name", ["rows.npy", "ids.npy", "tensors.safetensors", "manifest.json"])
def test_a_damaged_artefact_is_named_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    first = Features("norm")
    study(tmp_path).collect(first)
    (folder,) = tmp_path.glob("features-*/")
    expected = contents(folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 0x01
    (folder / name).write_bytes(data[:-1] if name == "manifest.json" else data)
    made = study(tmp_path)
    again = Features("norm")
    made.collect(again)
    assert counted(made) == COUNT + 2
    assert folder.name in caplog.text and "damaged" in caplog.text
    assert contents(folder) == expected
    (folder / name).unlink()
    made = study(tmp_path)
    made.collect(Features("norm"))
    assert counted(made) == COUNT + 2


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for statistic in (Moments("norm"), Features("norm")):
        for call in ("fsync", "posix_fallocate", "replace"):
            if call == "posix_fallocate" and not isinstance(statistic, Features):
                continue
            with monkeypatch.context() as patch:
                patch.setattr(os, call, full)
                with pytest.raises(UnderstudyError, match=r"cannot be written.*No space left"):
                    study(tmp_path).collect(statistic)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 10))  # type: ignore[attr-defined]
        with pytest.raises(UnderstudyError, match=r"50 samples need .* GB .* are free"):
            study(tmp_path).collect(Features("norm"))
    moments, features = Moments("norm"), Features("norm")
    study(tmp_path).collect(moments, features)
    assert moments.count == COUNT * 24 and len(features.ids) == COUNT
    (tmp_path / "file").write_text("")
    with pytest.raises(UnderstudyError, match="cannot be written"):
        study(tmp_path / "file" / "below").collect(Moments("norm"))


def other_weights() -> dict[str, Any]:
    return {"teachers": {"teacher": teacher(1)}}


def other_preprocessing() -> dict[str, Any]:
    module = teacher().module
    return {"teachers": {"teacher": Model(module, ImagePreprocess([0.5], [0.3]), "counted")}}


def other_labels() -> dict[str, Any]:
    return {"split": split(unlabelled=5)}


def fewer_samples() -> dict[str, Any]:
    return {"split": split().subset(torch.arange(COUNT - 1))}


def other_images() -> dict[str, Any]:
    data = split()
    return {"split": type(data)(split(seed=9).samples, data.positions, data.labels, data.ids)}


@pytest.mark.parametrize(
    ("change", "named", "misses"),
    [
        (other_weights, r"teachers\.0\.weights", {"moments", "class_moments"}),
        (
            other_preprocessing,
            r"teachers\.0\.preprocess\.mean\.0: 0\.4 there, 0\.5 here",
            {"moments", "class_moments"},
        ),
        (other_labels, r"data\.labels", {"class_moments"}),
        (fewer_samples, r"data\.count: 50 there, 49 here", {"moments", "class_moments"}),
        (other_images, r"data\.samples", {"moments", "class_moments"}),
    ],
)
def test_something_else_is_not_mistaken_and_the_difference_is_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Any,
    named: str,
    misses: set[str],
) -> None:
    caplog.set_level(logging.INFO, logger="understudy")
    study(tmp_path).collect(Moments("norm"), ClassMoments("norm"))
    caplog.clear()
    made = study(tmp_path, **change())
    made.collect(Moments("norm"), ClassMoments("norm"))
    made_anew = {note.what for note in made.notes if not note.found}
    assert made_anew == {", ".join(f"{kind} of norm" for kind in sorted(misses, reverse=True))}
    assert re.search(named, caplog.text), caplog.text


def test_views_are_an_own_recipe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="understudy")
    plain, seen, again = Features("norm"), Features("norm"), Features("norm")
    made = study(tmp_path)
    made.collect(plain)
    made.collect(seen, view=2)
    made.collect(again, view=2)
    assert counted(made) == 2 * (COUNT + 2)
    assert "view: null there" in caplog.text
    assert not torch.equal(plain.rows_for(plain.ids), seen.rows_for(plain.ids))
    # View 2 of a sample is the flipped one or the plain one, whatever batch it is in.
    images = made.split.fetch(torch.arange(COUNT))
    flipped = Views([HorizontalFlip()], seed=3)(images, made.split.ids, torch.full((COUNT,), 2))
    inputs = made.teachers["teacher"].preprocess(flipped, torch.device("cpu"))
    module = made.teacher().eval()
    with torch.no_grad():
        expected = module.norm(module.conv(inputs))
    torch.testing.assert_close(seen.rows_for(made.split.ids), expected, atol=1e-5, rtol=1e-5)
    other = study(tmp_path, views=Views([HorizontalFlip()], seed=4))
    other.collect(Features("norm"), view=2)
    assert counted(other) == COUNT + 2, "another seed shows other views"
    other.collect(Features("norm"))
    assert counted(other) == COUNT + 2, "samples as they are know no seed"


def test_a_view_that_mixes_has_no_classes(tmp_path: Path) -> None:
    made = study(tmp_path, views=Views([Mixup(alpha=1.0)], seed=3))
    made.collect(Moments("norm"), view=0)
    with pytest.raises(DataError, match="mixes samples"):
        made.collect(ClassMoments("norm"), view=0)


def test_several_teachers_are_told_apart(tmp_path: Path) -> None:
    both = {"one": teacher(0), "two": teacher(1)}
    made = study(tmp_path, teachers=both)
    one, two = Moments(Reading("norm", teacher="one")), Moments(Reading("norm", teacher="two"))
    made.collect(one, two)
    assert not torch.equal(one.mean, two.mean)
    with pytest.raises(UnderstudyError, match="2 teachers"):
        made.collect(Moments("norm"))
    with pytest.raises(UnderstudyError, match="Did you mean 'two'"):
        made.collect(Moments(Reading("norm", teacher="twoo")))
    alone, same = study(tmp_path), Moments("norm")
    alone.collect(same)
    assert counted(alone) == 0 and torch.equal(same.mean, one.mean)


def test_computed_artefacts_are_kept_with_what_they_were_computed_from(tmp_path: Path) -> None:
    calls = []

    def table(made: Study, power: int) -> torch.Tensor:
        moments = Moments("norm")

        def make(inner: Study) -> dict[str, torch.Tensor]:
            calls.append(power)
            inner.collect(moments)
            return {"table": moments.mean**power}

        return made.artefact("table", {"version": 1, "power": power}, make, of=[moments])["table"]

    first = table(study(tmp_path), 2)
    assert torch.equal(table(study(tmp_path), 2), first) and calls == [2]
    table(study(tmp_path), 3)
    assert calls == [2, 3]
    table(study(tmp_path, **other_weights()), 2)
    assert calls == [2, 3, 2]
    shutil.rmtree(next(tmp_path.glob("moments-*/")))
    made = study(tmp_path)
    assert torch.equal(table(made, 2), first) and counted(made) == 0, "its sources are not needed"


def test_what_names_no_source_depends_on_everything(tmp_path: Path) -> None:
    def count(made: Study) -> float:
        def make(inner: Study) -> dict[str, torch.Tensor]:
            sums = [outputs["teacher"].logits.sum() for _, outputs in inner.passes(LOGITS)]
            return {"sum": torch.stack(sums).sum()}

        return float(made.artefact("sum", {"version": 1}, make, of=[])["sum"])

    first = count(study(tmp_path))
    assert count(study(tmp_path)) == first
    assert count(study(tmp_path, **other_weights())) != first
    made = study(tmp_path, **other_labels())
    count(made)
    assert counted(made) == COUNT


def sub_classes(made: Study, count: int = 2, per_class: int = 8) -> dict[str, torch.Tensor]:
    """Return discriminants, prototypes of sub-classes and their score table, as the KD layer needs them."""
    moments, features = ClassMoments("norm", covariance="pooled"), Features("norm")

    def make(inner: Study) -> dict[str, torch.Tensor]:
        inner.collect(moments, features)
        found = discriminants(moments, count, provisional=inner.provisional)
        rows = found.project(features)
        labels = features.per_row(inner.split.ids, inner.split.labels)
        clusters = class_kmeans(
            rows,
            labels,
            per_class,
            classes=inner.classes,
            backend="sklearn",
            provisional=inner.provisional,
        )
        return {
            "mean": found.mean,
            "directions": found.directions,
            "prototypes": clusters.centres,
            "table": score_table(rows, clusters),
        }

    settings = {"version": 1, "count": count, "per_class": per_class, "backend": "sklearn"}
    return made.artefact("sub_classes", settings, make, of=[moments, features])


def test_a_provisional_fit_has_the_shapes_of_the_real_one(tmp_path: Path) -> None:
    real = sub_classes(study(tmp_path, split=split(unlabelled=7)))
    # The example has 2 or 3 samples of each class, or none.
    few = split().subset(torch.tensor([0, 3, 1]))
    for data in (split(), few):
        example = sub_classes(study(None, split=data))
        assert {name: value.shape for name, value in example.items()} == {
            name: value.shape for name, value in real.items()
        }
        assert all(value.isfinite().all() for value in example.values())
    assert real["prototypes"].shape == (24, 2) and real["table"].shape == (24, 24)
    assert real["table"].sum(dim=1).allclose(torch.ones(24).double())
    assert float(real["table"].diagonal().mean()) > 1 / 24
    again = study(tmp_path, split=split(unlabelled=7))
    assert torch.equal(sub_classes(again)["table"], real["table"]) and counted(again) == 0
    with pytest.raises(DataError, match=r"3 linear discriminants.*at most 2"):
        sub_classes(study(tmp_path), count=3)
    with pytest.raises(DataError, match=r"k-means of class 'low'.*500 centres"):
        sub_classes(study(tmp_path), per_class=500)


def test_kmeans_of_a_reading(tmp_path: Path) -> None:
    made = study(tmp_path)
    centres = made.kmeans("norm", 12, backend="sklearn")
    assert centres.shape == (12, 5) and centres.dtype == torch.float64
    assert torch.equal(study(tmp_path).kmeans("norm", 12, backend="sklearn"), centres)
    assert not torch.equal(study(tmp_path).kmeans("norm", 12, seed=1, backend="sklearn"), centres)
    with pytest.raises(DataError, match=r"k-means of the rows of 'fc@input'.*60 centres.*50 rows"):
        made.kmeans("fc@input", 60)
    assert study(None).kmeans("norm", 4096).shape == (4096, 5)


def test_a_provisional_study_sees_the_example_and_leaves_nothing() -> None:
    made = study(None)
    moments, classes, features = Moments("norm"), ClassMoments("fc@input"), Features("norm")
    made.collect(moments, classes, features)
    assert counted(made) == 8 + 2 and moments.count == 8 * 24
    assert moments.principal(5).basis.shape == (5, 5)
    assert all(part.basis.shape == (5, 5) for part in classes.principal(5))
    assert features.rows_for(torch.tensor([3, 99_999])).shape == (2, 5, 4, 6)
    (note,) = made.notes
    assert note.what == "moments of norm, class_moments of fc@input, features of norm"
    assert note.samples == COUNT
    sums = 8 * (1 + 5 + 25) * (1 + 3)
    assert note.size == COUNT * (5 * 24 * 4 + 8) + sums
    folders = [Path(folder.name) for folder in made._scratch]
    made.close()
    assert folders and not any(folder.exists() for folder in folders)


def test_a_measured_example_says_what_a_pass_would_cost(tmp_path: Path) -> None:
    def notes() -> Any:
        made = study(tmp_path, mode="provisional", measure=True)
        made.collect(Moments("norm"))
        made.kmeans("norm", 4, backend="sklearn")
        made.close()
        return [
            (n.what.partition(" ")[0], n.samples, n.found, n.seconds is not None)
            for n in made.notes
        ]

    assert notes() == [
        ("moments", COUNT, False, True),
        ("features", COUNT, False, True),
        ("kmeans,", 0, False, False),
    ]
    assert not list(tmp_path.iterdir())
    made = study(tmp_path)
    made.collect(Moments("norm"))
    made.kmeans("norm", 4, backend="sklearn")
    assert notes() == [("moments", 0, True, False), ("kmeans,", 0, True, False)]


def test_restoring_reads_the_cache_and_runs_the_teacher_for_features_only(tmp_path: Path) -> None:
    made = study(tmp_path, mode="restoring")
    moments, features = Moments("norm"), Features("norm")
    made.collect(moments)
    assert counted(made) == 8 + 2 and moments.provisional
    assert made.kmeans("norm", 100, backend="sklearn").shape == (100, 5)
    assert not list(tmp_path.glob("*/manifest.json"))
    made.collect(features)
    assert not features.provisional and len(features.ids) == COUNT
    real = Moments("norm")
    study(tmp_path).collect(real)
    again = study(tmp_path, mode="restoring")
    again.collect(moments, features)
    assert counted(again) == 0 and not moments.provisional and torch.equal(moments.mean, real.mean)


def test_long_passes_say_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="understudy")
    monkeypatch.setattr(passes, "PROGRESS_SECONDS", 0.0)
    study(tmp_path, method="lelp").collect(Moments("norm"))
    assert "Fitting lelp: a pass over 50 samples" in caplog.text
    assert "Fitting lelp: 16 of 50 samples, about" in caplog.text


def test_two_processes_collect_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(artefacts, "_LOCK_WAIT", 0.02)
    caplog.set_level(logging.INFO, logger="understudy")
    code = (
        "import pathlib, time\n"
        "def slow():\n"
        "    print('collecting', flush=True)\n"
        "    time.sleep(0.1)\n"
        "made = study(pathlib.Path(sys.argv[1]), together=Together(Alone(), slow))\n"
        "made.collect(*everything())\n"
    )
    with launched(code, tmp_path) as other:
        assert other.stdout is not None and other.stdout.readline()
        made = study(tmp_path)
        made.collect(*everything())
        assert other.wait(timeout=300) == 0
    assert counted(made) == 0 and "waiting for it" in caplog.text


class Pair:
    """Two processes in one: what the first says reaches the second in order."""

    size = 2

    def __init__(self, main: bool, said: list[Any]) -> None:
        self.is_main, self._said, self._read = main, said, 0

    def gather(self, value: Any) -> list[Any]:
        if self.is_main:
            self._said.append(value)
            return [value, None]
        self._read += 1
        return [self._said[self._read - 1], None]


def test_the_others_read_what_the_first_process_made(tmp_path: Path) -> None:
    said: list[Any] = []
    first = study(tmp_path, together=Together(Pair(True, said), lambda: None))
    moments, other = Moments("norm"), Moments("norm")
    first.collect(moments)
    second = study(tmp_path, together=Together(Pair(False, said), lambda: None))
    second.collect(other)
    assert counted(second) == 0 and torch.equal(moments.mean, other.mean)
    assert first.kmeans("norm", 3).equal(second.kmeans("norm", 3))


def test_a_failure_of_the_first_process_is_one_of_all(tmp_path: Path) -> None:
    said: list[Any] = []
    for main in (True, False):
        made = study(tmp_path, together=Together(Pair(main, said), lambda: None))
        with pytest.raises(UnderstudyError, match="no module|There is no module"):
            made.collect(Moments("nowhere"))
