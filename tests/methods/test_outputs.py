"""SinKD, OFA, USKD and MiniLM: logits, exits to logits, and relations between tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from understudy import objectives, seeding
from understudy.data.batch import Batch
from understudy.errors import UnderstudyError
from understudy.methods import OFA, USKD, Method, MiniLM, SinKD, Step
from understudy.methods.wiring import Side, Wiring
from understudy.models import kd
from understudy.models.exits import MapExit, TokenExit
from understudy.models.outputs import Outputs
from understudy.models.taps import Tapped
from understudy.tasks.classification import Classification

CLASSES = 5
GOLDEN = Path(__file__).parent.parent / "golden" / "ofa_kd"


class ViT(nn.Module):
    """A vision transformer on 8x8 patches of one channel: 16 tokens and a class token at 16x16."""

    def __init__(self, width: int = 8, depth: int = 6, side: int = 4, prefix: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, side, stride=side)
        self.prefix = nn.Parameter(torch.randn(1, prefix, width))
        layer = nn.TransformerEncoderLayer
        self.blocks = nn.ModuleList(
            layer(width, 2, 2 * width, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


def network(name: str = "resnet8", width: float = 0.25) -> nn.Module:
    return kd.build(name, classes=CLASSES, in_channels=1, width=width)


class Rig:
    """Two models and a batch, and what a method makes of them."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None, inputs: Any) -> None:
        image = isinstance(inputs, torch.Tensor) and inputs.dim() == 4
        self.models = {"student": student} | ({"teacher": teacher.eval()} if teacher else {})
        self.inputs = dict.fromkeys(self.models, inputs)
        self.sides = {
            role: Side(
                role,
                model,
                self.inputs[role],
                training=role == "student",
                input_height=inputs.shape[2] if image else None,
            )
            for role, model in self.models.items()
        }
        teachers = {role: side for role, side in self.sides.items() if role == "teacher"}
        self.wiring = Wiring(self.sides["student"], teachers, classes=CLASSES)

    def wire(self, method: Any) -> Any:
        with seeding.isolated(3, "wire"):
            method.wire(self.wiring)
        return method

    def step(self, labels: torch.Tensor | None = None, weight: torch.Tensor | None = None) -> Step:
        first = self.inputs["student"]
        count = torch.arange(len(first if isinstance(first, torch.Tensor) else first["input_ids"]))
        task = Classification()

        def run(role: str) -> Callable[[Batch], Outputs]:
            side = self.sides[role]
            tapped = Tapped(side.module, side.taps, side.copied)
            return lambda batch: task.forward_tapped(tapped, batch, role)

        labels = count % CLASSES if labels is None else labels
        return Step(
            Batch(self.inputs, labels, count, 0 * count, weight),
            task=task,
            student=run("student"),
            teachers={role: run(role) for role in self.sides if role == "teacher"},
            progress=0.5,
        )


def outputs_step(
    student: Outputs, teacher: torch.Tensor, labels: torch.Tensor | None = None
) -> Step:
    count = torch.arange(len(teacher))
    return Step(
        Batch({}, labels, count, count),
        task=Classification(),
        student=lambda _batch: student,
        teachers={"teacher": lambda _batch: Outputs(teacher)},
        progress=0.0,
    )


def named_as_ours(name: str) -> str:
    """Translate a parameter's name in the authors' branches."""
    parts = name.split(".")
    if parts[0] == "0" and len(parts) == 2:
        return f"reduce.{name}"
    if parts[1] == "op":
        return f"reduce.{parts[0]}." + ".".join(parts[2:])
    if parts[1] == "fn":
        return "merge." + ".".join(parts[2:])
    if parts[0] == "1":
        return f"blocks.{parts[1]}." + ".".join(parts[2:]).replace("attn.", "").replace("mlp.", "")
    return "classifier." + parts[1]


@pytest.mark.parametrize("name", ["distiller_cnn_softlabel_per_stage_eps", "distiller_tokens_hier"])
def test_exits_and_losses_give_the_numbers_of_the_published_code(name: str) -> None:
    cases = json.loads((GOLDEN / "cases.json").read_text())["cases"]
    case = next(case for case in cases if case["case"] == name)
    settings, g = case["hyperparameters"], load_file(GOLDEN / f"{name}.safetensors")
    stages, classes = settings["ofa_stage"], settings["num_classes"]
    method = OFA(
        gamma=settings["ofa_eps"],
        temperature=settings["ofa_temperature"],
        exit_weight=settings["ofa_loss_weight"],
    )
    method.places, method.gammas = [f"stage{stage}" for stage in stages], settings["ofa_eps"]
    method.exits = nn.ModuleList()
    ours, theirs = settings["feature_dim_student"], settings["feature_dim_teacher"]
    for stage in stages:
        shape = g[f"feat_stage{stage}"].shape[1:]
        leave = (
            MapExit(shape[0], 4 - stage, max(ours, theirs), classes)
            if len(shape) == 3
            else TokenExit(*shape, ours, max(4 - stage, 1), classes)
        )
        prefix = f"param.{stage}."
        state = {k.removeprefix(prefix): v for k, v in g.items() if k.startswith(prefix)}
        leave.load_state_dict({named_as_ours(key): value for key, value in state.items()})
        method.exits.append(leave)
        torch.testing.assert_close(
            leave(g[f"feat_stage{stage}"]), g[f"branch_logits_stage{stage}"], rtol=1e-4, atol=1e-5
        )
    features = {f"stage{stage}": g[f"feat_stage{stage}"].requires_grad_() for stage in stages}
    terms = method.loss(
        outputs_step(Outputs(g["student_logits"], features), g["teacher_logits"], g["labels"])
    )
    torch.testing.assert_close(terms["final"], g["loss_kd"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["exits"], g["loss_ofa"], rtol=1e-4, atol=1e-5)
    terms["exits"].backward()
    for stage in stages:
        torch.testing.assert_close(
            features[f"stage{stage}"].grad, g[f"grad_feat_stage{stage}"], rtol=1e-3, atol=1e-5
        )


def test_a_network_of_maps_has_an_exit_at_each_resolution() -> None:
    rig = Rig(network(), ViT(), torch.randn(4, 1, 16, 16))
    method = rig.wire(OFA())
    assert method.places == ["layer1", "layer2", "layer3"]
    # Two, one and no halving to the last map; as wide as the wider of the embeddings.
    assert [len(leave.reduce) for leave in method.exits] == [2, 1, 1]
    assert {leave.classifier.in_features for leave in method.exits} == {16}
    assert not rig.wiring.teacher.taps
    terms = method.loss(rig.step())
    sum(terms.values()).backward()
    named = [*rig.models["student"].named_parameters(), *method.named_parameters()]
    assert not [name for name, p in named if p.grad is None]
    assert all(p.grad is None for p in rig.models["teacher"].parameters())


def test_a_transformer_has_exits_from_four_blocks() -> None:
    rig = Rig(ViT(depth=12), network(), torch.randn(4, 1, 16, 16))
    method = rig.wire(OFA(gamma=[1.0, 1.0, 1.2, 1.3, 1.4]))
    assert method.places == ["blocks.1", "blocks.3", "blocks.9", "blocks.11"]
    assert [len(leave.blocks) for leave in method.exits] == [3, 2, 1, 1]
    assert method.gammas[-1] == 1.4
    step = rig.step(torch.tensor([0, 1, -1, 2]))
    terms = method.loss(step)
    valid = torch.tensor([True, True, False, True])
    student, teacher = (side[valid] for side in step.logits())
    target, labels = teacher.softmax(dim=1), step.labels[valid]
    powers = target**1.4
    powers[range(3), labels] = (1 + target[range(3), labels]) ** 1.4 - 1
    expected = -(powers * student.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(terms["final"], expected)


def test_a_named_stage_has_as_many_blocks_as_follow_it() -> None:
    rig = Rig(ViT(depth=12), network(), torch.randn(4, 1, 16, 16))
    method = rig.wire(OFA(student_taps=["blocks.3", "blocks.5"]))
    # The second is none of the four, and counts as the last of its list.
    assert [len(leave.blocks) for leave in method.exits] == [2, 1]


def test_without_exits_only_the_final_logits_are_compared() -> None:
    rig = Rig(network(), network(), torch.randn(4, 1, 16, 16))
    method = rig.wire(OFA(exit_weight=0.0))
    assert not list(method.parameters()) and not rig.wiring.student.taps
    assert set(method.loss(rig.step())) == {"final"}


def test_what_has_no_exits_is_refused() -> None:
    flat = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with pytest.raises(UnderstudyError, match="exits for feature maps .* of something else"):
        Rig(flat, flat, torch.randn(4, 16)).wire(OFA())
    images = torch.randn(2, 1, 60, 60)
    with pytest.raises(UnderstudyError, match=r"'blocks.0'.* 15x15 tokens"):
        Rig(ViT(), network(), images).wire(OFA())
    with pytest.raises(UnderstudyError, match="the images are not square"):
        Rig(ViT(), network(), torch.randn(2, 1, 16, 32)).wire(OFA())
    with pytest.raises(UnderstudyError, match="found no stages in the student"):
        Rig(nn.Linear(16, CLASSES), flat, torch.randn(4, 16)).wire(OFA())
    Rig(nn.Linear(16, CLASSES), flat, torch.randn(4, 16)).wire(OFA(exit_weight=0.0))
    with pytest.raises(UnderstudyError, match="3 values of gamma for 3 exits .* or 4"):
        Rig(network(), network(), torch.randn(2, 1, 16, 16)).wire(OFA(gamma=[1.0, 1.0, 1.0]))


def test_uskd_has_a_weak_head_on_the_last_stage_but_one_and_needs_no_teacher() -> None:
    rig = Rig(network(), None, torch.randn(4, 1, 16, 16))
    method = rig.wire(USKD(alpha=0.5, beta=0.2, mu=0.3, rank="softmax"))
    assert method.place == "layer2" and not method.needs_teacher
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
    step = rig.step(weight=weight)
    weak = method.weak(step.student.features["layer2"].mean(dim=(2, 3)))
    expected = objectives.uskd(
        step.student.logits,
        weak,
        step.labels,
        alpha=0.5,
        beta=0.2,
        mu=0.3,
        rank="softmax",
        weight=weight,
    )
    loss = method.loss(step)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert method.weak.weight.grad.abs().sum() > 0


def test_uskd_reads_a_transformer_at_three_quarters() -> None:
    rig = Rig(ViT(depth=12), None, torch.randn(4, 1, 16, 16))
    assert rig.wire(USKD()).place == "blocks.8"
    flat = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with pytest.raises(UnderstudyError, match=r"the student has 1 stage\(s\)"):
        Rig(flat, None, torch.randn(4, 16)).wire(USKD())


@pytest.mark.parametrize("method", [OFA(), USKD()])
def test_labels_are_needed(method: Method) -> None:
    rig = Rig(network(), network(), torch.randn(4, 1, 16, 16))
    rig.wire(method)
    step = rig.step()
    step.batch.labels = None
    with pytest.raises(UnderstudyError, match="labels"):
        method.loss(step)


def test_sinkd_is_the_cost_of_the_plan_per_sample() -> None:
    student, teacher = torch.randn(6, CLASSES), torch.randn(6, CLASSES)
    leaf = student.clone().requires_grad_()
    loss = SinKD(temperature=1.5, iterations=30).loss(outputs_step(Outputs(leaf), teacher))
    again = student.clone().requires_grad_()
    p, q = (again / 1.5).softmax(dim=1), (teacher / 1.5).softmax(dim=1)
    cost = (p[:, None] - q[None]).abs().sum(dim=2)
    plan = (-cost / 0.1).exp()
    for _ in range(30):
        plan = plan / plan.sum(dim=1, keepdim=True)
        plan = plan / plan.sum(dim=0, keepdim=True)
    expected = (plan * cost).sum() / 6
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(leaf.grad, again.grad)


def test_sinkd_of_each_sample_alone_is_a_distance() -> None:
    student, teacher = torch.randn(6, CLASSES), torch.randn(6, CLASSES)
    loss = SinKD(temperature=1.0, transport="sample").loss(outputs_step(Outputs(student), teacher))
    gap = student.softmax(dim=1) - teacher.softmax(dim=1)
    torch.testing.assert_close(loss, gap.abs().sum(dim=1).mean())


def bert(heads: int = 2, width: int = 16, layers: int = 2, **keywords: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=40,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        num_labels=CLASSES,
        **keywords,
    )
    return BertForSequenceClassification(config)


def tokens() -> dict[str, torch.Tensor]:
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[1, 5:] = 0
    mask[3, 2:] = 0
    return {"input_ids": torch.randint(0, 40, (4, 7)), "attention_mask": mask}


def plain_relation(
    one: tuple[torch.Tensor, torch.Tensor],
    other: tuple[torch.Tensor, torch.Tensor],
    heads: int,
    mask: torch.Tensor,
) -> torch.Tensor:
    """KL of softmax(a b^T / sqrt(d)), sequence by sequence, head by head, over the tokens that are no padding."""
    values = []
    for sample, count in enumerate(mask.sum(dim=1).tolist()):
        logs = []
        for a, b in (one, other):
            a, b = (
                side[sample, :count].unflatten(1, (heads, -1)).transpose(0, 1) for side in (a, b)
            )
            logs.append((a @ b.mT / a.shape[-1] ** 0.5).log_softmax(dim=-1))
        student, teacher = logs
        values.append((teacher.exp() * (teacher - student)).sum(dim=-1).mean())
    return torch.stack(values).mean()


@pytest.mark.parametrize("relation_heads", [None, 4])
def test_minilm_reads_bert_without_changing_it(relation_heads: int | None) -> None:
    inputs = tokens()
    rig = Rig(bert(layers=1).eval(), bert(width=32, layers=3), inputs)
    method = rig.wire(MiniLM(relation_heads=relation_heads))
    assert method.places[0] == (
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.2.attention.self.query",
    )
    assert not list(method.parameters())
    step = rig.step()
    terms = method.loss(step)
    queries, keys, values = (step.features(*places) for places in method.places)
    mask = inputs["attention_mask"]
    if relation_heads is None:
        pairs = [
            ((queries[0], keys[0]), (queries[1], keys[1])),
            ((values[0],) * 2, (values[1],) * 2),
        ]
        expected = {
            name: plain_relation(*pair, 2, mask)
            for name, pair in zip(("attention", "values"), pairs, strict=True)
        }
    else:
        expected = {
            name: plain_relation((ours, ours), (theirs, theirs), 4, mask)
            for name, (ours, theirs) in (("queries", queries), ("keys", keys), ("values", values))
        }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
    sum(terms.values()).backward()
    attention = rig.models["student"].bert.encoder.layer[0].attention.self
    assert attention.query.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in rig.models["teacher"].parameters())


def test_minilm_attention_is_the_model_s_own() -> None:
    model, inputs = bert(layers=1, attn_implementation="eager").eval(), tokens()
    rig = Rig(model, bert(layers=1), inputs)
    method = rig.wire(MiniLM())
    step = rig.step()
    (queries, _), (keys, _), _ = (step.features(*places) for places in method.places)
    own = model(**inputs, output_attentions=True).attentions[0]
    scores = queries.unflatten(2, (2, -1)).transpose(1, 2) @ keys.unflatten(2, (2, -1)).permute(
        0, 2, 3, 1
    )
    scores = scores / 8**0.5 - 1e9 * (1 - inputs["attention_mask"])[:, None, None]
    torch.testing.assert_close(scores.softmax(dim=-1), own, rtol=1e-4, atol=1e-5)


def test_minilm_finds_distilbert() -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=CLASSES
    )
    rig = Rig(DistilBertForSequenceClassification(config), bert(), tokens())
    method = rig.wire(MiniLM())
    assert method.places[2][0] == "distilbert.transformer.layer.1.attention.v_lin"
    assert torch.isfinite(method.loss(rig.step())["values"])


def test_what_minilm_cannot_compare_is_refused() -> None:
    inputs = tokens()
    with pytest.raises(UnderstudyError, match="has 2 heads and .* 4; .* Set relation_heads"):
        Rig(bert(), bert(heads=4), inputs).wire(MiniLM())
    with pytest.raises(UnderstudyError, match="width 16, which 5 heads do not divide"):
        Rig(bert(), bert(), inputs).wire(MiniLM(relation_heads=5))
    with pytest.raises(
        UnderstudyError, match=r"'bert.encoder.layer.0' is no self-attention .*Did you mean"
    ):
        Rig(bert(), bert(), inputs).wire(MiniLM("bert.encoder.layer.0"))
    with pytest.raises(
        UnderstudyError, match="no self-attention module with projections of its own"
    ):
        Rig(network(), network(), torch.randn(2, 1, 16, 16)).wire(MiniLM())
    rig = Rig(bert(), bert(), inputs)
    rig.sides["teacher"].inputs = tokens()
    with pytest.raises(UnderstudyError, match="student and teacher read different ones"):
        rig.wire(MiniLM())


def test_minilm_refuses_attention_that_is_turned_by_position() -> None:
    class ToyRotaryEmbedding(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens

    model = bert()
    model.turn = ToyRotaryEmbedding()
    with pytest.raises(UnderstudyError, match="rotary embedding"):
        Rig(model, bert(), tokens()).wire(MiniLM())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SinKD(temperature=0.0), "temperature is 0.0"),
        (lambda: SinKD(regularisation=0.0), "regularisation is 0.0"),
        (lambda: SinKD(iterations=0), "iterations is 0"),
        (lambda: SinKD(power=0.5), "0.5; it must be a number of at least 1"),
        (lambda: SinKD(transport="all"), "transport is 'all'"),
        (lambda: OFA(gamma=[1.0, 0.0]), "gamma is 0.0"),
        (lambda: OFA(temperature=0.0), "temperature is 0.0"),
        (lambda: OFA(exit_weight=-1.0), "exit_weight is -1.0"),
        (lambda: USKD(beta=-0.1), "beta is -0.1"),
        (lambda: USKD(rank="zipf"), "rank is 'zipf'"),
        (lambda: MiniLM(relation_heads=0), "relation_heads is 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], Method], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
