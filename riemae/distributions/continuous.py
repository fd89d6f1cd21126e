"""Families of single continuous variables with a closed-form Fisher information."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riemae.distributions.family import DiagonalFamily, Family, Free, OddsFamily, Params
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
        (name,) = self.names
        return self.coefficient * p[name].log()


class LocationScale(DiagonalFamily):
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
        sigma = p["scale"]
        if "scale" in free:
            return b**0.5 * sigma.log()
        return a**0.5 * (p["loc"] / sigma)

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        sigma = p["scale"]
        a, b = self.weights(p)
        weights = {"loc": a, "scale": b}
        out = {}
        for name, tangent in v.items():
            relative = tangent / sigma
            out[name] = weights[name] * relative / sigma
        return out

    def diagonal(self, p: Params, free: Free) -> Params:
        """The diagonal of ``H(p)``, one entry per free parameter."""
        a, b = self.weights(p)
        precision = p["scale"].reciprocal().square()
        weights = {"loc": a, "scale": b}
        return {name: weights[name] * precision for name in free}

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        if self.has_feature_map(free):
            return super().squared_distance(p, q, free)
        a, b = self.weights(p)
        sigma_p = p["scale"]
        sigma_q = q["scale"]
        shift = q["loc"] - p["loc"]
        stretch = sigma_q - sigma_p
        # One quotient after the other: the product of the scales may overflow or vanish.
        of_shift = a / b * (shift / sigma_p) * (shift / sigma_q)
        of_stretch = (stretch / sigma_p) * (stretch / sigma_q)
        ratio = of_shift + of_stretch
        scale = 4 * b
        half = root(ratio) / 2
        squared = scale * half.asinh().square()
        return squared.flatten(1).sum(-1)


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
        a = (df + 1) / (df + 3)
        b = 2 * df / (df + 3)
        return a, b

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "df" not in free and super().has_feature_map(free)

    def is_diagonal(self, free: Free) -> bool:
        """Whether :meth:`diagonal` gives all of H when only ``free`` parameters vary."""
        return "df" not in free

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        others = {name: tangent for name, tangent in v.items() if name != "df"}
        out = super().product(p, others)
        if "df" not in v:
            return out
        df = p["df"]
        sigma = p["scale"]
        mixed = -2 / ((df + 1) * (df + 3)) / sigma
        out["df"] = degrees_information(df) * v["df"]
        if "scale" in v:
            out["df"] = out["df"] + mixed * v["scale"]
            out["scale"] = out["scale"] + mixed * v["df"]
        return out

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        if "df" in free:
            return None
        return super().squared_distance(p, q, free)


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
            own = half[name]
            excess = trigamma_excess(own)
            shared = half[other] / (own * s * (s + 1))
            diagonal = excess - common - shared
            out[name] = diagonal / 4 * v[name]
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
        a = p["concentration"]
        b = p["rate"]
        da = v.get("concentration", torch.zeros_like(a))
        if "rate" in v:
            growth = v["rate"] / b
        else:
            growth = torch.zeros_like(b)
        out = {
            "concentration": torch.polygamma(1, a) * da - growth,
            "rate": (a * growth - da) / b,
        }
        return {name: out[name] for name in v}


class Beta(Family):
    """``diag ψ'(α_i) − ψ'(α₁ + α₀)``."""

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter."""
        total = p["concentration1"] + p["concentration0"]
        common = torch.polygamma(1, total) * sum(v.values())
        out = {}
        for name, tangent in v.items():
            own = torch.polygamma(1, p[name])
            out[name] = own * tangent - common
        return out


class VonMises(DiagonalFamily):
    """``diag(κA, A')`` with ``A = I₁(κ)/I₀(κ)``; circles of radius √(κA) where κ is fixed."""

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "concentration" not in free

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        kappa = p["concentration"]
        angle = p["loc"]
        radius = root(kappa * resultant(kappa))
        circle = [radius * angle.cos(), radius * angle.sin()]
        return torch.stack(circle, -1)

    def diagonal(self, p: Params, free: Free) -> Params:
        """The diagonal of ``H(p)``, one entry per free parameter."""
        kappa = p["concentration"]
        out = {}
        if "loc" in free:
            out["loc"] = kappa * resultant(kappa)
        if "concentration" in free:
            out["concentration"] = resultant_slope(kappa)
        return out

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        if not self.has_feature_map(free):
            return None
        kappa = p["concentration"]
        difference = q["loc"] - p["loc"]
        turn = torch.remainder(difference + math.pi, 2 * math.pi) - math.pi
        squared = kappa * resultant(kappa) * turn.square()
        return squared.flatten(1).sum(-1)


class ContinuousBernoulli(DiagonalFamily, OddsFamily):
    """``H = A''(l)`` with the log-normaliser ``A = log (e^l − 1)/l``.

    A curve, but one without a closed arc length.
    """

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def diagonal(self, p: Params, free: Free) -> Params:
        """The diagonal of ``H(p)``, one entry per free parameter."""
        if "probs" not in p:
            return {"logits": tilted_variance(p["logits"])}
        probs = p["probs"]
        slope = 1 / (probs * (1 - probs))  # dl/dp
        return {"probs": slope * tilted_variance(torch.logit(probs)) * slope}
