"""Scores of a latent space on a set of points, and the class of maps that a decoder belongs to.

Local measures are methods of :class:`~riemae.Manifold`; these put them together.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from riemae.differential.conditions import Conditions
from riemae.geometry.distortion import (
    Kind,
    LatentMetric,
    flat_shares,
    latent_factor,
    relative_triangle,
    weighted_sum,
)
from riemae.geometry.factors import (
    check_triangle,
    differentiable_singular_values,
    differentiated_later,
    singular_values,
    triangle,
    wide,
)
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_range, expect_weights

__all__ = ["Estimate", "MapClass", "Scores", "condition_number", "hierarchy", "summary", "vor"]


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: Tensor
    standard_error: Tensor

    @classmethod
    def of(
        cls, values: Tensor, weights: Tensor | None = None
    ) -> Estimate:  # (n, *b), (n,) -> (*b,), (*b,)
        """Mean and standard error over the first axis of independent values.

        The error of a single value is NaN.

        Over points it is a global measure: ``Estimate.of(M.extrinsic_curvature(z))``. With weights
        it is the mean over another measure, such as the volume of the manifold:
        ``Estimate.of(values, M.volume_density(z))`` for points that are uniform in latent space.

        Args:
            values: Independent values.
            weights: One number of at least 0 for each, known up to a factor. The error is that of
                a quotient of means.

        Raises:
            ShapeError: When there is not one weight for each value.
            OptionError: For weights that are negative, not finite, or all 0.
        """
        n = len(values)
        if weights is not None:
            share = expect_weights("Estimate.of", weights, n).to(values)
            each = share.view(-1, *[1] * (values.ndim - 1))
            values = torch.where(each > 0, values, 0.0)  # what has no weight may be infinite
            mean = (each * values).sum(0)
            counts = int((share > 0).sum())
            spread = (each * (values - mean)).square().sum(0)
            error = (spread * counts / (counts - 1)).sqrt() if counts > 1 else mean * torch.nan
            return cls(mean, error)
        if n > 1:
            error = values.std(0) / n**0.5
        else:
            error = torch.full_like(values[0], torch.nan)
        return cls(values.mean(0), error)

    @classmethod
    def repeated(cls, draw: Callable[[], Tensor], samples: int) -> Estimate:
        """Mean and standard error of a stochastic estimator.

        ``Estimate.repeated(lambda: M.extrinsic_curvature(z, "hutchinson", generator=g), 100)``.
        """
        return cls.of(torch.stack([draw() for _ in range(samples)]))

    @classmethod
    def jackknife(cls, score: Callable[[Tensor], Tensor], n: int, blocks: int = 20) -> Estimate:
        """A score of many points that is not a mean of values, with its standard error.

        The points are cut into blocks, the score is computed without each of them, and the error
        is that of the jackknife over blocks (Tukey 1958). It includes the error of what the score
        itself averages, such as the mean metric of VoR.

        Args:
            score: ``rows (k,) -> ()``, the score of the points with these numbers. The numbers are
                in random order, the same every time.
            n: Number of points.
            blocks: Number of blocks, at most n.

        Raises:
            OptionError: For fewer than 2 points or blocks.
        """
        expect_range("Estimate.jackknife", "n", n, 2, integer=True, hint="Give more points.")
        expect_range("Estimate.jackknife", "blocks", blocks, 2, integer=True, hint="Try 20.")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        parts = order.tensor_split(min(blocks, n))
        whole = score(order)
        left = []
        for i in range(len(parts)):
            rest = torch.cat([*parts[:i], *parts[i + 1 :]])
            left.append(score(rest))
        without = torch.stack(left)
        b = len(parts)
        variance = (without - without.mean(0)).square().sum(0) * (b - 1) / b
        return cls(whole, variance.sqrt())


class Scores(NamedTuple):
    """What :func:`summary` measures, each with its standard error.

    Attributes:
        mcn: Mean condition number of the metric.
        vor: Variance of the metric, ``E Σ log² λ_i(Ḡ⁻¹G)``.
        distortion: Relaxed distortion ``m² E Tr G² / (E Tr G)² − m``.
        curvature: Mean extrinsic curvature ``E Tr(G⁻¹C)``.
    """

    mcn: Estimate
    vor: Estimate
    distortion: Estimate
    curvature: Estimate

    def __repr__(self) -> str:
        measured = {
            "MCN": self.mcn,
            "VoR": self.vor,
            "distortion": self.distortion,
            "curvature": self.curvature,
        }
        rows = [
            f"  {name:<12}{float(found.mean):>11.4g} ± {float(found.standard_error):.2g}"
            for name, found in measured.items()
        ]
        return "\n".join(["Scores", *rows])


class MapClass(str, Enum):
    """Classes of maps, the most faithful first.

    A scaled isometry is a conformal map of equal area.
    """

    ISOMETRY = "isometry"
    SCALED_ISOMETRY = "scaled isometry"
    CONFORMAL = "conformal"
    EQUAL_AREA = "equal area"
    NONE = "none of these"


def condition_number(
    M: Manifold,
    z: Tensor,
    latent_metric: LatentMetric | None = None,
    *,
    weights: Tensor | None = None,
    condition: Conditions = None,
) -> Tensor:  # (*b, m) -> (*b,), with weights ()
    """``λ_max/λ_min``.

    Its mean over data is the score MCN of Lee et al. (2022b), 1 for conformal maps.

    Infinite where the metric is singular.

    Args:
        M: The manifold.
        z: Points.
        latent_metric: As in ``Manifold.distortion``.
        weights: Of the points ``(*b,)``, known up to a factor. With them the result is one number,
            the score MCN under this measure; without them it is one value for each point.
        condition: As in ``Manifold.distortion``.

    Raises:
        ShapeError: When there is not one weight for each point.
        OptionError: For weights that are negative, not finite, or all 0.

    Warns:
        PrecisionWarning: Where the condition is more than the dtype carries.
    """
    where = "scores.condition_number"
    if weights is not None:
        values = condition_number(M, z, latent_metric, condition=condition).flatten()
        return weighted_sum(values, flat_shares(where, weights, z))
    if latent_metric is None:
        values = M.eigenvalues(z, condition=condition)
        return _ratio(values[..., -1], values[..., 0])
    m = z.shape[-1]
    r = M.metric_factor(z, condition=condition)
    r = wide(r.view(-1, m, m))
    factor = wide(latent_factor(where, z.reshape(-1, z.shape[-1]), latent_metric))
    relative = relative_triangle(r, factor.mT)
    values = singular_values(where, triangle(relative.detach()), z.dtype)
    if differentiated_later(relative):
        own = differentiable_singular_values(relative)
        values = values + (own - own.detach())
    largest = values[:, -1]
    smallest = values[:, 0]
    squared = _ratio(largest, smallest).square()
    return squared.to(z.dtype).view(z.shape[:-1])


def vor(
    M: Manifold,
    z: Tensor,
    *,
    weights: Tensor | None = None,
    condition: Conditions = None,
) -> Tensor:  # (*b, m) -> ()
    """The score VoR, ``E Σ log² λ_i(Ḡ⁻¹ G)`` with ``Ḡ = E G``.

    It is 0 when the metric is the same everywhere.

    Args:
        M: The manifold.
        z: Points.
        weights: Of the points ``(*b,)``, known up to a factor, for both means.
        condition: As in ``Manifold.distortion``.

    Raises:
        SingularMetricError: When the mean metric is singular.
        ShapeError: When there is not one weight for each point.
        OptionError: For weights that are negative, not finite, or all 0.
    """
    r = wide(M.metric_factor(z, condition=condition).flatten(0, -3))
    share = None if weights is None else flat_shares("scores.vor", weights, z).to(r)
    return _variation(r, share, z.dtype)


def _variation(r: Tensor, share: Tensor | None, dtype: torch.dtype) -> Tensor:
    """VoR of factors ``R`` with ``G = RᵀR``, under shares that sum to 1."""
    if share is not None:
        r = r[share > 0]
        share = share[share > 0]
    root = 1 / len(r) ** 0.5 if share is None else share.sqrt().view(-1, 1, 1)
    mean = triangle((r * root).flatten(0, 1)[None])  # the mean of RᵀR as one product
    check_triangle("scores.vor", mean, dtype)
    values = differentiable_singular_values(relative_triangle(r, mean.expand_as(r)))
    log_eigenvalues = 2 * values.log()
    squared = log_eigenvalues.square().sum(-1)
    found = squared.mean() if share is None else (share * squared).sum()
    return found.to(dtype)


def summary(
    M: Manifold,
    z: Tensor,
    *,
    weights: Tensor | None = None,
    blocks: int = 20,
    condition: Conditions = None,
) -> Scores:  # (n, m)
    """The scores of a latent space with their standard errors, for independent points.

    Args:
        M: The manifold.
        z: Points ``(n, m)``.
        weights: Of the points ``(n,)``, known up to a factor: ``M.volume_density(z)`` for the
            manifold's volume instead of the law of the points.
        blocks: Of the jackknife for those scores that are not means.
        condition: As in ``Manifold.distortion``.

    Raises:
        SingularMetricError: When the mean metric is singular.
        ShapeError: When there is not one weight for each point.
        OptionError: For fewer than 2 points, or weights that are negative, not finite, or all 0.
    """
    where = "scores.summary"
    share = None if weights is None else flat_shares(where, weights, z)
    z = z.reshape(-1, z.shape[-1])
    with torch.no_grad():
        r = wide(M.metric_factor(z, condition=condition))
        curvature = M.extrinsic_curvature(z, condition=condition)
        mcn = condition_number(M, z, condition=condition)

    def varied(rows: Tensor) -> Tensor:
        rows = rows.to(r.device)
        own = None if share is None else share[rows].to(r) / share[rows].sum().to(r)
        return _variation(r[rows], own, z.dtype)

    g = r.mT @ r
    trace = g.diagonal(dim1=-2, dim2=-1).sum(-1)
    square = g.square().sum((-1, -2))

    def distorted(rows: Tensor) -> Tensor:
        rows = rows.to(r.device)
        own = torch.ones_like(trace[rows]) if share is None else share[rows].to(trace)
        own = own / own.sum()
        m = z.shape[-1]
        mean = (own * trace[rows]).sum()
        return (m * m * (own * square[rows]).sum() / mean.square() - m).to(z.dtype)

    return Scores(
        mcn=Estimate.of(mcn, share),
        vor=Estimate.jackknife(varied, len(z), blocks),
        distortion=Estimate.jackknife(distorted, len(z), blocks),
        curvature=Estimate.of(curvature, share),
    )


def hierarchy(
    M: Manifold,
    z: Tensor,
    tol: float = 1e-6,
    latent_metric: LatentMetric | None = None,
    *,
    condition: Conditions = None,
) -> MapClass:
    """The most faithful class that the decoder satisfies on points ``z`` ``(n, m)``.

    Args:
        M: The manifold.
        z: At least two points, to tell scaled isometries from conformal maps.
        tol: How far the eigenvalues (relative to their mean) may be from what the class asks.
        latent_metric: As in ``Manifold.distortion``.
        condition: As in ``Manifold.distortion``.
    """
    options: dict[str, Any] = {"latent_metric": latent_metric, "condition": condition}
    measure = {
        kind: float(M.distortion(z, kind=kind, **options).detach()) ** 0.5
        for kind in get_args(Kind)
    }
    if measure["isometry"] <= tol:
        return MapClass.ISOMETRY
    if measure["scaled_isometry"] <= tol:
        return MapClass.SCALED_ISOMETRY
    if measure["conformal"] <= tol:
        return MapClass.CONFORMAL
    return MapClass.EQUAL_AREA if measure["area"] <= tol else MapClass.NONE


def _ratio(large: Tensor, small: Tensor) -> Tensor:
    """``large / small``, infinite where ``small`` vanishes."""
    positive = small > 0
    return torch.where(positive, large / torch.where(positive, small, 1.0), torch.inf)
