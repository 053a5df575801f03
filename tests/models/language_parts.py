"""Tiny language models of several families, from scratch, and texts for them."""

from __future__ import annotations

from typing import Any

import torch

from understudy.models import Model, build

_ATTENDING = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _ATTENDING,
    "qwen2": {**_ATTENDING, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
}
SCALED: dict[str, dict[str, Any]] = {
    "cohere": {**_ATTENDING, "logit_scale": 0.5},
    "gemma2": {**_ATTENDING, "head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 2.0},
    "granite": {**_ATTENDING, "logits_scaling": 4.0},
}
ENCODERS: dict[str, dict[str, Any]] = {
    name: {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 66,
    }
    for name in ("bert", "roberta")
}
PAIRED: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
    },
}
EVERY = {**FAMILIES, **SCALED, **ENCODERS, **PAIRED}
TEXTS = ["The cat sat on the mat.", "", "A longer text about nothing at all, " * 4, "Short."]
PAIRS = [("What is 2 + 2?", "4"), ("Say hello to the cat.", "Hello, cat!"), ("Why?", "Because.")]
CPU = torch.device("cpu")


def language_model(family: str = "llama", task: str = "causal_lm", **keywords: Any) -> Model:
    """Build a tiny model with one token for each byte."""
    torch.manual_seed(0)
    given: dict[str, Any] = {"tokenizer": {"kind": "bytes"}, **keywords}
    config = {**EVERY[family], **given.pop("config", {})}
    if "classes" not in given:
        given["classes"] = 1
    return build(f"hf:{family}", kind="text", task=task, config=config, **given)  # type: ignore[arg-type]
