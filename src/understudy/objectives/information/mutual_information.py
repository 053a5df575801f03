"""Lower bounds on the mutual information of student and teacher."""

from __future__ import annotations

import math

import torch

from understudy.objectives.card import card
from understudy.objectives.reduction import in_float
from understudy.objectives.shapes import check_samples, divisor, sample_weights

# Stands for the logarithm of a weight of 0 where -inf would make differences of infinities.
_NOTHING = -1e30


@card(
    "scores",
    needs=("log_baseline: real B",),
    teacher=False,
    minimum=None,
    coupled=True,
    smallest_batch=2,
)
def mi_alpha(
    scores: torch.Tensor,
    log_baseline: torch.Tensor,
    *,
    alpha: float = 0.9,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Minus the interpolated lower bound I_alpha on the mutual information of student and teacher, in nats.

    With F[i, j] the critic's score of student i and teacher j, b = log q the learnt baseline, and means over i != j
    only, loo[i, j] = log mean_{k != j} exp F[i, k] and u[i, j] = log(alpha * exp loo[i, j] + (1 - alpha) * exp b_i):
    I_alpha = 1 + mean(F[i, i] - u[i, j]) - mean(exp(F[i, j] - u[i, i])).

    alpha = 1 is leave-one-out InfoNCE (at most log(B - 1), low variance), alpha = 0 the bound with the learnt
    baseline alone (TUBA: unbounded, high variance, overflows when scores are large).

    Args:
        scores: F [B, B], pairs on the diagonal. Critic, baseline and student all learn from it: nothing is detached,
            and the critic must get a detached teacher.
        log_baseline: b [B], of each row.
        alpha: in [0, 1].
        weight: weights or mask [B], for rows and columns.

    Returns:
        One number. Coupled: the other samples are the negatives, so a split batch gives another value, and there is
        no reduction.

    Leave-one-out means are computed without subtracting a term from a sum that it dominates, in B^2 time and memory.

    Source: He et al., "Distiller: A Systematic Study of Model Distillation Methods in NLP", 2021, after Poole et
    al., "On Variational Bounds of Mutual Information", ICML 2019, equation 9. It keeps information, not coordinates:
    it needs a prediction loss beside it. The authors' Transformer critic contrasts positions instead of samples;
    what the scores contrast is the critic's business, and samples are what the paper says.

    Raises:
        ValueError: shapes do not fit, there are fewer than 2 samples, or alpha is out of its range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1")
    count = scores.shape[0]
    if scores.shape != (count, count) or log_baseline.shape != (count,):
        raise ValueError(
            f"scores have shape {tuple(scores.shape)} and log_baseline {tuple(log_baseline.shape)}; "
            "they must be [B, B] and [B]"
        )
    check_samples(scores, 2, "every sample needs others as negatives, so it needs")
    scores, baseline = in_float(scores), in_float(log_baseline)
    share = sample_weights(weight, scores)
    valid = share > 0
    scores = scores.masked_fill(~(valid.unsqueeze(1) & valid), 0.0)
    baseline = baseline.masked_fill(~valid, 0.0)

    log_normaliser = _log_normaliser(scores, baseline, share, alpha)
    pairs = (share.unsqueeze(1) * share).fill_diagonal_(0)
    present = pairs > 0
    total = divisor(pairs.sum())
    joint = torch.where(present, scores.diagonal().unsqueeze(1) - log_normaliser, 0.0)
    exponent = scores - log_normaliser.diagonal().unsqueeze(1)
    marginal = torch.where(present, exponent, 0.0).exp()
    bound = 1 + (pairs * joint).sum() / total - (pairs * marginal).sum() / total
    return torch.where(present.any(), -bound, 0.0)


def _log_normaliser(
    scores: torch.Tensor, baseline: torch.Tensor, share: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Return u [B, B]."""
    if alpha == 0:
        return baseline.unsqueeze(1).expand_as(scores)
    log_mean = _log_mean_of_others(scores, share)
    if alpha == 1:
        return log_mean
    return torch.logaddexp(math.log(alpha) + log_mean, math.log1p(-alpha) + baseline.unsqueeze(1))


def _log_mean_of_others(scores: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return log of the weighted mean over k != j of exp(scores[i, k]), for all i, j."""
    weighted = scores + torch.where(share > 0, divisor(share).log(), _NOTHING)
    largest, at = weighted.max(dim=1, keepdim=True)
    # Without another than the largest, the sum stays above 1; without the largest, it is made anew.
    shrunk = (weighted - largest).exp()
    is_largest = torch.zeros_like(shrunk, dtype=torch.bool).scatter(1, at, True)
    sums = shrunk.sum(dim=1, keepdim=True) - shrunk
    without_other = largest + torch.where(is_largest, torch.ones_like(sums), sums).log()
    without_largest = weighted.masked_fill(is_largest, _NOTHING).logsumexp(dim=1, keepdim=True)
    log_sum = torch.where(is_largest, without_largest, without_other)
    return log_sum - divisor(share.sum() - share).log()
