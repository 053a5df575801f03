"""Writing with a module: what is drawn, what it depends on, and that the module is left as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small_writers as kit

from understudy.errors import ModelError, SamplingError
from understudy.models.tokenizer import train_tokenizer
from understudy.sampling import ModelSampler, Sample, Sampling
from understudy.sampling.drawing import drawn, truncated
from understudy.sampling.model import prompt_tokens

PROMPTS = [torch.tensor(ids) for ids in ([5, 6, 7, 8, 9], [10], [11, 12, 13], [14, 15, 16, 17])]
NETWORKS = {"llama": kit.llama, "gpt2": kit.gpt2}


def same(first: list[Sample], second: list[Sample]) -> bool:
    return len(first) == len(second) and all(
        one.prompt == other.prompt
        and one.finished == other.finished
        and torch.equal(one.tokens, other.tokens)
        for one, other in zip(first, second, strict=True)
    )


def model_logits(module: Any, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """Return the logits that predict each token of a response, by one plain pass."""
    with torch.no_grad():
        logits = module.eval()(torch.cat([prompt, response]).unsqueeze(0)).logits[0]
    return logits[len(prompt) - 1 : -1].float()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_drawn_does_not_depend_on_the_batch(name: str) -> None:
    module = NETWORKS[name]()
    settings = Sampling(max_new_tokens=12, samples=2, seed=3)
    together = ModelSampler(module).sample(PROMPTS, settings)
    assert [sample.prompt for sample in together] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert same(together, ModelSampler(module, batch_size=3).sample(PROMPTS, settings))
    one_by_one = [
        Sample(number, each.finished, each.ids)
        for number, prompt in enumerate(PROMPTS)
        for each in ModelSampler(module).sample([prompt], settings, keys=[number])
    ]
    assert same(together, one_by_one)
    other = ModelSampler(module).sample(PROMPTS, Sampling(max_new_tokens=12, samples=2, seed=4))
    assert not same(together, other)
    first, second = together[0], together[1]
    assert not torch.equal(first.tokens, second.tokens), "samples of a prompt are drawn anew"


@pytest.mark.parametrize("name", NETWORKS)
def test_greedy_is_the_argmax_of_a_plain_pass(name: str) -> None:
    module = NETWORKS[name]()
    for sample in ModelSampler(module).sample(PROMPTS, Sampling(max_new_tokens=9, temperature=0)):
        logits = model_logits(module, PROMPTS[sample.prompt], sample.tokens)
        assert torch.equal(logits.argmax(dim=1), sample.tokens)


@pytest.mark.parametrize("name", NETWORKS)
def test_log_probabilities_are_those_of_the_distribution_drawn_from(name: str) -> None:
    module = NETWORKS[name]()
    settings = Sampling(max_new_tokens=10, temperature=0.7, top_k=20, top_p=0.8, log_probs=True)
    for sample in ModelSampler(module, ends=[3]).sample(PROMPTS, settings):
        logits = model_logits(module, PROMPTS[sample.prompt], sample.tokens)
        expected = truncated(logits / 0.7, 20, 0.8).log_softmax(dim=1)
        chosen = expected.gather(1, sample.tokens.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(sample.log_probs, chosen, atol=1e-4, rtol=1e-4)
        assert chosen.isfinite().all()


def test_tokens_come_as_often_as_their_probability_says() -> None:
    log_probs = torch.tensor([0.5, 0.0, 0.3, 0.2]).log().expand(1000, 4)
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.bincount(drawn(log_probs, uniform), minlength=4).tolist() == [500, 0, 300, 200]
    module = kit.llama()
    prompt = torch.tensor([5, 6])
    samples = ModelSampler(module, batch_size=2000).sample(
        [prompt], Sampling(max_new_tokens=1, samples=2000)
    )
    counts = torch.bincount(torch.cat([each.tokens for each in samples]), minlength=kit.SIZE)
    expected = model_logits(module, prompt, torch.tensor([0]))[0].softmax(dim=0) * 2000
    frequent = expected > 20
    assert frequent.sum() > 10
    deviation = (counts - expected)[frequent] / expected[frequent].sqrt()
    assert deviation.abs().max() < 4.5 and deviation.square().mean() < 2


def test_truncation_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    kept = lambda *how: (truncated(scores, *how) > -torch.inf).tolist()[0]  # noqa: E731
    assert kept(None, 1.0) == [True] * 4
    assert kept(2, 1.0) == [False, True, True, False]
    assert kept(9, 1.0) == [True] * 4
    assert kept(None, 0.39) == [False, True, False, False]
    assert kept(None, 0.5) == [False, True, True, False]
    assert kept(None, 0.75) == [False, True, True, True]
    assert kept(2, 0.6) == [False, True, True, False], "p is a share of what k left"


def test_the_module_and_global_randomness_are_left_alone() -> None:
    module = kit.llama()
    module.train()
    module.model.layers[0].eval()
    modes = [part.training for part in module.modules()]
    settings = module.generation_config
    settings.repetition_penalty = 5.0
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plain = ModelSampler(kit.llama()).sample(PROMPTS, Sampling(max_new_tokens=8))
    assert same(ModelSampler(module).sample(PROMPTS, Sampling(max_new_tokens=8)), plain), (
        "the model's own generation settings play no part"
    )
    assert [part.training for part in module.modules()] == modes
    assert module.generation_config is settings and settings.repetition_penalty == 5.0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())
    torch.manual_seed(99)
    state = torch.get_rng_state()
    ModelSampler(module).sample(PROMPTS, Sampling(max_new_tokens=8))
    assert torch.equal(torch.get_rng_state(), state)


def test_flags_come_back_after_a_failure() -> None:
    module = kit.llama().train()

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = module.model.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        ModelSampler(module).sample(PROMPTS, Sampling(max_new_tokens=4))
    handle.remove()
    assert all(part.training for part in module.modules())


def test_ends_and_cuts() -> None:
    module = kit.llama()
    free = ModelSampler(module).sample(PROMPTS, Sampling(max_new_tokens=20))
    assert all(len(each.tokens) == 20 and not each.finished for each in free)
    end = int(free[0].tokens[6])
    ended = ModelSampler(module, ends=[end]).sample(PROMPTS, Sampling(max_new_tokens=20))
    for plain, cut in zip(free, ended, strict=True):
        places = (plain.tokens == end).nonzero().flatten().tolist()
        assert cut.finished == bool(places)
        assert torch.equal(cut.tokens, plain.tokens[: places[0] + 1] if places else plain.tokens)
    assert ended[0].finished


def test_stop_texts(tokenizer: Any) -> None:
    module = kit.llama()
    sampler = ModelSampler(module, tokenizer=tokenizer, ends=[])
    free = sampler.sample(PROMPTS, Sampling(max_new_tokens=20))
    tokens = free[2].tokens.tolist()
    word = next(
        tokenizer.decode(tokens[k : k + 2])
        for k in range(4, 18)
        if "�" not in tokenizer.decode(tokens[k : k + 2])
    )
    settings = Sampling(max_new_tokens=20, stop=(word,))
    stopped = sampler.sample(PROMPTS, settings)
    for plain, cut in zip(free, stopped, strict=True):
        assert torch.equal(cut.tokens, plain.tokens[: len(cut.tokens)])
        assert cut.finished == (word in tokenizer.decode(plain.tokens))
        assert word not in sampler.text_of(cut, settings)
    assert stopped[2].finished and len(stopped[2].tokens) < 20


def test_repetition_is_penalised_for_tokens_that_occurred_and_not_for_padding() -> None:
    module = kit.gpt2()
    settings = Sampling(max_new_tokens=10, temperature=0, repetition_penalty=1.8)
    together = ModelSampler(module, ends=[7]).sample(PROMPTS, settings)
    for number, prompt in enumerate(PROMPTS):
        written = prompt.tolist()
        for token in together[number].tokens.tolist():
            logits = model_logits(module, torch.tensor(written), torch.tensor([0]))[0]
            for seen in set(written):
                logits[seen] = logits[seen] / 1.8 if logits[seen] > 0 else logits[seen] * 1.8
            assert token == int(logits.argmax())
            written.append(token)


def test_padding_of_the_output_layer_is_never_drawn(tokenizer: Any) -> None:
    module = kit.llama(vocabulary=kit.SIZE + 300)
    settings = Sampling(max_new_tokens=20, samples=8, temperature=2.0)
    samples = ModelSampler(module, tokenizer=tokenizer).sample(PROMPTS, settings)
    assert max(int(each.tokens.max()) for each in samples) < len(tokenizer)
    bare = ModelSampler(module).sample(PROMPTS, settings)
    assert max(int(each.tokens.max()) for each in bare) >= len(tokenizer)


def test_an_adapter_writes_with_its_weights() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    module = peft.get_peft_model(kit.llama(), config).train()
    settings = Sampling(max_new_tokens=10)
    plain = ModelSampler(kit.llama()).sample(PROMPTS, settings)
    assert same(ModelSampler(module).sample(PROMPTS, settings), plain), "an adapter begins as 0"
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    trained = ModelSampler(module).sample(PROMPTS, settings)
    assert not same(trained, plain)
    merged = peft.get_peft_model(kit.llama(), config)
    merged.load_state_dict(module.state_dict())
    assert same(ModelSampler(merged.merge_and_unload()).sample(PROMPTS, settings), trained)
    assert module.training


def test_a_recurrent_model_writes_too() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    module = MambaForCausalLM(
        MambaConfig(vocab_size=kit.SIZE, hidden_size=32, num_hidden_layers=2, state_size=4)
    )
    settings = Sampling(max_new_tokens=6, temperature=0)
    for sample in ModelSampler(module, ends=[]).sample(PROMPTS, settings):
        logits = model_logits(module, PROMPTS[sample.prompt], sample.tokens)
        assert torch.equal(logits.argmax(dim=1), sample.tokens)


def test_prompts_that_are_texts(tokenizer: Any) -> None:
    ids = prompt_tokens(tokenizer, "the cat")
    assert ids[0] == tokenizer.cls_token_id, "what stands before a text"
    assert ids[-1] != tokenizer.sep_token_id, "a text to be continued has no end"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the cat"
    assert len(prompt_tokens(tokenizer, "")) == 1
    sampler = ModelSampler(kit.llama(), tokenizer=tokenizer)
    settings = Sampling(max_new_tokens=5)
    assert same(sampler.sample(["the cat"], settings), sampler.sample([ids], settings))
    bare = train_tokenizer(["the cat"], size=270, kind="bpe")
    bare.backend_tokenizer.post_processor = None
    assert bare.decode(prompt_tokens(bare, "the cat")) == "the cat"


def test_what_a_sampler_is_is_described(tokenizer: Any) -> None:
    found = ModelSampler(kit.llama(), tokenizer=tokenizer).describe()
    assert found == ModelSampler(kit.llama(), tokenizer=tokenizer, batch_size=2).describe()
    assert found != ModelSampler(kit.llama(1), tokenizer=tokenizer).describe()
    assert found["ends"] == [tokenizer.eos_token_id]


def test_what_cannot_be_done_is_refused() -> None:
    sampler = ModelSampler(kit.llama())
    with pytest.raises(ModelError, match="Linear cannot write text"):
        ModelSampler(torch.nn.Linear(2, 2))
    with pytest.raises(SamplingError, match="Prompt 1 has no token"):
        sampler.sample(
            [torch.tensor([1]), torch.tensor([], dtype=torch.int64)], Sampling(max_new_tokens=4)
        )
    with pytest.raises(SamplingError, match=r"has 5 tokens .* 60 .* positions for 64"):
        sampler.sample(PROMPTS, Sampling(max_new_tokens=60))
    with pytest.raises(SamplingError, match="no tokenizer"):
        sampler.sample(["a text"], Sampling(max_new_tokens=4))
    with pytest.raises(SamplingError, match="Stop texts need a tokenizer"):
        sampler.sample(PROMPTS, Sampling(max_new_tokens=4, stop=("x",)))
    with pytest.raises(SamplingError, match="4 prompts and 1 keys"):
        sampler.sample(PROMPTS, Sampling(max_new_tokens=4), keys=[1])


def test_a_mixture_needs_a_second_model_of_the_same_kind() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=kit.SIZE, hidden_size=32, num_hidden_layers=2, state_size=4)
    recurrent = MambaForCausalLM(config)
    settings = Sampling(max_new_tokens=4)
    with pytest.raises(ModelError, match="MambaForCausalLM keeps no keys and values"):
        ModelSampler(kit.llama(), mixed_with=recurrent, share=0.5).sample(PROMPTS, settings)
    with pytest.raises(ModelError, match="have 280 and 200 tokens"):
        small = kit.llama(vocabulary=200)
        ModelSampler(kit.llama(), mixed_with=small, share=0.5).sample(PROMPTS, settings)
    plain = ModelSampler(kit.llama()).sample(PROMPTS, settings)
    assert same(
        ModelSampler(kit.llama(), mixed_with=kit.gpt2(), share=0.0).sample(PROMPTS, settings), plain
    )
    with pytest.raises(ValueError, match="share"):
        ModelSampler(kit.llama(), mixed_with=kit.gpt2(), share=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": 0},
        {"repetition_penalty": 0.0},
        {"samples": 0},
        {"stop": ("",)},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
