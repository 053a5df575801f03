"""Language models by name: their heads, their packing, their limits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from understudy.errors import ModelError, UnknownName
from understudy.models import build
from understudy.models.language_head import head_of
from understudy.models.language_models import language_preprocess
from understudy.models.language_tokenizer import byte_tokenizer
from understudy.models.outputs import call
from understudy.models.packing_proof import prove_packing
from understudy.models.taps import Stop, Tapped

from language_parts import CPU, FAMILIES, SCALED, TEXTS, language_model  # isort: skip

PACKED = [
    (family, attention)
    for family in ("llama", "qwen2", "gpt2", "opt")
    for attention in ("sdpa", "eager")
]


def hidden(model, tokens):  # type: ignore[no-untyped-def]
    head = head_of(model.module)
    assert head is not None
    tapped = Tapped(model.module.eval(), [head.tap], stop=Stop(head.path, "input"))
    with torch.no_grad():
        output, taps = call(tapped, tokens)
    tapped.close()
    assert output is None
    return taps[head.tap], head


@pytest.mark.parametrize(("family", "attention"), PACKED)
def test_packed_rows_give_the_hidden_states_of_separate_rows(family: str, attention: str) -> None:
    packed = language_model(family, attn_implementation=attention)
    padded = language_model(family, attn_implementation=attention, preprocess={"packing": False})
    assert packed.preprocess.config()["packing"] != "padded"
    assert packed.extra["notes"][0].startswith("Rows are packed")
    together, apart = packed.preprocess(TEXTS, CPU), padded.preprocess(TEXTS, CPU)
    assert together.grid[0] < apart.grid[0]
    assert torch.equal(together.labels, apart.labels)
    one, _ = hidden(packed, together)
    other, head = hidden(padded, apart)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(together.predicting(one), apart.predicting(other), **close)
    by_document = (together.by_document(one), apart.by_document(other))
    torch.testing.assert_close(*(each[apart.mask] for each in by_document), **close)
    logits = padded.module(**apart).logits
    found = head.head(260).logits(apart.predicting(other))
    torch.testing.assert_close(found, apart.predicting(logits)[:, :260], **close)


def test_mamba_falls_back_to_padding_with_a_note() -> None:
    model = language_model("mamba")
    assert model.preprocess.config()["packing"] == "padded"
    assert "takes no `position_ids`" in model.extra["notes"][0]
    assert "position_ids" not in model.preprocess(TEXTS, CPU)
    with pytest.raises(ModelError, match="cannot pack its rows .*position_ids"):
        language_model("mamba", preprocess={"packing": True})


def test_nothing_is_proved_by_a_model_whose_tokens_do_not_see_each_other() -> None:
    model = language_model("llama", preprocess={"packing": False})
    for layer in model.module.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
    way, why = prove_packing(model.module, model.preprocess, 64)
    assert way == "padded" and "cannot be shown" in why


def test_a_model_that_mixes_sequences_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("llama", preprocess={"packing": False})
    forward = type(model.module.model).forward

    def blind(self, *args, position_ids=None, attention_mask=None, **keywords):  # type: ignore[no-untyped-def]
        return forward(self, *args, **keywords)

    monkeypatch.setattr(type(model.module.model), "forward", blind)
    way, why = prove_packing(model.module, model.preprocess, 64)
    assert way == "padded" and "gives something else" in why


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [*FAMILIES, *SCALED])
def test_the_head_gives_the_models_own_logits(family: str, tied: bool) -> None:
    model = language_model(family, config={"tie_word_embeddings": tied}, pad_vocabulary_to=64)
    head = head_of(model.module)
    assert head is not None
    embedding = model.module.get_input_embeddings().weight
    found = head.head(len(model.preprocess.tokenizer))
    assert (found.weight is embedding) is tied
    assert len(found.weight) == 320 and found.size == 260
    # Larger weights, so that a scale or a cap shows.
    with torch.no_grad():
        found.weight.mul_(20)
    tokens = model.preprocess(TEXTS, CPU)
    states, _ = hidden(model, tokens)
    with torch.no_grad():
        own = model.module(**tokens).logits[..., :260]
    torch.testing.assert_close(found.logits(states), own, rtol=1e-5, atol=1e-5)
    if family == "gemma2":
        assert found.soft_cap == 2.0 and own.abs().max() > 0.5
    if family in ("cohere", "granite"):
        assert found.scale == {"cohere": 0.5, "granite": 0.25}[family]


def test_a_head_that_is_no_linear_map_is_not_found() -> None:
    model = language_model("llama")
    model.module.lm_head = nn.Sequential(model.module.lm_head)
    assert head_of(model.module) is None
    twisted = language_model("llama").module
    twisted.lm_head.register_forward_hook(lambda module, args, output: output.tanh() * 3 + 1)
    assert head_of(twisted) is None
    assert head_of(nn.Linear(3, 3)) is None


def test_limits_and_names_are_checked() -> None:
    model = language_model("gpt2")
    assert model.preprocess.max_length == 64 and model.parameters > 0
    assert language_model("mamba").preprocess.max_length == 1024
    with pytest.raises(ModelError, match="has positions for 64 tokens; 'max_length' is 65"):
        language_model("gpt2", preprocess={"max_length": 65})
    with pytest.raises(ModelError, match="vocab_size 100, its tokenizer has 260"):
        language_model("gpt2", config={"vocab_size": 100})
    with pytest.raises(ModelError, match="'pad_vocabulary_to' is 0"):
        language_model("gpt2", pad_vocabulary_to=0)
    with pytest.raises(UnknownName, match="'hidden_size'"):
        language_model("llama", config={"hiden_size": 3})
    with pytest.raises(UnknownName, match="pad_vocabulary_to"):
        language_model("llama", pad_vocabulary=3)
    with pytest.raises(UnknownName, match="setting of language preprocessing called 'pack'"):
        language_model("llama", preprocess={"pack": True})
    with pytest.raises(ModelError, match="'packing' is 'perhaps'"):
        language_model("llama", preprocess={"packing": "perhaps"})
    with pytest.raises(ModelError, match="needs a `tokenizer`"):
        language_model("llama", tokenizer=None)
    with pytest.raises(ModelError, match="the model embeds 100"):
        language_preprocess("m", "causal_lm", nn.Embedding(100, 4), byte_tokenizer(), None)


def test_tasks_are_checked() -> None:
    with pytest.raises(ModelError, match=r"no language model.*hf:"):
        build("kd:resnet8", classes=2, kind="text", task="causal_lm")
    with pytest.raises(ModelError, match="takes texts"):
        build("hf:llama", classes=2, kind="image", task="causal_lm", config={})
    with pytest.raises(UnknownName, match="'causal_lm'"):
        build("hf:llama", classes=2, kind="text", task="causal", config={})  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="causal_lm model type"):
        build("hf:t5", classes=2, kind="text", task="causal_lm", config={})


def test_student_and_teacher_train_equal_tokenizers() -> None:
    settings = {"tokenizer": {"train": {"size": 300}}, "texts": lambda: TEXTS * 3}
    student, teacher = language_model("llama", **settings), language_model("qwen2", **settings)
    assert student.preprocess == teacher.preprocess
    assert student.module.config.vocab_size == len(student.preprocess.tokenizer)
    assert student.module.config.eos_token_id == student.preprocess.tokenizer.eos_token_id
    assert student.module.config.use_cache is False


def test_a_pretrained_model_brings_its_tokenizer(tmp_path: Path) -> None:
    source = language_model("llama", pad_vocabulary_to=64)
    source.module.save_pretrained(tmp_path)
    source.preprocess.tokenizer.save_pretrained(tmp_path)
    model = build(f"hf:{tmp_path}", classes=3, kind="text", task="causal_lm")
    assert model.preprocess == source.preprocess
    tokens = model.preprocess(TEXTS, CPU)
    with torch.no_grad():
        both = [each.module.eval()(**tokens).logits for each in (model, source)]
    assert torch.equal(*both)
    with pytest.raises(ModelError, match="is for models from scratch"):
        build(f"hf:{tmp_path}", classes=3, kind="text", task="causal_lm", pad_vocabulary_to=64)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config.json"):
        build(f"hf:{tmp_path}", classes=3, kind="text", task="causal_lm")


def test_the_end_token_is_trained_where_it_pads() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = language_model("llama", tokenizer=tokenizer)
    assert model.module.get_input_embeddings().padding_idx is None
    tokens = model.preprocess(["abc", "a"], CPU)
    again = model.preprocess.lay_out(
        [type(s)(torch.cat([s.ids, s.ids[:2]]), s.document) for s in tokens.sequences], 2, CPU
    )
    model.module(**again).logits.sum().backward()
    gradient = model.module.get_input_embeddings().weight.grad
    assert gradient[tokenizer.eos_token_id].abs().max() > 0
