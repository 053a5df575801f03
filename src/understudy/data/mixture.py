"""Domain mixtures that follow the student: where it is far behind its teacher, it sees more (DDK)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from understudy.errors import DataError, unknown_name

MIXTURES = ("ddk", "equal")


@dataclass
class Mixture:
    """In which shares a stage draws its batches from the domains; without one, as they come in the data.

    Attributes:
        name: "ddk": the more from a domain, the further the student is behind its teacher there, or "equal": as much
            from each.
        every: with "ddk": steps between two updates. The first so many are drawn as the data has them.
        smoothing: with "ddk": the authors' alpha; each domain keeps (1 - smoothing) / N. None for weights made anew
            from the perplexities alone at every update, without history or floor.
        documents: with "ddk": how many validation documents of each domain the perplexities are measured on, at most.
        teacher: with "ddk": whose perplexity counts, where there are several teachers.
    """

    name: Literal["ddk", "equal"]
    every: int = 1000
    smoothing: float | None = 0.5
    documents: int = 500
    teacher: str | None = None

    def __post_init__(self) -> None:
        """Check what cannot be right."""
        if self.name not in MIXTURES:
            raise unknown_name("mixture", str(self.name), MIXTURES)
        if self.every < 1 or self.documents < 1:
            raise DataError(
                f"every is {self.every} and documents {self.documents}; both must be at least 1."
            )
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise DataError(f"smoothing is {self.smoothing}; it must lie between 0 and 1.")


def perplexity_ratios(
    student: Mapping[str, float], teacher: Mapping[str, float]
) -> dict[str, float]:
    """Return student's over teacher's perplexity for each domain, from cross-entropies in nats per token.

    Args:
        student: mean cross-entropy of the student on each domain's held-out texts.
        teacher: the teacher's, on the same texts with the same tokenizer.

    Returns:
        exp(student - teacher) per domain, in the student's order; below 1 where the student is the better one, infinite
        where the difference is beyond float64.

    Raises:
        DataError: domains differ, or a cross-entropy is not finite; names the domains.
    """
    _same_domains(student, teacher)
    ratios = {}
    for domain, ours in student.items():
        theirs = teacher[domain]
        if not (math.isfinite(ours) and math.isfinite(theirs)):
            raise DataError(
                f"On domain '{domain}' the cross-entropy of the student is {ours} and of the teacher {theirs}; both "
                "must be finite."
            )
        gap = ours - theirs
        ratios[domain] = math.exp(gap) if gap < 709 else math.inf
    return ratios


def initial_log_weights(ratios: torch.Tensor) -> torch.Tensor:
    """Return log softmax(ratios) over domains, float64 [N].

    In logarithms, because a weight may be smaller than a number can be and still matters in the next update.

    Args:
        ratios: student's over teacher's perplexity [N], positive and finite.

    Source: Liu et al., "DDK: Distilling Domain Knowledge for Efficient Large Language Models", NeurIPS 2024, eq. 1.

    Raises:
        DataError: there is no domain, or a ratio is not positive and finite.
    """
    _check_ratios(ratios)
    return ratios.detach().double().log_softmax(dim=0)


def updated_log_weights(
    log_weights: torch.Tensor, ratios: torch.Tensor, smoothing: float = 0.5
) -> torch.Tensor:
    """Return the logarithm of smoothing * softmax(log w + ratios) + (1 - smoothing) / N, float64 [N].

    So each domain keeps at least (1 - smoothing) / N, and none gets more than smoothing + (1 - smoothing) / N.

    Args:
        log_weights: logarithms of the weights before [N].
        ratios: student's over teacher's perplexity now [N], positive and finite.
        smoothing: the authors' alpha, in [0, 1]; 0 is the uniform mixture, 1 keeps no floor.

    Source: Liu et al., "DDK", NeurIPS 2024, equation 2.

    Raises:
        DataError: lengths differ, or a number is out of its range.
    """
    _check_ratios(ratios)
    if log_weights.shape != ratios.shape:
        raise DataError(
            f"There are weights of shape {tuple(log_weights.shape)} and ratios of shape {tuple(ratios.shape)}."
        )
    if not 0 <= smoothing <= 1:
        raise DataError(f"smoothing is {smoothing}; it must lie between 0 and 1.")
    posterior = (log_weights.detach().double() + ratios.detach().double()).log_softmax(dim=0)
    count = len(ratios)
    if count == 1 or smoothing == 1:
        return posterior
    if smoothing == 0:
        return torch.full_like(posterior, -math.log(count))
    floor = torch.full_like(posterior, math.log1p(-smoothing) - math.log(count))
    return torch.logaddexp(posterior + math.log(smoothing), floor)


@dataclass(frozen=True)
class DomainMixture:
    """How often each domain is drawn. A value: an update gives a new one.

    Attributes:
        domains: their names.
        log_weights: logarithms of their weights, which sum to 1.
        updates: how many updates there have been.
        smoothing: see `updated_log_weights`.
    """

    domains: tuple[str, ...]
    log_weights: tuple[float, ...]
    updates: int = 0
    smoothing: float = 0.5

    @classmethod
    def start(cls, ratios: Mapping[str, float], smoothing: float = 0.5) -> DomainMixture:
        """Return the mixture of the untrained student (equation 1).

        The paper draws the first interval from the natural mixture and uses these weights from the first update on.

        Raises:
            DataError: there is no domain, or a number is out of its range; names the domain.
        """
        _name_bad(ratios)
        if not 0 <= smoothing <= 1:
            raise DataError(f"smoothing is {smoothing}; it must lie between 0 and 1.")
        values = initial_log_weights(_tensor(ratios.values()))
        return cls(tuple(ratios), tuple(values.tolist()), 0, smoothing)

    def updated(self, ratios: Mapping[str, float]) -> DomainMixture:
        """Return the mixture of the next interval (equation 2).

        Raises:
            DataError: domains differ, or a ratio is not positive and finite; names the domain.
        """
        _same_domains(dict.fromkeys(self.domains), ratios)
        _name_bad(ratios)
        values = updated_log_weights(
            _tensor(self.log_weights),
            _tensor(ratios[domain] for domain in self.domains),
            self.smoothing,
        )
        return DomainMixture(self.domains, tuple(values.tolist()), self.updates + 1, self.smoothing)

    def weights(self) -> dict[str, float]:
        """Return the share of each domain."""
        return {
            domain: math.exp(value)
            for domain, value in zip(self.domains, self.log_weights, strict=True)
        }

    def draw(self, count: int, seed: int) -> list[str]:
        """Return the domains of the next `count` samples; the seed and the number of updates decide them.

        Raises:
            DataError: the count is negative.
        """
        if count < 0:
            raise DataError(f"count is {count}; it must not be negative.")
        generator = torch.Generator().manual_seed((seed * 1_000_003 + self.updates) % 2**63)
        shares = _tensor(self.log_weights).exp()
        places = torch.rand(count, generator=generator, dtype=torch.float64) * shares.sum()
        found = torch.searchsorted(shares.cumsum(dim=0), places, right=True)
        return [self.domains[number] for number in found.clamp(max=len(shares) - 1).tolist()]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain values."""
        return {
            "domains": list(self.domains),
            "log_weights": list(self.log_weights),
            "updates": self.updates,
            "smoothing": self.smoothing,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> DomainMixture:
        """Return the mixture that `state` described.

        Raises:
            DataError: it holds another number of weights than of domains.
        """
        domains, values = tuple(state["domains"]), tuple(state["log_weights"])
        if len(domains) != len(values):
            raise DataError(
                f"The state has {len(values)} weights for {len(domains)} domains {list(domains)}."
            )
        return cls(domains, values, int(state["updates"]), float(state["smoothing"]))


def _tensor(values: Any) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _same_domains(student: Mapping[str, object], teacher: Mapping[str, object]) -> None:
    missing: Sequence[str] = sorted(student.keys() - teacher.keys())
    unknown = sorted(teacher.keys() - student.keys())
    if missing or unknown:
        raise DataError(
            f"The domains differ: missing are {missing}, and there is no domain {unknown}."
        )


def _name_bad(ratios: Mapping[str, float]) -> None:
    for domain, ratio in ratios.items():
        if not (ratio > 0 and math.isfinite(ratio)):
            raise DataError(
                f"The ratio of perplexities on domain '{domain}' is {ratio}; it must be positive and finite."
            )


def _check_ratios(ratios: torch.Tensor) -> None:
    if ratios.dim() != 1 or len(ratios) == 0:
        raise DataError(f"Ratios have shape {tuple(ratios.shape)}; they must be one per domain.")
    _name_bad({str(number): ratio for number, ratio in enumerate(ratios.tolist())})
