"""Families of counts: negative binomials by mean and dispersion, and zero inflation.

================================ ===================== ============================================
family                           parameters            block of H
================================ ===================== ============================================
negative_binomial_mean           mu, theta             ``diag(θ/(μ (μ + θ)), I_θ)``; φ where θ is
                                                       fixed
zero_inflated_negative_binomial  mu, theta, zi_logits  :class:`ZeroInflated`
zero_inflated_poisson            rate, zi_logits       :class:`ZeroInflated`
================================ ===================== ============================================

``I_θ`` is in :mod:`riemae.distributions.dispersion`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from riemae.distributions.discrete import NegativeBinomial, Poisson
from riemae.distributions.dispersion import excess_information, log_odds_excess
from riemae.distributions.family import DiagonalFamily, Family, Free, Params
from riemae.distributions.special import root


class CountFamily(Protocol):
    """A family of counts whose chance of a zero is known."""

    names: tuple[str, ...]

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""

    def zero(self, p: Params) -> tuple[Tensor, Params]:
        """``log q`` of the chance q of a zero, and its derivative in each parameter."""


class ZeroPoisson(Poisson):
    """Poisson: ``q = e^{−λ}``."""

    def zero(self, p: Params) -> tuple[Tensor, Params]:
        """``log q`` of the chance q of a zero, and its derivative in each parameter."""
        rate = p["rate"]
        slope = {"rate": -torch.ones_like(rate)}
        return -rate, slope


class ZeroNegativeBinomial(NegativeBinomial):
    """Negative binomial by ``total_count`` and ``logits``: ``q = (1 + e^l)^{−r}``."""

    def zero(self, p: Params) -> tuple[Tensor, Params]:
        """``log q`` of the chance q of a zero, and its derivative in each parameter."""
        r = p["total_count"]
        logits = p["logits"]
        single = -F.softplus(logits)
        log_zero = r * single
        slope = {"total_count": single, "logits": -r * logits.sigmoid()}
        return log_zero, slope


class NegativeBinomialMean(DiagonalFamily):
    """``diag(1/(μ + μ²/θ), I_θ)``.

    ``φ = 2 √θ arsinh √(μ/θ)`` where θ is fixed; ``q = (1 + μ/θ)^{−θ}``.
    """

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "theta" not in free

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        mu = p["mu"]
        theta = p["theta"]
        radius = 2 * root(theta)
        arc = root(mu / theta).asinh()
        return radius * arc

    def diagonal(self, p: Params, free: Free) -> Params:
        """The diagonal of ``H(p)``, one entry per free parameter."""
        mu = p["mu"]
        theta = p["theta"]
        out = {}
        if "mu" in free:
            out["mu"] = 1 / mu / (1 + mu / theta)
        if "theta" in free:
            log_theta = theta.log()
            log_odds = mu.log() - log_theta
            out["theta"] = excess_information(log_odds, log_theta)
        return out

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        mu = p["mu"]
        theta = p["theta"]
        out = {}
        if "mu" in v:
            out["mu"] = v["mu"] / mu / (1 + mu / theta)
        if "theta" in v:
            log_theta = theta.log()
            log_odds = mu.log() - log_theta
            information = excess_information(log_odds, log_theta)
            out["theta"] = information * v["theta"]
        return out

    def zero(self, p: Params) -> tuple[Tensor, Params]:
        """``log q`` of the chance q of a zero, and its derivative in each parameter."""
        theta = p["theta"]
        ratio = p["mu"] / theta
        slope = {"mu": -1 / (1 + ratio)}
        slope["theta"] = -log_odds_excess(ratio.log())
        return -theta * ratio.log1p(), slope


class ZeroInflated(Family):
    """A zero with the chance ``π = σ(gate)``, a count of another family otherwise (Lambert 1992).

    With q the other family's chance of a zero, ``g = ∂ log q``, ``P = π + (1 − π) q`` the chance of
    any zero, I the other family's information and ``w = π (1 − π) q/P``:

        ``H_gate = π² (1 − π)(1 − q)/P``,   ``H_mixed = w g``,   ``H = (1 − π) I − w g gᵀ``:

    scores of counts above zero are ``−π`` and those of the other family, whose mean is 0 and which
    has g at zero.
    """

    needs_float64 = True

    def __init__(
        self,
        name: str,
        distribution: Callable[..., Any],
        base: CountFamily,
        gate: str = "zi_logits",
    ) -> None:
        super().__init__(name, distribution, (*base.names, gate))
        self.base = base
        self.gate = gate

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        inner = {name: dv for name, dv in v.items() if name != self.gate}
        # All chances by their logarithms: products of them may underflow.
        log_pi = F.logsigmoid(p[self.gate])
        log_rest = F.logsigmoid(-p[self.gate])
        log_q, slope = self.base.zero(p)
        log_zero = torch.logaddexp(log_pi, log_rest + log_q)
        weight = (log_pi + log_rest + log_q - log_zero).exp()
        along = torch.zeros_like(log_zero)  # g · v
        for name, dv in inner.items():
            along = along + slope[name] * dv
        if self.gate in v:
            shift = v[self.gate] - along
        else:
            shift = -along
        known = self.base.product(p, inner) if inner else {}
        out = {}
        for name in inner:
            of_counts = log_rest.exp() * known[name]
            of_zeros = weight * slope[name] * shift
            out[name] = of_counts + of_zeros
        if self.gate in v:
            chances = (2 * log_pi + log_rest - log_zero).exp()
            own = -chances * torch.expm1(log_q)
            out[self.gate] = own * v[self.gate] + weight * along
        return out


def by_mean(distribution: Callable[..., Any]) -> Family:
    """The negative binomial of a class that is built from ``mu`` and ``theta``."""
    return NegativeBinomialMean("negative_binomial_mean", distribution, ("mu", "theta"))


def inflated_by_mean(distribution: Callable[..., Any]) -> Family:
    """The zero-inflated negative binomial of a class built from ``mu, theta, zi_logits``."""
    base = NegativeBinomialMean("negative_binomial_mean", distribution, ("mu", "theta"))
    return ZeroInflated("zero_inflated_negative_binomial", distribution, base)


def inflated_by_count(distribution: Callable[..., Any]) -> Family:
    """The same of a class built from ``total_count, logits, gate_logits``."""
    base = ZeroNegativeBinomial("negative_binomial", distribution, ("total_count", "logits"))
    return ZeroInflated("zero_inflated_negative_binomial_count", distribution, base, "gate_logits")


def inflated_poisson(distribution: Callable[..., Any], gate: str = "gate_logits") -> Family:
    """The zero-inflated Poisson of a class that is built from ``rate`` and a gate."""
    base = ZeroPoisson("poisson", distribution, ("rate",))
    return ZeroInflated("zero_inflated_poisson", distribution, base, gate)
