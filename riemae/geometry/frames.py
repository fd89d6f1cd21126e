"""Orthonormal bases of tangent spaces, and metrics of bounded condition.

``J = Q R``: the columns of Q are an orthonormal basis of the tangent space in the data space, those
of ``R⁻¹`` the same basis in coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from riemae.exceptions import OptionError
from riemae.numerics.deferral import holds
from riemae.numerics.metric import safe_sqrt, solve_metric
from riemae.numerics.random import gaussian, signs
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import concrete

# Squared Cholesky pivots, in units of rounding, above which two factorisations give an orthonormal
# basis.
_SAFE_PIVOT = 1e3


def orthonormal(
    j: Tensor, ridge: float = 0.0
) -> tuple[Tensor, Tensor]:  # (k, D, m) -> (k, D, m), (k, m, m)
    """``J = Q R``.

    With a ridge ``RᵀR = JᵀJ + ridge · (Tr JᵀJ/m) I``, and ``QQᵀ`` is what the projection becomes.

    What is singular is not noticed here.
    """
    d, m = j.shape[1:]
    if ridge:
        squares = j.square().sum((1, 2))
        size = (ridge * squares / m).sqrt()
        below = size[:, None, None] * torch.eye(m).to(j)
        j = torch.cat([j, below], 1)
    elif d < m:
        j = nn.functional.pad(j, (0, 0, 0, m - d))
    q, r = _factorised(j)
    return q[:, :d], r


def _factorised(j: Tensor) -> tuple[Tensor, Tensor]:  # (k, q, m) -> (k, q, m), (k, m, m)
    """``J = Q R`` of at least as many rows as columns."""
    # Two Cholesky factorisations, of columns of length 1, are as good as Householder's reflections
    # up to a condition of 1/√eps, and several times faster in a batch (Yamamoto, Nakatsukasa,
    # Yanagisawa, Fukaya, CholeskyQR2, 2015).
    squares = j.square().sum(1, keepdim=True)
    length = safe_sqrt(squares)
    unit = j / torch.where(length > 0, length, 1.0)
    gram = unit.mT @ unit
    first, info = torch.linalg.cholesky_ex(gram, upper=True)
    diagonal = first.detach().diagonal(dim1=-2, dim2=-1)
    smallest_pivot = diagonal.square().amin(-1)
    safe = smallest_pivot > _SAFE_PIVOT * tolerance(j.dtype).eps
    good = concrete((info == 0) & safe)
    if good is None or not bool(good.any()):
        q, r = torch.linalg.qr(j)
        return q, r
    if bool(good.all()):
        return _twice(unit, first, length, None)
    mask = good[:, None, None]
    quick_q, quick_r = _twice(unit, first, length, mask)
    slow_q, slow_r = torch.linalg.qr(j)
    q = torch.where(mask, quick_q, slow_q)
    r = torch.where(mask, quick_r, slow_r)
    return q, r


def _twice(
    unit: Tensor, first: Tensor, length: Tensor, good: Tensor | None
) -> tuple[Tensor, Tensor]:  # (k, q, m), (k, m, m), (k, 1, m) -> (k, q, m), (k, m, m)
    """Q and R from a second factorisation.

    Args:
        unit: Columns of length 1.
        first: Their first Cholesky factor.
        length: What the columns were divided by.
        good: Where the first factor can be trusted, ``(k, 1, 1)``; None for everywhere.
    """
    # Where a factorisation fails, something harmless stands in, so that it has derivatives.
    m = unit.shape[-1]
    if good is not None:
        first = torch.where(good, first, torch.eye(m).to(unit))
    nearly = torch.linalg.solve_triangular(first, unit, upper=True, left=False)
    gram = nearly.mT @ nearly
    if good is not None:
        gram = torch.where(good, gram, torch.eye(m).to(unit))
    second = torch.linalg.cholesky_ex(gram, upper=True).L
    q = torch.linalg.solve_triangular(second, nearly, upper=True, left=False)
    r = second @ first * length
    return q, r


def inverted(r: Tensor) -> Tensor:  # (k, m, m) -> (k, m, m)
    """``R⁻¹`` of upper triangles; infinite where there is none."""
    identity = torch.eye(r.shape[-1]).to(r)
    return torch.linalg.solve_triangular(r, identity.expand_as(r), upper=True)


def without_tangents(q: Tensor, rows: Tensor) -> Tensor:  # (k, D, m), (k, c, D) -> (k, c, D)
    """``(I − QQᵀ)`` times rows.

    On processors, batches of small products are ten times faster with D last.
    """
    return torch.baddbmm(rows, rows @ q, q.mT, alpha=-1)


def without_tangents_by_metric(
    j: Tensor, metric: Tensor, rows: Tensor
) -> Tensor:  # (k, D, m), (k, m, m), (k, c, D) -> (k, c, D)
    """``(I − J g⁻¹ Jᵀ)`` times rows, from the metric ``g``, which may have a ridge.

    On processors, batches of small products are ten times faster with D last.

    What is singular is not noticed here.
    """
    lowered = j.mT @ rows.mT
    factor = torch.linalg.cholesky_ex(metric).L
    coefficients = torch.cholesky_solve(lowered, factor)
    return torch.baddbmm(rows, coefficients.mT, j.mT, alpha=-1)


def lower_factor(where: str, metric: Tensor) -> Tensor:  # (k, m, m) -> (k, m, m)
    """Lower Cholesky factor; raises, with the places, where there is none."""
    factor, info = torch.linalg.cholesky_ex(metric)
    if not holds(info == 0):
        solve_metric(where, metric, metric[..., :1])  # raises, with the places
    return factor


def planes(like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of random planes, uniform among all: ``(k, m) -> (k, m), (k, m)``."""
    u = nn.functional.normalize(gaussian(like, generator), dim=-1)
    v = gaussian(like, generator)
    v = v - (v * u).sum(-1, keepdim=True) * u
    return u, nn.functional.normalize(v, dim=-1)


def whitened(r: Tensor, generator: torch.Generator | None) -> Tensor:  # (k, m, m) -> (k, m)
    """``R⁻¹ ξ`` with random signs ξ, for ``RᵀR = G``.

    Signs have the moments that unbiasedness needs, and vary less than Gaussian probes: on the
    sphere S² the standard deviation of one draw is 4 instead of 8.9.
    """
    xi = signs(r[..., 0], generator)
    column = torch.linalg.solve_triangular(r, xi[..., None], upper=True)
    return column[..., 0]


def ridged(metric: Tensor, ridge: float) -> Tensor:  # (k, m, m) -> (k, m, m)
    """``G + ridge · (Tr G/m) I``: a bounded condition number, whatever the units."""
    if not ridge:
        return metric
    diagonal = metric.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1)
    identity = torch.eye(metric.shape[-1]).to(metric)
    return metric + ridge * mean[..., None, None] * identity


def check_ridge(where: str, ridge: float) -> None:
    """Refuse a ridge that is negative or NaN.

    Raises:
        OptionError: For such a one.
    """
    if ridge >= 0:
        return
    hint = "It is relative: 1e-4 bounds the condition."
    raise OptionError(where, "a ridge of at least 0", str(ridge), hint)
