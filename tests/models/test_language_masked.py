"""Masked language models: what is taken out, from which draws, and what is predicted."""

from __future__ import annotations

import pytest
import torch

from understudy.errors import ModelError
from understudy.models.language_head import head_of
from understudy.models.language_masked import MaskedPreprocess
from understudy.models.language_tokenizer import byte_tokenizer
from understudy.models.taps import Tapped

from language_parts import CPU, ENCODERS, PAIRS, TEXTS, language_model  # isort: skip

LONG = ["abcdefghij" * 400, "0123456789" * 400]


def masked(max_length: int = 64, **settings: object) -> MaskedPreprocess:
    return MaskedPreprocess(byte_tokenizer(both_ends=True), max_length, **settings)  # type: ignore[arg-type]


def test_tokens_are_taken_out_in_the_published_shares() -> None:
    preprocess = masked(8192)
    tokens = preprocess(LONG, CPU, torch.tensor([5, 9]), torch.tensor([0, 0]))
    read = tokens["input_ids"].flatten()[tokens.places]
    share = len(tokens.places) / 8000
    hidden = (read == preprocess.tokenizer.mask_token_id).float().mean()
    kept = (read == tokens.labels).float().mean()
    # Four standard deviations; a random token is the right one in 1 of 256 cases.
    assert abs(share - 0.15) < 4 * (0.15 * 0.85 / 8000) ** 0.5
    assert abs(hidden - 0.8) < 4 * (0.8 * 0.2 / 1200) ** 0.5
    assert abs(kept - 0.1) < 4 * (0.1 * 0.9 / 1200) ** 0.5 + 0.1 / 256
    # Wherever nothing is predicted, the text is read as it is.
    original = torch.cat([sequence.ids for sequence in tokens.sequences])
    flat = tokens["input_ids"].flatten()[tokens["attention_mask"].flatten() == 1]
    assert (flat != original).sum() == (read != tokens.labels).sum()
    assert not torch.isin(tokens.labels, torch.tensor(preprocess.tokenizer.all_special_ids)).any()


def test_draws_depend_on_document_and_view_alone() -> None:
    preprocess = masked(5000)
    ids = torch.tensor([7, 3])

    def drawn(raw: list[str], own: torch.Tensor, view: int, document: int) -> list[tuple[int, int]]:
        tokens = preprocess(raw, CPU, own, torch.full_like(own, view))
        chosen = tokens.owners == document
        within = tokens.places[chosen] % tokens.grid[1]
        return list(zip(within.tolist(), tokens.labels[chosen].tolist(), strict=True))

    alone = drawn(LONG[1:], ids[1:], 2, 0)
    assert drawn(LONG, ids, 2, 1) == alone == drawn(["x", LONG[1]], ids, 2, 1)
    assert drawn(LONG, ids, 3, 1) != alone
    assert drawn(LONG, torch.tensor([7, 4]), 2, 1) != alone
    again = masked(5000, seed=1)(LONG[1:], CPU, ids[1:], torch.tensor([2]))
    assert again.places.tolist() != [place for place, _ in alone]
    one, two = (preprocess(LONG, CPU)["input_ids"] for _ in range(2))
    assert torch.equal(one, two) and preprocess.draws


def test_every_document_gives_a_token_and_windows_are_one_document() -> None:
    preprocess = masked(16)
    tokens = preprocess([*TEXTS, "x"], CPU)
    assert set(tokens.owners.tolist()) == {0, 2, 3, 4}
    assert (tokens.owners.diff() >= 0).all()
    begin, end = preprocess.tokenizer.bos_token_id, preprocess.tokenizer.eos_token_id
    for sequence in tokens.sequences:
        assert sequence.ids[0] == begin and sequence.ids[-1] == end and len(sequence) <= 16
    windows = [s.ids[1:-1] for s in tokens.sequences if s.document == 2]
    assert len(windows) > 1 and preprocess.decode(torch.cat(windows)) == TEXTS[2]
    assert tokens.mask.sum(dim=1).tolist() == [len(text.encode()) for text in [*TEXTS, "x"]]
    assert len(preprocess(["", ""], CPU).places) == 0
    with pytest.raises(ModelError, match=r"Document 2 of the batch has 146 tokens, .* holds 16"):
        masked(16, long="refuse")(["a", "b", TEXTS[2]], CPU)


def test_of_a_pair_the_second_text_is_predicted() -> None:
    preprocess = masked(64, token_types=True, share=0.5)
    tokens = preprocess(PAIRS, CPU)
    for number, (first, second) in enumerate(PAIRS):
        sequence = tokens.sequences[number]
        assert preprocess.decode(sequence.prompt) == first
        assert preprocess.decode(sequence.response) == second
        types = tokens["token_type_ids"][number]
        assert int(types.sum()) == len(second) + 1 and int(types[sequence.start :].min()) == 0
        assert not types[: sequence.start].any()
        within = tokens.places[tokens.owners == number] - number * tokens.grid[1]
        assert (within >= sequence.start).all() and (within < len(sequence) - 1).all()
    cut = masked(12)
    sequence = cut.sequences_of([("0123456789", "abcd")])[0]
    assert cut.decode(sequence.prompt) == "56789" and cut.decode(sequence.response) == "abcd"


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_are_built_with_their_heads(family: str) -> None:
    model = language_model(family, "masked_lm", pad_vocabulary_to=64)
    assert model.extra["task"] == "masked_lm"
    head = head_of(model.module)
    assert head is not None
    with torch.no_grad():
        head.head().bias.normal_()
    assert head_of(model.module) is not None
    tokens = model.preprocess(TEXTS, CPU)
    states: list[torch.Tensor] = []
    handle = model.module.get_submodule(head.path).register_forward_pre_hook(
        lambda module, args: states.append(args[0])
    )
    with torch.no_grad():
        logits = model.module.eval()(**tokens).logits
    handle.remove()
    found = head.head(260).logits(tokens.predicting(states[0]))
    torch.testing.assert_close(found, tokens.predicting(logits)[:, :260], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ENCODERS)
def test_packed_rows_give_the_hidden_states_of_separate_rows(family: str, attention: str) -> None:
    packed, padded = (
        language_model(
            family,
            "masked_lm",
            attn_implementation=attention,
            preprocess={"packing": packing},
            config={"max_position_embeddings": 256},
        )
        for packing in (True, False)
    )
    assert packed.preprocess.config()["packing"] == ("mask" if attention == "sdpa" else "bias")
    assert packed.extra["notes"][0].startswith("Rows are packed")
    ids = torch.arange(len(TEXTS))
    together, apart = (each.preprocess(TEXTS, CPU, ids, ids) for each in (packed, padded))
    assert together.grid[0] < apart.grid[0]
    assert torch.equal(together.labels, apart.labels)
    assert torch.equal(together.owners, apart.owners) and torch.equal(together.mask, apart.mask)
    head = head_of(packed.module)
    assert head is not None
    states = []
    for model, tokens in ((packed, together), (padded, apart)):
        tapped = Tapped(model.module.eval(), [head.tap])
        with torch.no_grad():
            states.append(tapped(**tokens)[1][head.tap])
        tapped.close()
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(together.predicting(states[0]), apart.predicting(states[1]), **close)
    mask = apart.mask
    torch.testing.assert_close(
        together.by_document(states[0])[mask], apart.by_document(states[1])[mask], **close
    )


def test_an_encoder_that_mixes_sequences_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("bert", "masked_lm", preprocess={"packing": False})
    forward = type(model.module.bert).forward

    def blind(self, *args, position_ids=None, attention_mask=None, **keywords):  # type: ignore[no-untyped-def]
        return forward(self, *args, **keywords)

    monkeypatch.setattr(type(model.module.bert), "forward", blind)
    again = language_model("bert", "masked_lm")
    assert again.preprocess.config()["packing"] == "padded"
    assert "gives something else" in again.extra["notes"][0]
    with pytest.raises(ModelError, match="cannot pack its rows"):
        language_model("bert", "masked_lm", preprocess={"packing": True})


def test_settings_are_checked() -> None:
    with pytest.raises(ModelError, match="at least 5"):
        masked(4)
    with pytest.raises(ModelError, match="'share' is 1.5"):
        masked(share=1.5)
    bare = byte_tokenizer()
    bare.mask_token = None
    with pytest.raises(ModelError, match="no mask token"):
        MaskedPreprocess(bare, 16)
    with pytest.raises(ModelError, match="writes nothing between two texts"):
        MaskedPreprocess(byte_tokenizer(), 16)
