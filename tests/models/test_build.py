from __future__ import annotations

import json
import socket
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from understudy import seeding
from understudy.errors import ModelError, UnknownName
from understudy.models.build import build, builders, live, names
from understudy.models.model import Model, fingerprint
from understudy.models.outputs import call, logits_of
from understudy.models.preprocess import ImagePreprocess, TensorPreprocess, TextPreprocess
from understudy.models.tokenizer import train_tokenizer

CPU = torch.device("cpu")
STATISTICS = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
TEXTS = [f"a film of {number} good and bad moments" for number in range(40)]
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
PYTHON = """
from torch import nn
def make(classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Linear(width, classes))
def fixed():
    return nn.Linear(12, 2)
def wrong():
    return "a model"
class Network(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(12, num_classes)
"""


def image_model(
    name: str, *, classes: int = 5, shape: tuple[int, ...] = (3, 32, 32), **more: Any
) -> Model:
    with seeding.isolated(0, "test"):
        return build(name, classes=classes, kind="image", input_shape=shape, **more)


def text_model(name: str, *, classes: int = 3, **more: Any) -> Model:
    with seeding.isolated(0, "test"):
        return build(name, classes=classes, kind="text", **more)


def logits(model: Model, raw: Any) -> torch.Tensor:
    model.module.eval()
    with torch.no_grad():
        return logits_of(call(model.module, model.preprocess(raw, CPU)))


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 150).save_pretrained(str(folder))
    return folder


@pytest.fixture()
def python_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_networks.py").write_text(PYTHON)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_networks", raising=False)
    return "py:users_networks"


# Names, for all prefixes.


def test_prefixes() -> None:
    assert builders.names() == ["export", "hf", "kd", "mlp", "py", "saved", "timm", "torchvision"]
    assert "kd:resnet20" in names("kd")
    assert "torchvision:resnet18" in names("torchvision")
    assert "timm:resnet18" in names("timm")
    assert {"hf:bert", "hf:vit"} <= set(names("hf"))
    assert names("py") == names("export") == names("saved") == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet20", "'kd:resnet20'"),
        ("timmm:resnet18", "'timm'"),
        ("kd:resnet21", "'resnet20'"),
        ("timm:resnet10", "'resnet10t'"),
        ("timm:resnet10t.c3_in2k", "'c3_in1k'"),
        ("torchvision:resnet19", "'resnet18'"),
        ("kd:", "prefix:name"),
    ],
)
def test_wrong_names_are_answered_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(UnknownName, match=words):
        image_model(name)


@pytest.mark.parametrize(
    ("name", "keyword", "words"),
    [
        ("kd:resnet8", "widht", "'width'"),
        ("timm:resnet10t", "drop_rat", "'drop_rate'"),
        ("torchvision:resnet18", "group", "'groups'"),
    ],
)
def test_wrong_keywords_are_answered_with_the_nearest(name: str, keyword: str, words: str) -> None:
    with pytest.raises(UnknownName, match=words):
        image_model(name, **{keyword: 1})


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:resnet18"])
def test_keywords_that_the_recipe_answers_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="comes from the data"):
        image_model(name, num_classes=3)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ModelError, match="0 classes"):
        image_model("kd:resnet8", classes=0)
    with pytest.raises(ModelError, match="2 class names for 5 classes"):
        image_model("kd:resnet8", class_names=("a", "b"))
    with pytest.raises(ModelError, match=r"takes images \[C, H, W\]; the data are texts"):
        text_model("kd:resnet8")
    with pytest.raises(ModelError, match="`weights`"):
        image_model("kd:resnet8", drop_head=True)
    with pytest.raises(ModelError, match="no file with weights"):
        image_model("kd:resnet8", weights="missing.pt")


@pytest.mark.parametrize("name", ["kd:resnet8", "timm:resnet10t"])
def test_building_draws_from_the_generator_that_is_there(name: str) -> None:
    first, again = image_model(name), image_model(name)
    assert fingerprint(first.module) == fingerprint(again.module)
    with seeding.isolated(1, "test"):
        other = build(name, classes=5, kind="image", input_shape=(3, 32, 32))
    assert fingerprint(first.module) != fingerprint(other.module)


# kd


def test_kd_takes_the_channels_of_the_data() -> None:
    grey = image_model("kd:resnet8", shape=(1, 8, 8), width=0.5, statistics=((0.5,), (0.25,)))
    assert logits(grey, images(2, 1, 8, 8)).shape == (2, 5)
    assert grey.preprocess == ImagePreprocess((0.5,), (0.25,))
    colour = image_model("kd:resnet8", shape=(1, 8, 8), in_channels=3)
    assert logits(colour, images(2, 1, 8, 8)).shape == (2, 5)
    assert colour.weights == "random"


def test_kd_weights_come_from_a_file(tmp_path: Path) -> None:
    source = image_model("kd:resnet8")
    torch.save({"model": source.module.state_dict()}, tmp_path / "teacher.pth")
    with seeding.isolated(3, "other"):
        model = build(
            "kd:resnet8",
            classes=5,
            kind="image",
            input_shape=(3, 32, 32),
            weights=str(tmp_path / "teacher.pth"),
        )
    assert fingerprint(model.module) == fingerprint(source.module)
    assert model.weights.startswith("teacher.pth (sha256 ")


def test_models_are_made_again_from_their_configuration() -> None:
    settings = {"size": [24, 24]}
    model = image_model(
        "kd:resnet8",
        statistics=STATISTICS,
        class_names=list("abcde"),
        preprocess=settings,
        width=0.5,
    )
    with seeding.isolated(0, "test"):
        again = build(**json.loads(json.dumps(model.config)))
    assert fingerprint(again.module) == fingerprint(model.module)
    assert again.preprocess == model.preprocess
    assert again.classes == model.classes == tuple("abcde")
    assert again.config == model.config


# timm and torchvision


def test_timm_takes_the_data_as_they_are_when_it_starts_fresh() -> None:
    model = image_model("timm:resnet10t", statistics=STATISTICS)
    assert model.preprocess == ImagePreprocess(*STATISTICS, interpolation="bicubic")
    assert logits(model, images(2, 3, 32, 32)).shape == (2, 5)
    plain = image_model("timm:resnet10t")
    assert plain.preprocess.config()["mean"] == pytest.approx([0.485, 0.456, 0.406])
    grey = image_model("timm:resnet10t", shape=(1, 32, 32))
    assert grey.config is not None
    assert grey.config["in_chans"] == 1
    assert logits(grey, images(2, 1, 32, 32)).shape == (2, 5)


def test_timm_transformers_keep_the_size_that_they_are_built_for() -> None:
    small = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
    model = image_model("timm:vit_tiny_patch16_224", **small)
    assert model.preprocess.config()["size"] == [16, 16]
    assert logits(model, images(2, 3, 40, 40)).shape == (2, 5)
    assert model.config is not None
    with seeding.isolated(0, "test"):
        assert fingerprint(build(**model.config).module) == fingerprint(model.module)


def test_timm_pretrained_brings_its_own_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model

    def offline(*, pretrained: bool, **keywords: Any) -> nn.Module:
        assert pretrained
        return create(pretrained=False, **keywords)

    monkeypatch.setattr(timm, "create_model", offline)
    for asked in ({"weights": "pretrained"}, {"pretrained": True}):
        model = image_model(
            "timm:resnet10t", shape=(1, 32, 32), statistics=((0.1,), (0.2,)), **asked
        )
        config = model.preprocess.config()
        assert config["size"] == [176, 176]
        assert config["mean"] == pytest.approx([0.485, 0.456, 0.406])
        assert config["channels"] == 3, (
            "a pretrained network keeps its channels, grey images are repeated"
        )
        assert model.weights == "timm timm/resnet10t.c3_in1k, classifier new (1000 -> 5 classes)"
        assert model.config is not None
        assert "pretrained" not in model.config
        assert "weights" not in model.config


def test_timm_models_from_a_folder_are_made_again_without_it(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(3)
    source = timm.create_model("resnet10t", num_classes=5, stem_width=16)
    save_for_hf(source, tmp_path, model_config={"num_classes": 5}, model_args={"stem_width": 16})
    model = image_model(f"timm:local-dir:{tmp_path}", weights="pretrained")
    torch.testing.assert_close(model.module.state_dict(), source.state_dict())
    assert model.config is not None
    assert model.config["name"] == "timm:resnet10t"
    assert model.config["stem_width"] == 16
    with seeding.isolated(0, "test"):
        again = build(**model.config)
    again.module.load_state_dict(model.module.state_dict())
    assert again.preprocess == model.preprocess


def test_weights_that_cannot_be_fetched_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", "/nowhere/at/all")
    for name, weights in (
        ("timm:resnet10t", "pretrained"),
        ("torchvision:resnet18", "DEFAULT"),
    ):
        with pytest.raises(
            ModelError, match=r"neither in the local cache nor could.*give a file as `weights`"
        ):
            image_model(name, weights=weights)


def test_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model("torchvision:resnet18", shape=(1, 32, 32), statistics=((0.5,), (0.25,)))
    assert model.preprocess == ImagePreprocess((0.5,), (0.25,), channels=3)
    assert logits(model, images(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(ModelError, match="'IMAGENET1K_V1'"):
        image_model("torchvision:resnet18", weights="IMAGENET1K_V2")
    with pytest.raises(ModelError, match="takes 3 channels, the data have 4"):
        image_model("torchvision:resnet18", shape=(4, 32, 32))
    with pytest.raises(ModelError, match="fixes 'num_layers' by its name"):
        image_model("torchvision:vit_b_16", num_layers=1)

    def small(name: str, weights: None, **more: Any) -> nn.Module:
        from torchvision.models.vision_transformer import VisionTransformer

        return VisionTransformer(32, 16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, **more)

    monkeypatch.setattr("torchvision.models.get_model", small)
    fixed = image_model("torchvision:vit_b_16")
    assert fixed.preprocess.config()["size"] == [32, 32]


def test_torchvision_weights_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    torch.manual_seed(5)
    state = resnet18().state_dict()
    monkeypatch.setattr(
        ResNet18_Weights.DEFAULT.__class__, "get_state_dict", lambda *_, **__: dict(state)
    )
    model = image_model("torchvision:resnet18", weights="DEFAULT")
    assert torch.equal(model.module.state_dict()["conv1.weight"], state["conv1.weight"])
    assert model.weights.endswith("classifier new (1000 -> 5 classes)")
    assert model.preprocess.config()["size"] == [224, 224]


# py and live


def test_python_callables(python_module: str, tmp_path: Path) -> None:
    model = image_model(f"{python_module}:make", shape=(3, 2, 2), width=6)
    assert model.module[1].out_features == 6  # type: ignore[index, union-attr]
    assert logits(model, images(2, 3, 2, 2)).shape == (2, 5)
    assert image_model(f"{python_module}:Network").module.out_features == 5
    assert image_model(f"{python_module}:fixed").module.out_features == 2
    torch.save(model.module.state_dict(), tmp_path / "w.pt")
    again = image_model(
        f"{python_module}:make", shape=(3, 2, 2), width=6, weights=str(tmp_path / "w.pt")
    )
    assert fingerprint(again.module) == fingerprint(model.module)
    with pytest.raises(UnknownName, match="'width'"):
        image_model(f"{python_module}:make", widht=6)
    with pytest.raises(ModelError, match=r"returned a str.*torch\.nn\.Module"):
        image_model(f"{python_module}:wrong")
    with pytest.raises(UnknownName, match="cannot be imported"):
        image_model("py:no_such_module:make")
    with pytest.raises(UnknownName, match="'make'"):
        image_model(f"{python_module}:mak")


def test_python_keywords_that_are_no_json_leave_no_configuration(python_module: str) -> None:
    assert image_model(f"{python_module}:make", width=4).config is not None
    assert image_model(f"{python_module}:make", width=torch.tensor(4)).config is None


def test_a_live_module_is_used_as_it_is() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model = live(
        nn.DataParallel(module),
        kind="image",
        input_shape=(3, 2, 2),
        statistics=STATISTICS,
        class_names=list("abcd"),
    )
    assert model.module is module
    assert model.config is None
    assert model.preprocess == ImagePreprocess(*STATISTICS)
    assert model.classes == tuple("abcd")
    assert live(module, kind="tensor").preprocess == TensorPreprocess()
    own = TensorPreprocess((1.0,), (2.0,))
    assert live(module, kind="tensor", preprocess=own).preprocess is own
    with pytest.raises(ModelError, match="tokenizer"):
        live(module, kind="text")
    with pytest.raises(ModelError, match="not a str"):
        live("resnet", kind="image")  # type: ignore[arg-type]


def test_a_live_text_model_takes_a_tokenizer(tokenizer_folder: Path) -> None:
    settings = {"tokenizer": str(tokenizer_folder), "max_length": 6, "inputs": ["input_ids"]}
    model = live(nn.Embedding(200, 3), kind="text", preprocess=settings)
    assert list(model.preprocess(TEXTS[:2], CPU)) == ["input_ids"]
    assert model.preprocess(TEXTS[:2], CPU)["input_ids"].shape == (2, 6)


# hf


def test_hf_text_from_scratch_trains_its_tokenizer_on_the_data() -> None:
    model = text_model(
        "hf:bert", config=BERT, texts=lambda: TEXTS, class_names=("bad", "so", "good")
    )
    assert isinstance(model.preprocess, TextPreprocess)
    tokenizer, config = model.preprocess.tokenizer, model.module.config
    assert config.vocab_size == len(tokenizer)
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.id2label == {0: "bad", 1: "so", 2: "good"}
    assert model.preprocess.max_length == 24
    assert model.preprocess.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert logits(model, ["good", "bad moments " * 40]).shape == (2, 3)
    assert model.weights == "random"


def test_hf_padding_does_not_change_an_answer(tokenizer_folder: Path) -> None:
    given = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    for name, config in (("bert", BERT), ("gpt2", given)):
        model = text_model(f"hf:{name}", config=config, tokenizer=str(tokenizer_folder))
        alone = logits(model, ["good"])
        padded = logits(model, ["good", "a film of good and bad moments"])[:1]
        torch.testing.assert_close(alone, padded, atol=1e-5, rtol=1e-5)


def test_hf_roberta_counts_positions_from_behind_the_padding(tokenizer_folder: Path) -> None:
    config = {**BERT, "type_vocab_size": 1}
    model = text_model("hf:roberta", config=config, tokenizer=str(tokenizer_folder))
    assert isinstance(model.preprocess, TextPreprocess)
    assert model.preprocess.max_length == 24 - model.preprocess.tokenizer.pad_token_id - 1
    assert "token_type_ids" not in model.preprocess.inputs
    assert logits(model, ["bad moments " * 40]).shape == (1, 3)
    with pytest.raises(ModelError, match="positions for 23 tokens; 'max_length' is 24"):
        text_model(
            "hf:roberta",
            config=BERT,
            tokenizer=str(tokenizer_folder),
            preprocess={"max_length": 24},
        )


def test_hf_models_are_loaded_from_a_folder(tmp_path: Path, tokenizer_folder: Path) -> None:
    source = text_model(
        "hf:bert", config=BERT, tokenizer=str(tokenizer_folder), class_names=("bad", "so", "good")
    )
    source.module.save_pretrained(str(tmp_path))  # type: ignore[operator]
    source.preprocess.tokenizer.save_pretrained(str(tmp_path))  # type: ignore[attr-defined]
    model = text_model(f"hf:{tmp_path}")
    torch.testing.assert_close(logits(model, TEXTS[:3]), logits(source, TEXTS[:3]))
    assert model.classes == ("bad", "so", "good")
    assert model.preprocess == source.preprocess
    assert model.weights == f"hf:{tmp_path}"
    # Names that the data know go to models without their own, never over them.
    assert text_model(f"hf:{tmp_path}", class_names=("x", "y", "z")).classes == (
        "bad",
        "so",
        "good",
    )
    with pytest.raises(
        ModelError, match=r"'classifier'\) has 3 classes, the task has 4.*drop_head: true"
    ):
        text_model(f"hf:{tmp_path}", classes=4)
    fresh = text_model(f"hf:{tmp_path}", classes=2, class_names=("no", "yes"), drop_head=True)
    assert fresh.weights.endswith("classifier new (3 -> 2 classes)")
    assert fresh.classes == ("no", "yes")
    assert fresh.module.config.id2label == {0: "no", 1: "yes"}
    body = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(fresh.module.state_dict()[body], source.module.state_dict()[body])


def test_hf_body_without_classifier_gets_a_new_one(tmp_path: Path, tokenizer_folder: Path) -> None:
    source = text_model("hf:bert", config=BERT, tokenizer=str(tokenizer_folder))
    source.module.bert.save_pretrained(str(tmp_path))  # type: ignore[union-attr, operator]
    model = text_model(f"hf:{tmp_path}", tokenizer=str(tokenizer_folder))
    assert model.weights.endswith("classifier new")
    text_model(
        "hf:distilbert",
        config={"dim": 16, "n_heads": 2, "n_layers": 1},
        tokenizer=str(tokenizer_folder),
    )


def test_hf_incomplete_weights_are_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = text_model("hf:bert", config=BERT, tokenizer=str(tokenizer_folder))
    source.module.save_pretrained(str(tmp_path))  # type: ignore[operator]
    state = load_file(tmp_path / "model.safetensors")
    del state["bert.encoder.layer.0.output.dense.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks weights for 1 tensors.*layer\.0\.output\.dense\.weight"
    ):
        text_model(f"hf:{tmp_path}", tokenizer=str(tokenizer_folder))


def test_hf_images(tmp_path: Path) -> None:
    fresh = image_model("hf:vit", config=VIT, statistics=STATISTICS)
    assert fresh.preprocess == ImagePreprocess(*STATISTICS, size=16)
    assert logits(fresh, images(2, 3, 32, 32)).shape == (2, 5)
    fresh.module.save_pretrained(str(tmp_path))  # type: ignore[operator]
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json"):
        image_model(f"hf:{tmp_path}")
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "size": {"height": 16, "width": 16},
        "resample": 3,
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = image_model(f"hf:{tmp_path}")
    assert model.preprocess.config()["mean"] == pytest.approx([0.1, 0.2, 0.3])
    assert model.preprocess.config()["interpolation"] == "bicubic"
    assert model.preprocess.config()["size"] == [16, 16]
    torch.testing.assert_close(model.module.state_dict(), fresh.module.state_dict())


def test_hf_configurations_are_complete(tokenizer_folder: Path) -> None:
    for model in (
        text_model(
            "hf:bert", config=BERT, tokenizer=str(tokenizer_folder), class_names=("a", "b", "c")
        ),
        image_model("hf:vit", config=VIT),
    ):
        assert model.config is not None
        assert model.config["config"]["hidden_size"] == 16
        config = {**model.config}
        if model.config["kind"] == "text":
            config["preprocess"] = {**config["preprocess"], "tokenizer": str(tokenizer_folder)}
        with seeding.isolated(0, "test"):
            again = build(**json.loads(json.dumps(config)))
        assert fingerprint(again.module) == fingerprint(model.module)
        assert again.preprocess == model.preprocess
        assert again.config == model.config


@pytest.mark.parametrize(
    ("name", "keywords", "words"),
    [
        ("hf:bert", {"config": {"hiden_size": 4}}, "'hidden_size'"),
        ("hf:bertt", {"config": {}}, "'bert'"),
        ("hf:bert", {"confg": {}}, "'config'"),
        ("hf:bert", {"config": {"num_labels": 3}}, "classes come from the data"),
        ("hf:bert", {"config": {"vocab_size": 7}}, "vocab_size 7, its tokenizer has"),
        ("hf:bert", {}, "To build a fresh 'bert', give `config"),
        ("hf:/no/such/folder", {}, "cannot be loaded"),
        ("hf:bert", {"config": BERT, "dtype": "float8"}, "'float16'|Valid names|Did you mean"),
    ],
)
def test_hf_mistakes_are_named(
    name: str, keywords: dict[str, Any], words: str, tokenizer_folder: Path
) -> None:
    with pytest.raises((ModelError, UnknownName), match=words):
        text_model(name, **{"tokenizer": str(tokenizer_folder), **keywords})


def test_hf_text_from_scratch_needs_a_tokenizer_or_texts() -> None:
    with pytest.raises(ModelError, match="name its folder as `tokenizer`, or give texts"):
        text_model("hf:bert", config=BERT)
    trained = {"train": {"size": 90, "kind": "wordpiece"}}
    model = text_model(
        "hf:bert", config=BERT, tokenizer=trained, texts=lambda: [("good film", "bad film")]
    )
    assert model.module.config.vocab_size <= 90
    with pytest.raises(UnknownName, match="'size'"):
        text_model("hf:bert", config=BERT, tokenizer={"train": {"sise": 90}}, texts=lambda: TEXTS)


def test_hf_parameters_are_float32_unless_asked(tmp_path: Path, tokenizer_folder: Path) -> None:
    source = text_model("hf:bert", config=BERT, tokenizer=str(tokenizer_folder))
    source.module.bfloat16().save_pretrained(str(tmp_path))  # type: ignore[operator]
    for asked, dtype in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        more = {} if asked is None else {"dtype": asked}
        model = text_model(f"hf:{tmp_path}", tokenizer=str(tokenizer_folder), **more)
        assert {parameter.dtype for parameter in model.module.parameters()} == {dtype}
