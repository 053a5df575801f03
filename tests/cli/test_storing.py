"""`understudy label` and `understudy store`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPE: dict[str, Any] = {
    "name": "stored",
    "batch_size": 32,
    "precision": "float32",
    "channels_last": False,
    "preflight": "warn",
    "baseline": False,
    "data": {
        "source": {"name": "digits", "test": 0.8},
        "transforms": ["horizontal_flip"],
        "views": 2,
    },
    "teacher": {"model": "py:teacher_module:teacher", "store": {"path": "stores/digits"}},
    "student": {"name": "kd:resnet8", "width": 0.25},
    "epochs": 1,
    "methods": ["kd"],
}
MODULE = """
import torch
from torch import nn


def teacher():
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its teacher."""
    place = tmp_path_factory.mktemp("storing")
    (place / "stored.yaml").write_text(yaml.safe_dump(RECIPE))
    (place / "teacher_module.py").write_text(MODULE)
    return place


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))


@pytest.fixture
def labelled(place: Path, understudy: Any) -> Path:
    """The store of the recipe, filled once for this module."""
    folder = place / "stores" / "digits"
    if not folder.exists():
        ended = understudy("label", "stored.yaml")
        assert ended.code == 0, ended.err
        assert "shards to label" in ended.err and "MB" in ended.err
        assert "stores/digits holds" in ended.out
        assert "understudy run stored.yaml" in ended.out
    return folder


def test_a_recipe_trains_from_its_store(labelled: Path, understudy: Any) -> None:
    ended = understudy("run", "stored.yaml", "teacher.model=null")
    assert ended.code == 0, ended.err
    assert "Teacher outputs come from the store stores/digits" in ended.err
    assert "\nteacher" in ended.out
    ended = understudy("label", "stored.yaml")
    assert ended.code == 0 and "0 of" in ended.err


def test_a_store_tells_what_it_holds(labelled: Path, understudy: Any) -> None:
    ended = understudy("store", "info", labelled, "--check")
    assert ended.code == 0, ended.err
    assert "py:teacher_module:teacher" in ended.out and "2 views of each" in ended.out
    assert "exact" in ended.out and "as they were written" in ended.out


def test_a_store_is_verified_against_its_teacher(labelled: Path, understudy: Any) -> None:
    ended = understudy("store", "verify", "stored.yaml", "--samples", "20")
    assert ended.code == 0, ended.err
    assert (
        "logits: differs by up to 0" in ended.out
        and "The teacher says what is stored." in ended.out
    )


def test_a_store_is_made_smaller(labelled: Path, understudy: Any) -> None:
    ended = understudy(
        "store", "convert", labelled, "stores/small", "--top-k", "3", "--dtype", "float16",
        "--temperature", "4",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "k 3" in ended.out and "tail at 4: error at most" in ended.out
    assert "tail mass: " in ended.out
    run = ("run", "stored.yaml", "-d", "runs/small", "teacher.store.path=stores/small")
    assert understudy(*run).code == 0
    ended = understudy(
        *run[:2], "-d", "runs/hot", "teacher.store.path=stores/small", "methods.0.temperature=3"
    )
    assert ended.code == 2
    assert (
        "Error: Method 'kd': The teacher's tail is stored for the temperatures 1, 4, not for 3"
        in ended.err
    )


def test_parts_are_merged(labelled: Path, understudy: Any) -> None:
    for number in (1, 2):
        path = f"teacher.store.path=stores/part-{number}"
        ended = understudy("label", "stored.yaml", path, "--part", f"{number}/2")
        assert ended.code == 0, ended.err
    assert "still lacks" in understudy("store", "merge", "stores/merged", "stores/part-1").out
    ended = understudy("store", "merge", "stores/merged", "stores/part-2")
    assert "stores/merged is complete" in ended.out
    assert (labelled / "manifest.json").read_bytes() == Path(
        "stores/merged/manifest.json"
    ).read_bytes()
    assert understudy("label", "stored.yaml", "--part", "3/2").code == 2


def test_a_damaged_shard_is_named_and_repaired(labelled: Path, understudy: Any) -> None:
    path = next(labelled.glob("train-*.logits.npy"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    ended = understudy("store", "info", labelled, "--check")
    assert ended.code == 2 and path.name.partition(".")[0] in ended.err
    ended = understudy("label", "stored.yaml", "--repair")
    assert ended.code == 0 and "is damaged" in ended.err
    assert understudy("store", "info", labelled, "--check").code == 0


def test_a_plan_reads_a_store_too(labelled: Path, understudy: Any) -> None:
    ended = understudy("plan", "stored.yaml", "--brief", "teacher.model=null")
    assert ended.code == 0, ended.err
    assert "not loaded: outputs from the store" in ended.out


def test_there_is_no_store(understudy: Any) -> None:
    ended = understudy("store", "info", "nowhere")
    assert ended.code == 2 and "There is no store in nowhere" in ended.err
    ended = understudy("label", "stored.yaml", "teacher.store=null")
    assert ended.code == 2 and "teacher.store=PATH" in ended.err
