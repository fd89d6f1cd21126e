"""Families of probability distributions: their parameters, Fisher information, and arc-length
coordinates.

The Fisher information metric of independent variables is block diagonal, one block a variable.
Where a block is flat, or lies on a sphere, a feature map φ has ``H = JφᵀJφ``:

====================== ================================ ===========================================================
family                 parameters                       φ, or the block of H
====================== ================================ ===========================================================
bernoulli              logits or probs                  ``2 arctan e^{l/2} = 2 arcsin √p``
binomial               total_count; logits or probs     ``2 √n arcsin √p``
geometric              logits or probs                  ``2 arsinh e^{−l/2}``
categorical            logits or probs                  ``2 √p``: a sphere of radius 2
one_hot_categorical    logits or probs                  as categorical
multinomial            total_count; logits or probs     ``2 √(n p)``
continuous_bernoulli   logits or probs                  ``1/l² − 1/(4 sinh² l/2)`` in l
poisson                rate                             ``2 √λ``
negative_binomial      total_count; logits or probs     ``2 √r arsinh √(μ/r)``, ``μ = r e^l``, where r is fixed; else
                                                        :mod:`riemae.distributions.dispersion`
exponential            rate                             ``log λ``
gamma, inverse_gamma   concentration, rate              ``√a log b`` where a is fixed; else ``[ψ'(a), −1/b; ·, a/b²]``
beta                   concentration1, concentration0   ``diag ψ'(α_i) − ψ'(Σα)``
dirichlet              concentration                    ``diag ψ'(α_i) − ψ'(Σα)``
normal, log_normal     loc, scale                       ``μ/σ`` or ``√2 log σ`` where one is fixed; ``diag(1, 2)/σ²``
laplace                loc, scale                       ``μ/b`` or ``log b`` where one is fixed; ``diag(1, 1)/b²``
cauchy                 loc, scale                       the same over ``√2``
student_t              df, loc, scale                   ``diag(ν + 1, 2ν)/((ν + 3) σ²)`` in μ, σ; all of it below
fisher_snedecor        df1, df2                         trigamma functions, below
half_normal            scale                            ``√2 log σ``
half_cauchy            scale                            ``log γ / √2``
von_mises              loc, concentration               ``√(κA) (cos, sin)`` where κ is fixed; else ``diag(κA, A')``
multivariate_normal    loc, scale_tril                  ``L⁻¹μ`` where L is fixed; else ``|L⁻¹dμ|² + ½ tr (Σ⁻¹dΣ)²``
wishart                df, scale_tril                   ``½ ν tr (V⁻¹dV)²`` where ν is fixed; all of it below
lkj_cholesky           concentration                    trigamma functions, below
====================== ================================ ===========================================================

Zero-inflated counts and negative binomials by mean and dispersion are in
:mod:`riemae.distributions.counts`, families that a user adds in
:mod:`riemae.distributions.registry`. ψ' is the trigamma function, ``A = I₁/I₀`` the mean resultant
length. Each is compared in the tests with the covariance of the score and with the Hessian of the
Kullback-Leibler divergence.

S. Amari, Information Geometry and Its
Applications, 2016; C. Atkinson and A. F. S. Mitchell, Rao's distance measure, Sankhyā A 43, 1981.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from riemae.distributions.family import Family, Free, Params, odds_form
from riemae.distributions.special import (
    arsinh_exp,
    atanh_root,
    degrees_information,
    dispersion_information,
    resultant,
    resultant_slope,
    root,
    tilted_variance,
    trigamma_excess,
)


class _Odds(Family):
    """Families that torch builds from ``logits`` or from ``probs``: whichever the decoder used is
    kept.

    With logits, probabilities 0 and 1 are only reached at infinity, and nothing is lost near them.
    """

    def read(self, distribution: Any) -> dict[str, Any]:
        form = odds_form(distribution)
        names = [form if name == "logits" else name for name in self.names]
        return {name: getattr(distribution, name) for name in names}


class Bernoulli(_Odds):
    """``φ = 2 √n arcsin √p``; n = 1 unless there is a ``total_count``."""

    support_parameters = frozenset({"total_count"})

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        if "probs" in p:
            angle = 2 * torch.atan2(root(p["probs"]), root(1 - p["probs"]))
        else:
            logits = p["logits"]
            right = logits > 0
            small = (
                2 * torch.where(right, -logits, logits).div(2).exp().atan()
            )  # of e^{−|l|/2}: never overflows
            angle = torch.where(right, math.pi - small, small)
        return angle * root(p["total_count"]) if "total_count" in p else angle


class NegativeBinomial(_Odds):
    """``φ = 2 √r arsinh √(μ/r)``, ``μ/r = p/(1 − p) = e^l``, where the dispersion r
    (``total_count``) is fixed.

    ``∂φ/∂μ = 1/√(μ + μ²/r)``, the root of the Fisher information. In (l, r) it is
    ``[r p, p; p, I_rr]``, ``I_rr = ψ'(r) − E ψ'(r + Y)``: see
    :mod:`riemae.distributions.dispersion`.
    """

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "total_count" not in free

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        r = p["total_count"]
        return (
            2 * root(r) * (atanh_root(p["probs"]) if "probs" in p else arsinh_exp(p["logits"] / 2))
        )

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        if self.has_feature_map(frozenset(v)):
            return super().product(p, v)
        form = "probs" if "probs" in p else "logits"
        r, q = p["total_count"], p[form]
        probs, logits = (q, torch.logit(q)) if form == "probs" else (q.sigmoid(), q)
        scale = probs * (1 - probs) if form == "probs" else torch.ones_like(q)  # dp/dl
        dl = v[form] / scale if form in v else torch.zeros_like(q)
        dr = v["total_count"]
        out = {
            "total_count": probs * dl + dispersion_information(r, logits) * dr,
            form: probs * (r * dl + dr) / scale,
        }
        return {name: out[name] for name in v}


class ContinuousBernoulli(_Odds):
    """``H = A''(l)`` with the log-normaliser ``A = log (e^l − 1)/l``.

    A curve, but one without a closed arc length.
    """

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        if "probs" not in p:
            return {"logits": tilted_variance(p["logits"]) * v["logits"]}
        probs = p["probs"]
        slope = 1 / (probs * (1 - probs))  # dl/dp
        return {"probs": slope * tilted_variance(torch.logit(probs)) * slope * v["probs"]}


class Geometric(_Odds):
    """A negative binomial with r = 1 whose successes are torch's failures:
    ``φ = 2 arsinh e^{−l/2}``.
    """

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        return 2 * (atanh_root(1 - p["probs"]) if "probs" in p else arsinh_exp(-p["logits"] / 2))


class Categorical(_Odds):
    """``φ = 2 √p`` on the sphere of radius 2: the distance is ``2 arccos Σ √(p_i q_i)``, along the
    great circle.
    """

    support_parameters = frozenset({"total_count"})
    event = 1

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        probs = p["probs"] if "probs" in p else None
        half = root(probs) if probs is not None else (torch.log_softmax(p["logits"], -1) / 2).exp()
        return 2 * half * root(p["total_count"])[..., None] if "total_count" in p else 2 * half

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        chord = (self.features(q, free) - self.features(p, free)).square().sum(-1)
        count = p.get("total_count", torch.ones_like(chord))
        # Arc over chord on a sphere of radius 2 √n; the chord keeps its digits where the arc's
        # cosine is near 1.
        arc = 16 * count * (root(chord / count) / 4).clamp(max=1).asin().square()
        return arc.reshape(len(arc), -1).sum(-1)


class Poisson(Family):
    """``φ = 2 √λ``; fine at λ = 0."""

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        return 2 * root(p["rate"])


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
        self.a, self.b = a, b

    def weights(self, p: Params) -> tuple[Any, Any]:
        """A and b."""
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
        """``H(p) v``, one entry a parameter."""
        sigma = p["scale"]
        weight = dict(zip(("loc", "scale"), self.weights(p), strict=True))
        return {name: weight[name] * (v[name] / sigma) / sigma for name in v}

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        if self.has_feature_map(free):
            return super().squared_distance(p, q, free)
        a, b = self.weights(p)
        shift, stretch = q["loc"] - p["loc"], q["scale"] - p["scale"]
        # One quotient after the other: their product may overflow or vanish.
        ratio = a / b * (shift / p["scale"]) * (shift / q["scale"])
        ratio = ratio + (stretch / p["scale"]) * (stretch / q["scale"])
        return (4 * b * (root(ratio) / 2).asinh().square()).flatten(1).sum(-1)


class StudentT(LocationScale):
    """``diag(ν + 1, 2ν)/((ν + 3) σ²)`` in (μ, σ): for a fixed ν, hyperbolic planes as in
    :class:`LocationScale`.

    With ν free, ``I_νσ = −2/((ν + 1)(ν + 3) σ)`` and :func:`degrees_information`; ν and μ are
    orthogonal. K. L. Lange, R. J. A. Little and J. M. G. Taylor, Robust statistical modeling using
    the t distribution, JASA 84, 1989.
    """

    needs_float64 = True

    def __init__(self, name: str, distribution: Callable[..., Any]) -> None:
        Family.__init__(self, name, distribution, ("df", "loc", "scale"))

    def weights(self, p: Params) -> tuple[Any, Any]:
        """A and b."""
        df = p["df"]
        return (df + 1) / (df + 3), 2 * df / (df + 3)

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "df" not in free and super().has_feature_map(free)

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
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
        """``H(p) v``, one entry a parameter."""
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
        """``H(p) v``, one entry a parameter."""
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
        """``H(p) v``, one entry a parameter."""
        common = torch.polygamma(1, p["concentration1"] + p["concentration0"]) * sum(v.values())
        return {name: torch.polygamma(1, p[name]) * v[name] - common for name in v}


class Dirichlet(Family):
    """``diag ψ'(α_i) − ψ'(Σα)``."""

    event = 1
    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        alpha, d = p["concentration"], v["concentration"]
        total = torch.polygamma(1, alpha.sum(-1, keepdim=True)) * d.sum(-1, keepdim=True)
        return {"concentration": torch.polygamma(1, alpha) * d - total}


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
        """``H(p) v``, one entry a parameter."""
        kappa = p["concentration"]
        weight = {
            "loc": lambda: kappa * resultant(kappa),
            "concentration": lambda: resultant_slope(kappa),
        }
        return {name: weight[name]() * v[name] for name in v}

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        if not self.has_feature_map(free):
            return None
        turn = torch.remainder(q["loc"] - p["loc"] + math.pi, 2 * math.pi) - math.pi
        return (
            (p["concentration"] * resultant(p["concentration"]) * turn.square()).flatten(1).sum(-1)
        )


class MultivariateNormal(Family):
    """``|L⁻¹dμ|² + ½ |W + Wᵀ|²`` with ``W = L⁻¹dL`` and covariance ``LLᵀ``.

    ``φ = L⁻¹μ`` where L is fixed.
    """

    event = 1

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "scale_tril" not in free

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        return _solve(p["scale_tril"], p["loc"][..., None])[..., 0]

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        factor = p["scale_tril"]
        out = {}
        if "loc" in v:
            out["loc"] = _solve(factor, _solve(factor, v["loc"][..., None]), transposed=True)[
                ..., 0
            ]
        if "scale_tril" in v:
            w = _solve(factor, v["scale_tril"])
            out["scale_tril"] = _solve(factor, w + w.mT, transposed=True)
        return out


class Wishart(Family):
    """``½ ν tr (V⁻¹dV)² + tr (V⁻¹dV) dν + ¼ Σ_{i<d} ψ'((ν − i)/2) dν²`` with ``V = LLᵀ``."""

    event = 2
    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        df, factor = p["df"], p["scale_tril"]
        out = {}
        if "df" in v:
            halves = (df[..., None] - torch.arange(factor.shape[-1]).to(factor)) / 2
            out["df"] = torch.polygamma(1, halves).sum(-1) / 4 * v["df"]
        if "scale_tril" in v:
            w = _solve(factor, v["scale_tril"])
            inner = df[..., None, None] * (w + w.mT)
            if "df" in v:
                out["df"] = out["df"] + w.diagonal(dim1=-2, dim2=-1).sum(-1)
                inner = inner + v["df"][..., None, None] * torch.eye(factor.shape[-1]).to(factor)
            out["scale_tril"] = _solve(factor, inner, transposed=True)
        return out


class LKJCholesky(Family):
    """``Σ_{j=1}^{d−1} ψ'(η + (d − 1 − j)/2) − (d − 1) ψ'(η + (d − 1)/2)``: an exponential family in
    η.
    """

    needs_float64 = True

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        eta, rest = p["concentration"], int(p["dim"]) - 1
        below = torch.arange(rest, 0, -1).to(eta)
        terms = torch.polygamma(1, eta[..., None] + (rest - below) / 2).sum(-1)
        return {
            "concentration": (terms - rest * torch.polygamma(1, eta + rest / 2))
            * v["concentration"]
        }


def _solve(factor: Tensor, b: Tensor, transposed: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(factor.mT if transposed else factor, b, upper=transposed)


KNOWN: dict[type, Family] = {
    family.distribution: family  # type: ignore[misc]
    for family in (
        Bernoulli("bernoulli", td.Bernoulli, ("logits",)),
        Bernoulli("binomial", td.Binomial, ("total_count", "logits")),
        ContinuousBernoulli("continuous_bernoulli", td.ContinuousBernoulli, ("logits",)),
        Geometric("geometric", td.Geometric, ("logits",)),
        Categorical("categorical", td.Categorical, ("logits",)),
        Categorical("one_hot_categorical", td.OneHotCategorical, ("logits",)),
        Categorical("multinomial", td.Multinomial, ("total_count", "logits")),
        Poisson("poisson", td.Poisson, ("rate",)),
        NegativeBinomial("negative_binomial", td.NegativeBinomial, ("total_count", "logits")),
        LogScale("exponential", td.Exponential, "rate", 1.0),
        Gamma("gamma", td.Gamma, ("concentration", "rate")),
        Gamma("inverse_gamma", td.InverseGamma, ("concentration", "rate")),
        Beta("beta", td.Beta, ("concentration1", "concentration0")),
        Dirichlet("dirichlet", td.Dirichlet, ("concentration",)),
        LocationScale("normal", td.Normal, 1.0, 2.0),
        LocationScale("log_normal", td.LogNormal, 1.0, 2.0),
        LocationScale("laplace", td.Laplace, 1.0, 1.0),
        LocationScale("cauchy", td.Cauchy, 0.5, 0.5),
        StudentT("student_t", td.StudentT),
        FisherSnedecor("fisher_snedecor", td.FisherSnedecor, ("df1", "df2")),
        LogScale("half_normal", td.HalfNormal, "scale", 2**0.5),
        LogScale("half_cauchy", td.HalfCauchy, "scale", 0.5**0.5),
        VonMises("von_mises", td.VonMises, ("loc", "concentration")),
        MultivariateNormal("multivariate_normal", td.MultivariateNormal, ("loc", "scale_tril")),
        Wishart("wishart", td.Wishart, ("df", "scale_tril")),
        LKJCholesky("lkj_cholesky", td.LKJCholesky, ("dim", "concentration")),
    )
}
NAMED = {family.name: family for family in KNOWN.values()}
