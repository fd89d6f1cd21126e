"""Principal components in the tangent space of the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riemae import solvers
from riemae.exceptions import NotConvergedError, OptionError
from riemae.numerics.checks import expect_range, expect_shape
from riemae.solvers.pairs import expect_point_sets
from riemae.solvers.result import remedies
from riemae.statistics.arguments import takes_and_gives_codes, takes_codes
from riemae.statistics.means import Mean, frechet_mean
from riemae.statistics.tangents import (
    Logarithms,
    Somewhere,
    accuracy,
    expect_points,
    factor,
    normalised,
)


@dataclass(frozen=True, eq=False)
class TangentPCA:
    """Principal directions of points around their mean.

    Attributes:
        mean: ``(m,)``, where they are looked at from.
        components: ``(c, m)``, tangents of length 1, orthogonal in the metric, that of the largest
            variance first. Their signs are such that the largest entry is positive.
        explained_variance: ``(c,)``, mean squared coordinates along them.
        explained_variance_ratio: ``(c,)``, shares of the variance of the points, which is the mean
            squared distance to the mean.
        scores: ``(n, c)``, coordinates of the points: of unit lengths in the data space.
        error: Estimated error of the mean, ``()``.
    """

    mean: Tensor
    components: Tensor
    explained_variance: Tensor
    explained_variance_ratio: Tensor
    scores: Tensor
    error: Tensor
    geometry: Somewhere

    @takes_codes
    @torch.no_grad()
    def transform(self, points: Tensor, rtol: float | None = None) -> Tensor:  # (k, m) -> (k, c)
        """Coordinates of other points.

        Raises:
            NotConvergedError: When a geodesic from the mean is not found.
            ShapeError: For points of another dimension.
            DTypeError: For points of another dtype.
        """
        where = "TangentPCA.transform"
        expect_point_sets(where, points=points, mean=self.mean[None])
        vectors = _logarithms(where, self.geometry, self.mean, points.detach(), rtol)
        upper = factor(self.geometry, self.mean[None])[0]
        return vectors @ upper.T @ (upper @ self.components.T)

    @takes_and_gives_codes
    @torch.no_grad()
    def inverse_transform(self, scores: Tensor) -> Tensor:  # (k, c) -> (k, m)
        """Points with these coordinates, by geodesics from the mean.

        Raises:
            NotConvergedError: When a geodesic leaves the domain.
        """
        c = len(self.components)
        expect_shape("TangentPCA.inverse_transform", "scores", scores, ("k", c), "")
        vectors = scores.to(self.components) @ self.components
        return solvers.exp(self.geometry, self.mean.expand_as(vectors), vectors)

    def __repr__(self) -> str:
        shares = ", ".join(f"{x:.0%}" for x in self.explained_variance_ratio[:6].tolist())
        return f"TangentPCA({len(self.components)} components: {shares} of the variance)"


@takes_codes
def tangent_pca(
    geometry: Somewhere,
    points: Tensor,
    n_components: int | None = None,
    weights: Tensor | None = None,
    *,
    mean: Mean | Tensor | None = None,
    rtol: float | None = None,
) -> TangentPCA:
    """Principal components of the logarithms at the Fréchet mean; not differentiable.

    The covariance is that of coordinates in an orthonormal frame, so it has units of squared
    lengths in the data space, and its trace is the points' variance (P. T. Fletcher et al.,
    Principal geodesic analysis, IEEE Trans. Med. Imaging 23, 2004).

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        points: ``(n, m)``, n of at least 2.
        n_components: All m by default.
        weights: ``(n,)``, at least 0; equal by default.
        mean: Where to look from, as a :class:`Mean` or a point ``(m,)``; by default
            :func:`frechet_mean`.
        rtol: Accuracy of mean and logarithms, relative to the points' spread; by default 1e-6, and
            1e-3 in float32.

    Raises:
        NotConvergedError: When the mean or a geodesic from it is not found.
        OptionError: For fewer than two points, or more components than dimensions.
    """
    where = "tangent_pca"
    expect_points(where, points, 2)
    m = points.shape[1]
    count = m if n_components is None else n_components
    hint = f"The points have {m} coordinates."
    expect_range(where, "n_components", count, 1, m, integer=True, hint=hint)
    share = normalised(where, weights, points)
    points = points.detach()
    if mean is None:
        with torch.no_grad():
            mean = frechet_mean(geometry, points, weights, rtol=rtol)
    with torch.no_grad():
        if isinstance(mean, Mean):
            _expect_all(where, mean, points)
            center, vectors, error = mean.point, mean.logarithms, mean.error
        else:
            expect_shape(where, "mean", mean, (m,), "One point.")
            center = mean.detach().to(points)
            vectors = _logarithms(where, geometry, center, points, rtol)
            error = points.new_zeros(())
        upper = factor(geometry, center[None])[0]
        flat = vectors @ upper.T
        _, sizes, turned = torch.linalg.svd(share.sqrt()[:, None] * flat, full_matrices=True)
        variances = flat.new_zeros(m)
        variances[: len(sizes)] = sizes.square()
        turned = turned[:count]
        directions = torch.linalg.solve_triangular(upper, turned.T, upper=True).T
        largest = directions.abs().argmax(1, keepdim=True)
        signs = directions.gather(1, largest).sign()
        total = variances.sum()
        return TangentPCA(
            mean=center,
            components=signs * directions,
            explained_variance=variances[:count],
            explained_variance_ratio=(variances[:count] / total).nan_to_num(0.0),
            scores=flat @ (signs * turned).T,
            error=error,
            geometry=geometry,
        )


def _logarithms(
    where: str, geometry: Somewhere, center: Tensor, points: Tensor, rtol: float | None
) -> Tensor:  # (m,), (n, m) -> (n, m)
    """Tangents at the centre that lead to points.

    Raises:
        NotConvergedError: When a geodesic is not found.
    """
    rtol = accuracy(where, rtol, points)
    with torch.no_grad():
        logs = Logarithms.of(geometry, center, points, rtol, sharp=True)
    if len(logs.failed):
        raise NotConvergedError(
            where,
            "geodesics from the mean to all points",
            f"{len(logs.failed)} that failed (first: {logs.failed[:5].tolist()})",
            remedies(logs.status),
            logs.vectors,
        )
    return logs.vectors


def _expect_all(where: str, mean: Mean, points: Tensor) -> None:
    if len(mean.logarithms) != len(points):
        wanted = f"a mean of these {len(points)} points"
        got = f"one of {len(mean.logarithms)}"
        raise OptionError(where, wanted, got, "Give its point: mean=mean.point.")
