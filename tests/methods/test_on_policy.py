"""GKD, MiniLLM, KDRL and DPO against plain formulas, one response after the other, on what the models write."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))
from language_step import (
    CPU,
    IDS,
    PAIRS,
    Wired,
    language_model,
    response_log_probs,
    response_logits,
    wired,
)

from understudy import objectives
from understudy.data.batch import Batch
from understudy.errors import TrainingError, UnderstudyError
from understudy.methods import DPO, GKD, KDRL, Method, MiniLLM
from understudy.models.tokens import TokenSequence
from understudy.sampling import ModelSampler, Sampling
from understudy.seeding import derive

TOKENS = 6
EVERY = {
    "gkd": lambda: GKD(share=1.0, max_new_tokens=TOKENS),
    "minillm": lambda: MiniLLM(max_new_tokens=TOKENS),
    "kdrl": lambda: KDRL(beta=0.2, group=3, max_new_tokens=TOKENS),
    "dpo": lambda: DPO(max_new_tokens=TOKENS),
}
every = pytest.mark.parametrize("name", EVERY)


def sequences(batch: Batch, role: str = "student") -> tuple[TokenSequence, ...]:
    return batch.inputs[role].sequences


def same(first: Batch, second: Batch) -> bool:
    ours, theirs = sequences(first), sequences(second)
    return len(ours) == len(theirs) and all(
        torch.equal(one.ids, other.ids) for one, other in zip(ours, theirs, strict=True)
    )


def gradients(given: Wired, batch: Batch, share: float = 1.0) -> dict[str, torch.Tensor]:
    given.student.module.zero_grad()
    loss = given.method.loss(given.step(batch))
    (share * (sum(loss.values()) if isinstance(loss, dict) else loss)).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in given.student.module.named_parameters()
        if parameter.grad is not None
    }


# What all have in common


@every
def test_both_models_see_what_is_written_behind_the_same_prompts(name: str) -> None:
    given = wired(EVERY[name]())
    batch = given.batch()
    rolled = given.method.inputs(batch)
    count = {"kdrl": 3, "dpo": 2}.get(name, 1)
    ours, theirs = sequences(rolled), sequences(rolled, "teacher")
    assert len(ours) == len(theirs) == count * len(PAIRS)
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        before = sequences(batch)[place // count]
        assert torch.equal(one.prompt, before.prompt) and one.document == before.document
        assert torch.equal(one.ids, other.ids) and one.start == other.start
        assert 1 <= len(one.response) <= TOKENS
    assert torch.equal(rolled.index, batch.index)
    assert given.method.inputs(batch) is rolled, "written to once"
    expected = sum(len(each.response) for each in ours)
    assert given.method.valid(batch) == (len(PAIRS) if name == "dpo" else expected)


@every
def test_what_is_written_depends_on_seed_step_and_sample_alone(name: str) -> None:
    given, other = wired(EVERY[name]()), wired(EVERY[name]())
    whole = given.method.inputs(given.batch())
    count = len(sequences(whole)) // len(PAIRS)
    part = other.method.inputs(other.batch([3, 1]))
    for place, chosen in enumerate((3, 1)):
        for k in range(count):
            ours = sequences(part)[place * count + k].ids
            assert torch.equal(ours, sequences(whole)[chosen * count + k].ids)
    step = given.step(given.batch())
    given.method.after_step(step)
    given.method.after_step(step)
    assert int(given.method.counter) == 1, "parts of a batch count once"
    later = given.method.inputs(given.batch())
    assert not same(whole, later)
    resumed = wired(EVERY[name]())
    resumed.method.load_state_dict(given.method.state_dict())
    assert same(later, resumed.method.inputs(resumed.batch()))


@pytest.mark.parametrize("name", ["gkd", "kdrl", "dpo"])  # what MiniLLM whitens over, its card says
def test_splitting_a_batch_does_not_change_the_gradient(name: str) -> None:
    given = wired(EVERY[name]())
    method = given.method
    whole = gradients(given, given.batch())
    parts = [given.batch([0, 1]), given.batch([2, 3, 4])]
    counts = [float(method.valid(part)) for part in parts]
    summed: dict[str, torch.Tensor] = {}
    for part, count in zip(parts, counts, strict=True):
        for key, value in gradients(given, part, count / sum(counts)).items():
            summed[key] = summed.get(key, torch.zeros_like(value)) + value
    assert whole.keys() == summed.keys()
    for key, value in whole.items():
        torch.testing.assert_close(summed[key], value, atol=2e-6, rtol=1e-3)


@every
def test_writing_under_autocast_leaves_the_gradients(name: str) -> None:
    given = wired(EVERY[name]())
    with torch.autocast("cpu", torch.bfloat16):
        step = given.step(given.batch())
        loss = given.method.loss(step)
    (sum(loss.values()) if isinstance(loss, dict) else loss).backward()
    for key, parameter in given.student.module.named_parameters():
        assert parameter.grad is not None, key
    weight = given.student.module.model.layers[0].mlp.up_proj.weight
    assert name == "dpo" or weight.grad.abs().sum() > 0


@every
def test_rows_that_are_too_short(name: str) -> None:
    given = wired(EVERY[name](), positions=10)
    rolled = given.method.inputs(given.batch())
    assert max(len(each) for each in sequences(rolled)) == 10
    free = wired(EVERY[name]()).method.inputs(given.batch())
    for short, whole in zip(sequences(rolled), sequences(free), strict=True):
        assert torch.equal(short.ids, whole.ids[: len(short)]), "cut, and otherwise the same"
    full = wired(EVERY[name](), positions=7)
    with pytest.raises(TrainingError, match=r"prompt of sample 3 leaves no room .* 7 tokens"):
        batch = full.batch([0])
        cut = tuple(replace(each, start=7, ids=each.ids[:7]) for each in sequences(batch))
        inputs = {role: replace(each, sequences=cut) for role, each in batch.inputs.items()}
        full.method.inputs(replace(batch, inputs=inputs))


@every
def test_what_cannot_be_written_to_is_refused(name: str) -> None:
    given = wired(EVERY[name]())
    texts = given.student.preprocess(["one text"], CPU)
    given.wiring.student.inputs = texts
    with pytest.raises(UnderstudyError, match="samples that are one text"):
        EVERY[name]().wire(given.wiring)
    with pytest.raises(TrainingError, match="sample 3 has no prompt"):
        given.method.inputs(replace(given.batch([0]), inputs={"student": texts, "teacher": texts}))
    stored = {"student": given.batch([0]).inputs["student"], "teacher": {"logits": torch.zeros(1)}}
    with pytest.raises(TrainingError, match="has to be a live model"):
        given.method.inputs(replace(given.batch([0]), inputs=stored))
    given.wiring.student.inputs = torch.zeros(2, 3)
    with pytest.raises(UnderstudyError, match="task: causal_lm"):
        EVERY[name]().wire(given.wiring)


@every
def test_only_one_method_of_a_stage_writes(name: str) -> None:
    given, second = wired(GKD(share=1.0, max_new_tokens=TOKENS)), wired(EVERY[name]())
    with pytest.raises(TrainingError, match=f"'{name}' writes responses, and another method"):
        second.method.inputs(given.method.inputs(given.batch()))


# GKD


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_gkd_is_the_divergence_on_the_students_text(divergence: str) -> None:
    given = wired(GKD(share=1.0, divergence=divergence, beta=0.3, max_new_tokens=TOKENS))
    step = given.step(given.batch())
    loss = given.method.loss(step)
    values = []
    for sequence in sequences(step.batch):
        q = response_logits(given.student.module, sequence).log_softmax(dim=1)[:, :260]
        p = response_logits(given.teacher.module, sequence).log_softmax(dim=1)[:, :260]
        if divergence == "forward_kl":
            values.append((p.exp() * (p - q)).sum(dim=1))
        elif divergence == "reverse_kl":
            values.append((q.exp() * (q - p)).sum(dim=1))
        else:
            m = (0.3 * p.exp() + 0.7 * q.exp()).log()
            values.append((0.3 * p.exp() * (p - m) + 0.7 * q.exp() * (q - m)).sum(dim=1))
    torch.testing.assert_close(loss, torch.cat(values).mean(), atol=1e-5, rtol=1e-4)


def test_gkd_writes_with_the_settings_it_was_given() -> None:
    method = GKD(share=1.0, max_new_tokens=TOKENS, sampling_temperature=0.5, top_p=0.8)
    given = wired(method)
    found = sequences(method.inputs(given.batch()))
    sampler = ModelSampler(given.student.module, tokenizer=given.student.preprocess.tokenizer)
    settings = Sampling(TOKENS, 0.5, 0.8, seed=derive(7, "responses", 0))
    prompts = [each.prompt for each in sequences(given.batch())]
    expected = sampler.sample(prompts, settings, IDS)
    assert all(
        torch.equal(one.response, other.tokens) for one, other in zip(found, expected, strict=True)
    )


def test_gkd_coin() -> None:
    given = wired(GKD(share=0.3, max_new_tokens=TOKENS))
    thrown = [given.method.student_writes(number) for number in range(2000)]
    assert 0.26 < sum(thrown) / 2000 < 0.34
    again = wired(GKD(share=0.3, max_new_tokens=TOKENS))
    assert thrown == [again.method.student_writes(number) for number in range(2000)]
    batch = given.batch()
    given.method.counter.fill_(thrown.index(False))
    assert given.method.inputs(batch) is batch, "the data's own responses"
    given.method.after_step(given.step(batch))
    given.method.counter.fill_(thrown.index(True))
    assert given.method.inputs(batch) is not batch
    never, always = wired(GKD(share=0.0)), wired(GKD(share=1.0))
    assert not any(never.method.student_writes(k) for k in range(50))
    assert all(always.method.student_writes(k) for k in range(50))


def test_gkd_with_a_teacher_that_writes() -> None:
    given = wired(GKD(share=0.0, seq_kd=True, max_new_tokens=TOKENS))
    rolled = given.method.inputs(given.batch())
    sampler = ModelSampler(given.teacher.module, tokenizer=given.teacher.preprocess.tokenizer)
    settings = Sampling(TOKENS, 0.9, seed=derive(7, "responses", 0))
    expected = sampler.sample([each.prompt for each in sequences(given.batch())], settings, IDS)
    for one, other in zip(sequences(rolled), expected, strict=True):
        assert torch.equal(one.response, other.tokens)


def test_gkd_brings_the_student_to_the_teacher_on_its_own_text() -> None:
    given = wired(GKD(share=1.0, divergence="reverse_kl", max_new_tokens=TOKENS))
    optimizer = torch.optim.Adam(given.student.module.parameters(), 3e-3)
    values = []
    for _ in range(60):
        step = given.step(given.batch())
        loss = given.method.loss(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        given.method.after_step(step)
        values.append(loss.item())
    assert sum(values[-10:]) < 0.7 * sum(values[:10])


# MiniLLM


@pytest.mark.parametrize(
    ("share", "length", "exact", "official", "own"),
    [
        (0.0, "tokens", 0.7, False, False),
        (0.2, "tokens", 0.7, False, False),
        (0.2, "none", 0.0, False, True),
        (0.2, "tokens", 1.0, True, True),
    ],
)
def test_minillm_is_the_objective_on_all_logits(
    share: float, length: str, exact: float, official: bool, own: bool
) -> None:
    method = MiniLLM(
        share=share, length=length, exact=exact, official=official, max_new_tokens=TOKENS
    )
    given = wired(method)
    step = given.step(given.batch())
    found = given.method.loss(step)
    rows = sequences(step.batch)
    longest = max(len(each.response) for each in rows)

    def padded(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(
            [F.pad(v, (*[0, 0] * (v.dim() - 1), 0, longest - len(v))) for v in values]
        )

    student = padded([response_logits(given.student.module, each) for each in rows])
    with torch.no_grad():
        teacher = padded([response_logits(given.teacher.module, each) for each in rows])
    tokens = padded([each.response for each in rows])
    mask = padded([torch.ones(len(each.response)) for each in rows])
    q = objectives.token_log_probabilities(student, tokens).detach()
    p = objectives.token_log_probabilities(teacher, tokens)
    advantages = objectives.minillm_advantages(
        q, p, length=length, own=own, weight=mask, official=official
    )
    importance = objectives.teacher_mixed_importance(q, p, share=share) if share else None
    expected = objectives.minillm(
        student, teacher, tokens, advantages, importance=importance, exact=exact, weight=mask
    )
    torch.testing.assert_close(sum(found.values()), expected, atol=1e-5, rtol=1e-4)
    ours = torch.autograd.grad(sum(found.values()), given.student.module.lm_head.weight)
    theirs = torch.autograd.grad(expected, given.student.module.lm_head.weight)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_minillm_draws_from_the_mixture() -> None:
    given = wired(MiniLLM(share=0.4, max_new_tokens=TOKENS))
    alone = wired(MiniLLM(share=0.0, max_new_tokens=TOKENS))
    assert not same(given.method.inputs(given.batch()), alone.method.inputs(alone.batch()))
    sampler = ModelSampler(
        given.student.module, ends=[2], vocabulary=260, mixed_with=given.teacher.module, share=0.4
    )
    prompts = [each.prompt for each in sequences(given.batch())]
    for temperature in (1.0, 0.7):
        settings = Sampling(TOKENS, temperature, log_probs=True)
        for sample in sampler.sample(prompts, settings):
            prompt = prompts[sample.prompt]
            sequence = TokenSequence(torch.cat([prompt, sample.tokens]), 0, len(prompt))
            with torch.no_grad():
                q, p = (
                    (response_logits(model.module, sequence) / temperature).softmax(dim=1)
                    for model in (given.student, given.teacher)
                )
            mixed = (0.6 * q + 0.4 * p).log().gather(1, sample.tokens.unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(sample.log_probs, mixed, atol=1e-4, rtol=1e-4)


# KDRL


def rewarded(method: KDRL) -> tuple[Wired, Batch]:
    """Return a batch in which the second response to every prompt but the last is the right answer."""
    given = wired(method)
    decode = given.student.preprocess.decode
    group = method.group
    written = sequences(given.method.inputs(given.batch()))
    method.after_step(given.step(given.batch()))
    method.counter.fill_(0)
    pairs = [
        (prompt, decode(written[place * group + 1].response))
        for place, (prompt, _) in enumerate(PAIRS)
    ]
    assert all(answer.strip() for _, answer in pairs[:-1])
    pairs[-1] = (pairs[-1][0], "never")
    return given, given.batch(pairs=pairs)


@pytest.mark.parametrize("masking", ["none", "response", "group"])
@pytest.mark.parametrize("end", [True, False])
def test_kdrl_by_hand(masking: str, end: bool) -> None:
    given, batch = rewarded(KDRL(0.2, masking=masking, group=3, end=end, max_new_tokens=TOKENS))
    step = given.step(batch)
    found = given.method.loss(step)
    rows = sequences(step.batch)
    decode = given.student.preprocess.decode
    expected = [decode(each.response).strip() for each in sequences(batch)]
    rewards = torch.tensor(
        [float(decode(each.response).strip() == expected[k // 3]) for k, each in enumerate(rows)]
    ).view(-1, 3)
    assert rewards[:-1, 1].tolist() == [1.0] * (len(PAIRS) - 1) and rewards[-1].sum() == 0
    total, tokens = torch.zeros(()), 0
    for k, each in enumerate(rows):
        group = rewards[k // 3]
        advantage = torch.zeros(())
        if group.max() > group.min():
            advantage = (rewards[k // 3, k % 3] - group.mean()) / group.std(correction=0)
        q = response_log_probs(given.student.module, each)
        with torch.no_grad():
            ratio = response_log_probs(given.teacher.module, each) - q
        kept = torch.ones(len(q))
        if masking == "response":
            kept *= 1 - rewards[k // 3, k % 3]
        if masking == "group":
            kept *= float(group.sum() == 0)
        if not end:
            kept *= (each.response != 2).float()
        # The gradient of -A * rho at rho = 1 and of beta * R^2 / 2.
        total = total - (advantage * q).sum() - 0.2 * (kept * ratio * q).sum()
        tokens += len(q)
    weight = given.student.module.lm_head.weight
    ours = torch.autograd.grad(found, weight)
    theirs = torch.autograd.grad(total / tokens, weight)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_kdrl_without_a_teacher_is_grpo() -> None:
    method = KDRL(beta=0.0, group=3, max_new_tokens=TOKENS)
    assert not method.needs_teacher
    given, batch = rewarded(method)
    batch = replace(batch, inputs={"student": batch.inputs["student"]})
    step = given.step(batch)
    loss = method.loss(step)
    assert torch.autograd.grad(loss, given.student.module.lm_head.weight)[0].abs().sum() > 0


def test_kdrl_anneals_by_the_steps_it_took() -> None:
    method = KDRL(0.2, decrement=0.05, floor=0.08, group=2, max_new_tokens=TOKENS)
    given = wired(method)
    batch = given.batch(pairs=[(prompt, "never") for prompt, _ in PAIRS])
    values = []
    for number in (0, 1, 2, 9):
        method.counter.fill_(number)
        step = given.step(batch)
        whole = wired(KDRL(1.0, group=2, max_new_tokens=TOKENS))
        whole.method.counter.fill_(number)
        reference = whole.method.loss(whole.step(batch))
        values.append((method.loss(step) / reference).item())
        method.after_step(step)
    assert values == pytest.approx([0.2, 0.15, 0.1, 0.08], rel=1e-4)


def test_kdrl_names_a_sample_without_an_answer() -> None:
    given = wired(KDRL(verifier="boxed", group=2, max_new_tokens=TOKENS))
    with pytest.raises(TrainingError, match=r"sample 3 has no answer in the form 'boxed': '47'"):
        given.method.inputs(given.batch())


@pytest.mark.parametrize(
    ("verifier", "reference", "wrong"),
    [
        ("whole", " 47", "it is 47"),
        ("boxed", "so \\boxed{47}", "so 47"),
        ("gsm8k", "12 + 35 #### 47", "47"),
        ("number", "that makes 47.", "that makes 47, or 48"),
        ("choice", "the answer is (B)", "the answer is (C)"),
    ],
)
def test_kdrl_rewards_by_the_verifier(verifier: str, reference: str, wrong: str) -> None:
    given = wired(KDRL(verifier=verifier, group=2, max_new_tokens=TOKENS))
    texts = iter([reference, wrong] * 2)
    given.method._layout = Scripted(given.method._layout, [reference], texts)
    batch = given.batch([0])
    given.method.inputs(batch)
    ((_, rewards),) = given.method._rewards
    assert rewards.tolist() == [[1.0, 0.0]]


class Scripted:
    """A layout that reads given texts: first those of the data, then what was written."""

    def __init__(self, layout: object, data: list[str], written: object) -> None:
        self._layout, self._texts = layout, iter([*data, *written])

    def __getattr__(self, name: str) -> object:
        return getattr(self._layout, name)

    def decode(self, ids: torch.Tensor) -> str:
        return next(self._texts)


# DPO


@pytest.mark.parametrize("form", ["sigmoid", "ipo", "hinge"])
@pytest.mark.parametrize("preferred", ["data", "teacher", "ranked"])
@pytest.mark.parametrize("reference", ["student", "teacher"])
def test_dpo_by_hand(form: str, preferred: str, reference: str) -> None:
    method = DPO(preferred, reference, form, beta=0.3, max_new_tokens=TOKENS)
    given = wired(method)
    assert method.needs_teacher == (reference == "teacher" or preferred == "ranked")
    with torch.no_grad():
        for parameter in given.student.module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    batch = given.batch()
    step = given.step(batch)
    rows = sequences(step.batch)
    if preferred == "data":
        assert all(
            torch.equal(rows[2 * k].ids, each.ids) for k, each in enumerate(sequences(batch))
        )
    before = method.before if reference == "student" else given.teacher.module

    def score(module: torch.nn.Module, sequence: TokenSequence, mean: bool) -> torch.Tensor:
        values = response_log_probs(module, sequence)
        return values.mean() if mean else values.sum()

    gaps = []
    for k in range(len(PAIRS)):
        pair = [rows[2 * k], rows[2 * k + 1]]
        if preferred == "ranked":
            pair.sort(key=lambda each: -score(given.teacher.module, each, True).item())
        one, other = (
            score(given.student.module, each, form == "ipo") - score(before, each, form == "ipo")
            for each in pair
        )
        gaps.append(one - other)
    h = torch.stack(gaps)
    expected = {
        "sigmoid": -F.logsigmoid(0.3 * h),
        "ipo": (h - 1 / 0.6).square(),
        "hinge": (1 - 0.3 * h).clamp_min(0),
    }[form].mean()
    torch.testing.assert_close(method.loss(step), expected, atol=1e-4, rtol=1e-4)


def test_dpo_keeps_the_student_of_the_beginning_in_its_state() -> None:
    given = wired(DPO(max_new_tokens=TOKENS))
    loss = given.method.loss(given.step(given.batch()))
    torch.testing.assert_close(loss, torch.tensor(2.0).log(), atol=1e-5, rtol=1e-5)
    other = wired(DPO(max_new_tokens=TOKENS), student=language_model(5, 16))
    other.method.load_state_dict(given.method.state_dict())
    weights = dict(given.student.module.named_parameters())
    for name, parameter in other.method.before.named_parameters():
        assert torch.equal(parameter, weights[name]) and not parameter.requires_grad


# Settings


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GKD(share=1.5), "share"),
        (lambda: GKD(divergence="other"), "divergence"),
        (lambda: GKD(max_new_tokens=0), "max_new_tokens"),
        (lambda: MiniLLM(share=1.0), "share"),
        (lambda: MiniLLM(length="other"), "length"),
        (lambda: MiniLLM(clip=0.0), "clip"),
        (lambda: MiniLLM(exact=-1.0), "exact"),
        (lambda: KDRL(group=1), "group"),
        (lambda: KDRL(masking="other"), "level"),
        (lambda: KDRL(estimator="k4"), "estimator"),
        (lambda: KDRL(verifier="other"), "verifier"),
        (lambda: KDRL(beta=0.1, floor=0.2), "floor"),
        (lambda: DPO(preferred="other"), "preferred"),
        (lambda: DPO(beta=0.0), "beta"),
        (lambda: DPO(form="ipo", label_smoothing=0.1), "label_smoothing"),
    ],
)
def test_wrong_settings(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        assert isinstance(make(), Method)  # type: ignore[operator]


# Learning


def trained(given: Wired, steps: int, rate: float) -> list[float]:
    """Train and return the divergence KL(q, p) on the student's text, or the share of right answers, step by step."""
    optimizer = torch.optim.Adam(given.student.module.parameters(), rate)
    seen = []
    for _ in range(steps):
        step = given.step(given.batch())
        loss = given.method.loss(step)
        optimizer.zero_grad()
        (sum(loss.values()) if isinstance(loss, dict) else loss).backward()
        optimizer.step()
        if isinstance(given.method, KDRL):
            seen.append(given.method._rewards[0][1].mean().item())
        else:
            rows = sequences(step.batch)
            with torch.no_grad():
                ratios = [
                    response_log_probs(given.student.module, each)
                    - response_log_probs(given.teacher.module, each)
                    for each in rows
                ]
            seen.append(torch.cat(ratios).mean().item())
        given.method.after_step(step)
    return seen


def test_minillm_brings_the_student_to_what_the_teacher_finds_likely() -> None:
    seen = trained(wired(MiniLLM(share=0.0, max_new_tokens=TOKENS)), 60, 3e-3)
    assert sum(seen[-10:]) < 0.75 * sum(seen[:10])


def test_kdrl_finds_more_right_answers() -> None:
    given = wired(KDRL(beta=0.0, group=8, max_new_tokens=TOKENS))
    optimizer = torch.optim.Adam(given.student.module.parameters(), 1e-2)
    for _ in range(15):
        outputs = given.task.forward(given.student.module, given.batch(), "student")
        optimizer.zero_grad()
        given.task.supervised_loss(outputs, given.batch()).backward()
        optimizer.step()
    seen = trained(given, 30, 3e-3)
    first, last = sum(seen[:5]) / 5, sum(seen[-5:]) / 5
    assert 0.05 < first < 0.8 and last > first + 0.15
