"""Geodesic polar coordinates around points, and integrals in them.

A direction u of the unit sphere in the tangent space and a distance r name the point ``exp(r u)``,
up to the cut locus, behind which another geodesic is shorter. The Riemannian volume element is
``density(r u) r^(m-1) dr du``, with the density of :func:`riemae.solvers.exponential_volume`. A
table of it along some directions serves all integrals of functions of ``(u, r)``: what a normal
distribution is normalised by, its moments, the volume of a ball.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riemae import solvers
from riemae.numerics.sums import summed
from riemae.solvers.space import space_of
from riemae.statistics.tangents import Somewhere, frame, paths

# Radii of a table: between two the density is a cubic, which is right to 2e-5 for the sphere at the
# reach of a normal distribution that covers it.
_RADII = 12
# Points of Gauss and Legendre's rule in each interval between two radii.
_RULE = 6
# A geodesic is not the shortest one any more where one is shorter by this, relatively.
_SHORTER = 2e-3
_PATH_RTOL = 2e-4
_FLOW_RTOL = 1e-6
# The same where directions are drawn: chance leaves errors a hundred times as large.
_DRAWN_RTOL = 1e-4
_MAX_STEPS = 80
# Halvings of the interval in which the cut locus lies.
_HALVINGS = 9
# Where the other geodesic is looked at again, how far back the cut locus may be from where it is
# seen, and how far off it still is then, relatively.
_FURTHER = 1.05
_BACK = 0.1
_CUT_RTOL = 1e-3
# How far towards its end a ray is looked at.
_SHY = 0.999

Radial = Callable[[Tensor, Tensor], Tensor]  # u (d, m), r (d, q) -> (d, q, ...)


@dataclass(frozen=True)
class Directions:
    """Unit tangents ``(d, m)`` in an orthonormal frame, and what each stands for.

    Attributes:
        units: ``(d, m)``.
        weights: ``(d,)``: integrals over the unit sphere are sums with them.
        blocks: ``(d,)`` int64: averages over blocks are independent of one another, or, where
            directions are evenly spaced, rules of their own.
        drawn: Whether directions are drawn by chance.
    """

    units: Tensor
    weights: Tensor
    blocks: Tensor
    drawn: bool

    @classmethod
    def spread(
        cls, covariance: Tensor, count: int, source: torch.Generator | None
    ) -> Directions:  # (m, m)
        """Directions dense where a normal distribution has its mass.

        On a line both; in the plane evenly spaced angles; elsewhere antithetic pairs, drawn by
        chance. They are those of a normal vector, whose density on the sphere is
        ``Γ(m/2) / (2 π^(m/2) √det C) (uᵀ C⁻¹ u)^(−m/2)``.
        """
        m = len(covariance)
        like = covariance
        if m == 1:
            units = torch.tensor([[1.0], [-1.0]]).to(like)
            blocks = torch.zeros(2, dtype=torch.int64, device=like.device)
            return cls(units, torch.ones(2).to(like), blocks, drawn=False)
        if m == 2:
            angles = 2 * math.pi * torch.arange(count, device=like.device).to(like) / count
            raw = torch.stack([angles.cos(), angles.sin()], -1)
            blocks = torch.arange(count, device=like.device) % 2
        else:
            device = "cpu" if source is None else source.device
            half = torch.randn(
                (count + 1) // 2, m, generator=source, dtype=torch.float64, device=device
            ).to(like)
            raw = torch.cat([half, -half])
            blocks = torch.arange(len(half), device=like.device).repeat(2)
        root = torch.linalg.cholesky(covariance)
        units = raw @ root.mT
        units = units / units.norm(dim=-1, keepdim=True)
        stretch = torch.linalg.solve_triangular(root, units.mT, upper=False).square().sum(0)
        area = 2 * math.pi ** (m / 2) / math.gamma(m / 2)
        weights = area * root.diagonal().prod() * stretch.pow(m / 2) / len(units)
        return cls(units, weights, blocks, drawn=m > 2)


@dataclass(frozen=True)
class Rays:
    """Geodesics from a point along d directions, tabulated at k + 1 radii from 0 on.

    Attributes:
        origin: ``(m,)``.
        axes: ``(m, m)``, whose columns are orthonormal in the metric there.
        directions: Where the rays lead.
        radii: ``(k + 1,)``.
        density: ``(d, k + 1)``, of volume in normal coordinates.
        slope: ``(d, k + 1)``, its derivative in r.
        ends: ``(d,)``: the first conjugate point, where the ray could not be followed, or infinity.
        stopped: ``(d,)`` bool, whether it could not.
        tips: ``(d, m)``, where rays are at the last radius; NaN behind their ends.
    """

    origin: Tensor
    axes: Tensor
    directions: Directions
    radii: Tensor
    density: Tensor
    slope: Tensor
    ends: Tensor
    stopped: Tensor
    tips: Tensor

    @property
    def starts(self) -> Tensor:  # (d, m)
        """Where each ray begins: the origin."""
        return self.origin.expand(len(self.directions.units), -1)

    @property
    def ahead(self) -> Tensor:  # (d, m)
        """Unit tangents in coordinates."""
        return self.directions.units @ self.axes.mT

    def quadrature(self, ends: Tensor) -> tuple[Tensor, Tensor]:  # (d,) -> (d, q), (d, q)
        """Radii, and weights with the volume element in them, up to an end of each ray."""
        m = len(self.origin)
        nodes, weights = _rule(self.radii)
        low, high = self.radii[:-1], self.radii[1:]
        top = torch.minimum(high, ends[:, None]).clamp(min=low)
        width = top - low
        r = low[:, None] + width[..., None] * nodes  # (d, k, q)
        volume = self._interpolated(r) * r.pow(m - 1) * width[..., None] * weights
        return r.flatten(1), volume.flatten(1) * self.directions.weights[:, None]

    def thinned(self) -> Rays:
        """With every second radius: how much the interpolation between them matters."""
        return replace(
            self,
            radii=self.radii[::2],
            density=self.density[:, ::2],
            slope=self.slope[:, ::2],
        )

    def lost(self) -> tuple[Tensor, Tensor]:  # -> (d, q), (d, q)
        """Radii behind the places where rays could not be followed, with flat volume elements."""
        m = len(self.origin)
        nodes, weights = _rule(self.radii)
        width = torch.where(self.stopped, self.radii[-1] - self.ends, 0.0).clamp(min=0.0)
        start = torch.where(self.stopped, self.ends, 0.0)
        r = start[:, None] + width[:, None] * nodes
        volume = r.pow(m - 1) * width[:, None] * weights
        return r, volume * self.directions.weights[:, None]

    def _interpolated(self, r: Tensor) -> Tensor:  # (d, k, q) -> (d, k, q)
        """The density between the radii: the cubic with its values and slopes."""
        low = self.radii[:-1, None]
        step = (self.radii[1:] - self.radii[:-1])[:, None]
        s = (r - low) / step
        density = self.density.nan_to_num()
        slope = self.slope.nan_to_num()
        a, b = density[:, :-1, None], density[:, 1:, None]
        da, db = step * slope[:, :-1, None], step * slope[:, 1:, None]
        cubic = a + s * (da + s * (3 * (b - a) - 2 * da - db + s * (2 * (a - b) + da + db)))
        return cubic.clamp(min=0.0)


def rays(
    geometry: Somewhere, origins: Tensor, directions: list[Directions], reach: list[float]
) -> list[Rays]:  # (p, m)
    """Rays from p points, all of them followed at once."""
    axes = frame(geometry, origins)
    starts, ahead = [], []
    for origin, own, one, far in zip(origins, axes, directions, reach, strict=True):
        starts.append(origin.expand(len(one.units), -1))
        ahead.append(far * one.units @ own.mT)
    times = torch.arange(1, _RADII + 1, device=origins.device).to(origins) / _RADII
    finest = _DRAWN_RTOL if all(one.drawn for one in directions) else _FLOW_RTOL
    found = solvers.exponential_volume(
        geometry,
        torch.cat(starts),
        torch.cat(ahead),
        times,
        rtol=max(finest, 10 * torch.finfo(origins.dtype).eps),
        max_steps=_MAX_STEPS,
    )
    out = []
    counts = [len(one.units) for one in directions]
    columns = found.density, found.slope, found.points[:, -1]
    split = zip(*(column.split(counts) for column in columns), strict=True)
    for i, (density, slope, tips) in enumerate(split):
        ones = torch.ones_like(density[:, :1])
        density = torch.cat([ones, density], 1)
        slope = torch.cat([torch.zeros_like(ones), slope / reach[i]], 1)
        radii = torch.cat([times.new_zeros(1), times]) * reach[i]
        ends, stopped = _ends(radii, density)
        out.append(
            Rays(origins[i], axes[i], directions[i], radii, density, slope, ends, stopped, tips)
        )
    return out


def _ends(
    radii: Tensor, density: Tensor
) -> tuple[Tensor, Tensor]:  # (k + 1,), (d, k + 1) -> (d,), (d,)
    """Where densities first vanish, by a secant, or geodesics stop; infinity where neither.

    And whether they stop.
    """
    over = ~(density > 0)
    first = over.to(torch.int64).argmax(1)
    after = first.clamp(min=1)
    a = density.gather(1, after[:, None] - 1)[:, 0]
    b = density.gather(1, after[:, None])[:, 0]
    share = torch.where(b.isfinite(), a / (a - b), 0.0)
    place = radii[after - 1] + share * (radii[after] - radii[after - 1])
    some = over.any(1)
    return torch.where(some, place, torch.inf), some & b.isnan()


def cuts(geometry: Somewhere, group: list[Rays]) -> list[Tensor]:  # -> p of (d,)
    """How far rays are the shortest way: at most to their ``ends``; infinity beyond the reach.

    Halvings, each with one geodesic for every ray that is not the shortest way to its end. Where
    another geodesic is shorter by enough to be told, the ray has been too long for a while: how
    fast the other one falls behind tells since when. To about a thousandth of the reach.
    """
    starts = torch.cat([ray.starts for ray in group])
    ahead = torch.cat([ray.ahead for ray in group])
    ends = torch.cat([ray.ends for ray in group])
    reach = torch.cat([ray.radii[-1].expand(len(ray.ends)) for ray in group])
    high = torch.minimum(ends, reach)
    # Where rays that never end are at the reach is known.
    tips = torch.cat([ray.tips for ray in group])
    whole = ends > reach
    beyond = longer(geometry, starts, ahead, high, ~whole)
    beyond[whole] = _falls_behind(geometry, starts[whole], tips[whole], high[whole]) > (
        _SHORTER * high[whole]
    )
    cut = torch.where(ends < reach, ends, torch.inf)
    low = torch.zeros_like(high)
    if bool(beyond.any()):
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            over = longer(geometry, starts, ahead, middle, beyond)
            high = torch.where(beyond & over, middle, high)
            low = torch.where(beyond & ~over, middle, low)
        middle = (low + high) / 2
        here = excess(geometry, starts, ahead, middle, beyond)
        there = excess(geometry, starts, ahead, _FURTHER * middle, beyond)
        slope = (there - here) / (_FURTHER - 1)
        back = (here / slope).nan_to_num(0.0).clamp(0.0, _BACK)
        cut = torch.where(beyond, _SHY * (1 - back) * middle, cut)
    return list(cut.split([len(ray.ends) for ray in group]))


def longer(
    geometry: Somewhere,
    starts: Tensor,
    ahead: Tensor,
    r: Tensor,
    asked: Tensor | None = None,
) -> Tensor:  # (d, m), (d, m), (d,), (d,) -> (d,)
    """Whether another geodesic is shorter than a ray up to a distance; False where not asked.

    A path that failed to converge is still a path: if it is shorter, the ray is not the shortest.
    """
    if asked is None:
        asked = torch.ones_like(r, dtype=torch.bool)
    # NaN, of a path that was not found, is not more.
    return excess(geometry, starts, ahead, r, asked) > _SHORTER * _SHY * r


def excess(
    geometry: Somewhere, starts: Tensor, ahead: Tensor, r: Tensor, asked: Tensor
) -> Tensor:  # (d, m), (d, m), (d,), (d,) -> (d,)
    """How much longer a ray up to a distance is than the geodesic that is found; NaN elsewhere."""
    out = torch.full_like(r, torch.nan)
    if not bool(asked.any()):
        return out
    # The very place of a conjugate point is singular for the flow.
    far = _SHY * r[asked]
    start = starts[asked]
    place = solvers.exp(
        space_of(geometry, start),
        start,
        far[:, None] * ahead[asked],
        rtol=_FLOW_RTOL,
        max_steps=_MAX_STEPS,
        throw=False,
    )
    out[asked] = _falls_behind(geometry, start, place, far)
    return out


def _falls_behind(geometry: Somewhere, start: Tensor, end: Tensor, length: Tensor) -> Tensor:
    """How much longer a way ``(k,)`` is than the geodesic that is found; NaN where none is."""
    sound = end.isfinite().all(-1)
    more = torch.full_like(length, torch.nan)
    if bool(sound.any()):
        more[sound] = length[sound] - paths(geometry, start[sound], end[sound], _PATH_RTOL).length
    return more


@dataclass(frozen=True)
class Polar:
    """What integrals in polar coordinates need: all radii of all rays, with weights.

    Attributes:
        ray: The rays.
        cut: ``(d,)``, how far they are the shortest way; infinity beyond the reach.
        r: ``(d, q)``.
        volume: ``(d, q)``, weights with the volume element in them.
    """

    ray: Rays
    cut: Tensor
    r: Tensor
    volume: Tensor

    @classmethod
    def up_to_the_cut(cls, geometry: Somewhere, ray: Rays) -> Polar:
        """With the cut locus found."""
        return cls.each_up_to_the_cut(geometry, [ray])[0]

    @classmethod
    def each_up_to_the_cut(cls, geometry: Somewhere, group: list[Rays]) -> list[Polar]:
        """Around several points, with their geodesics solved together."""
        found = zip(group, cuts(geometry, group), strict=True)
        return [cls(ray, cut, *ray.quadrature(cut)) for ray, cut in found]

    @property
    def units(self) -> Tensor:  # (d, m)
        """The directions in the orthonormal frame."""
        return self.ray.directions.units

    def integral(self, f: Radial) -> Tensor:
        """``∫ f(u, r) dV``, differentiable in what f depends on."""
        values = f(self.units, self.r)
        extra = values.ndim - 2
        return (values * self.volume.view(*self.volume.shape, *[1] * extra)).sum((0, 1))

    def error(self, f: Radial) -> Tensor:  # -> ()
        """Estimated error of an integral of a function ``(d, q)`` of at least 0.

        By the directions; by the radii between which the density is interpolated; by where the cut
        locus is; and by what may lie behind the places where rays could not be followed, if space
        were flat there.
        """
        r, volume = self.ray.thinned().quadrature(self.cut)
        coarse = (f(self.units, r) * volume).sum()
        # Of fourth order: with half the intervals, sixteen times the error.
        between = (self.integral(f) - coarse).abs() / 15
        r, volume = self.ray.lost()
        behind = (f(self.units, r) * volume).sum()
        r, volume = self.ray.quadrature((1 + _CUT_RTOL) * self.cut)
        edge = ((f(self.units, r) * volume).sum() - self.integral(f)).abs()
        return self.spread(f) + between + edge + behind

    def spread(self, f: Radial) -> Tensor:  # -> ()
        """Standard error of an integral, by its blocks of directions.

        Of evenly spaced ones: the difference of the two halves, which bounds what all together
        miss. One line has no error of this kind.
        """
        directions = self.ray.directions
        count = int(directions.blocks.max()) + 1
        if count == 1:
            return self.volume.new_zeros(())
        values = (f(self.units, self.r) * self.volume).sum(1)
        sums = summed(values, directions.blocks, count) * count
        if directions.drawn:
            return sums.std() / math.sqrt(count)
        return (sums[0] - sums[1]).abs() / 2

    def tail(self, f: Radial) -> float:
        """The share of an integral that lies in the last interval of the table."""
        values = f(self.units, self.r) * self.volume
        total = float(values.sum())
        return float(values[:, -_RULE:].sum()) / total if total > 0 else 0.0


def _rule(like: Tensor) -> tuple[Tensor, Tensor]:  # -> (q,), (q,)
    """Gauss and Legendre's rule on [0, 1]."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_RULE)
    return (
        torch.as_tensor((nodes + 1) / 2, device=like.device).to(like),
        torch.as_tensor(weights / 2, device=like.device).to(like),
    )
