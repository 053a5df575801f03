"""Objectives that compare views of one sample, beside the plain formulas."""

from __future__ import annotations

import math

import pytest
import torch

from understudy import objectives


def test_nt_xent_is_the_plain_formula() -> None:
    embeddings = torch.randn(4, 2, 5, dtype=torch.float64)
    rows = torch.nn.functional.normalize(embeddings.reshape(8, 5), dim=1)
    total = 0.0
    for i in range(8):
        scores = torch.exp(rows @ rows[i] / 0.5)
        total += -torch.log(scores[i ^ 1] / (scores.sum() - scores[i]))
    torch.testing.assert_close(objectives.nt_xent(embeddings), total / 8)


def test_dino_is_the_plain_formula() -> None:
    ours = torch.randn(4, 3, 6, dtype=torch.float64)
    theirs = torch.randn(4, 2, 6, dtype=torch.float64)
    centre = torch.randn(6, dtype=torch.float64)
    total = 0.0
    for sample in range(4):
        for g in range(2):
            wanted = torch.softmax((theirs[sample, g] - centre) / 0.04, dim=0)
            for v in range(3):
                if v != g:
                    said = torch.log_softmax(ours[sample, v] / 0.1, dim=0)
                    total -= float(wanted @ said)
    found = objectives.dino(ours, theirs, centre=centre)
    torch.testing.assert_close(found, torch.tensor(total / (4 * 2 * 2), dtype=torch.float64))


def test_collapse_costs_log_k_and_no_gradient_reaches_the_average() -> None:
    ours = torch.zeros(3, 2, 7, requires_grad=True)
    theirs = torch.zeros(3, 2, 7, requires_grad=True)
    loss = objectives.dino(ours, theirs)
    assert loss.item() == pytest.approx(math.log(7))
    loss.backward()
    assert theirs.grad is None and ours.grad is not None


def test_the_centre_takes_off_what_all_outputs_share() -> None:
    ours, theirs = torch.randn(3, 2, 7), torch.randn(3, 2, 7)
    shift = torch.randn(7)
    torch.testing.assert_close(
        objectives.dino(ours, theirs + shift, centre=shift), objectives.dino(ours, theirs)
    )
