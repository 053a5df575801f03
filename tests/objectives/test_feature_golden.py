"""Feature objectives against numbers of the authors' code; where that has quirks, the deviation is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden"
Tensors = dict[str, torch.Tensor]


def torchdistill(name: str, *inputs: str) -> Tensors:
    tensors = load_file(GOLDEN / "torchdistill" / f"{name}.safetensors")
    for key in inputs:
        tensors[key].requires_grad_()
    return tensors


def arrays(system: str, name: str) -> Tensors:
    with np.load(GOLDEN / system / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def same(
    loss: torch.Tensor, tensors: Tensors, *inputs: str, rtol: float = 1e-9, atol: float = 1e-11
) -> None:
    loss.backward()
    torch.testing.assert_close(loss.detach(), tensors["loss"], rtol=rtol, atol=atol)
    for key in inputs:
        torch.testing.assert_close(tensors[key].grad, tensors[f"grad|{key}"], rtol=rtol, atol=atol)


def test_attention_transfer_in_the_form_of_the_paper() -> None:
    layers = ("student|l1|output", "student|l2|output")
    g = torchdistill("at_paper", *layers)
    loss = sum(
        weight
        * objectives.attention_transfer(
            g[f"student|{name}|output"], g[f"teacher|{name}|output"], form="paper"
        )
        for name, weight in (("l1", 2.0), ("l2", 1.0))
    )
    same(loss, g, *layers)


def test_fsp_official_is_the_sum_of_column_norms_and_ours_the_squared_norm() -> None:
    first, second = "student|l1|input", "student|l1|output"
    g = torchdistill("fsp_batch1", first, second)
    later = {"student_later": g[second], "teacher_later": g["teacher|l1|output"]}
    loss = 0.5 * objectives.fsp(g[first], g["teacher|l1|input"], official=True, **later)
    same(loss, g, first, second)
    difference = (
        torch.einsum("cij,dij->cd", g[first][0], g[second][0]) / 36
        - torch.einsum("cij,dij->cd", g["teacher|l1|input"][0], g["teacher|l1|output"][0]) / 36
    )
    ours = objectives.fsp(g[first], g["teacher|l1|input"], **later)
    torch.testing.assert_close(ours, difference.square().sum())
    assert not torch.isclose(ours, loss)


def test_fsp_pools_the_larger_map_by_its_maximum() -> None:
    g = torchdistill("fsp_batch1")
    student, later = g["student|l2|input"], g["student|l2|output"]
    pooled = student.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    teacher = {"teacher": g["teacher|l2|input"], "teacher_later": g["teacher|l2|output"]}
    torch.testing.assert_close(
        objectives.fsp(student, student_later=later, **teacher),
        objectives.fsp(pooled, student_later=later, **teacher),
    )


def test_factor_transfer() -> None:
    student = "student|translator|output"
    g = torchdistill("ft_p2", student)
    same(
        objectives.factor_transfer(g[student], g["teacher|paraphraser|output"], power=2), g, student
    )


def test_knowledge_translation() -> None:
    student = "student|feature_adapter|output"
    g = torchdistill("kta_p1", student)
    teacher = g["teacher|paraphraser.encoder|output"]
    same(objectives.knowledge_translation(g[student], teacher), g, student)


@pytest.mark.parametrize("name", ["dab_mean", "dab_edges"])
def test_activation_boundaries(name: str) -> None:
    student = "student|c1|output"
    g = torchdistill(name, student)
    loss = 0.25 * objectives.activation_boundaries(g[student], g["teacher|l1|output"], margin=1.0)
    same(loss, g, student)


def test_vid_with_a_tiny_variance() -> None:
    mean, variance = "student|r2|output|0", "student|r2|output|1"
    g = torchdistill("vid_tiny_var", mean, variance)
    same(objectives.vid(g[mean], g["teacher|l2|output"], variance=g[variance]), g, mean, variance)


def test_pad_with_a_sum_over_the_batch() -> None:
    student, spread = "student|s.avgpool|output", "student|var_estimator|output"
    g = torchdistill("pad_sum", student, spread)
    teacher = g["teacher|avgpool|output"]
    loss = objectives.pad(g[student], teacher, log_variance=g[spread], eps=0.01, reduction="sum")
    same(loss, g, student, spread)


@pytest.mark.parametrize("name", ["kr_h1", "kr_h8"])
def test_review(name: str) -> None:
    student = "student|abf|output|0"
    g = torchdistill(name, student)
    same(objectives.review(g[student], g["teacher|l1|output"]), g, student)


def test_norm_penalty_official_is_of_the_whole_batch_and_ours_a_mean() -> None:
    student = "student|enc|output"
    g = torchdistill("reg_p1", student)
    loss = objectives.norm_penalty(g[student], power=1, official=True)
    same(loss, g, student)
    torch.testing.assert_close(objectives.norm_penalty(g[student], power=1), loss / 3)


def test_srd_with_the_divergence_of_its_recipe() -> None:
    logits, features = "student|.|output", "student|n|output"
    g = torchdistill("srd_exp1_T4", logits, features)
    loss = objectives.srd(g[features], g["teacher|n|output"], exponent=1.0)
    loss = loss + objectives.skd_instance(g[logits], g["teacher|.|output"], temperature=4.0)
    same(loss, g, logits, features)


@pytest.mark.parametrize(
    "name",
    ["random_unit", "random_centered_ds_gt_dt", "rotated_embedded", "linear_projection_blind"],
)
def test_geometry(name: str) -> None:
    g = arrays("feature_geometry", name)
    preprocessing = "centred" if "centered" in name else "unit"
    tolerance = {"rtol": 1e-7, "atol": 1e-9}
    measures = {
        "dp2": lambda s: objectives.procrustes(s, g["R_t"], preprocessing=preprocessing),
        "dfg2": lambda s: objectives.feature_gram(s, g["R_t"], preprocessing=preprocessing),
        "one_minus_cka": lambda s: objectives.cka(s, g["R_t"]),
    }
    expected = {**g, "one_minus_cka": 1 - g["cka"]}
    for key, measure in measures.items():
        student = g["R_s"].clone().requires_grad_()
        value = measure(student)
        value.backward()
        torch.testing.assert_close(value.detach(), expected[key], **tolerance)
        if f"grad_{key}" in g:
            torch.testing.assert_close(student.grad, g[f"grad_{key}"], **tolerance)
    for key, function in (("dp", objectives.procrustes), ("dfg", objectives.feature_gram)):
        if key in g and expected[f"{key}2"] > 1e-9:
            value = function(g["R_s"], g["R_t"], preprocessing=preprocessing, squared=False)
            torch.testing.assert_close(value, g[key], **tolerance)


def test_hidden_state_losses_of_distiller() -> None:
    g = load_file(GOLDEN / "distiller" / "intermediate_losses.safetensors")
    teacher, mask = g["teacher_hidden"], g["mask"]
    names = {
        "hidden_ce": objectives.feature_cross_entropy,
        "hidden_mse": objectives.mse,
        "cos": objectives.cosine,
        "pkd": lambda s, t, weight: objectives.normalised_mse(s[:, 0], t[:, 0]),
    }
    for name, function in names.items():
        for masked in (False, True):
            key = f"{name}_{'mask' if masked else 'nomask'}"
            student = g["student_hidden"].clone().requires_grad_()
            loss = function(student, teacher, weight=mask if masked else None)
            loss.backward()
            torch.testing.assert_close(loss.detach(), g[key][0], rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(student.grad, g[f"grad_{key}"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["lshl2_bce", "lshl2_bce_large", "lshl2_l1"])
def test_lsh(name: str) -> None:
    g = arrays("tcs", name)
    student = g["f_s"].requires_grad_()
    distance = "l1" if name.endswith("l1") else "bce"
    loss = objectives.lsh(
        student, g["f_t"], hash_weight=g["W"], hash_bias=g["b"], distance=distance
    )
    loss.backward()
    expected = g["loss"]
    if distance == "bce":
        # The authors' code holds its codes in float32, and the value of its cross-entropy is rounded to that.
        scores, codes = (x.detach() @ g["W"].T + g["b"] for x in (student, g["f_t"]))
        exact = F.binary_cross_entropy_with_logits(scores, (codes > 0).double())
        rounded = F.binary_cross_entropy_with_logits(scores, (codes > 0).float())
        expected = expected - rounded + exact
        assert not torch.equal(rounded.double(), exact)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(student.grad, g["grad_f_s"], rtol=1e-9, atol=1e-12)


def test_lsh_bias_takes_the_lower_median() -> None:
    g = arrays("tcs", "bias_median_even")
    bias = objectives.lsh_bias(g["f_t_all"], g["W"])
    torch.testing.assert_close(bias, g["bias"], rtol=1e-5, atol=1e-6)
    mean = objectives.lsh_bias(g["f_t_all"], g["W"], centre="mean")
    torch.testing.assert_close(mean, -(g["f_t_all"] @ g["W"].T).mean(0))


def test_every_case_of_the_geometry_is_used() -> None:
    cases = json.loads((GOLDEN / "feature_geometry" / "cases.json").read_text())["cases"]
    files = {path.name for path in (GOLDEN / "feature_geometry").glob("*.npz")}
    assert {case["file"] for case in cases} == files
