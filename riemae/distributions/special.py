"""Special functions that keep their digits where the textbook formula loses them."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from scipy.special import bernoulli
from torch import Tensor
from torch.nn import functional as F

from riemae.differential.rules.elementwise import of_single_numbers
from riemae.distributions.dispersion import excess_information
from riemae.numerics.transforms import transformed

_FAR = 20.0  # e^{−2a} vanishes beyond, compared with 1


def _root(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor | None]:
    """``1/(2 √x)``, and its derivative; 0 at 0, NaN below."""
    edge = x == 0
    # Twice where: what is infinite must not spoil derivatives of the rest.
    slope = torch.where(edge, 0.0, 0.5 / torch.where(edge, 1.0, y))
    if order < 2:
        return slope, None
    half = torch.where(edge, 0.0, -0.5 / torch.where(edge, 1.0, x))
    return slope, slope * half


@of_single_numbers(_root)
def root(x: Tensor) -> Tensor:
    """Square root with derivative 0 at 0, where the parameter has reached the edge of its range.

    NaN below.
    """
    if not (x.requires_grad or transformed()):
        return x.sqrt()  # the same, when nobody differentiates
    inside = x > 0
    outside = torch.where(x == 0, x * 0, torch.nan)
    positive = torch.where(inside, x, 1.0)
    return torch.where(inside, positive.sqrt(), outside)


def _arsinh_exp(a: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor | None]:
    """``1/√(1 + e^{−2a})``, and its derivative."""
    slope = (F.logsigmoid(2 * a) / 2).exp()
    if order < 2:
        return slope, None
    return slope, slope * torch.sigmoid(-2 * a)


@of_single_numbers(_arsinh_exp)
def arsinh_exp(a: Tensor) -> Tensor:
    """``arsinh e^a``, without the overflow of ``e^a``."""
    # log1p (e^a + (√(1 + e^{2a}) − 1)), with the difference as a quotient; beyond, a + log 2.
    near = a.clamp(max=_FAR).exp()
    square = near * near
    rest = square / (1 + (1 + square).sqrt())
    beyond = (a - _FAR).clamp(min=0)
    return (near + rest).log1p() + beyond


@of_single_numbers()
def atanh_root(p: Tensor) -> Tensor:
    """``artanh √p = arsinh √(p/(1 − p))``."""
    odds = p / (1 - p)
    return root(odds).asinh()


@of_single_numbers()
def resultant(kappa: Tensor) -> Tensor:
    """``A(κ) = I₁(κ)/I₀(κ)``."""
    first = torch.special.i1e(kappa)
    zeroth = torch.special.i0e(kappa)
    return first / zeroth


@of_single_numbers()
def resultant_slope(kappa: Tensor) -> Tensor:
    """``A'(κ) = 1 − A/κ − A²``; by its asymptotic series where that difference would cancel."""
    large = kappa > 150
    near = torch.where(large, 1.0, kappa)
    far = torch.where(large, kappa, 150.0)
    a = resultant(near)
    direct = 1 - a / near - a.square()
    series = torch.zeros_like(far)
    for coefficient in reversed(_slope_series()):
        series = (series + coefficient) / far
    return torch.where(large, series / far, direct)


@lru_cache(maxsize=1)
def _slope_series() -> tuple[float, ...]:
    """``c_n`` in ``A' = Σ c_n κ^{−n−1}``, ``c_n = −n a_n``.

    ``A = Σ a_n κ^{−n}`` solves ``A' = 1 − A/κ − A²``.
    """
    a = [1.0]
    for n in range(1, 11):
        products = sum(a[i] * a[n - i] for i in range(1, n))
        a.append(((n - 2) * a[-1] - products) / 2)
    return tuple(-n * a[n] for n in range(1, 11))


@of_single_numbers()
def tilted_variance(logits: Tensor) -> Tensor:
    """Variance of the density ∝ ``e^{lx}`` on [0, 1]: ``1/l² − 1/(4 sinh² l/2)``.

    By its power series near 0.
    """
    near = logits.abs() < 1
    small = torch.where(near, logits, 0.0).square()
    far = torch.where(near, 1.0, logits).abs()
    series = torch.zeros_like(logits)
    for coefficient in reversed(_tilted_series()):
        series = series * small + coefficient
    pole = far.reciprocal().square()
    tail = (-far).exp() / torch.expm1(-far).square()
    direct = pole - tail
    return torch.where(near, series, direct)


@lru_cache(maxsize=1)
def _tilted_series() -> tuple[float, ...]:
    """Coefficients of ``Σ B_2n (2n − 1)/(2n)! l^{2n−2}``.

    The derivative of ``½ coth l/2 = Σ B_2n/(2n)! l^{2n−1}``.
    """
    numbers = bernoulli(20)
    series = []
    for n in range(1, 11):
        number = float(numbers[2 * n])
        series.append(number * (2 * n - 1) / math.factorial(2 * n))
    return tuple(series)


def dispersion_information(r: Tensor, logits: Tensor) -> Tensor:
    """``I_rr = ψ'(r) − E ψ'(r + Y)`` for Y negative binomial, in the parameters (l, r)."""
    of_mean = logits.sigmoid() / r
    excess = excess_information(logits, r.log())
    return of_mean + excess


def trigamma_excess(x: Tensor) -> Tensor:
    """``ψ'(x) − 1/x``; by its asymptotic series where that difference would cancel."""
    large = x > 20
    near = torch.where(large, 1.0, x)
    far = torch.where(large, x, 20.0)
    inverse = far.reciprocal().square()
    series = torch.zeros_like(far)
    for coefficient in reversed(_bernoulli_series()):
        series = (series + coefficient) * inverse
    direct = torch.polygamma(1, near) - near.reciprocal()
    asymptotic = inverse / 2 + series / far
    return torch.where(large, asymptotic, direct)


@lru_cache(maxsize=1)
def _bernoulli_series() -> tuple[float, ...]:
    """``B_2n`` of ``ψ'(x) − 1/x − 1/(2x²) ~ Σ B_2n x^{−2n−1}``."""
    numbers = bernoulli(24)
    return tuple(float(numbers[2 * n]) for n in range(1, 13))


def degrees_information(df: Tensor) -> Tensor:
    """``I_νν = ¼ [ψ'(ν/2) − ψ'((ν + 1)/2)] − (ν + 5)/(2ν (ν + 1)(ν + 3))`` of Student's t.

    It falls off as ``7/(2ν⁴)``: both parts agree to ``1/ν²`` of their size, so that they are
    subtracted as series where ν > 24: ``ψ'(x) − ψ'(x + ½) = ½ ∫ t e^{−xt} (1 + tanh t/4) dt``, term
    by term.
    """
    large = df > 24
    near = torch.where(large, 1.0, df)
    far = torch.where(large, df, 24.0)
    first = torch.polygamma(1, near / 2)
    second = torch.polygamma(1, (near + 1) / 2)
    rational = (near + 5) / (2 * near * (near + 1) * (near + 3))
    direct = (first - second) / 4 - rational
    w = far.reciprocal()
    series = torch.zeros_like(far)
    for coefficient in reversed(_degrees_series()):
        series = (series + coefficient) * w.square()
    denominator = 2 * (1 + 4 * w + 3 * w.square())
    rest = (7 + 3 * w) / denominator
    asymptotic = (rest + series / w) * w.square().square()
    return torch.where(large, asymptotic, direct)


@lru_cache(maxsize=1)
def _degrees_series() -> tuple[float, ...]:
    """``⅛ ∫ t e^{−νt/2} (tanh t/4 − t/4) dt = Σ_{n≥2} c_n ν^{−2n−1}``.

    From ``tanh y = Σ B_2n 4ⁿ (4ⁿ − 1)/(2n)! y^{2n−1}`` and
    ``∫ t^{2n} e^{−νt/2} dt = (2n)! (2/ν)^{2n+1}``.
    """
    numbers = bernoulli(24)
    series = []
    for n in range(2, 13):
        of_tanh = float(numbers[2 * n]) * (4**n - 1) * 4**n
        at_quarter = of_tanh / 4 ** (2 * n - 1)
        series.append(at_quarter * 2 ** (2 * n - 2))
    return tuple(series)
