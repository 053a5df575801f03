"""Documents of a causal language model: where they begin and end, what is predicted, how they share rows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from understudy.errors import ModelError, UnknownName
from understudy.models.language_preprocess import CausalPreprocess
from understudy.models.language_tokenizer import byte_tokenizer, train_language_tokenizer
from understudy.models.tokenizer import tokenizer_fingerprint
from understudy.models.tokens import TokenSequence

from language_parts import CPU, PAIRS, TEXTS  # isort: skip

TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}"
    "{% if turn.role == 'assistant' %}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def laid(raw: list, **settings: object):  # type: ignore[no-untyped-def, type-arg]
    preprocess = CausalPreprocess(byte_tokenizer(), **{"max_length": 64, **settings})  # type: ignore[arg-type]
    return preprocess, preprocess(raw, CPU)


def test_a_byte_tokenizer_gives_every_text_back() -> None:
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 260
    text = "Größe: 5 €,\tok\x00 \u4f60 <eos is plain"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and len(ids) == 1 + len(text.encode())
    assert [each - 4 for each in ids[1:]] == list(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_equal_settings_and_texts_give_equal_tokenizers() -> None:
    one, two = (train_language_tokenizer(TEXTS * 3, 300) for _ in range(2))
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(two)
    assert len(one) <= 300 and len(one) > 260
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(byte_tokenizer())
    text = "The cat  sat\n"
    assert one.decode(one(text)["input_ids"], skip_special_tokens=True) == text
    assert one.pad_token_id != one.eos_token_id
    pieces = train_language_tokenizer(TEXTS, 300, "wordpiece")
    ids = CausalPreprocess(pieces, 64).sequences_of(["The cat"])[0].ids.tolist()
    assert ids[0] == pieces.bos_token_id and ids.count(pieces.eos_token_id) == 1
    with pytest.raises(ModelError, match="already take 260"):
        train_language_tokenizer(TEXTS, 100)


@pytest.mark.parametrize("packing", ["padded", "positions", "mask", "bias"])
def test_every_token_but_the_first_is_predicted_once(packing: str) -> None:
    preprocess, tokens = laid(TEXTS, packing=packing)
    end = preprocess.tokenizer.eos_token_id
    flat = tokens["input_ids"].flatten()
    for number, text in enumerate(TEXTS):
        own = tokens.labels[tokens.owners == number].tolist()
        assert own == ([*(byte + 4 for byte in text.encode()), end] if text else [])
    assert torch.equal(flat[tokens.places + 1], tokens.labels)
    assert (tokens.owners.diff() >= 0).all()
    assert tokens.documents == len(TEXTS) and not tokens.mask[1].any()
    assert int(tokens.mask.sum()) == len(tokens.labels)
    for number, text in enumerate(TEXTS):
        if text:
            count = len(text.encode()) + 2
            read = flat[tokens.elements[number, :count]].tolist()
            assert read == [1, *(byte + 4 for byte in text.encode()), end]
    if packing != "padded":
        assert tokens.grid[0] < len(tokens.sequences)
    assert preprocess.notes() == [
        "1 of 4 documents without a token of their own, which are left out.",
        "1 of 4 documents longer than a row, which were split into windows.",
    ]


def test_what_is_predicted_does_not_depend_on_rows() -> None:
    _, short = laid(TEXTS, max_length=16)
    _, packed = laid(TEXTS, max_length=48, packing="positions")
    _, whole = laid(TEXTS, max_length=1000, dynamic=False)
    assert whole.grid == (3, 1000)
    for other in (short, packed):
        assert torch.equal(other.labels, whole.labels)
        assert torch.equal(other.owners, whole.owners)
        assert torch.equal(other.mask, whole.mask)
        ids = other.by_document(other["input_ids"].unsqueeze(2)).squeeze(2)
        assert torch.equal(
            ids[whole.mask],
            whole.by_document(whole["input_ids"].unsqueeze(2)).squeeze(2)[whole.mask],
        )


def test_of_a_pair_only_the_response_is_predicted() -> None:
    preprocess, tokens = laid(PAIRS, packing="positions")
    end = preprocess.tokenizer.eos_token_id
    for number, (prompt, response) in enumerate(PAIRS):
        own = tokens.labels[tokens.owners == number]
        assert own.tolist() == [*(byte + 4 for byte in response.encode()), end]
        sequence = tokens.sequences[number]
        assert preprocess.decode(sequence.prompt) == prompt
        assert preprocess.decode(sequence.response) == response
    assert int(tokens.mask.sum()) == len(tokens.labels)


def test_the_end_is_learnt_where_it_is_the_padding_token_too() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokens = CausalPreprocess(tokenizer, 64)(["abc", "a"], CPU)
    assert tokens.labels.tolist().count(tokenizer.eos_token_id) == 2
    tokenizer.pad_token = None
    assert torch.equal(CausalPreprocess(tokenizer, 64)(["abc", "a"], CPU).labels, tokens.labels)


def test_a_chat_template_writes_the_turns_and_the_response_is_found_by_length() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(ModelError, match="has no chat template"):
        CausalPreprocess(tokenizer, 64, chat_template=True)
    tokenizer.chat_template = TEMPLATE
    preprocess = CausalPreprocess(tokenizer, 64, chat_template=True)
    sequence = preprocess.sequences_of(PAIRS)[1]
    assert preprocess.decode(sequence.prompt) == "<user>Say hello to the cat.<assistant>"
    # The line break behind the end is the template's own.
    assert sequence.response.tolist() == [*(b + 4 for b in b"Hello, cat!"), tokenizer.eos_token_id]
    assert preprocess.config() != CausalPreprocess(tokenizer, 64).config()
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(ModelError, match="Document 0 of the batch.*does not begin with"):
        preprocess.sequences_of(PAIRS)


def test_long_pairs_lose_the_left_of_the_prompt_and_keep_the_response() -> None:
    raw = [("0123456789", "abc"), ("01", "abcdefghijkl")]
    preprocess, tokens = laid(raw, max_length=8)
    first, second = tokens.sequences
    assert (preprocess.decode(first.prompt), preprocess.decode(first.response)) == ("789", "abc")
    assert first.ids[0] == preprocess.tokenizer.bos_token_id and len(first) == 8
    assert preprocess.decode(second.response) == "abcdefg" and second.start == 1
    assert len(preprocess.notes()) == 2
    with pytest.raises(ModelError, match="Document 0 of the batch has 15 tokens, .* holds 8"):
        laid(raw, max_length=8, long="refuse")
    with pytest.raises(ModelError, match="Document 1 of the batch has 12 tokens"):
        laid(["short", "not so short"[:10]], max_length=8, long="refuse")
    cut, tokens = laid(["0123456789"], max_length=8, long="cut")
    assert cut.decode(tokens.sequences[0].ids) == "0123456" and len(tokens.sequences) == 1


def test_a_batch_without_any_token_predicts_nothing() -> None:
    preprocess, tokens = laid(["", ""])
    assert tokens.documents == 2 and len(tokens.places) == 0 and tokens.grid == (1, 8)
    assert preprocess.notes() == [
        "2 of 2 documents without a token of their own, which are left out."
    ]
    assert len(laid([("Why?", "")])[1].places) == 0


def test_sequences_can_be_laid_out_again() -> None:
    preprocess, tokens = laid(PAIRS, packing="mask")
    written = [
        TokenSequence(torch.cat([each.prompt, torch.tensor([7, 8, 2])]), each.document, each.start)
        for each in reversed(tokens.sequences)
    ]
    again = tokens.relaid(written)
    assert again.owners.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert again.labels.tolist() == [7, 8, 2] * 3
    assert again["attention_mask"].shape == (again.grid[0], 1, again.grid[1], again.grid[1])
    assert preprocess.lay_out(written, 3, CPU).layout is preprocess


def test_a_mask_separates_sequences_and_positions_begin_again() -> None:
    _, tokens = laid(["ab", "c"], packing="mask", max_length=16, dynamic=False)
    assert tokens.grid == (1, 16)
    assert tokens["position_ids"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, *range(9)]
    allowed = tokens["attention_mask"][0, 0]
    assert allowed.any(dim=1).all() and not allowed.triu(1).any()
    bounds = [0, 4, 7, 16]
    expected = torch.zeros_like(allowed)
    for low, high in pairwise(bounds):
        expected[low:high, low:high] = True
    assert torch.equal(allowed, expected.tril())
    _, added = laid(["ab", "c"], packing="bias", max_length=16, dynamic=False)
    assert torch.equal(added["attention_mask"][0, 0] == 0, allowed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 1}, "2 tokens at least"),
        ({"long": "wrap"}, r"no way with long documents \(`long`\) called 'wrap'"),
        ({"packing": "auto"}, "decided when a model is built"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises((ModelError, UnknownName), match=message):
        laid(TEXTS, **settings)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ModelError, match="strings only, or pairs"):
        laid(["a", ("b", "c")])
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        CausalPreprocess(tokenizer, 8)
