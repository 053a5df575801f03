"""Language models in folders: saved, built again, exported to transformers, with and without adapters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from understudy.errors import ModelError, UnknownName
from understudy.models import Model, build, live
from understudy.models.export import export
from understudy.models.language_head import head_of
from understudy.models.language_tokenizer import byte_tokenizer
from understudy.models.lora import has_adapters, merge_adapters
from understudy.models.model import fingerprint
from understudy.models.saved import load, save

from language_parts import CPU, PAIRS, TEXTS, language_model  # isort: skip

LORA = {"rank": 2, "targets": ["q_proj", "v_proj"]}
FRESH = """
import json, sys, torch, transformers
place, ids = sys.argv[1], json.loads(sys.argv[2])
model = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(place)
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits
written = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)
print(json.dumps({
    "logits": logits[0].tolist(), "ids": tokenizer("Why?")["input_ids"], "cache": model.config.use_cache,
    "pad": model.generation_config.pad_token_id, "eos": model.generation_config.eos_token_id,
    "written": len(written[0]), "understudy": "understudy" in sys.modules, "peft": "peft" in sys.modules,
}))
"""


def trained(family: str = "llama", task: str = "causal_lm", **keywords: Any) -> Model:
    """Return a model whose parameters are not those of a fresh one, adapters included."""
    model = language_model(family, task, **keywords)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.module.eval()
    return model


def logits(model: Model, raw: list[Any] = TEXTS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.module.eval()(**model.preprocess(raw, CPU)).logits
    return found


def rebuilt(model: Model, folder: Path, task: str = "causal_lm", **keywords: Any) -> Model:
    save(model, folder, classes=("a", "b"), input_shape=None, kind="text")
    return build(f"saved:{folder}", classes=7, kind="text", task=task, **keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "task", "more"),
    [
        ("llama", "causal_lm", {"pad_vocabulary_to": 64}),
        ("gpt2", "causal_lm", {}),
        ("mamba", "causal_lm", {}),
        ("llama", "causal_lm", {"lora": LORA}),
        ("bert", "masked_lm", {"preprocess": {"seed": 3, "share": 0.3}}),
        ("t5", "seq2seq", {}),
    ],
)
def test_saved_models_are_built_again(
    tmp_path: Path, family: str, task: str, more: dict[str, Any]
) -> None:
    model = trained(family, task, **more)
    random = torch.random.get_rng_state()
    again = rebuilt(model, tmp_path / "model", task)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert fingerprint(again.module) == fingerprint(model.module)
    assert again.preprocess == model.preprocess and again.extra["task"] == task
    raw = PAIRS if task == "seq2seq" else TEXTS
    assert torch.equal(logits(again, raw), logits(model, raw))
    trainable = [n for n, p in again.module.named_parameters() if p.requires_grad]
    assert trainable == [n for n, p in model.module.named_parameters() if p.requires_grad]
    if "lora" in more:
        assert len(trainable) == 8 and all("lora_" in name for name in trainable)


def test_settings_of_saved_models_can_be_changed_and_tasks_not(tmp_path: Path) -> None:
    model = trained()
    again = rebuilt(model, tmp_path / "model", preprocess={"max_length": 32, "packing": False})
    assert again.preprocess.max_length == 32 and again.preprocess.packing == "padded"
    with pytest.raises(ModelError, match="has positions for 64 tokens; 'max_length' is 65"):
        rebuilt(model, tmp_path / "model", preprocess={"max_length": 65})
    for task in ("classification", "masked_lm"):
        with pytest.raises(ModelError, match=f"made for the task causal_lm, .* wanted for {task}"):
            build(f"saved:{tmp_path / 'model'}", classes=2, kind="text", task=task)  # type: ignore[arg-type]


def test_a_model_of_your_own_is_a_language_model(tmp_path: Path) -> None:
    model = build(
        "py:language_parts:Plain",
        classes=2,
        kind="text",
        task="causal_lm",
        width=8,
        preprocess={"tokenizer": {"kind": "bytes"}, "max_length": 64},
    )
    assert model.module.tokens.num_embeddings == 260 and model.preprocess.packing == "mask"
    tokens = model.preprocess(TEXTS, CPU)
    head = head_of(model.module)
    assert head is not None and head.path == "head" and head.head().bias is not None
    again = rebuilt(model, tmp_path / "model")
    assert torch.equal(again.module(**tokens), model.module(**tokens))
    place = export(model, "safetensors", tmp_path / "own", example_raw=TEXTS, kind="text")
    assert load(place).preprocess == model.preprocess
    with pytest.raises(ModelError, match="no model of transformers, so it has no 'hf' export"):
        export(model, "hf", tmp_path / "hf", example_raw=TEXTS, kind="text")
    with pytest.raises(ModelError, match="needs a `tokenizer`"):
        build("py:language_parts:Plain", classes=2, kind="text", task="causal_lm")


def test_a_live_model_is_saved_and_loaded_into_its_module(tmp_path: Path) -> None:
    source = trained()
    model = live(
        source.module,
        kind="text",
        task="causal_lm",
        preprocess={"tokenizer": byte_tokenizer(), "max_length": 48},
    )
    assert model.preprocess.packing == "mask" and model.extra["notes"]
    assert model.classes is None and model.extra["task"] == "causal_lm"
    save(model, tmp_path / "model", classes=1, input_shape=None, kind="text")
    fresh = language_model()
    found = load(tmp_path / "model", module=fresh.module)
    assert torch.equal(logits(found), logits(model)) and found.preprocess == model.preprocess
    with pytest.raises(ModelError, match="needs a `tokenizer`"):
        live(source.module, kind="text", task="causal_lm")


def test_only_adapters_are_trained_and_add_nothing_at_first() -> None:
    plain = language_model()
    model = language_model(lora={"rank": 4})
    assert type(model.module) is type(plain.module) and has_adapters(model.module)
    assert torch.equal(logits(model), logits(plain))
    trained_ones = [n for n, p in model.module.named_parameters() if p.requires_grad]
    # Seven linear layers in each of two blocks, two matrices for each; none on the head.
    assert len(trained_ones) == 28 and not any("lm_head" in name for name in trained_ones)
    half = language_model(lora=LORA, dtype="bfloat16").module
    types = {p.requires_grad: p.dtype for p in half.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_the_head_is_seen_and_merged(tied: bool) -> None:
    model = trained(
        config={"tie_word_embeddings": tied}, lora={"rank": 2, "targets": ["lm_head", "q_proj"]}
    )
    head = head_of(model.module)
    assert head is not None and head.path == "lm_head"
    pair = head.head().low_rank
    assert pair is not None and pair.scale == 2.0 and pair.up.shape == (260, 2)
    before, embedding = logits(model), model.module.get_input_embeddings().weight.clone()
    merge_adapters(model.module)
    assert not has_adapters(model.module)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.module.get_input_embeddings().weight, embedding)
    assert model.module.config.tie_word_embeddings is False
    dropped = language_model(lora={"rank": 2, "targets": "lm_head", "dropout": 0.1})
    assert head_of(dropped.module) is None


def test_an_adapter_wrapped_by_the_caller_is_seen_through() -> None:
    import peft

    source = trained()
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "v_proj"])
    wrapped = peft.get_peft_model(source.module, config)
    model = live(wrapped, kind="text", task="causal_lm", preprocess={"tokenizer": byte_tokenizer()})
    head = head_of(wrapped)
    assert head is not None and head.path == "base_model.model.lm_head"
    assert head.head().low_rank is not None
    assert model.preprocess.packing == "mask"
    torch.testing.assert_close(logits(model), logits(source))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"alpha": 4}, "is written {rank: 8"),
        ({"rank": 0}, "'rank' of `lora` is 0"),
        ({"rank": 2, "dropout": 1.0}, "'dropout' of `lora` is 1.0"),
        ({"rank": 2, "alpha": -1}, "'alpha' of `lora` is -1"),
        ({"rank": 2, "target": ["q_proj"]}, "setting of lora called 'target'"),
        ({"rank": 2, "targets": ["query"]}, "cannot get adapters"),
    ],
)
def test_wrong_adapters_are_refused(lora: dict[str, Any], message: str) -> None:
    with pytest.raises((ModelError, UnknownName), match=message):
        language_model(lora=lora)


@pytest.mark.parametrize("more", [{}, {"lora": {"rank": 2, "targets": ["lm_head", "v_proj"]}}])
def test_transformers_alone_loads_an_export(tmp_path: Path, more: dict[str, Any]) -> None:
    model = trained(config={"tie_word_embeddings": True}, pad_vocabulary_to=64, **more)
    place = export(model, "hf", tmp_path / "hf", example_raw=TEXTS, kind="text")
    ids = model.preprocess.tokenizer("Why did")["input_ids"]
    answer = subprocess.run(
        [sys.executable, "-c", FRESH, str(place), json.dumps(ids)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    found = json.loads(answer.stdout.strip().splitlines()[-1])
    with torch.no_grad():
        own = model.module(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(torch.tensor(found["logits"]), own, rtol=1e-5, atol=1e-5)
    assert found["ids"] == model.preprocess.tokenizer("Why?")["input_ids"]
    assert found["cache"] and not found["understudy"] and not found["peft"]
    assert (found["pad"], found["eos"]) == (0, 2)
    assert len(ids) < found["written"] <= len(ids) + 4
    description = json.loads((place / "understudy.json").read_text())
    assert description["task"] == "causal_lm" and description["merged"] is bool(more)
    assert description["verified"]["batches"] == [5, 1]
    # What was exported is as it was, and the export is a teacher like any other.
    assert has_adapters(model.module) is bool(more) and model.module.config.use_cache is False
    teacher = build(f"hf:{place}", classes=1, kind="text", task="causal_lm")
    assert teacher.preprocess == model.preprocess
    torch.testing.assert_close(logits(teacher), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "task"), [("roberta", "masked_lm"), ("bart", "seq2seq")])
def test_other_families_are_exported(tmp_path: Path, family: str, task: str) -> None:
    model = trained(family, task)
    place = export(model, "hf", tmp_path / "hf", example_raw=PAIRS, kind="text")
    assert json.loads((place / "understudy.json").read_text())["verified"]
    again = build(f"hf:{place}", classes=1, kind="text", task=task)  # type: ignore[arg-type]
    torch.testing.assert_close(logits(again, PAIRS), logits(model, PAIRS), rtol=1e-5, atol=1e-5)


def test_adapters_are_kept_in_a_folder_of_understudy(tmp_path: Path) -> None:
    model = trained(lora=LORA)
    place = export(model, "safetensors", tmp_path / "own", example_raw=TEXTS, kind="text")
    again = load(place)
    assert has_adapters(again.module) and torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_programs_are_refused_in_words(tmp_path: Path, form: Any) -> None:
    with pytest.raises(ModelError, match=f"hf or safetensors, not as {form}"):
        export(language_model(), form, tmp_path / "it", example_raw=TEXTS, kind="text")
    assert not (tmp_path / "it").exists()
