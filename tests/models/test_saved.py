from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from understudy import seeding
from understudy.errors import ModelError, UnknownName
from understudy.models.build import build, live
from understudy.models.folder import replaced_folder
from understudy.models.model import Model, fingerprint
from understudy.models.outputs import call, logits_of
from understudy.models.saved import load, read_description, save
from understudy.models.tokenizer import train_tokenizer

CPU = torch.device("cpu")
TEXTS = [f"a film of {number} good and bad moments" for number in range(40)]
SMALL = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
}


def trained(name: str, **more: Any) -> Model:
    """Return a model whose weights and buffers are not those of a fresh one."""
    with seeding.isolated(7, "test"):
        model = build(name, **more)
        for value in model.module.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.1)
    model.module.eval()
    return model


def student() -> Model:
    shape = (1, 8, 8)
    names = ("no", "yes", "both")
    statistics = ((0.3,), (0.4,))
    return trained(
        "kd:resnet8",
        classes=3,
        kind="image",
        input_shape=shape,
        class_names=names,
        statistics=statistics,
        width=0.5,
    )


def saved(model: Model, folder: Path, **more: Any) -> Path:
    arguments: dict[str, Any] = {
        "classes": ("no", "yes", "both"),
        "input_shape": (1, 8, 8),
        "kind": "image",
    }
    return save(model, folder, **{**arguments, **more})


def logits(model: Model, raw: Any) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(call(model.module.eval(), model.preprocess(raw, CPU)))


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd": ("kd:resnet8", {"width": 0.5, "statistics": ((0.3,), (0.4,))}),
    "timm": ("timm:resnet10t", {}),
    "torchvision": ("torchvision:mobilenet_v3_small", {}),
    "hf image": ("hf:vit", {"config": {**SMALL, "image_size": 16, "patch_size": 8}}),
}


@pytest.mark.parametrize("which", MODELS)
def test_a_saved_image_model_is_the_same_after_loading(which: str, tmp_path: Path) -> None:
    name, more = MODELS[which]
    model = trained(
        name, classes=3, kind="image", input_shape=(1, 32, 32), class_names=("a", "b", "c"), **more
    )
    saved(model, tmp_path / "m", classes=("a", "b", "c"), input_shape=(1, 32, 32))
    again = load(tmp_path / "m")
    assert fingerprint(again.module) == fingerprint(model.module)
    assert again.preprocess == model.preprocess
    assert again.classes == ("a", "b", "c")
    assert again.config == model.config
    raw = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    assert torch.equal(logits(again, raw), logits(model, raw))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_saved_text_model_brings_its_tokenizer(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    small: dict[str, Any] = {**SMALL, "max_position_embeddings": 16}
    if architecture == "gpt2":
        small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = trained(
        f"hf:{architecture}",
        classes=2,
        kind="text",
        config=small,
        tokenizer=train_tokenizer(TEXTS, 400, kind),  # type: ignore[arg-type]
        preprocess={"max_length": 9},
    )
    save(model, tmp_path / "m", classes=2, input_shape=None, kind="text")
    shutil.move(tmp_path / "m", tmp_path / "elsewhere")
    again = load(tmp_path / "elsewhere")
    assert fingerprint(again.module) == fingerprint(model.module)
    assert again.preprocess == model.preprocess
    assert torch.equal(logits(again, TEXTS[:3]), logits(model, TEXTS[:3]))
    # It can be saved again, although the text tokenizer now comes from a folder.
    save(again, tmp_path / "second", classes=2, input_shape=None, kind="text")
    assert fingerprint(load(tmp_path / "second").module) == fingerprint(model.module)


def test_saving_and_loading_leave_the_random_state_and_the_model_alone(tmp_path: Path) -> None:
    model = student()
    model.module.train()
    before, state = fingerprint(model.module), torch.random.get_rng_state()
    saved(model, tmp_path / "m")
    load(tmp_path / "m")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fingerprint(model.module) == before
    assert model.module.training


def test_the_description_says_what_a_reader_wants(tmp_path: Path) -> None:
    model = student()
    assert saved(model, tmp_path / "m", metadata={"run": "demo", "seed": 3}) == tmp_path / "m"
    files = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert files == ["config.json", "model.safetensors"]
    described = read_description(tmp_path / "m")
    assert described["name"] == "kd:resnet8"
    assert described["classes"] == 3
    assert described["class_names"] == ["no", "yes", "both"]
    assert described["input_shape"] == [1, 8, 8]
    assert described["parameters"] == model.parameters
    assert described["fingerprint"] == fingerprint(model.module)
    assert described["metadata"] == {"run": "demo", "seed": 3}


def test_saved_models_are_models_by_name(tmp_path: Path) -> None:
    model = student()
    saved(model, tmp_path / "m")
    name = f"saved:{tmp_path / 'm'}"
    again = build(name, classes=3, kind="image", input_shape=(1, 8, 8))
    assert fingerprint(again.module) == fingerprint(model.module)
    assert again.name == name
    assert again.weights.startswith("m/model.safetensors (sha256 ")
    changed = build(name, classes=3, kind="image", preprocess={"size": 16})
    assert changed.preprocess.config()["size"] == [16, 16]
    with pytest.raises(ModelError, match="has 3 classes, the task has 4"):
        build(name, classes=4, kind="image")
    with pytest.raises(ModelError, match="takes no 'width'"):
        build(name, classes=3, kind="image", width=2.0)
    with pytest.raises(ModelError, match="own weights"):
        build(name, classes=3, kind="image", weights="x.pt")
    with pytest.raises(ModelError, match="does not exist"):
        build(f"saved:{tmp_path / 'n'}", classes=3, kind="image")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs).relu())


def test_live_modules_with_shared_tensors(tmp_path: Path) -> None:
    model = live(
        nn.DataParallel(Tied()), kind="tensor", input_shape=(4,), statistics=((0.0,), (2.0,))
    )
    saved(model, tmp_path / "m", classes=4, input_shape=(4,), kind="tensor")
    with pytest.raises(ModelError, match="pass the network itself as `module`"):
        load(tmp_path / "m")
    again = load(tmp_path / "m", module=nn.DataParallel(Tied()))
    assert isinstance(again.module, Tied)
    assert again.module.first.weight is again.module.second.weight
    assert torch.equal(again.module.second.weight, model.module.second.weight)  # type: ignore[arg-type, union-attr]
    assert again.preprocess == model.preprocess
    with pytest.raises(ModelError, match="does not fit"):
        load(tmp_path / "m", module=nn.Linear(4, 4))


def test_weights_in_another_memory_format_are_saved(tmp_path: Path) -> None:
    model = student()
    model.module.to(memory_format=torch.channels_last)
    saved(model, tmp_path / "m")
    for name, value in load(tmp_path / "m").module.state_dict().items():
        assert torch.equal(value, model.module.state_dict()[name])


def test_a_second_model_takes_the_place_of_the_first(tmp_path: Path) -> None:
    saved(student(), tmp_path / "m", metadata={"epoch": 1})
    saved(student(), tmp_path / "m", metadata={"epoch": 2})
    assert read_description(tmp_path / "m")["metadata"] == {"epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="would be lost"):
        saved(student(), tmp_path / "full")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="is a file"):
        saved(student(), tmp_path / "file")
    with pytest.raises(ModelError, match="cannot be written"):
        saved(student(), tmp_path / "file" / "inside")
    (tmp_path / "empty").mkdir()
    saved(student(), tmp_path / "empty")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"


def test_an_error_leaves_the_old_model_and_no_remains(tmp_path: Path) -> None:
    saved(student(), tmp_path / "m", metadata={"epoch": 1})
    with pytest.raises(ModelError, match="JSON"):
        saved(student(), tmp_path / "m", metadata={"epoch": object()})
    with pytest.raises(KeyboardInterrupt), replaced_folder(tmp_path / "m") as fresh:
        (fresh / "half.txt").write_text("x")
        raise KeyboardInterrupt
    assert read_description(tmp_path / "m")["metadata"] == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_damage_is_named(tmp_path: Path) -> None:
    def fresh() -> Path:
        return saved(student(), tmp_path / "m")

    weights = fresh() / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged: its checksum"):
        load(tmp_path / "m")
    (fresh() / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        load(tmp_path / "m")
    shutil.rmtree(tmp_path / "m")
    described = fresh() / "config.json"
    settings = json.loads(described.read_text())
    for change, words in (
        ({"format": "other"}, "'other'"),
        ({"version": 9}, "version 9"),
        (
            {
                "preprocess": {**settings["preprocess"], "mean": [0.9]},
                "build": {**settings["build"], "classes": 4},
            },
            "4",
        ),
    ):
        described.write_text(json.dumps({**settings, **change}))
        with pytest.raises((ModelError, UnknownName), match=words):
            load(tmp_path / "m")
    described.write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        load(tmp_path / "m")
    described.unlink()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load(tmp_path / "m")
