"""Objectives on scores of words and sub-classes, beside the plain formulas."""

from __future__ import annotations

import torch

from understudy import objectives


def divergence(wanted: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return (wanted * (wanted.log() - scores.log_softmax(dim=-1))).sum(dim=-1)


def test_visual_words_are_the_divergence_from_the_soft_assignment() -> None:
    scores, features = torch.randn(3, 4, 5).double(), torch.randn(3, 4, 2).double()
    # Words of very different lengths: the nearest is not the one with the largest product.
    centres = torch.randn(5, 2).double() * torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0]).unsqueeze(1) + 3
    distances = (features.unsqueeze(2) - centres).square().sum(dim=-1)
    wanted = (-0.3 * distances).softmax(dim=-1)
    torch.testing.assert_close(
        objectives.visual_words(scores, features, centres=centres, sharpness=0.3),
        divergence(wanted, scores).mean(),
    )


def test_subclass_scores_are_the_divergence_from_the_row_of_the_nearest_of_the_class() -> None:
    scores, features = torch.randn(4, 3, 6).double(), torch.randn(4, 3, 2).double()
    scale = torch.tensor([0.1, 1.0, 3.0]).double().view(1, 3, 1)
    centres = torch.randn(2, 3, 2).double() * scale + 1
    table = torch.randn(6, 6).double().softmax(dim=-1)
    labels = torch.tensor([1, 0, -1, 1])
    expected = []
    for sample in (0, 1, 3):
        for place in range(3):
            apart = (features[sample, place] - centres[labels[sample]]).square().sum(dim=-1)
            row = 3 * int(labels[sample]) + int(apart.argmin())
            expected.append(divergence(table[row], scores[sample, place]))
    torch.testing.assert_close(
        objectives.subclass_scores(scores, features, centres=centres, table=table, labels=labels),
        torch.stack(expected).mean(),
    )
