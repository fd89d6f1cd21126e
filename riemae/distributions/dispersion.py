"""Fisher information of a negative binomial's dispersion, which has no closed form.

Let Y be negative binomial with mean μ and dispersion θ (variance ``μ + μ²/θ``), ``p = μ/(μ + θ)``.
In the parameters (μ, θ) its Fisher information is diagonal, ``I_μ = θ/(μ (μ + θ))`` and

    ``I_θ = Σ_{j≥0} P(Y > j)/(θ + j)² − p/θ = Σ_{k≥2} pᵏ B(k, θ)/k``,

where B is the beta function. The first series is ``ψ'(θ) − E ψ'(θ + Y)`` less what the mean's
information holds: for large θ the two agree in all digits of a float. The second is the squared
norm of the score in Meixner's orthogonal polynomials; its first term (k = 1) is ``p/θ``, so that
nothing cancels any more. Its sum, with s = σ(τ),

    ``I_θ = ∫ (1 − s)^{θ−1} [−log(1 − ps) − ps]/s ds = ∫ (1 − s)^{θ+1} s² [p² λ(ps) + p²/(θ (1 −
    ps))] dτ``

with ``λ(x) = (−log(1 − x) − x)/x²`` and one integration by parts, which lets the integrand fall off
at small θ too. It is analytic in a strip of half width π/2 around the real line, so that the
trapezoidal rule with the step 0.4 leaves an error of ``e^{−π²/0.4} ≈ 2e−11``. All its factors
depend on one of p and θ only: a table is one matrix product.

What is computed is ``ρ = 2 θ (θ + 1) I_θ/p²``, near 1 for large θ or small p, from a tensor-product
spline of degree 7 of ``log ρ`` in ``(log μ/θ, log θ)``: relative error below 1e-9, six continuous
derivatives, and cheap.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# The spline: degree, step in both logarithms, and the ranges of log μ/θ and log θ that it covers.
# Beyond the ends log ρ is constant to 1e-8 and better, but for the upper end of log μ/θ: there the
# result is NaN.
_DEGREE = 7
_STEP = 0.2
_ODDS = (-24.0, 50.0)
_THETA = (-24.0, 20.0)
# Nodes of the trapezoidal rule in τ = logit s.
_NODE_STEP = 0.4
_REACH = 14.0
# Variables handled at once: each takes (degree + 1)² numbers, which a graph keeps.
_AT_ONCE = 2**14


def excess_information(log_odds: Tensor, log_theta: Tensor) -> Tensor:  # (*b), (*b) -> (*b)
    """``I_θ`` of a negative binomial, the Fisher information of its dispersion at a fixed mean.

    Relative error below 1e-8, and six continuous derivatives. Computed in float64 where the device
    has it, in chunks, and returned in the dtype of the arguments; a graph through it keeps about
    0.7 kB per variable.

    Args:
        log_odds: ``log μ/θ``: torch's ``logits``. At most 50; NaN beyond.
        log_theta: ``log θ``.
    """
    log_odds, log_theta = torch.broadcast_tensors(log_odds, log_theta)
    dtype = log_odds.dtype
    if dtype != torch.float64 and log_odds.device.type != "mps":
        log_odds = log_odds.double()
        log_theta = log_theta.double()
    chunks_x = log_odds.reshape(-1).split(_AT_ONCE)
    chunks_y = log_theta.reshape(-1).split(_AT_ONCE)
    parts = [_log_ratio(x, y) for x, y in zip(chunks_x, chunks_y, strict=True)]
    ratio = torch.cat(parts).view(log_odds.shape)
    # log p²/(2 θ (θ + 1)), of which ρ is the share.
    squared_p = 2 * F.logsigmoid(log_odds)
    next_theta = F.softplus(log_theta)
    size = squared_p - log_theta - next_theta - math.log(2)
    information = (size + ratio).exp()
    return information.to(dtype)


def log_odds_excess(log_odds: Tensor) -> Tensor:
    """``ℓ(p) = −log(1 − p) − p`` with ``p = σ(log_odds)``.

    By its power series where that difference cancels.
    """
    near = log_odds < -2.0
    safe = torch.where(near, log_odds, -3.0)
    small = safe.sigmoid()
    series = torch.zeros_like(small)
    for k in range(22, 1, -1):
        series = series * small + 1 / k
    by_series = series * small.square()
    large = torch.where(near, 0.0, log_odds)
    direct = F.softplus(large) - large.sigmoid()
    return torch.where(near, by_series, direct)


def _log_ratio(x: Tensor, y: Tensor) -> Tensor:  # (n,), (n,) -> (n,)
    """``log ρ`` by the spline, in plain operations that torch differentiates to any order."""
    windows, width = _windows(str(x.device), x.dtype)
    first, across = _local(x, _ODDS)
    second, along = _local(y, _THETA)
    order = _DEGREE + 1
    # The window of coefficients along log θ, in each of the rows whose splines live here.
    offsets = torch.arange(order, device=x.device)
    starts = (first[:, None] + offsets) * width
    rows = starts + second[:, None]
    windows_here = windows.index_select(0, rows.reshape(-1))
    block = windows_here.view(len(x), order, order)
    column = along[:, :, None]
    inner = (block @ column)[..., 0]
    value = (inner * across).sum(-1)
    in_range = x <= _ODDS[1]
    covered = in_range & ~y.isnan()
    return torch.where(covered, value, torch.nan)


def _local(x: Tensor, ends: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Index of the cell, and the splines that live there, ``(n, degree + 1)``.

    Beyond the ends, as at the end.
    """
    low, high = ends
    finite = torch.where(x.isnan(), 0.0, x)
    inside = finite.clamp(low, high)
    place = (inside - low) / _STEP
    last = _cells(ends) - 1
    index = place.detach().floor().clamp(0, last)
    u = place - index
    square = u * u
    cube = square * u
    fourth = square * square
    fifth = fourth * u
    sixth = cube * cube
    seventh = fourth * cube
    one = torch.ones_like(u)
    powers = torch.stack([one, u, square, cube, fourth, fifth, sixth, seventh], -1)
    pieces = torch.as_tensor(_pieces()).to(x)
    return index.long(), powers @ pieces


def _cells(ends: tuple[float, float]) -> int:
    """How many cells a range has."""
    low, high = ends
    return round((high - low) / _STEP)


@lru_cache(maxsize=1)
def _pieces() -> np.ndarray:  # -> (degree + 1 powers, degree + 1 splines)
    """Polynomials of the ``degree + 1`` uniform B-splines on one cell, by de Boor's recursion."""
    pieces = [np.ones(1)]  # ascending powers of u in [0, 1)
    for d in range(1, _DEGREE + 1):
        grown = []
        for i in range(d + 1):
            total = np.zeros(d + 1)
            if i > 0:
                rising = [(d - i) / d, 1 / d]  # (u + d − i)/d
                total += np.convolve(pieces[i - 1], rising)
            if i < d:
                falling = [(i + 1) / d, -1 / d]  # (i + 1 − u)/d
                total += np.convolve(pieces[i], falling)
            grown.append(total)
        pieces = grown
    return np.stack(pieces, -1)


@lru_cache(maxsize=8)
def _windows(device: str, dtype: torch.dtype) -> tuple[Tensor, int]:
    """All runs of ``degree + 1`` coefficients along log θ, and how many there are per row.

    The runs are ``(rows · width, degree + 1)``.
    """
    table = _coefficients()
    order = _DEGREE + 1
    runs = np.lib.stride_tricks.sliding_window_view(table, order, axis=1)
    flat = runs.reshape(-1, order).copy()
    with torch.inference_mode(False):
        windows = torch.tensor(flat).to(device, dtype)
    return windows, runs.shape[1]


@lru_cache(maxsize=1)
def _coefficients() -> np.ndarray:
    """Coefficients of the uniform B-splines on the cells of both ranges."""
    from scipy.interpolate import make_interp_spline

    # Beyond the ends as many cells as it takes until the knots of the interpolating spline are
    # evenly spaced.
    margin = _DEGREE + (_DEGREE + 1) // 2
    log_odds = _grid(_ODDS, margin)
    log_theta = _grid(_THETA, margin)
    ratios = ratio_by_quadrature(log_odds[:, None], log_theta[None])
    table = np.log(ratios)
    for axis, grid in enumerate((log_odds, log_theta)):
        spline = make_interp_spline(grid, table, k=_DEGREE, axis=axis)
        coefficients = spline.c
        if coefficients.shape != table.shape:
            coefficients = np.moveaxis(coefficients, 0, axis)
        # Knots are grid[0] × 8, grid[4:−4], grid[−1] × 8: spline i lives on knots i … i + 8.
        before_first = grid[margin] - _STEP / 2
        first_knot = int(np.searchsorted(spline.t, before_first))
        start = first_knot - _DEGREE
        cells = len(grid) - 2 * margin - 1
        places = np.arange(start, start + cells + _DEGREE)
        table = np.take(coefficients, places, axis=axis)
    return table


def _curvature(x: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """``λ(x) = (−log(1 − x) − x)/x²``, by its power series where that difference cancels.

    Args:
        x: Arguments from 0 to 1.
        rest: ``1 − x``.
    """
    series = np.zeros_like(x)
    for k in range(24, 1, -1):
        series = series * x + 1 / k
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = -np.log(rest) - x
        direct = excess / x**2
    return np.where(x < 0.1, series, direct)


def _grid(ends: tuple[float, float], margin: int) -> np.ndarray:
    numbers = np.arange(-margin, _cells(ends) + margin + 1)
    return ends[0] + _STEP * numbers


def _quadrature_nodes(log_odds: np.ndarray, log_theta: np.ndarray) -> np.ndarray:
    """Nodes in τ, on all of which the integrand is larger than rounding for some of the grid."""
    largest_odds = max(float(log_odds.max()), 0.0)
    largest_theta = max(float(log_theta.max()), 0.0)
    low = -largest_theta - _REACH
    high = largest_odds + 2.5 * _REACH
    return np.arange(low, high, _NODE_STEP)


def ratio_by_quadrature(
    log_odds: np.ndarray, log_theta: np.ndarray
) -> np.ndarray:  # (a, 1), (1, b) -> (a, b)
    """``ρ = 2 θ (θ + 1) I_θ/p²`` on a grid, by the trapezoidal rule in τ = logit s."""
    tau = _quadrature_nodes(log_odds, log_theta)
    theta = np.exp(log_theta)
    log_complement = -np.logaddexp(0, tau)  # log(1 − s)
    log_s = -np.logaddexp(0, -tau)
    s = np.exp(log_s)
    complement = np.exp(log_complement)
    log_decay = (theta.T + 1) * log_complement
    decay = np.exp(log_decay)  # (b, nodes)
    weights = decay * s**2 * _NODE_STEP
    log_p = -np.logaddexp(0, -log_odds)
    log_q = -np.logaddexp(0, log_odds)
    p = np.exp(log_p)
    q = np.exp(log_q)  # 1 − p
    x = p * s  # (a, nodes)
    rest = q + p * complement  # 1 − ps
    curvature = _curvature(x, rest)
    of_curvature = theta * (curvature @ weights.T)
    of_boundary = (1 / rest) @ weights.T
    integral = of_curvature + of_boundary
    return 2 * (theta + 1) * integral
