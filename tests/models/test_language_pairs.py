"""Encoders with decoders: rows of both, what is predicted, and the head."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from understudy.errors import ModelError
from understudy.models.language_head import head_of
from understudy.models.outputs import call
from understudy.models.taps import Stop, Tapped

from language_parts import CPU, PAIRED, PAIRS, TEXTS, language_model  # isort: skip


@pytest.mark.parametrize("family", PAIRED)
def test_decoders_predict_the_response(family: str) -> None:
    model = language_model(family, "seq2seq")
    preprocess, config = model.preprocess, model.module.config
    tokens = preprocess([PAIRS[0], ("Empty?", ""), *PAIRS[1:]], CPU)
    assert tokens.documents == 4 and not tokens.mask[1].any()
    kept = {0: PAIRS[0], 2: PAIRS[1], 3: PAIRS[2]}
    for row, (number, (prompt, response)) in enumerate(kept.items()):
        labels = tokens.labels[tokens.owners == number]
        assert preprocess.decode(labels) == response
        assert labels[-1] == preprocess.tokenizer.eos_token_id
        assert preprocess.decode(tokens["input_ids"][row]) == prompt
        ahead = tokens["decoder_input_ids"][row, : len(labels)]
        assert ahead[0] == config.decoder_start_token_id
        assert torch.equal(ahead[1:], labels[:-1])
        assert preprocess.decode(tokens.sequences[row].response) == response
    assert torch.equal(tokens.mask.sum(dim=1), torch.bincount(tokens.owners, minlength=4))
    # The loss is the one that transformers computes from the same pairs.
    wanted = torch.full(tokens.grid, -100)
    wanted.view(-1)[tokens.places] = tokens.labels
    given = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    model.module.eval()
    expected = model.module(**given, labels=wanted).loss
    own = functional.cross_entropy(tokens.predicting(model.module(**tokens).logits), tokens.labels)
    torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", PAIRED)
def test_the_head_gives_the_models_own_logits(family: str, tied: bool) -> None:
    model = language_model(family, "seq2seq", config={"tie_word_embeddings": tied})
    if family == "bart":
        model.module.final_logits_bias.normal_()
    head = head_of(model.module)
    assert head is not None
    tokens = model.preprocess(PAIRS, CPU)
    tapped = Tapped(model.module.eval(), [head.tap], stop=Stop(head.path, "input"))
    with torch.no_grad():
        states = call(tapped, tokens)[1][head.tap]
        tapped.close()
        logits = model.module(**tokens).logits
    assert (head.head().bias is not None) is (family == "bart")
    torch.testing.assert_close(head.head().logits(states), logits, rtol=1e-5, atol=1e-5)


def test_long_texts_are_cut_on_their_right_or_refused() -> None:
    model = language_model("bart", "seq2seq", preprocess={"max_length": 8})
    raw = [("0123456789", "abcdefghij"), ("short", "yes")]
    first, second = model.preprocess.sequences_of(raw)
    decode = model.preprocess.decode
    assert (decode(first.prompt), decode(first.response)) == ("012345", "abcdefg")
    end = model.preprocess.tokenizer.eos_token_id
    assert first.prompt[-1] == end and first.response[-1] != end and second.response[-1] == end
    assert len(model.preprocess.notes()) == 2
    strict = language_model("bart", "seq2seq", preprocess={"max_length": 8, "long": "refuse"})
    with pytest.raises(ModelError, match="Document 1 of the batch has a text of 12 tokens"):
        strict.preprocess(raw[::-1], CPU)
    with pytest.raises(ModelError, match="cut or refused, not split"):
        language_model("bart", "seq2seq", preprocess={"long": "split"})
    with pytest.raises(ModelError, match="need pairs of a prompt and a response"):
        model.preprocess(TEXTS, CPU)
