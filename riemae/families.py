"""Families of probability distributions: their parameters, Fisher information, and arc-length coordinates.

The Fisher information metric of independent variables is block diagonal, one block a variable. Where a block is flat,
or lies on a sphere, a feature map φ has ``H = JφᵀJφ``:

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
                                                        :mod:`riemae.dispersion`
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

Zero-inflated counts and negative binomials by mean and dispersion are in :mod:`riemae.counts`, families that a user
adds in :mod:`riemae.registry`. ψ' is the trigamma function, ``A = I₁/I₀`` the mean resultant length. Each is compared
in the tests with the covariance of the score and with the Hessian of the Kullback-Leibler divergence.

S. Amari, Information Geometry and Its
Applications, 2016; C. Atkinson and A. F. S. Mitchell, Rao's distance measure, Sankhyā A 43, 1981.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.distributions as td
from scipy.special import bernoulli
from torch import Tensor
from torch.func import vjp

from riemae.dispersion import excess_information
from riemae.solvers.threads import jvp

# Parameters of one distribution by name; the first axis is the batch.
Params = dict[str, Tensor]
Free = frozenset[str]


class Family:
    """One family; a subclass gives :meth:`features`, or :meth:`product`, or both where it depends on what is fixed.

    Attributes:
        name: What ``FisherRao`` calls it.
        distribution: The class in ``torch.distributions`` that is built from ``names``.
        names: Parameters in the order in which a decoder's output holds them.
        counts: Parameters without a Fisher information: the support depends on them.
        event: Axes that one variable takes in its parameters, beyond the batch.
        delicate: Whether :meth:`product` cancels, so that float32 is not enough for it.
    """

    names: tuple[str, ...]
    counts: Free = frozenset()
    event: int = 0
    delicate: bool = False

    def __init__(self, name: str, distribution: Callable[..., Any], names: tuple[str, ...]) -> None:
        self.name, self.distribution, self.names = name, distribution, names

    def __repr__(self) -> str:
        return self.name

    def read(self, distribution: Any) -> dict[str, Any]:
        """Parameters of a distribution of this family, by name."""
        return {name: getattr(distribution, name) for name in self.names}

    def flat(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return True

    def features(self, p: Params, free: Free) -> Tensor:  # -> (k, ...)
        """φ, when :meth:`flat`."""
        raise NotImplementedError

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter: of the feature map, unless a subclass knows better."""
        free = frozenset(v)

        def features(q: Params) -> Tensor:
            return self.features({**p, **q}, free)

        point = {name: p[name] for name in v}
        pushed = jvp(features, (point,), (v,))[1]
        return vjp(features, point)[1](pushed)[0]

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:  # -> (k,)
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown. The chord where φ is flat."""
        if not self.flat(free):
            return None
        return (self.features(q, free) - self.features(p, free)).flatten(1).square().sum(-1)


def odds_form(distribution: Any) -> str:
    """Whether a distribution was built from ``"logits"`` or ``"probs"``; torch computes the other when it is asked."""
    owner = getattr(distribution, "_categorical", distribution)
    logits = vars(owner).get("logits")
    built_from_logits = logits is not None and getattr(owner, "_param", logits) is logits
    return "logits" if built_from_logits else "probs"


class _Odds(Family):
    """Families that torch builds from ``logits`` or from ``probs``: whichever the decoder used is kept.

    With logits, probabilities 0 and 1 are only reached at infinity, and nothing is lost near them.
    """

    def read(self, distribution: Any) -> dict[str, Any]:
        form = odds_form(distribution)
        names = [form if name == "logits" else name for name in self.names]
        return {name: getattr(distribution, name) for name in names}


class Bernoulli(_Odds):
    """``φ = 2 √n arcsin √p``; n = 1 unless there is a ``total_count``."""

    counts = frozenset({"total_count"})

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        if "probs" in p:
            angle = 2 * torch.atan2(root(p["probs"]), root(1 - p["probs"]))
        else:
            logits = p["logits"]
            right = logits > 0
            small = 2 * torch.where(right, -logits, logits).div(2).exp().atan()  # of e^{−|l|/2}: never overflows
            angle = torch.where(right, math.pi - small, small)
        return angle * root(p["total_count"]) if "total_count" in p else angle


class NegativeBinomial(_Odds):
    """``φ = 2 √r arsinh √(μ/r)``, ``μ/r = p/(1 − p) = e^l``, where the dispersion r (``total_count``) is fixed.

    ``∂φ/∂μ = 1/√(μ + μ²/r)``, the root of the Fisher information. In (l, r) it is ``[r p, p; p, I_rr]``,
    ``I_rr = ψ'(r) − E ψ'(r + Y)``: see :mod:`riemae.dispersion`.
    """

    delicate = True

    def flat(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "total_count" not in free

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        r = p["total_count"]
        return 2 * root(r) * (_atanh_root(p["probs"]) if "probs" in p else arsinh_exp(p["logits"] / 2))

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        if self.flat(frozenset(v)):
            return super().product(p, v)
        form = "probs" if "probs" in p else "logits"
        r, q = p["total_count"], p[form]
        probs, logits = (q, torch.logit(q)) if form == "probs" else (q.sigmoid(), q)
        scale = probs * (1 - probs) if form == "probs" else torch.ones_like(q)  # dp/dl
        dl = v[form] / scale if form in v else torch.zeros_like(q)
        dr = v["total_count"]
        out = {"total_count": probs * dl + dispersion_information(r, logits) * dr, form: probs * (r * dl + dr) / scale}
        return {name: out[name] for name in v}


class ContinuousBernoulli(_Odds):
    """``H = A''(l)`` with the log-normaliser ``A = log (e^l − 1)/l``; a curve, but one without a closed arc length."""

    def flat(self, free: Free) -> bool:
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
    """A negative binomial with r = 1 whose successes are torch's failures: ``φ = 2 arsinh e^{−l/2}``."""

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        return 2 * (_atanh_root(1 - p["probs"]) if "probs" in p else arsinh_exp(-p["logits"] / 2))


class Categorical(_Odds):
    """``φ = 2 √p`` on the sphere of radius 2: the distance is ``2 arccos Σ √(p_i q_i)``, along the great circle."""

    counts = frozenset({"total_count"})
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
        # Arc over chord on a sphere of radius 2 √n; the chord keeps its digits where the arc's cosine is near 1.
        arc = 16 * count * (root(chord / count) / 4).clamp(max=1).asin().square()
        return arc.reshape(len(arc), -1).sum(-1)


class Poisson(Family):
    """``φ = 2 √λ``; fine at λ = 0."""

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        return 2 * root(p["rate"])


class LogScale(Family):
    """A scale or rate alone: ``φ = c log σ``."""

    def __init__(self, name: str, distribution: Callable[..., Any], parameter: str, coefficient: float) -> None:
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

    def flat(self, free: Free) -> bool:
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
        if self.flat(free):
            return super().squared_distance(p, q, free)
        a, b = self.weights(p)
        shift, stretch = q["loc"] - p["loc"], q["scale"] - p["scale"]
        # One quotient after the other: their product may overflow or vanish.
        ratio = a / b * (shift / p["scale"]) * (shift / q["scale"])
        ratio = ratio + (stretch / p["scale"]) * (stretch / q["scale"])
        return (4 * b * (root(ratio) / 2).asinh().square()).flatten(1).sum(-1)


class StudentT(LocationScale):
    """``diag(ν + 1, 2ν)/((ν + 3) σ²)`` in (μ, σ): for a fixed ν, hyperbolic planes as in :class:`LocationScale`.

    With ν free, ``I_νσ = −2/((ν + 1)(ν + 3) σ)`` and :func:`degrees_information`; ν and μ are orthogonal. K. L. Lange,
    R. J. A. Little and J. M. G. Taylor, Robust statistical modeling using the t distribution, JASA 84, 1989.
    """

    delicate = True

    def __init__(self, name: str, distribution: Callable[..., Any]) -> None:
        Family.__init__(self, name, distribution, ("df", "loc", "scale"))

    def weights(self, p: Params) -> tuple[Any, Any]:
        """A and b."""
        df = p["df"]
        return (df + 1) / (df + 3), 2 * df / (df + 3)

    def flat(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "df" not in free and super().flat(free)

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
    ``w = aX/(aX + b)`` the scores are ``log w − (s/a) w`` and ``log (1 − w) − (s/b)(1 − w)`` but for constants.
    """

    delicate = True

    def flat(self, free: Free) -> bool:
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

    delicate = True

    def flat(self, free: Free) -> bool:
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

    delicate = True

    def flat(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        common = torch.polygamma(1, p["concentration1"] + p["concentration0"]) * sum(v.values())
        return {name: torch.polygamma(1, p[name]) * v[name] - common for name in v}


class Dirichlet(Family):
    """``diag ψ'(α_i) − ψ'(Σα)``."""

    event = 1
    delicate = True

    def flat(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        alpha, d = p["concentration"], v["concentration"]
        total = torch.polygamma(1, alpha.sum(-1, keepdim=True)) * d.sum(-1, keepdim=True)
        return {"concentration": torch.polygamma(1, alpha) * d - total}


class VonMises(Family):
    """``diag(κA, A')`` with ``A = I₁(κ)/I₀(κ)``; circles of radius √(κA) where κ is fixed."""

    delicate = True

    def flat(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return "concentration" not in free

    def features(self, p: Params, free: Free) -> Tensor:
        """Arc-length coordinates φ."""
        radius = root(p["concentration"] * resultant(p["concentration"]))
        return torch.stack([radius * p["loc"].cos(), radius * p["loc"].sin()], -1)

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        kappa = p["concentration"]
        weight = {"loc": lambda: kappa * resultant(kappa), "concentration": lambda: resultant_slope(kappa)}
        return {name: weight[name]() * v[name] for name in v}

    def squared_distance(self, p: Params, q: Params, free: Free) -> Tensor | None:
        """Squared Fisher-Rao distance, the sum over all variables; None if unknown."""
        if not self.flat(free):
            return None
        turn = torch.remainder(q["loc"] - p["loc"] + math.pi, 2 * math.pi) - math.pi
        return (p["concentration"] * resultant(p["concentration"]) * turn.square()).flatten(1).sum(-1)


class MultivariateNormal(Family):
    """``|L⁻¹dμ|² + ½ |W + Wᵀ|²`` with ``W = L⁻¹dL`` and covariance ``LLᵀ``; ``φ = L⁻¹μ`` where L is fixed."""

    event = 1

    def flat(self, free: Free) -> bool:
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
            out["loc"] = _solve(factor, _solve(factor, v["loc"][..., None]), transposed=True)[..., 0]
        if "scale_tril" in v:
            w = _solve(factor, v["scale_tril"])
            out["scale_tril"] = _solve(factor, w + w.mT, transposed=True)
        return out


class Wishart(Family):
    """``½ ν tr (V⁻¹dV)² + tr (V⁻¹dV) dν + ¼ Σ_{i<d} ψ'((ν − i)/2) dν²`` with ``V = LLᵀ``."""

    event = 2
    delicate = True

    def flat(self, free: Free) -> bool:
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
    """``Σ_{j=1}^{d−1} ψ'(η + (d − 1 − j)/2) − (d − 1) ψ'(η + (d − 1)/2)``: an exponential family in η."""

    delicate = True

    def flat(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry a parameter."""
        eta, rest = p["concentration"], int(p["dim"]) - 1
        below = torch.arange(rest, 0, -1).to(eta)
        terms = torch.polygamma(1, eta[..., None] + (rest - below) / 2).sum(-1)
        return {"concentration": (terms - rest * torch.polygamma(1, eta + rest / 2)) * v["concentration"]}


def _solve(factor: Tensor, b: Tensor, transposed: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(factor.mT if transposed else factor, b, upper=transposed)


# Special functions that keep their digits.


def root(x: Tensor) -> Tensor:
    """Square root with derivative 0 at 0, where the parameter has reached the edge of its range; NaN below."""
    inside = x > 0
    return torch.where(inside, torch.where(inside, x, 1.0).sqrt(), torch.where(x == 0, x * 0, torch.nan))


def arsinh_exp(a: Tensor) -> Tensor:
    """``arsinh e^a``, without the overflow of ``e^a``."""
    right = a > 0
    decay = torch.where(right, -2 * a, 0.0).exp()
    return torch.where(right, a + (1 + (1 + decay).sqrt()).log(), torch.where(right, 0.0, a).exp().asinh())


def _atanh_root(p: Tensor) -> Tensor:
    """``artanh √p = arsinh √(p/(1 − p))``."""
    return root(p / (1 - p)).asinh()


def resultant(kappa: Tensor) -> Tensor:
    """``A(κ) = I₁(κ)/I₀(κ)``."""
    return torch.special.i1e(kappa) / torch.special.i0e(kappa)


def resultant_slope(kappa: Tensor) -> Tensor:
    """``A'(κ) = 1 − A/κ − A²``; by its asymptotic series where that difference would cancel."""
    large = kappa > 150
    near, far = torch.where(large, 1.0, kappa), torch.where(large, kappa, 150.0)
    a = resultant(near)
    series = torch.zeros_like(far)
    for coefficient in reversed(_slope_series()):
        series = (series + coefficient) / far
    return torch.where(large, series / far, 1 - a / near - a.square())


@lru_cache(maxsize=1)
def _slope_series() -> tuple[float, ...]:
    """``A' = Σ c_n κ^{−n−1}``, ``c_n = −n a_n``, where ``A = Σ a_n κ^{−n}`` solves ``A' = 1 − A/κ − A²``."""
    a = [1.0]
    for n in range(1, 11):
        a.append(((n - 2) * a[-1] - sum(a[i] * a[n - i] for i in range(1, n))) / 2)
    return tuple(-n * a[n] for n in range(1, 11))


def tilted_variance(logits: Tensor) -> Tensor:
    """Variance of the density ∝ ``e^{lx}`` on [0, 1]: ``1/l² − 1/(4 sinh² l/2)``, by its power series near 0."""
    near = logits.abs() < 1
    small, far = torch.where(near, logits, 0.0).square(), torch.where(near, 1.0, logits).abs()
    series = torch.zeros_like(logits)
    for coefficient in reversed(_tilted_series()):
        series = series * small + coefficient
    return torch.where(near, series, far.reciprocal().square() - (-far).exp() / torch.expm1(-far).square())


@lru_cache(maxsize=1)
def _tilted_series() -> tuple[float, ...]:
    """``Σ B_2n (2n − 1)/(2n)! l^{2n−2}``: from ``½ coth l/2 = Σ B_2n/(2n)! l^{2n−1}``, differentiated."""
    numbers = bernoulli(20)
    return tuple(float(numbers[2 * n]) * (2 * n - 1) / math.factorial(2 * n) for n in range(1, 11))


def dispersion_information(r: Tensor, logits: Tensor) -> Tensor:
    """``I_rr = ψ'(r) − E ψ'(r + Y)`` for Y negative binomial: what (l, r) have for r when l is fixed."""
    return logits.sigmoid() / r + excess_information(logits, r.log())


def trigamma_excess(x: Tensor) -> Tensor:
    """``ψ'(x) − 1/x``; by its asymptotic series where that difference would cancel."""
    large = x > 20
    near, far = torch.where(large, 1.0, x), torch.where(large, x, 20.0)
    inverse = far.reciprocal().square()
    series = torch.zeros_like(far)
    for coefficient in reversed(_bernoulli_series()):
        series = (series + coefficient) * inverse
    return torch.where(large, inverse / 2 + series / far, torch.polygamma(1, near) - near.reciprocal())


@lru_cache(maxsize=1)
def _bernoulli_series() -> tuple[float, ...]:
    """``B_2n`` of ``ψ'(x) − 1/x − 1/(2x²) ~ Σ B_2n x^{−2n−1}``."""
    numbers = bernoulli(24)
    return tuple(float(numbers[2 * n]) for n in range(1, 13))


def degrees_information(df: Tensor) -> Tensor:
    """``I_νν = ¼ [ψ'(ν/2) − ψ'((ν + 1)/2)] − (ν + 5)/(2ν (ν + 1)(ν + 3))`` of Student's t.

    It falls off as ``7/(2ν⁴)``: both parts agree to ``1/ν²`` of their size, so that they are subtracted as series where
    ν > 24: ``ψ'(x) − ψ'(x + ½) = ½ ∫ t e^{−xt} (1 + tanh t/4) dt``, term by term.
    """
    large = df > 24
    near, far = torch.where(large, 1.0, df), torch.where(large, df, 24.0)
    direct = (torch.polygamma(1, near / 2) - torch.polygamma(1, (near + 1) / 2)) / 4
    direct = direct - (near + 5) / (2 * near * (near + 1) * (near + 3))
    w = far.reciprocal()
    series = torch.zeros_like(far)
    for coefficient in reversed(_degrees_series()):
        series = (series + coefficient) * w.square()
    rest = (7 + 3 * w) / (2 * (1 + 4 * w + 3 * w.square()))
    return torch.where(large, (rest + series / w) * w.square().square(), direct)


@lru_cache(maxsize=1)
def _degrees_series() -> tuple[float, ...]:
    """``⅛ ∫ t e^{−νt/2} (tanh t/4 − t/4) dt = Σ_{n≥2} c_n ν^{−2n−1}``.

    From ``tanh y = Σ B_2n 4ⁿ (4ⁿ − 1)/(2n)! y^{2n−1}`` and ``∫ t^{2n} e^{−νt/2} dt = (2n)! (2/ν)^{2n+1}``.
    """
    numbers = bernoulli(24)
    return tuple(float(numbers[2 * n]) * (4**n - 1) * 4**n / 4 ** (2 * n - 1) * 2 ** (2 * n - 2) for n in range(2, 13))


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
