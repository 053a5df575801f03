"""Objectives on logits against numbers of the authors' code, value and gradient; where we differ, why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(
    system: str, name: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, float]]:
    """Return the tensors of a case, its hyper-parameters and its tolerance."""
    cases = json.loads((GOLDEN / system / "cases.json").read_text())["cases"]
    (case,) = (case for case in cases if case["case"] == name)
    keywords = next(
        case[key] for key in ("hyper", "hyperparameters", "hyper_parameters") if key in case
    )
    return load_file(GOLDEN / system / f"{name}.safetensors"), keywords, case["tolerance"]


def agree(
    value: torch.Tensor,
    inputs: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    tolerance: dict[str, float],
) -> None:
    """Compare value and gradients (expected under "loss" and the names of the inputs)."""
    names = [name for name in expected if name != "loss"]
    found = torch.autograd.grad(value, [inputs[name] for name in names], allow_unused=True)
    torch.testing.assert_close(value.detach(), expected["loss"].reshape(()), **tolerance)
    for name, gradient in zip(names, found, strict=True):
        torch.testing.assert_close(gradient, expected[name], **tolerance, msg=name)


# torchdistill


def test_dense_kd_of_torchdistill_divides_by_images_and_counts_ignored_pixels() -> None:
    tensors, case, tolerance = golden("torchdistill", "kd_ignore_index_seg")
    keywords = case["kwargs"]
    student = tensors["student|.|output"].requires_grad_()
    teacher, targets = tensors["teacher|.|output"], tensors["targets"]
    hard = F.cross_entropy(student, targets, ignore_index=keywords["ignore_index"])
    pixels = [logits.movedim(1, -1) for logits in (student, teacher)]
    everywhere = objectives.kd(*pixels, temperature=keywords["temperature"], reduction="sum")
    theirs = keywords["alpha"] * hard + (1 - keywords["alpha"]) * everywhere / len(student)
    expected = {"loss": tensors["loss"], "student": tensors["grad|student|.|output"]}
    agree(theirs, {"student": student}, expected, tolerance)
    # Ours is a mean over valid pixels: what is there of it in theirs is larger by pixels per image.
    ours = objectives.kd(*pixels, temperature=2.0, weight=targets != 255)
    each = objectives.kd(*pixels, temperature=2.0, reduction="none")
    torch.testing.assert_close(ours, each[targets != 255].mean())
    assert not torch.isclose(ours, everywhere / len(student))


def test_logit_standardised_kd_of_constant_rows() -> None:
    tensors, case, tolerance = golden("torchdistill", "logitstd_const_rows")
    keywords = case["kwargs"]
    student = tensors["student|.|output"].requires_grad_()
    loss = keywords["alpha"] * F.cross_entropy(student, tensors["targets"]) + keywords[
        "beta"
    ] * objectives.logit_standardised_kd(
        student, tensors["teacher|.|output"], temperature=keywords["temperature"]
    )
    expected = {"loss": tensors["loss"], "student": tensors["grad|student|.|output"]}
    agree(loss, {"student": student}, expected, tolerance)


def test_logit_standardised_kd_at_alpha_0_where_torchdistill_drops_the_factors() -> None:
    tensors, case, tolerance = golden("torchdistill", "logitstd_affine")
    temperature = case["kwargs"]["temperature"]
    student = tensors["student|.|output"].requires_grad_()
    loss = objectives.logit_standardised_kd(
        student, tensors["teacher|.|output"], temperature=temperature
    )
    expected = {"loss": tensors["loss"], "student": tensors["grad|student|.|output"]}
    agree(loss / temperature**2, {"student": student}, expected, tolerance)


@pytest.mark.parametrize("name", ["dist_tau4", "dist_equal"])
def test_dist(name: str) -> None:
    tensors, case, tolerance = golden("torchdistill", name)
    keywords = case["kwargs"]
    student = tensors["student|.|output"].requires_grad_()
    loss = objectives.dist(
        student,
        tensors["teacher|.|output"],
        beta=keywords.get("beta", 1.0),
        gamma=keywords.get("gamma", 1.0),
        temperature=keywords.get("tau", 1.0),
    )
    expected = {"loss": tensors["loss"], "student": tensors["grad|student|.|output"]}
    agree(loss, {"student": student}, expected, tolerance)


# NKD and USKD


@pytest.mark.parametrize("name", ["nkd_T1_g1p5", "nkd_batch1_C100", "nkd_soft_labels"])
def test_nkd(name: str) -> None:
    tensors, keywords, tolerance = golden("nkd_uskd", name)
    student = tensors["student_logits"].requires_grad_()
    arguments = (student, tensors["teacher_logits"], tensors["labels"])
    temperature = keywords["temp"]
    loss = objectives.nkd(*arguments, gamma=keywords["gamma"], temperature=temperature)
    expected = {"loss": tensors["loss"], "student": tensors["grad_student_logits"]}
    agree(loss, {"student": student}, expected, tolerance)
    target = objectives.nkd(*arguments, gamma=0.0, temperature=temperature)
    torch.testing.assert_close(target.detach(), tensors["loss_target_only"], **tolerance)


def test_nkd_refuses_one_class_where_the_authors_return_0() -> None:
    tensors, _, _ = golden("nkd_uskd", "nkd_one_class")
    assert tensors["loss"] == 0
    with pytest.raises(ValueError, match=r"\(3, 1\); this objective needs at least 2 classes"):
        objectives.nkd(tensors["student_logits"], tensors["teacher_logits"], tensors["labels"])


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("name", ["uskd_hard_c100", "uskd_soft_two_labels"])
def test_uskd(name: str, official: bool) -> None:
    tensors, keywords, tolerance = golden("nkd_uskd", name)
    inputs = {
        key: tensors[key].requires_grad_()
        for key in ("student_logits", "mid_feature", "fc_weight", "fc_bias")
    }

    def loss(alpha: float, beta: float, mu: float, **further: Any) -> torch.Tensor:
        weak = F.linear(inputs["mid_feature"], inputs["fc_weight"], inputs["fc_bias"])
        return objectives.uskd(
            inputs["student_logits"],
            weak,
            tensors["labels"],
            alpha=alpha,
            beta=beta,
            mu=mu,
            official=official,
            **further,
        )

    whole = loss(keywords["alpha"], keywords["beta"], keywords["mu"])
    expected = {"loss": tensors["loss"]} | {key: tensors[f"grad_{key}"] for key in inputs}
    agree(whole, inputs, expected, tolerance)
    parts = {"target": (1.0, 0.0, 0.0), "nontarget": (0.0, 1.0, 0.0), "weak": (0.0, 0.0, 1.0)}
    for part, weights in parts.items():
        torch.testing.assert_close(loss(*weights).detach(), tensors[f"loss_{part}"], **tolerance)
    if name == "uskd_hard_c100":
        as_in_the_paper = loss(0.0, 1.0, 0.0, rank="softmax")
        assert as_in_the_paper.item() == pytest.approx(5.300224863817512, rel=1e-9)


# SinKD


@pytest.mark.parametrize("name", ["basic_b16_d3", "oneclass_b4_d1", "identical_b6_d4"])
def test_sinkhorn(name: str) -> None:
    tensors, keywords, tolerance = golden("sinkd", name)
    student = tensors["student_logits"].requires_grad_()
    loss = objectives.sinkhorn(
        student,
        tensors["teacher_logits"],
        temperature=keywords["T"],
        regularisation=keywords["epsilon"],
        iterations=keywords["n_iters"],
        power=keywords["p"],
        reduction="sum",
    )
    torch.testing.assert_close(loss.detach(), tensors["loss_unscaled"].reshape(()), **tolerance)
    expected = {"loss": tensors["loss"], "student": tensors["grad_student_logits"]}
    agree(keywords["scale"] * loss, {"student": student}, expected, tolerance)


def test_sinkhorn_with_other_settings() -> None:
    tensors, keywords, tolerance = golden("sinkd", "free_eps0p02_it50")
    student = tensors["student_logits"].requires_grad_()
    loss = objectives.sinkhorn(
        student,
        tensors["teacher_logits"],
        temperature=keywords["T"],
        regularisation=keywords["epsilon"],
        iterations=keywords["n_iters"],
        reduction="sum",
    )
    expected = {"loss": tensors["loss_unscaled"], "student": tensors["grad_student_logits"]}
    agree(loss, {"student": student}, expected, tolerance)


def test_the_t0_script_of_sinkd_confuses_positions_and_vocabulary() -> None:
    tensors, keywords, tolerance = golden("sinkd", "t0_3d_quirk_b2_l3_v5")
    student, teacher = tensors["student_logits"], tensors["teacher_logits"]
    # What their code computes: softmax over positions, costs between positions, a plan over positions and batch.
    q, p = ((logits / keywords["T"]).softmax(dim=1) for logits in (student, teacher))
    cost = torch.cdist(q, p, p=1)
    plan = (-cost / keywords["epsilon"]).exp()
    for _ in range(keywords["n_iters"]):
        plan = plan / plan.sum(dim=1, keepdim=True)
        plan = plan / plan.sum(dim=0, keepdim=True)
    theirs = keywords["scale"] * (plan * cost).sum()
    torch.testing.assert_close(theirs, tensors["loss"].reshape(()), **tolerance)
    ours = objectives.sinkhorn(student.flatten(0, 1), teacher.flatten(0, 1), reduction="sum")
    assert not torch.isclose(keywords["scale"] * ours, theirs, rtol=0.05)
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*flatten tokens first"):
        objectives.sinkhorn(student, teacher)


def test_soft_cross_entropy_with_the_annealed_temperature_of_sinkd() -> None:
    tensors, keywords, tolerance = golden("sinkd", "kd_anneal_T4_8epochs")
    epochs = keywords["total_epoch"]
    for epoch, expected in enumerate(tensors["loss_per_epoch"]):
        temperature = keywords["T"] + epoch * (1 - keywords["T"]) / (epochs - 1)
        loss = objectives.soft_cross_entropy(
            tensors["student_logits"], tensors["teacher_logits"], temperature=temperature
        )
        # Their code has no factor T^2.
        torch.testing.assert_close(loss / temperature**2, expected, **tolerance)


# OFA-KD


@pytest.mark.parametrize("name", ["loss_eps1p5", "loss_eps1p1_T1_batch1", "loss_one_class"])
def test_ofa(name: str) -> None:
    tensors, keywords, tolerance = golden("ofa_kd", name)
    student = tensors["student_logits"].requires_grad_()
    loss = objectives.ofa(
        student,
        tensors["teacher_logits"],
        tensors["labels"],
        gamma=keywords["eps"],
        temperature=keywords["temperature"],
    )
    expected = {"loss": tensors["loss"], "student": tensors["grad_student_logits"]}
    agree(loss, {"student": student}, expected, tolerance)


def test_ofa_is_finite_where_the_logarithm_of_the_softmax_is_not() -> None:
    tensors, keywords, tolerance = golden("ofa_kd", "loss_underflow_f32")
    assert not tensors["loss_official_f32"].isfinite()
    assert not tensors["grad_official_f32"].isfinite().all()
    student = tensors["student_logits"].requires_grad_()
    loss = objectives.ofa(
        student, tensors["teacher_logits"], tensors["labels"], gamma=keywords["eps"]
    )
    expected = {
        "loss": tensors["loss_stable_f64"].float(),
        "student": tensors["grad_stable_f64"].float(),
    }
    agree(loss, {"student": student}, expected, tolerance)
