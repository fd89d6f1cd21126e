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
from riemae.geometry.distortion import Kind, LatentMetric, latent_factor, relative_triangle
from riemae.geometry.factors import (
    check_triangle,
    differentiable_singular_values,
    differentiated_later,
    singular_values,
    triangle,
    wide,
)
from riemae.manifold import Manifold

__all__ = ["Estimate", "MapClass", "condition_number", "hierarchy", "vor"]


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: Tensor
    standard_error: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Estimate:  # (n, *b) -> (*b,), (*b,)
        """Mean and standard error over the first axis of independent values.

        The error of a single value is NaN.

        Over points it is a global measure: ``Estimate.of(M.extrinsic_curvature(z))``.
        """
        n = len(values)
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
    condition: Conditions = None,
) -> Tensor:  # (*b, m) -> (*b,)
    """``λ_max/λ_min``.

    Its mean over data is the score MCN of Lee et al. (2022b), 1 for conformal maps.

    Infinite where the metric is singular.

    Warns:
        PrecisionWarning: Where the condition is more than the dtype carries.
    """
    where = "scores.condition_number"
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


def vor(M: Manifold, z: Tensor, *, condition: Conditions = None) -> Tensor:  # (n, m) -> ()
    """The score VoR, ``E Σ log² λ_i(Ḡ⁻¹ G)`` with ``Ḡ = E G``.

    It is 0 when the metric is the same everywhere.

    Raises:
        SingularMetricError: When the mean metric is singular.
    """
    r = wide(M.metric_factor(z, condition=condition).flatten(0, -3))
    mean = triangle(r.flatten(0, 1)[None] / len(r) ** 0.5)  # the mean of RᵀR as one product
    check_triangle("scores.vor", mean, z.dtype)
    values = differentiable_singular_values(relative_triangle(r, mean.expand_as(r)))
    log_eigenvalues = 2 * values.log()
    squared = log_eigenvalues.square().sum(-1)
    return squared.mean().to(z.dtype)


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
