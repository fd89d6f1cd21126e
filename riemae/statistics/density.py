"""Geodesic balls, and densities estimated by kernels, with the volume in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError, OptionError
from riemae.numerics.checks import expect_range, expect_shape, expect_values
from riemae.numerics.random import as_generator
from riemae.solvers import exp
from riemae.solvers.space import expect_space, space_of
from riemae.statistics.arguments import takes_codes
from riemae.statistics.means import frechet_mean
from riemae.statistics.normal import default_directions, gaussian
from riemae.statistics.polar import Directions, Polar, rays
from riemae.statistics.tangents import Somewhere, expect_points, paths

# How far a kernel reaches, in bandwidths beyond the root of the dimension, and where it is 0.
_REACH = 4.0
_NOTHING = 8.0
_KERNEL_RTOL = 1e-3
# Directions of a kernel's normaliser.
_FEW = 16


@dataclass(frozen=True, eq=False)
class GeodesicBall:
    """The points within a distance of a center.

    Attributes:
        center: ``(m,)``.
        radius: In units of length of the data space.
        volume: Riemannian, ``()``.
        error: Estimated error of the volume, ``()``: by the directions (a standard error where they
            are drawn), by the radii, by the cut locus, which is known to a thousandth, and by rays
            that could not be followed.
        boundary: ``(d, m)``, the ends of rays in d directions, in the plane in their order around
            the center; NaN where a ray leaves the domain.
        cut: ``(d,)``, how far each ray is the shortest way: less than the radius where another
            geodesic arrives earlier, and the ray's end lies inside the ball; infinity elsewhere.
    """

    center: Tensor
    radius: float
    volume: Tensor
    error: Tensor
    boundary: Tensor
    cut: Tensor

    def __repr__(self) -> str:
        inside = int((self.cut < self.radius).sum())
        told = f", {inside} of {len(self.cut)} rays behind the cut locus" if inside else ""
        return (
            f"GeodesicBall(radius {self.radius:.4g}, volume {float(self.volume):.4g} ± "
            f"{float(self.error):.1e}{told})"
        )


@takes_codes
@torch.no_grad()
def geodesic_ball(
    geometry: Somewhere,
    center: Tensor,
    radius: float,
    *,
    n_directions: int | None = None,
    generator: torch.Generator | int | None = 0,
) -> GeodesicBall:
    """The ball of a radius around a point, with its volume; not differentiable.

    ``∫ ∫₀^min(r, c(u)) density r^(m-1) dr du`` in geodesic polar coordinates, with the distance
    c(u) to the cut locus (A. Gray, Tubes, 2004). Small balls tell of the curvature: their volume is
    ``ω_m r^m (1 − S r² / (6 (m + 2)) + …)`` with the scalar curvature S.

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        center: ``(m,)``.
        radius: More than 0.
        n_directions: By default 48 in the plane, evenly spaced, and 128 elsewhere, drawn.
        generator: Of the directions.

    Raises:
        ShapeError: When the center is not a point.
        OptionError: When the radius is not positive.
    """
    where = "geodesic_ball"
    expect_values(where, "center", center)
    expect_shape(where, "center", center, ("m",), "One point.")
    expect_range(where, "radius", radius, 0.0, above=True, hint="It is a length.")
    center = center.detach()
    count = default_directions(where, n_directions, len(center))
    round_ = torch.eye(len(center)).to(center)
    directions = Directions.spread(round_, count, as_generator(where, generator))
    ray = rays(geometry, center[None], [directions], [float(radius)])[0]
    polar = Polar.up_to_the_cut(geometry, ray)

    def one(_: Tensor, r: Tensor) -> Tensor:
        return torch.ones_like(r)

    ends = exp(space_of(geometry, ray.starts), ray.starts, float(radius) * ray.ahead, throw=False)
    return GeodesicBall(
        center, float(radius), polar.integral(one), polar.error(one), ends, polar.cut
    )


class GeodesicKDE:
    """A density estimated by normal kernels around the points, each with its own normaliser.

    ``p(x) = 1/n Σ_i exp(−d(x, x_i)² / 2 h²) / Z_i(h)`` with respect to the Riemannian volume: with
    the volume that each kernel has in its place (B. Pelletier, Kernel density estimation on
    Riemannian manifolds, Stat. Probab. Lett. 73, 2005, divides by the volume density at x, which is
    the same for narrow kernels).

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        bandwidth: ``h``, in units of length of the data space; by default Scott's rule
            ``n^(−1/(m+4)) √(V/m)`` with the variance V around the Fréchet mean.
        n_directions: Of each normaliser; 16 by default.
        generator: Of the directions.

    Attributes:
        bandwidth_: ``h``.
        points_: ``(n, m)``.
        log_normalizers_: ``(n,)``.

    Raises:
        OptionError: When the bandwidth is not positive.
    """

    def __init__(
        self,
        geometry: Somewhere,
        bandwidth: float | None = None,
        *,
        n_directions: int = _FEW,
        generator: torch.Generator | int | None = 0,
    ) -> None:
        where = "GeodesicKDE"
        expect_space(where, geometry)
        if bandwidth is not None:
            expect_range(where, "bandwidth", bandwidth, 0.0, above=True, hint="It is a length.")
        self.geometry = geometry
        self.bandwidth = bandwidth
        self.n_directions = default_directions(where, n_directions, 2)
        self.generator = generator

    @takes_codes
    @torch.no_grad()
    def fit(self, points: Tensor) -> GeodesicKDE:  # (n, m)
        """Normalise the kernels.

        Raises:
            OptionError: For fewer than two points without a bandwidth, or points that are all one.
            NotConvergedError: When the Fréchet mean that the bandwidth needs is not found.
        """
        where = "GeodesicKDE.fit"
        expect_points(where, points, 1 if self.bandwidth is not None else 2)
        self.points_ = points.detach()
        n, m = points.shape
        self.bandwidth_ = self._width()
        source = as_generator(where, self.generator)
        eye = torch.eye(m).to(self.points_)
        directions = [Directions.spread(eye, self.n_directions, source) for _ in range(n)]
        reach = (math.sqrt(m) + _REACH) * self.bandwidth_
        group = rays(self.geometry, self.points_, directions, [reach] * n)
        weight = gaussian(eye / self.bandwidth_**2)
        totals = [
            polar.integral(weight) for polar in Polar.each_up_to_the_cut(self.geometry, group)
        ]
        self.log_normalizers_ = torch.stack(totals).log()
        return self

    def _width(self) -> float:
        """The bandwidth.

        Raises:
            OptionError: When the points are all one.
        """
        if self.bandwidth is not None:
            return float(self.bandwidth)
        n, m = self.points_.shape
        with torch.no_grad():
            variance = float(frechet_mean(self.geometry, self.points_, rtol=1e-2).variance)
        if not variance > 0:
            wanted = "points that differ"
            raise OptionError("GeodesicKDE.fit", wanted, "none that do", "Give a bandwidth.")
        return n ** (-1 / (m + 4)) * math.sqrt(variance / m)

    @takes_codes
    @torch.no_grad()
    def log_prob(self, z: Tensor) -> Tensor:  # (k, m) -> (k,)
        """Log density with respect to the Riemannian volume; not differentiable.

        Kernels more than eight bandwidths away by the ambient distance, which is a lower bound, are
        not looked at.

        Raises:
            OptionError: Before ``fit``.
            NotConvergedError: When a geodesic is not found; its result holds the values without.
        """
        where = "GeodesicKDE.log_prob"
        if not hasattr(self, "points_"):
            raise OptionError(where, "a fitted estimate", "none", "Call fit first.")
        expect_points(where, z, 0)
        expect_shape(where, "z", z, ("k", self.points_.shape[1]), "As the points.")
        z = z.detach()
        n = len(self.points_)
        rows, columns = self._near(z)
        squares = torch.full((len(z), n), torch.inf).to(z)
        failed = 0
        if len(rows):
            found = paths(self.geometry, self.points_[columns], z[rows], _KERNEL_RTOL)
            squares[rows, columns] = found.length.square().nan_to_num(torch.inf)
            failed = int((~found.converged).sum())
        exponent = -squares / (2 * self.bandwidth_**2) - self.log_normalizers_
        values = exponent.logsumexp(1) - math.log(n)
        if failed:
            wanted, got = f"{len(rows)} geodesics", f"{failed} that failed"
            hint = "The values with the lengths at hand are in the error's result."
            raise NotConvergedError(where, wanted, got, hint, values)
        return values

    def _near(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of a point and a kernel that reaches it, as far as the ambient distance tells."""
        n = len(self.points_)
        rows = torch.arange(len(z), device=z.device).repeat_interleave(n)
        columns = torch.arange(n, device=z.device).repeat(len(z))
        if not len(rows):
            return rows, columns
        space = space_of(self.geometry, self.points_)
        bound = space.ambient_distance(self.points_[columns], z[rows])
        if bound is None:
            return rows, columns
        near = bound.detach() < _NOTHING * self.bandwidth_
        return rows[near], columns[near]

    def __repr__(self) -> str:
        told = f"bandwidth {self.bandwidth_:.4g}" if hasattr(self, "points_") else "not fitted"
        return f"GeodesicKDE({told})"
