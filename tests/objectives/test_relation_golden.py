"""Relation objectives against numbers of the authors' code; where that has quirks, the deviation is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden" / "torchdistill"
Tensors = dict[str, torch.Tensor]


def golden(name: str, *inputs: str) -> Tensors:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    for key in inputs:
        tensors[key].requires_grad_()
    return tensors


def same(
    loss: torch.Tensor, tensors: Tensors, *inputs: str, rtol: float = 1e-9, atol: float = 1e-11
) -> None:
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensors["loss"], rtol=rtol, atol=atol)
    for key in inputs:
        torch.testing.assert_close(tensors[key].grad, tensors[f"grad|{key}"], rtol=rtol, atol=atol)


def test_rkd_distance() -> None:
    student = "student|l4|output"
    g = golden("rkd_dist_only", student)
    same(objectives.rkd_distance(g[student], g["teacher|l4|output"]), g, student)


def test_rkd_of_two_samples() -> None:
    student = "student|l4|output"
    g = golden("rkd_batch2", student)
    pair = (g[student], g["teacher|l4|output"])
    same(objectives.rkd_distance(*pair) + 2 * objectives.rkd_angle(*pair), g, student)


def test_pkt() -> None:
    student = "student|fc|input"
    g = golden("pkt_basic", student)
    same(objectives.pkt(g[student], g["teacher|fc|input"]), g, student)


def test_pkt_gives_a_zero_row_no_gradient_where_the_authors_code_gives_nan() -> None:
    student = "student|fc|input"
    g = golden("pkt_zero_row", student)
    loss = objectives.pkt(g[student], g["teacher|fc|input"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["loss"], rtol=1e-9, atol=1e-11)
    theirs = g[f"grad|{student}"]
    broken = theirs.isnan().any(dim=1)
    assert broken.any() and not broken.all()
    torch.testing.assert_close(g[student].grad[~broken], theirs[~broken], rtol=1e-9, atol=1e-11)
    assert (g[student].grad[broken] == 0).all()


def test_similarity_preserving_official_has_rows_of_l1_and_ours_of_l2() -> None:
    student = "student|l4|output"
    g = golden("spkd_basic", student)
    teacher = g["teacher|l4|output"]
    same(objectives.similarity_preserving(g[student], teacher, official=True), g, student)
    flat = [x.flatten(1) for x in (g[student], teacher)]
    ours, theirs = (F.normalize(x @ x.T, dim=1) for x in flat)
    expected = (ours - theirs).square().sum() / 16
    value = objectives.similarity_preserving(g[student], teacher)
    torch.testing.assert_close(value, expected)
    assert not torch.isclose(value, g["loss"])


def test_correlation_congruence_official_has_no_square() -> None:
    student = "student|linear|output"
    g = golden("cckd_bilinear", student)
    pair = (g[student], g["teacher|linear|output"])
    official = objectives.correlation_congruence(*pair, kernel="bilinear", official=True)
    same(official, g, student)
    ours = objectives.correlation_congruence(*pair, kernel="bilinear")
    torch.testing.assert_close(ours, (16 * g["loss"]).square() / 16)


@pytest.mark.parametrize("name", ["ickd_basic", "ickd_one_channel"])
def test_ickd_official_divides_by_the_batch_twice(name: str) -> None:
    student = "student|e1|output"
    g = golden(name, student)
    pair = (g[student], g["teacher|l4|output"])
    same(2.5 * objectives.ickd(*pair, official=True), g, student)
    torch.testing.assert_close(2.5 * objectives.ickd(*pair), g["loss"] * len(g[student]))


def test_affinity_official_goes_channel_by_channel() -> None:
    student = "student|affinity_adapter|output"
    g = golden("affinity_mean_f32", student)
    teacher = g["teacher|paraphraser.encoder|output"]
    loss = objectives.affinity(g[student], teacher, official=True)
    same(loss, g, student, rtol=2e-5, atol=1e-6)
    assert not torch.isclose(objectives.affinity(g[student], teacher), g["loss"])


def test_skd_direction() -> None:
    student = "student|.|output"
    g = golden("skd_direction", student)
    same(objectives.skd_direction(g[student], g["teacher|.|output"]), g, student)


@pytest.mark.parametrize("whole_bank", [True, False])
def test_crd_over_two_steps(whole_bank: bool) -> None:
    g = golden("crd_two_steps")
    if not whole_bank:
        # Twenty copies of the bank that nobody refers to make fetching single rows the cheaper way.
        pad = torch.zeros(20 * 12, 6, dtype=torch.float64)
    banks = {"student": g["memory_v1.init"], "teacher": g["memory_v2.init"]}
    constants: dict[str, torch.Tensor] = {}
    for step in ("step0", "step1"):
        index, own = g[f"{step}.contrast_idx"], g[f"{step}.pos_idx"]
        assert torch.equal(index[:, 0], own)
        loss = torch.zeros((), dtype=torch.float64)
        embeddings = {side: g[f"{step}.{side}"].requires_grad_() for side in ("student", "teacher")}
        for side, other in (("student", "teacher"), ("teacher", "student")):
            bank = banks[other] if whole_bank else torch.cat([banks[other], pad])
            if side not in constants:
                constants[side] = (
                    objectives.crd_log_normaliser(embeddings[side], bank, index=index)
                    - torch.tensor(len(bank) / 12).double().log()
                )
            loss = loss + objectives.crd(
                embeddings[side], bank, index=index, log_normaliser=constants[side], samples=12
            )
        loss.backward()
        torch.testing.assert_close(
            loss.detach(), g[f"{step}.loss"].reshape(()), rtol=1e-8, atol=1e-10
        )
        for number, side in (("1", "student"), ("2", "teacher")):
            torch.testing.assert_close(
                embeddings[side].grad, g[f"{step}.grad.{side}"], rtol=1e-8, atol=1e-10
            )
            moved = 0.5 * banks[side][own] + 0.5 * embeddings[side].detach()
            banks[side] = banks[side].index_copy(0, own, F.normalize(moved, dim=1))
            torch.testing.assert_close(banks[side], g[f"{step}.memory_v{number}.after"])
    stored = g["step1.params.after"][2:4]
    ours = torch.stack([constants["student"], constants["teacher"]]).exp()
    torch.testing.assert_close(ours, stored.to(ours.dtype), rtol=1e-6, atol=0)


def test_dist_plus_on_features() -> None:
    logits, features = "student|.|output", "student|l4|output"
    for name, weight in (("distplus_iota0", 0.0), ("distplus_basic", 1.0)):
        g = golden(name, logits, features)
        pair = (g[features], g["teacher|l4|output"])
        loss = objectives.spatial_correlation(*pair)
        loss = loss + weight * objectives.channel_correlation(*pair, official=True)
        loss.backward()
        expected = g[f"grad|{features}"]
        torch.testing.assert_close(g[features].grad, expected, rtol=1e-6, atol=1e-9)
    ours = objectives.channel_correlation(*pair)
    torch.testing.assert_close(ours, 1 - objectives.channel_correlation(*pair, official=True))


def views(tensor: torch.Tensor) -> torch.Tensor:
    """Rows 4i .. 4i + 3 are the views of image i."""
    return tensor.unflatten(0, (-1, 4))


@pytest.mark.parametrize("name", ["sskd_b12", "sskd_b4_defaultw"])
def test_sskd(name: str) -> None:
    cases = json.loads((GOLDEN / "cases.json").read_text())["cases"]
    keywords = next(case for case in cases if case["case"] == name)["hyper"]["kwargs"]
    g = load_file(GOLDEN / f"{name}.safetensors")
    names = {
        side: (
            next(k for k in g if k == f"{side}|{keywords[f'{side}_linear_module_path']}|output"),
            next(k for k in g if k == f"{side}|{keywords[f'{side}_ss_module_path']}|output"),
        )
        for side in ("student", "teacher")
    }
    for key in names["student"]:
        g[key].requires_grad_()
    logits, embeddings = (views(g[key]) for key in names["student"])
    teacher_logits, teacher_embeddings = (views(g[key]) for key in names["teacher"])
    weights = keywords.get("loss_weights") or [1.0] * 4
    terms = [objectives.cross_entropy(logits[:, 0], g["targets"])]
    terms.append(objectives.kd(logits[:, 0], teacher_logits[:, 0], temperature=keywords["kl_temp"]))
    if len(logits) > 1:
        terms.append(
            objectives.sskd_similarity(
                embeddings,
                teacher_embeddings,
                temperature=keywords["ss_temp"],
                ratio=keywords["ss_ratio"],
                official=True,
            )
        )
    else:
        # One candidate image: their similarity term is 0, ours refuses it.
        with pytest.raises(ValueError, match="1 sample"):
            objectives.sskd_similarity(embeddings, teacher_embeddings)
        terms.append(0 * embeddings.sum())
    terms.append(
        objectives.sskd_transformed(
            logits,
            teacher_logits,
            labels=g["targets"],
            temperature=keywords["tf_temp"],
            ratio=keywords["tf_ratio"],
            official=True,
        )
    )
    loss = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    same(loss, g, *names["student"])


def test_sskd_auxiliary() -> None:
    g = load_file(GOLDEN / "sskd_aux_b8.safetensors")
    (key,) = (k for k in g if k != "loss" and not k.startswith("grad|"))
    loss = objectives.sskd_auxiliary(views(g[key].requires_grad_()))
    loss.backward()
    torch.testing.assert_close(loss.detach(), g["loss"], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(g[key].grad, g[f"grad|{key}"], rtol=1e-9, atol=1e-11)
