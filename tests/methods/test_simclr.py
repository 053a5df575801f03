"""SimCLR: two seeded views of every image, and their contrast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from wired_step import reached, wired

from understudy import objectives
from understudy.errors import UnderstudyError
from understudy.methods import SimCLR
from understudy.methods._image_views import Augment, by_image, views_of


def test_the_loss_is_that_of_the_projected_views_and_reaches_the_backbone() -> None:
    given = wired(SimCLR(dimensions=6))
    step = given.step()
    step.batch = given.method.inputs(step.batch)
    loss = given.method.loss(step)
    assert len(step.batch) == 16 and step.batch.index.tolist() == sorted([*range(8)] * 2)
    embeddings = given.method.projector(step.student.features["fc@input"])
    torch.testing.assert_close(loss, objectives.nt_xent(embeddings.view(8, 2, 6)))
    loss.backward()
    names = reached(given.student)
    assert "conv1.weight" in names and not {name for name in names if name.startswith("fc")}
    assert reached(given.method) == {name for name, _ in given.method.named_parameters()}


def test_views_depend_on_sample_and_counter_only() -> None:
    given = wired(SimCLR())
    method = given.method
    whole, part = (method.inputs(given.step(index).batch) for index in (None, [5, 2]))
    views = by_image(whole.inputs["student"], 2)
    # Rows that are computed alone or together may differ in the last bit.
    torch.testing.assert_close(by_image(part.inputs["student"], 2), views[[5, 2]])
    assert whole.inputs["student"] is whole.inputs["teacher"]
    assert not torch.allclose(views[:, 0], views[:, 1], atol=0.1)
    method.after_step(given.step())
    later = by_image(method.inputs(given.step().batch).inputs["student"], 2)
    assert not torch.allclose(later, views, atol=0.1)


def test_views_without_change_are_the_image() -> None:
    images = torch.randn(3, 2, 8, 8)
    same = Augment(scale=1.0, flip=0.0, jitter=0.0)(images, torch.rand(3, 6))
    torch.testing.assert_close(same, images, rtol=1e-4, atol=1e-4)
    mirrored = Augment(scale=1.0, flip=1.0, jitter=0.0)(images, torch.rand(3, 6))
    torch.testing.assert_close(mirrored, images.flip(3), rtol=1e-4, atol=1e-4)
    drawn = torch.zeros(3, 6)
    drawn[:, 3] = 0.9
    corner = Augment(scale=0.25, flip=0.5, jitter=0.0)(images, drawn)
    expected = torch.nn.functional.interpolate(
        images[:, :, :4, :4], size=8, mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(corner[:, :, 1:7, 1:7], expected[:, :, 1:7, 1:7])


def test_what_is_no_image_is_refused_and_views_of_views_too() -> None:
    with pytest.raises(UnderstudyError, match="needs images"):
        wired(SimCLR(), text=True)
    given = wired(SimCLR())
    batch = given.method.inputs(given.step().batch)
    with pytest.raises(UnderstudyError, match="views of the views"):
        views_of(batch, [Augment(0.5, 0.5, 0.4)], seed=0, count=torch.tensor(0), method="simclr")


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"scale": 0.0}, r"scale is 0.0; it must be in \(0, 1\]"),
        ({"jitter": 2.0}, r"jitter is 2.0; it must be in \[0, 1\]"),
        ({"dimensions": 0}, "dimensions is 0"),
    ],
)
def test_settings_are_checked(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SimCLR(**keywords)
