"""The KD layer by itself, against numbers of the authors' code and against its own laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from understudy import objectives
from understudy.errors import ModelError
from understudy.models.build import build
from understudy.models.export import export
from understudy.models.grafts.kd_layer import CosineLayer, KDLayer
from understudy.models.model import Model
from understudy.models.splice import splice
from understudy.objectives.feature.assignments import _divergence, own_nearest

GOLDEN = Path(__file__).parent.parent / "golden" / "kd_layer"


def case(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


def layer(given: dict[str, torch.Tensor], alpha: float) -> KDLayer:
    """Return the layer with the parameters of a case."""
    count, channels = given["w_template"].shape[:2]
    made = KDLayer(channels, count, alpha).to(given["w_template"].dtype)
    values = {
        "scores.weight": given["w_template"].flatten(1),
        "scores.scale": given["s_template"],
        "values.weight": given["w_value"].flatten(1),
        "values.scale": given["s_value"],
    }
    if "bn_weight" in given:
        values |= {
            "norm.weight": given["bn_weight"],
            "norm.bias": given["bn_bias"],
            "norm.running_mean": given["bn_running_mean_before"],
            "norm.running_var": given["bn_running_var_before"],
        }
    made.load_state_dict(values, strict=False)
    return made


def close(found: Any, expected: torch.Tensor, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=atol)


def check_gradients(made: KDLayer, given: dict[str, torch.Tensor], **tolerance: float) -> None:
    names = {
        "scores.weight": "w_template",
        "scores.scale": "s_template",
        "norm.weight": "bn_weight",
        "norm.bias": "bn_bias",
        "values.weight": "w_value",
        "values.scale": "s_value",
    }
    for name, parameter in made.named_parameters():
        if f"grad_{names[name]}" in given:
            expected = given[f"grad_{names[name]}"].view_as(parameter)
            assert parameter.grad is not None
            close(parameter.grad, expected, **tolerance)


@pytest.mark.parametrize("name", ["cosconv_scale3", "cosconv_one_template"])
def test_cosine_layer_is_the_authors(name: str) -> None:
    given = case(name)
    weight = given["weight"].flatten(1)
    made = CosineLayer(weight.shape[1], weight.shape[0], scale=3.0).double()
    made.load_state_dict({"weight": weight, "scale": given["scale"]})
    x = given["x"].requires_grad_()
    y = made(x.movedim(1, -1)).movedim(-1, 1)
    close(y, given["y"], rtol=1e-9, atol=1e-11)
    (y * given["upstream"]).sum().backward()
    close(x.grad, given["grad_x"], rtol=1e-9, atol=1e-11)
    close(made.weight.grad, given["grad_weight"].flatten(1), rtol=1e-9, atol=1e-11)
    close(made.scale.grad, given["grad_scale"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["penult_train", "penult_eval", "penult_alpha0"])
def test_layer_loss_and_gradients_are_the_authors(name: str) -> None:
    given = case(name)
    made = layer(given, alpha=0.0 if name.endswith("0") else 1.0)
    made.train(name != "penult_eval")
    x = given["features"].requires_grad_()
    scores = made.scores(x.movedim(1, -1))
    close(scores.movedim(-1, 1), given["scores"])
    out = made(x)
    close(out, given["features_out"])
    wanted = given["p_teacher"]
    negentropy = torch.xlogy(wanted, wanted).sum(dim=-1)
    divergence = _divergence(wanted, negentropy, scores).mean()
    close(divergence, given["loss_kd"])
    logits = F.linear(out.mean(dim=(2, 3)), given["w_head"], given["b_head"])
    close(logits, given["logits"])
    total = F.cross_entropy(logits, given["labels"]) + divergence
    close(total, given["loss_total"])
    total.backward()
    close(x.grad, given["grad_features"])
    check_gradients(made, given)
    close(made.norm.running_mean, given["bn_running_mean_after"])
    close(made.norm.running_var, given["bn_running_var_after"])


@pytest.mark.parametrize("name", ["inter_downscale_alpha0p2", "inter_quirk_farthest"])
def test_sub_class_layer_is_the_authors_but_for_the_farthest_centre(name: str) -> None:
    given = case(name)
    alpha, classes = (0.2, 4) if "downscale" in name else (1.0, 3)
    made = layer(given, alpha)
    tolerance = {"rtol": 2e-4, "atol": 2e-5}
    teacher = given["teacher_features"]
    size = given["student_features"].shape[2:]
    places = F.adaptive_avg_pool2d(teacher, size).movedim(1, -1).double()
    width = given["centers"].shape[1]
    projected = ((places - given["lda_xbar"]) @ given["lda_scalings"][:, :width]).float()
    close(projected.movedim(-1, 1), given["lda_features"], **tolerance)
    x = given["student_features"].requires_grad_()
    scores = made.scores(x.movedim(1, -1))
    out = made(x)
    close(scores.movedim(-1, 1), given["scores"], **tolerance)
    close(out, given["features_out"], **tolerance)
    loss = objectives.subclass_scores(
        scores,
        projected,
        centres=given["centers"].view(classes, -1, width),
        table=given["score_table"],
        labels=given["labels"],
    )
    if name == "inter_quirk_farthest":
        # What their code gives where it finds nothing is the row of sub-class 0 of class 0.
        assert given["loss_sub"] == pytest.approx(1.2187, abs=1e-4)
        assert loss.item() == pytest.approx(1.9456, abs=1e-4)
        return
    close(loss, given["loss_sub"], **tolerance)
    ((out * given["upstream"]).sum() + loss).backward()
    close(x.grad, given["grad_student"], **tolerance)
    check_gradients(made, given, **tolerance)


def test_own_centres_alone_are_looked_at() -> None:
    torch.manual_seed(0)
    features, centres = torch.randn(4, 2, 3, 5), torch.randn(3, 4, 5)
    labels = torch.tensor([0, 2, 1, 2])
    found = own_nearest(features, centres, labels)
    for sample, label in enumerate(labels):
        distances = torch.cdist(features[sample].reshape(-1, 5), centres[label])
        assert torch.equal(found[sample].flatten(), distances.argmin(dim=1))


# Laws


def test_only_directions_count_and_what_is_added_is_bounded() -> None:
    torch.manual_seed(0)
    made = KDLayer(5, 7).double()
    x = torch.randn(3, 5, 2, 4).double()
    for factor in (1e-6, 3.0, 1e8):
        close(made.scores(factor * x.movedim(1, -1)), made.scores(x.movedim(1, -1)))
        close(made(factor * x) - factor * x, made(x) - x, rtol=1e-6, atol=1e-6 * max(1.0, factor))
    matched = torch.rand(6, 7).double()
    close(made.values(11 * matched), made.values(matched))
    with torch.no_grad():
        made.values.scale.fill_(-2.5)
    assert (made(x) - x).abs().max() <= 2.5 + 1e-12


def test_alpha_0_is_the_identity_and_leaves_the_vectors_alone() -> None:
    torch.manual_seed(0)
    made = KDLayer(5, 7, alpha=0.0)
    x = torch.randn(3, 5, 2, 4, requires_grad=True)
    out = made(x)
    assert torch.equal(out, x)
    (out.square().sum() + made.scores(x.movedim(1, -1)).sum()).backward()
    for parameter in (*made.values.parameters(), *made.norm.parameters()):
        assert parameter.grad is None or not parameter.grad.any()
    assert made.scores.weight.grad is not None and made.scores.weight.grad.any()
    assert made.eval()(x) is x


def test_maps_tokens_and_vectors_are_the_same_places() -> None:
    torch.manual_seed(0)
    made = KDLayer(5, 7).eval()
    maps = torch.randn(3, 5, 2, 4)
    rows = maps.flatten(2).transpose(1, 2)
    expected = made(maps).flatten(2).transpose(1, 2)
    torch.testing.assert_close(made(rows), expected)
    torch.testing.assert_close(made(rows[:, 0]), expected[:, 0])
    # A map that is not square keeps its places.
    assert made.scores(maps.movedim(1, -1)).shape == (3, 2, 4, 7)
    strided = maps.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made(strided), made(maps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_and_tiny_vectors_have_finite_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = KDLayer(5, 7)
    x = torch.randn(4, 6, 5).to(dtype)
    # The gradient of a cosine grows as 1 / length, beyond float16 for a very short one.
    x[0], x[1, 0] = 0, 1e-3 if dtype == torch.float16 else 1e-7
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        scores, out = made.scores(x), made(x)
    assert out.dtype == dtype
    assert (scores[0] == 0).all() and out.isfinite().all()
    (scores.float().square().sum() + scores.float().sum() + out.float().sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert x.grad[0].abs().max() <= 2  # of the sum alone
    # A place that matches nothing adds nothing.
    with torch.no_grad():
        made.norm.bias.fill_(-1e3)
    y = torch.randn(4, 6, 5, requires_grad=True)
    out = made(y)
    assert torch.equal(out, y)
    out.sum().backward()
    assert y.grad is not None and torch.equal(y.grad, torch.ones_like(y))


def test_a_single_place_cannot_be_normalised() -> None:
    made = KDLayer(5, 7)
    with pytest.raises(ModelError, match=r"given \(1, 5, 1, 1\) in training: one place"):
        made(torch.randn(1, 5, 1, 1))
    made.eval()(torch.randn(1, 5, 1, 1))
    with pytest.raises(ModelError, match="templates is 0"):
        KDLayer(5, 0)


def test_parameters_and_initial_values_are_the_published() -> None:
    torch.manual_seed(0)
    made = KDLayer(64, 4096)
    assert sum(p.numel() for p in made.parameters()) == 2 * 4096 * 64 + 2 * 4096 + 2
    assert made.scores.scale.item() == 3 and made.values.scale.item() == 1
    assert made.scores.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.01)
    assert made.values.weight.std().item() == pytest.approx((2 / 4096) ** 0.5, rel=0.01)
    assert made.norm.eps == 1e-5 and made.norm.momentum == 0.1


def test_an_exported_student_has_the_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Model = build(
        "kd:resnet8",
        classes=3,
        kind="image",
        input_shape=(1, 8, 8),
        class_names=("no", "yes", "both"),
        statistics=((0.3,), (0.4,)),
        width=0.25,
    )
    for path in ("layer3.0", "layer3"):
        splice(model.module, path, KDLayer(16, 9))
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    # The export is loaded in a fresh process and compared with the student.
    file = export(model, "onnx", tmp_path / "out", example_raw=images, kind="image")
    assert file.exists()
