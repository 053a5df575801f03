from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from understudy.errors import ModelError
from understudy.models import kd
from understudy.models.model import fingerprint
from understudy.models.weights import load_weights


def network(classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    parts = [
        ("body", nn.Linear(3, 5)),
        ("norm", nn.BatchNorm1d(5)),
        ("head", nn.Linear(5, classes)),
    ]
    return nn.Sequential(OrderedDict(parts))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("trapped"),))


def written(state: object, file: Path) -> Path:
    if file.suffix == ".safetensors":
        save_file(state, file)  # type: ignore[arg-type]
    else:
        torch.save(state, file)
    return file


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_weights_arrive_bit_for_bit(name: str, tmp_path: Path) -> None:
    source, target = network(seed=1), network(seed=2)
    said = load_weights(target, written(source.state_dict(), tmp_path / name))
    assert fingerprint(target) == fingerprint(source)
    assert said.startswith(f"{name} (sha256 ")
    assert len(said) == len(f"{name} (sha256 )") + 12


def test_a_folder_stands_for_its_safetensors(tmp_path: Path) -> None:
    source, target = network(seed=1), network(seed=2)
    written(source.state_dict(), tmp_path / "model.safetensors")
    load_weights(target, tmp_path)
    assert fingerprint(target) == fingerprint(source)
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_weights(target, tmp_path.parent)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_wrappers_of_training_scripts_are_taken_off(key: str, tmp_path: Path) -> None:
    source, target = network(seed=1), network(seed=2)
    state = {f"module._orig_mod.{name}": value for name, value in source.state_dict().items()}
    best = {"best": np.float64(0.9), "last": np.float32(0.8), "step": np.int64(3)}
    written({key: state, "epoch": 3, "lr": 0.1, **best}, tmp_path / "checkpoint.pt")
    load_weights(target, tmp_path / "checkpoint.pt")
    assert fingerprint(target) == fingerprint(source)


def test_a_wrapped_module_is_loaded_inside(tmp_path: Path) -> None:
    source, target = network(seed=1), network(seed=2)
    written(nn.DataParallel(source).state_dict(), tmp_path / "w.pt")
    load_weights(nn.DataParallel(target), tmp_path / "w.pt")
    assert fingerprint(target) == fingerprint(source)


def test_names_that_begin_with_module_by_themselves_are_kept(tmp_path: Path) -> None:
    source, target = (
        nn.ModuleDict({"module": network(seed=1)}),
        nn.ModuleDict({"module": network()}),
    )
    load_weights(target, written(source.state_dict(), tmp_path / "w.pt"))
    assert fingerprint(target) == fingerprint(source)


def test_compiled_parts_are_recognised(tmp_path: Path) -> None:
    source, target = network(seed=1), network(seed=2)
    state = {
        name.replace("body.", "body._orig_mod."): value
        for name, value in source.state_dict().items()
    }
    load_weights(target, written(state, tmp_path / "w.pt"))
    assert fingerprint(target) == fingerprint(source)


def test_another_number_of_classes_is_named_and_can_be_dropped(tmp_path: Path) -> None:
    source, target = network(classes=7, seed=1), network(classes=4, seed=2)
    file = written(source.state_dict(), tmp_path / "w.pt")
    fresh, before = target.head.weight.clone(), fingerprint(target)  # type: ignore[union-attr, operator]
    with pytest.raises(
        ModelError, match=r"'head' has 7 classes in w\.pt, the model has 4.*drop_head: true"
    ):
        load_weights(target, file)
    assert fingerprint(target) == before
    said = load_weights(target, file, drop_head=True)
    assert "classifier 'head' new (7 -> 4 classes)" in said
    assert torch.equal(target.head.weight, fresh)  # type: ignore[arg-type, union-attr]
    assert torch.equal(target.body.weight, source.body.weight)  # type: ignore[arg-type, union-attr]
    assert torch.equal(target.norm.running_mean, source.norm.running_mean)  # type: ignore[arg-type, union-attr]
    with pytest.raises(ModelError, match="leave it out"):
        load_weights(source, file, drop_head=True)


def test_a_different_network_is_no_other_number_of_classes(tmp_path: Path) -> None:
    source = nn.Sequential(
        OrderedDict(
            [("body", nn.Linear(3, 6)), ("norm", nn.BatchNorm1d(6)), ("head", nn.Linear(6, 4))]
        )
    )
    file = written(source.state_dict(), tmp_path / "w.pt")
    for drop_head in (False, True):
        with pytest.raises(ModelError, match="shape|leave it out"):
            load_weights(network(), file, drop_head=drop_head)


def test_missing_and_unknown_tensors_are_listed(tmp_path: Path) -> None:
    state = dict(network(seed=1).state_dict())
    del state["body.bias"]
    state["extra"] = torch.ones(1)
    file = written(state, tmp_path / "w.pt")
    target = network(seed=2)
    before = fingerprint(target)
    with pytest.raises(
        ModelError, match=r"1 tensors are missing in it \(body\.bias\); 1 are unknown.*extra"
    ):
        load_weights(target, file)
    assert fingerprint(target) == before
    assert "1 tensors missing, 1 not used" in load_weights(target, file, strict=False)
    assert fingerprint(target) != before
    with pytest.raises(ModelError, match="Nothing in it has a place"):
        load_weights(target, written({"other": torch.ones(1)}, tmp_path / "o.pt"), strict=False)


def test_shared_tensors_are_loaded_from_either_name(tmp_path: Path) -> None:
    source, target = Tied(), Tied()
    save_model(source, str(tmp_path / "tied.safetensors"))
    load_weights(target, tmp_path / "tied.safetensors")
    assert torch.equal(target.second.weight, source.first.weight)
    assert target.second.weight is target.first.weight
    loose = nn.ModuleDict(
        {"first": nn.Linear(3, 3, bias=False), "second": nn.Linear(3, 3, bias=False)}
    )
    with pytest.raises(ModelError, match="missing"):
        load_weights(loose, tmp_path / "tied.safetensors")


def test_checkpoints_with_objects_in_them_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": network().state_dict(), "extra": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pt", "plain.pkl"):
        with pytest.raises(ModelError, match="could run code"):
            load_weights(network(), tmp_path / name)
    assert not (tmp_path / "trapped").exists()


def test_damage_is_named(tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        whole = written(network().state_dict(), tmp_path / name)
        whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(ModelError, match="damaged"):
            load_weights(network(), whole)
    with pytest.raises(ModelError, match=r"no file with weights at .*w\.pth.*w\.pt"):
        load_weights(network(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="holds epoch, seed"):
        load_weights(network(), written({"epoch": 1, "seed": 2}, tmp_path / "none.pt"))
    state = network().state_dict()
    state["body.weight"][0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"NaN, in 'body\.weight'"):
        load_weights(network(), written(state, tmp_path / "nan.pt"))


def test_published_checkpoints_of_the_kd_family(tmp_path: Path) -> None:
    source, target = (
        kd.build("resnet8", classes=10, width=0.5),
        kd.build("resnet8", classes=10, width=0.5),
    )
    state = {
        name: value for name, value in source.state_dict().items() if "num_batches" not in name
    }
    file = written(
        {"model": state, "best_acc": torch.tensor(70.0)}, tmp_path / "ckpt_epoch_240.pth"
    )
    load_weights(target, file, published=True)
    for name, value in state.items():
        assert torch.equal(target.state_dict()[name], value)
    other = kd.build("resnet8", classes=3, width=0.5)
    with pytest.raises(ModelError, match="has 10 classes"):
        load_weights(other, file, published=True)
    assert "(10 -> 3 classes)" in load_weights(other, file, published=True, drop_head=True)
