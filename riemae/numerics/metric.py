"""Metric tensors as small matrices, and square roots that keep their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.exceptions import SingularMetricError
from riemae.numerics.deferral import holds
from riemae.numerics.tolerances import tolerance


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root with derivative 0 at 0: vanishing lengths bring no NaN into gradients."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), x * 0)


def root(squared: Tensor, size: Tensor | None = None) -> Tensor:
    """:func:`safe_sqrt` of squared lengths.

    NaN for negative ones, beyond the rounding of sums of this size.
    """
    if size is None:
        negative = squared < 0
    else:
        rounding = 1e3 * tolerance(squared.dtype).eps * size
        negative = squared < -rounding
    return torch.where(negative, torch.nan, safe_sqrt(squared))


def check_metric(
    where: str, metric: Tensor
) -> tuple[Tensor, Tensor]:  # (k, m, m) -> (k, m, m), (k, m, 1)
    """Cholesky factor of ``G`` scaled to unit diagonal, and the scale.

    Raises:
        SingularMetricError: Where ``G`` is not positive definite, with the places.
    """
    # Unit diagonal first: whether a pivot is rounding must not depend on the units of the
    # coordinates.
    size = metric.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(size > 0, size, 1.0).rsqrt()[..., None]
    factor, info = torch.linalg.cholesky_ex(metric * scale * scale.mT)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    full_rank = (pivots > tolerance(metric.dtype).rank).all(-1)
    good = (info == 0) & full_rank
    if not holds(good):
        bad = ~good
        places = bad.nonzero().flatten().tolist()
        first = metric[bad][0]
        low = (
            torch.linalg.eigvalsh(first)[0]
            if bool(first.isfinite().all())
            else first.new_tensor(torch.nan)
        )
        if bool(low < -tolerance(metric.dtype).probe * first.abs().max()):
            raise SingularMetricError(
                where,
                "a positive definite metric",
                f"one with a negative eigenvalue ({float(low):.3g}) at {len(places)} of "
                f"{len(bad)} points (first: {places[:5]})",
                "It is not a metric there: look at its sign and its domain.",
            )
        raise SingularMetricError(
            where,
            "a positive definite metric",
            f"a singular one at {len(places)} of {len(bad)} points (first: {places[:5]})",
            "Tangent directions are dependent there: look at the eigenvalues of the metric, or "
            "lower the dimension.",
        )
    return factor, scale


def solve_metric(
    where: str, metric: Tensor, b: Tensor
) -> Tensor:  # (k, m, m), (k, m, *c) -> (k, m, *c)
    """``G⁻¹ b`` by Cholesky.

    Raises:
        SingularMetricError: Where ``G`` is not positive definite, with the places.
    """
    factor, scale = check_metric(where, metric)
    rhs = b[..., None] if b.ndim == 2 else b.flatten(2)
    return (scale * torch.cholesky_solve(scale * rhs, factor)).reshape(b.shape)
