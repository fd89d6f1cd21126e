"""Families of single continuous variables with a closed-form Fisher information."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riemae.distributions.family import Family, Free, OddsFamily, Params
from riemae.distributions.special import (
    degrees_information,
    resultant,
    resultant_slope,
    root,
    tilted_variance,
    trigamma_excess,
)


class LogScale(Family):
    """A scale or rate alone: ``φ = c log σ``."""

    def __init__(
        self, name: str, distribution: Callable[..., Any], parameter: str, coefficient: float
    ) -> None:
        super().__init__(name, distribution, (parameter,))
        self.coefficient = coefficient

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        return self.coefficient * p[self.names[0]].log()


class LocationScale(Family):
    """``H = diag(a, b)/σ²``: hyperbolic planes of curvature −1/b, one a variable, in (√(a/b) μ, σ).

    ``d = 2 √b arsinh ½ √(((a/b) Δμ² + Δσ²)/(σ₁σ₂))``. A line, hence flat, where μ or σ is fixed.
    """

    def __init__(self, name: str, distribution: Callable[..., Any], a: float, b: float) -> None:
        super().__init__(name, distribution, ("loc", "scale"))
        self.a = a
        self.b = b

    def weights(self, p: Params) -> tuple[Any, Any]:
        """The numbers a and b."""
        return self.a, self.b

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return len(free) < 2

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        a, b = self.weights(p)
        if "scale" in free:
            return b**0.5 * p["scale"].log()
        return a**0.5 * (p["loc"] / p["scale"])

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        sigma = p["scale"]
        weight = dict(zip(("loc", "scale"), self.weights(p), strict=True))
        return {name: weight[name] * (v[name] / sigma) / sigma for name in v}

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        if self.has_feature_map(free):
            return super().squared_distance(p, q, free)
        a, b = self.weights(p)
        shift, stretch = q["loc"] - p["loc"], q["scale"] - p["scale"]
        # One quotient after the other: the product of the scales may overflow or vanish.
        ratio = a / b * (shift / p["scale"]) * (shift / q["scale"])
        ratio = ratio + (stretch / p["scale"]) * (stretch / q["scale"])
        return (4 * b * (root(ratio) / 2).asinh().square()).flatten(1).sum(-1)


class StudentT(LocationScale):
    """``diag(ν + 1, 2ν)/((ν + 3) σ²)`` in (μ, σ).

    For a fixed ν, hyperbolic planes as in :class:`LocationScale`. With ν free,
    ``I_νσ = −2/((ν + 1)(ν + 3) σ)`` and :func:`degrees_information`; ν and μ are orthogonal.

    K. L. Lange, R. J. A. Little and J. M. G. Taylor, Robust statistical modeling using the t
    distribution, JASA 84, 1989.
    """

    needs_float64 = True

    def __init__(self, name: str, distribution: Callable[..., Any]) -> None:
        Family.__init__(self, name, distribution, ("df", "loc", "scale"))

    def weights(self, p: Params) -> tuple[Any, Any]:
        """The numbers a and b."""
        df = p["df"]
        return (df + 1) / (df + 3), 2 * df / (df + 3)

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "df" not in free and super().has_feature_map(free)

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        out = super().product(p, {name: dv for name, dv in v.items() if name != "df"})
        if "df" not in v:
            return out
        df, sigma = p["df"], p["scale"]
        mixed = -2 / ((df + 1) * (df + 3)) / sigma
        out["df"] = degrees_information(df) * v["df"]
        if "scale" in v:
            out["df"] = out["df"] + mixed * v["scale"]
            out["scale"] = out["scale"] + mixed * v["df"]
        return out

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        return None if "df" in free else super().squared_distance(p, q, free)


class FisherSnedecor(Family):
    """The ratio of two χ² variables, in half their degrees of freedom a and b, ``s = a + b``.

    With ``R(x) = ψ'(x) − 1/x``, and times ¼ for the halves:

    ``I_aa = R(a) − R(s) − b/(a s (s + 1))``, ``I_ab = 1/(s (s + 1)) − R(s)``: with a beta variable
    ``w = aX/(aX + b)`` the scores are ``log w − (s/a) w`` and ``log (1 − w) − (s/b)(1 − w)`` but
    for constants.
    """

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        half = {name: p[name] / 2 for name in self.names}
        s = half["df1"] + half["df2"]
        common = trigamma_excess(s)
        mixed = (1 / (s * (s + 1)) - common) / 4
        out = {}
        for name, other in (("df1", "df2"), ("df2", "df1")):
            if name not in v:
                continue
            own = trigamma_excess(half[name]) - common - half[other] / (half[name] * s * (s + 1))
            out[name] = own / 4 * v[name]
            if other in v:
                out[name] = out[name] + mixed * v[other]
        return out


class Gamma(Family):
    """``[ψ'(a), −1/b; −1/b, a/b²]``; ``φ = √a log b`` where the shape a is fixed."""

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "concentration" not in free

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        return root(p["concentration"]) * p["rate"].log()

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        a, b = p["concentration"], p["rate"]
        da = v.get("concentration", torch.zeros_like(a))
        growth = v["rate"] / b if "rate" in v else torch.zeros_like(b)
        out = {"concentration": torch.polygamma(1, a) * da - growth, "rate": (a * growth - da) / b}
        return {name: out[name] for name in v}


class Beta(Family):
    """``diag ψ'(α_i) − ψ'(α₁ + α₀)``."""

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        common = torch.polygamma(1, p["concentration1"] + p["concentration0"]) * sum(v.values())
        return {name: torch.polygamma(1, p[name]) * v[name] - common for name in v}


class VonMises(Family):
    """``diag(κA, A')`` with ``A = I₁(κ)/I₀(κ)``; circles of radius √(κA) where κ is fixed."""

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "concentration" not in free

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        radius = root(p["concentration"] * resultant(p["concentration"]))
        return torch.stack([radius * p["loc"].cos(), radius * p["loc"].sin()], -1)

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        kappa = p["concentration"]
        out = {}
        if "loc" in v:
            out["loc"] = kappa * resultant(kappa) * v["loc"]
        if "concentration" in v:
            out["concentration"] = resultant_slope(kappa) * v["concentration"]
        return {name: out[name] for name in v}

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        if not self.has_feature_map(free):
            return None
        turn = torch.remainder(q["loc"] - p["loc"] + math.pi, 2 * math.pi) - math.pi
        squared = p["concentration"] * resultant(p["concentration"]) * turn.square()
        return squared.flatten(1).sum(-1)


class ContinuousBernoulli(OddsFamily):
    """``H = A''(l)`` with the log-normaliser ``A = log (e^l − 1)/l``.

    A curve, but one without a closed arc length.
    """

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        if "probs" not in p:
            return {"logits": tilted_variance(p["logits"]) * v["logits"]}
        probs = p["probs"]
        slope = 1 / (probs * (1 - probs))  # dl/dp
        return {"probs": slope * tilted_variance(torch.logit(probs)) * slope * v["probs"]}
