"""Distortion: how far a decoder is from preserving distances, angles or volumes.

With ``λ_i(z)`` the eigenvalues of the pull-back metric ``G`` relative to the latent metric (the
paper's 14-16):

=================== ================================== ============================
kind                local measure                      zero exactly for
=================== ================================== ============================
``isometry``        ``Σ (1 − λ_i)²``                   isometries
``scaled_isometry`` ``Σ (1 − λ_i/λ̄)²``                  scaled isometries
``conformal``       ``Σ (1 − λ_i/λ̄(z))²``               conformal maps
``area``            ``(½ Σ log λ_i − E ½ Σ log λ_i)²`` maps of constant volume ratio
=================== ================================== ============================

with ``λ̄(z) = Tr G(z)/m`` and ``λ̄ = E λ̄(z)``.

The global measure is the mean over the points. All are invariant under changes of latent
coordinates that carry the latent metric along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from riemae.ambient.geoopt import metric_tensor
from riemae.exceptions import OptionError, ShapeError, SingularMetricError
from riemae.geometry.pullback import PullbackMetric
from riemae.numerics.checks import expect_choice, expect_range, expect_weights
from riemae.numerics.random import gaussian
from riemae.numerics.values import concrete

Kind = Literal["isometry", "scaled_isometry", "conformal", "area"]
# A function z (k, m) -> (k, m, m), or a geoopt manifold.
LatentMetric = Any


def relative_metric(
    where: str, metric: Tensor, flat: Tensor, latent_metric: LatentMetric | None
) -> Tensor:  # (k, m, m), (k, m) -> (k, m, m)
    """``L⁻¹ G L⁻ᵀ`` with the latent metric ``L Lᵀ``.

    A symmetric matrix, whose eigenvalues are those of ``G`` relative to the latent metric.

    Raises:
        ShapeError: When the latent metric has another shape.
        SingularMetricError: Where the latent metric is not positive definite.
    """
    if latent_metric is None:
        return metric
    factor = latent_factor(where, flat, latent_metric)
    half = torch.linalg.solve_triangular(factor, metric, upper=False)
    relative = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    return (relative + relative.mT) / 2


def distortion(
    core: PullbackMetric,
    flat: Tensor,
    kind: Kind,
    local: bool,
    estimator: Literal["exact", "hutchinson"],
    samples: int,
    generator: torch.Generator | None,
    latent_metric: LatentMetric | None,
    share: Tensor | None,
) -> Tensor:  # (k, m) -> () or (k,)
    """See ``Manifold.distortion``.

    Raises:
        OptionError: For an unknown kind or estimator, fewer than one sample, or ``area`` by
            Hutchinson.
    """
    where = "Manifold.distortion"
    expect_choice(where, "kind", kind, get_args(Kind))
    expect_range(where, "samples", samples, 1, integer=True)
    expect_choice(where, "estimator", estimator, ("exact", "hutchinson"))
    m = flat.shape[-1]
    if estimator == "exact":
        if kind == "area":
            log_volume = core.log_volume("distortion", flat)
            if latent_metric is not None:
                factor = latent_factor(where, flat, latent_metric)
                pivots = factor.diagonal(dim1=-2, dim2=-1)
                log_volume = log_volume - pivots.log().sum(-1)
            values = (log_volume - weighted_sum(log_volume, share)).square()
        else:
            relative = relative_metric(where, core.metric(flat), flat, latent_metric)
            # Σ (1 − λ_i/c)² as a sum of squares: never negative, whatever the rounding.
            trace = relative.diagonal(dim1=-2, dim2=-1).sum(-1)
            c = {
                "isometry": trace.new_tensor(1.0),
                "scaled_isometry": weighted_sum(trace, share) / m,
                "conformal": trace / m,
            }[kind]
            values = (
                (torch.eye(m).to(relative) - relative / c[..., None, None]).square().sum((-1, -2))
            )
    else:
        if kind == "area":
            raise OptionError(
                where,
                "estimator='exact' for kind='area'",
                "'hutchinson'",
                "Probes estimate traces, and a volume is a determinant.",
            )
        probed = _probed(core, where, flat, samples, generator, latent_metric)
        values = _estimate(kind, m, *probed, share)
    return values if local else weighted_sum(values, share)


def flat_shares(where: str, weights: Any, z: Tensor) -> Tensor:  # (*b,), (*b, m) -> (k,)
    """Weights of points in one row, divided by their sum.

    Raises:
        ShapeError: When there is not one weight for each point.
        OptionError: For weights that are negative, not finite, or all 0.
    """
    if isinstance(weights, Tensor) and weights.shape == z.shape[:-1]:
        weights = weights.flatten()
    return expect_weights(where, weights, z.shape[:-1].numel()).to(z)


def weighted_sum(values: Tensor, share: Tensor | None) -> Tensor:  # (k,), (k,) -> ()
    """The mean, or that under shares which sum to 1."""
    if share is None:
        return values.mean()
    # Points without weight do not count, even where their value is infinite.
    return torch.where(share > 0, share * values, 0.0).sum()


def _estimate(
    kind: str, m: int, trace: Tensor, other: Tensor, square: Tensor, share: Tensor | None
) -> Tensor:
    """``Σ (1 − λ_i/c)² = m − 2 Tr G/c + Tr G²/c²``, c by the kind.

    From two independent estimates of ``Tr G``.
    """
    if kind == "isometry":
        return m - (trace + other) + square
    if kind == "conformal":
        return m * m * square / (trace * other) - m
    product = weighted_sum(trace, share) * weighted_sum(other, share)
    mean = product.clamp(min=0).sqrt() / m
    return m - (trace + other) / mean + square / mean**2


def _probed(
    core: PullbackMetric,
    where: str,
    flat: Tensor,
    samples: int,
    generator: torch.Generator | None,
    latent_metric: LatentMetric | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two independent estimates of ``Tr G`` and one of ``Tr G²``, by ``Gv`` alone (equation 17)."""
    factor = None if latent_metric is None else latent_factor(where, flat, latent_metric)
    sums = [torch.zeros_like(flat[:, 0]) for _ in range(3)]
    for _ in range(samples):
        v, w = gaussian(flat, generator), gaussian(flat, generator)
        gv, gw = (_relative_product(core, flat, p, factor) for p in (v, w))
        sums[0] = sums[0] + (v * gv).sum(-1)
        sums[1] = sums[1] + (w * gw).sum(-1)
        # w·Gv has mean square Tr G² as |Gv|² has; the mean of the two norms varies less.
        squares = gv.square().sum(-1) + gw.square().sum(-1)
        sums[2] = sums[2] + squares / 2
    return sums[0] / samples, sums[1] / samples, sums[2] / samples


def _relative_product(
    core: PullbackMetric, flat: Tensor, v: Tensor, factor: Tensor | None
) -> Tensor:
    if factor is None:
        return core.metric_product(flat, v)
    back = torch.linalg.solve_triangular(factor.mT, v[..., None], upper=True)
    product = core.metric_product(flat, back[..., 0])
    relative = torch.linalg.solve_triangular(factor, product[..., None], upper=False)
    return relative[..., 0]


def latent_factor(where: str, flat: Tensor, latent_metric: LatentMetric) -> Tensor:  # -> (k, m, m)
    """Lower Cholesky factors of the latent metric.

    Raises:
        ShapeError: When it is not one matrix per point.
        SingularMetricError: Where it is not positive definite.
    """
    k, m = flat.shape
    tensor = _as_function(latent_metric)(flat)
    if tensor.shape != (k, m, m):
        raise ShapeError(
            where,
            f"a latent metric ({k}, {m}, {m})",
            str(tuple(tensor.shape)),
            "Return one matrix per point.",
        )
    factor, info = torch.linalg.cholesky_ex(tensor)
    bad = concrete(info != 0)
    if bad is not None and bool(bad.any()):
        places = bad.nonzero().flatten().tolist()
        raise SingularMetricError(
            where,
            "a positive definite latent metric",
            f"none at {len(places)} points (first: {places[:5]})",
            "Build it from a factor: L Lᵀ plus a small multiple of the identity.",
        )
    return factor


def _as_function(latent_metric: LatentMetric) -> Callable[[Tensor], Tensor]:
    if not hasattr(latent_metric, "inner"):
        return latent_metric
    return lambda z: metric_tensor(latent_metric, z)


def relative_triangle(r: Tensor, upper: Tensor) -> Tensor:  # (k, m, m), (k, m, m) -> (k, m, m)
    """``R U⁻¹``, a factor of ``U⁻ᵀ G U⁻¹``."""
    return torch.linalg.solve_triangular(upper, r, upper=True, left=False)
