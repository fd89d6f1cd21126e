"""Normal distributions on a manifold, and mixtures of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riemae import solvers
from riemae.exceptions import NotConvergedError, OptionError, ShapeError
from riemae.numerics.checks import expect_range, expect_shape, expect_values
from riemae.numerics.random import as_generator
from riemae.solvers.space import space_of
from riemae.statistics.arguments import takes_and_gives_codes, takes_codes
from riemae.statistics.means import frechet_mean
from riemae.statistics.polar import Directions, Polar, Radial, longer, rays
from riemae.statistics.tangents import (
    Logarithms,
    Somewhere,
    attainable,
    expect_points,
    frame,
    normalised,
    stepped,
)

# How far the table reaches, in standard deviations beyond those of m of them, and how often it is
# made longer where mass lies at its end.
_TAIL = 4.0
_LONGEST = 6
_NEGLIGIBLE = 1e-5
# Directions by default: in the plane they are evenly spaced, elsewhere drawn.
_PLANE = 48
_SPACE = 128
# Rounds of a fit, and when the mean has settled, in standard deviations.
_ROUNDS = 20
_SETTLED = 1e-3
# How far the mean may be from where a table was made, in standard deviations, while it is moving.
_STILL = 1e-3
_LOGS = 1e-5
# Iterations of the search for a covariance.
_MATCHING = 100
_MOST_DRAWS = 1000


class RiemannianNormal:
    """The normal distribution ``p(x) ∝ exp(−½ ⟨log_μ x, C⁻¹ log_μ x⟩)`` on a manifold.

    The density is one with respect to the Riemannian volume. With ``C = σ² G⁻¹`` it is
    ``exp(−d(μ, x)² / 2 σ²)``, of X. Pennec, Intrinsic statistics on Riemannian manifolds, J. Math.
    Imaging Vis. 25, 2006; with a general C it is the component of G. Arvanitidis, L. K. Hansen,
    S. Hauberg, A locally adaptive normal distribution, NeurIPS 2016.

    Nothing of it is differentiable: what it tells are numbers without a graph, whatever the mean,
    the scale or the decoder require.

    The normaliser is an integral in geodesic polar coordinates up to the cut locus: exactly in the
    radius, and over ``n_directions`` directions, evenly spaced in the plane and drawn elsewhere.

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        mean: ``μ``, ``(m,)``.
        scale: ``σ``, in units of length of the data space; either this or ``covariance``.
        covariance: ``C``, ``(m, m)``, of tangents in coordinates at the mean.
        n_directions: Directions of the normaliser; by default 48 in the plane, 128 elsewhere.
        generator: Of the directions: a generator, or the seed of a new one.

    Attributes:
        mean: As given.
        covariance: ``(m, m)``.
        scale: ``σ``, ``()``, where that was given; None with a general covariance.
        log_normalizer: ``log ∫ exp(−½ …) dV``, ``()``.
        log_normalizer_error: Its estimated error, ``()``: by the directions (a standard error where
            they are drawn), by the radii, by the cut locus, which is known to a thousandth, and by
            rays that could not be followed.

    Raises:
        ShapeError: When the mean is not a point, or the covariance no matrix for it.
        OptionError: When ``scale`` is not positive, the covariance not positive definite, or not
            exactly one of them is given.
        NotConvergedError: When the normaliser is infinite as far as can be seen: the volume grows
            faster than the density falls.
    """

    @takes_codes
    @torch.no_grad()
    def __init__(
        self,
        geometry: Somewhere,
        mean: Tensor,
        scale: float | Tensor | None = None,
        *,
        covariance: Tensor | None = None,
        n_directions: int | None = None,
        generator: torch.Generator | int | None = 0,
    ) -> None:
        where = "RiemannianNormal"
        expect_values(where, "mean", mean)
        expect_shape(where, "mean", mean, ("m",), "One point.")
        if (scale is None) == (covariance is None):
            got = "both" if scale is not None else "neither"
            raise OptionError(where, "either scale or covariance", got, "Try scale=1.0.")
        m = len(mean)
        self.geometry = geometry
        self.mean = mean.detach()
        self.n_directions = default_directions(where, n_directions, m)
        self.generator = generator
        self._axes = frame(geometry, self.mean[None])[0]
        if scale is not None:
            expect_range(where, "scale", float(scale), 0.0, above=True, hint="It is a length.")
            self.scale: Tensor | None = torch.as_tensor(scale).detach().to(self.mean)
            inner = self.scale.square() * torch.eye(m).to(self.mean)
        else:
            self.scale = None
            inner = _within(where, covariance, self._axes)
        self._inner = inner
        self.covariance = self._axes @ inner @ self._axes.mT
        self._precision = _inverse(inner)
        source = as_generator(where, generator)
        self._polar = _table(geometry, self.mean, inner, self.n_directions, source)
        weight = gaussian(self._precision)
        total = self._polar.integral(weight)
        self.log_normalizer = total.log()
        # What lies beyond the reach is less than what lies in the last interval before it.
        beyond = self._polar.tail(weight)
        self.log_normalizer_error = self._polar.error(weight) / total + beyond

    @classmethod
    @takes_codes
    @torch.no_grad()
    def fit(
        cls,
        geometry: Somewhere,
        points: Tensor,
        weights: Tensor | None = None,
        *,
        kind: str = "isotropic",
        n_directions: int | None = None,
        generator: torch.Generator | int | None = 0,
    ) -> RiemannianNormal:
        """The maximum likelihood estimate.

        From the Fréchet mean on. The scale is that for which the expected squared distance is the
        points' own, a covariance that for which the second moments of logarithms are; the mean goes
        to where the expected logarithm is the points' own. That is the maximum of the likelihood
        for an isotropic distribution, and with a covariance as far as it keeps its entries while
        the mean moves.

        Args:
            geometry: A :class:`riemae.Manifold`, or a space.
            points: ``(n, m)``.
            weights: ``(n,)``, at least 0; equal by default.
            kind: ``"isotropic"`` or ``"full"``.
            n_directions: As in the class.
            generator: As in the class.

        Raises:
            OptionError: For another kind, or points that are all the same.
            NotConvergedError: When the Fréchet mean is not found.
        """
        where = "RiemannianNormal.fit"
        if kind not in ("isotropic", "full"):
            raise OptionError(where, "kind 'isotropic' or 'full'", repr(kind), "")
        expect_points(where, points, 2)
        share = normalised(where, weights, points)
        with torch.no_grad():
            mean = frechet_mean(geometry, points, weights, rtol=1e-4, throw=False)
            if not mean.converged:
                frechet_mean(geometry, points, weights, rtol=1e-3)
        count = default_directions(where, n_directions, points.shape[1])
        fit = Fit(geometry, points.detach(), mean.point, kind, count, generator)
        for _ in range(_ROUNDS):
            if fit.round(share):
                return fit.normal()
        raise NotConvergedError(
            where,
            f"a mean and a covariance that settle in {_ROUNDS} rounds",
            "ones that still move",
            "The points may spread as far as uniform ones, or need more than one component: see "
            "LAND. The error's result is the last distribution.",
            fit.normal(),
        )

    @takes_codes
    @torch.no_grad()
    def log_prob(self, z: Tensor, *, throw: bool = True) -> Tensor:  # (k, m) -> (k,)
        """Log density with respect to the Riemannian volume; not differentiable.

        Args:
            z: ``(k, m)``.
            throw: Raise when a geodesic from the mean is not found; False returns NaN for it.

        Raises:
            ShapeError: When ``z`` is not a set of points of the mean's dimension.
            NotConvergedError: When ``throw`` and a geodesic is not found; its result holds the
                values of all points.
        """
        where = "RiemannianNormal.log_prob"
        expect_points(where, z, 0)
        expect_shape(where, "z", z, ("k", len(self.mean)), "As many coordinates as the mean.")
        logs = Logarithms.of(self.geometry, self.mean, z.detach(), attainable(1e-6, z))
        values = self._log_density(logs)
        if throw and len(logs.failed):
            raise NotConvergedError(
                where,
                f"{len(z)} geodesics from the mean",
                f"{len(logs.failed)} that failed (first: {logs.failed[:5].tolist()})",
                "Leave the points out, or take the values with throw=False.",
                values,
            )
        return values

    def _log_density(self, logs: Logarithms) -> Tensor:  # -> (k,)
        """Of points whose logarithms are known; NaN where they failed."""
        inner = _inside(self._axes, logs.vectors)
        values = -_squared(self._precision, inner) / 2 - self.log_normalizer
        values[logs.failed] = torch.nan
        return values

    @takes_and_gives_codes
    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | int | None = 0) -> Tensor:  # -> (n, m)
        """Points of the distribution, by rejection.

        Directions are drawn and weighed by their radial integrals, radii by their distribution
        along the direction; points behind the cut locus are dropped. The bound on the weights is
        raised when a larger one is seen, and what was accepted before is thinned out.

        Args:
            n: How many.
            generator: A generator, or the seed of a new one; None draws from torch's own.

        Raises:
            OptionError: When ``n`` is negative.
            NotConvergedError: When nearly all draws are rejected; it carries the points found.
        """
        where = "RiemannianNormal.sample"
        expect_range(where, "n", n, 0, integer=True, hint="It counts points.")
        source = as_generator(where, generator)
        taken = self.mean.new_empty(0, len(self.mean))
        bound = 0.0
        drawn = 0
        while len(taken) < n:
            if drawn > _MOST_DRAWS * (n + 64):
                wanted, got = f"{n} points", f"{len(taken)} of {drawn} draws"
                hint = "The distribution lies almost wholly behind its cut locus: lower its scale."
                raise NotConvergedError(where, wanted, got, hint, taken)
            count = max(64, 2 * (n - len(taken)))
            drawn += count
            points, chance = self._proposals(count, source)
            largest = float(chance.amax())
            if largest > bound:
                kept = _uniform(source, len(taken)).to(taken) * largest < bound
                taken = taken[kept]
                bound = largest
            accepted = (
                _uniform(source, count).to(chance) * bound < chance
            ) & points.isfinite().all(1)
            taken = torch.cat([taken, points[accepted]])
        return taken[:n]

    def _proposals(
        self, count: int, source: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:  # -> (count, m), (count,)
        """Points, and the weights of their directions: 0 behind the cut locus."""
        m = len(self.mean)
        device = "cpu" if source is None else source.device
        noise = torch.randn(count, m, generator=source, dtype=torch.float64, device=device)
        root = torch.linalg.cholesky(self._inner)
        raw = noise.to(self.mean) @ root.mT
        units = raw / raw.norm(dim=-1, keepdim=True)
        stretch = _squared(self._precision, units)
        directions = Directions(
            units=units,
            weights=stretch.pow(m / 2),
            blocks=torch.zeros(count, dtype=torch.int64, device=units.device),
            drawn=True,
        )
        reach = float(self._polar.ray.radii[-1])
        ray = rays(self.geometry, self.mean[None], [directions], [reach])[0]
        r, volume = ray.quadrature(ray.ends)
        mass = volume * gaussian(self._precision)(units, r)
        total = mass.cumsum(1)
        chance = total[:, -1]
        wanted = _uniform(source, count).to(chance)[:, None] * chance[:, None]
        last = total.shape[1] - 1
        place = torch.searchsorted(total, wanted)[:, 0].clamp(max=last)
        high = total.gather(1, place[:, None])[:, 0]
        share = mass.gather(1, place[:, None])[:, 0]
        here = r.gather(1, place[:, None])[:, 0]
        before = torch.where(place > 0, r.gather(1, (place - 1).clamp(min=0)[:, None])[:, 0], 0.0)
        part = 1 - torch.where(share > 0, (high - wanted[:, 0]) / share, 0.0)
        # Weights stand for the surroundings of their radii: half-way between neighbours.
        after = r.gather(1, (place + 1).clamp(max=last)[:, None])[:, 0]
        low_end, high_end = (before + here) / 2, (here + after) / 2
        radius = low_end + part * (high_end - low_end)
        start = self.mean.expand(count, -1)
        space = space_of(self.geometry, start)
        points = solvers.exp(space, start, radius[:, None] * ray.ahead, rtol=1e-6, throw=False)
        behind = longer(self.geometry, start, ray.ahead, radius)
        return points, torch.where(behind, 0.0, chance)

    def __repr__(self) -> str:
        m = len(self.mean)
        told = f"scale {float(self.scale):.4g}, " if self.scale is not None else ""
        return (
            f"RiemannianNormal({m} dimensions, {told}log normaliser "
            f"{float(self.log_normalizer):.4g} ± {float(self.log_normalizer_error):.1e})"
        )


def default_directions(where: str, count: int | None, m: int) -> int:
    """How many directions.

    Raises:
        OptionError: For fewer than 4.
    """
    if count is None:
        return _PLANE if m == 2 else _SPACE
    expect_range(where, "n_directions", count, 4, integer=True, hint="It counts directions.")
    return int(count)


def _within(where: str, covariance: Tensor | None, axes: Tensor) -> Tensor:  # -> (m, m)
    """A covariance in the orthonormal frame.

    Raises:
        ShapeError: When it has another shape.
        OptionError: When it is not symmetric and positive definite.
    """
    m = len(axes)
    if not isinstance(covariance, Tensor) or covariance.shape != (m, m):
        got = str(tuple(covariance.shape)) if isinstance(covariance, Tensor) else "none"
        raise ShapeError(where, f"covariance as a tensor ({m}, {m})", got, "One row each.")
    known = covariance.detach().to(axes)
    inner = _inside(axes, _inside(axes, known).mT)
    lowest = (
        float(torch.linalg.eigvalsh((inner + inner.mT) / 2)[0]) if inner.isfinite().all() else -1
    )
    even = bool((inner - inner.mT).abs().amax() <= 1e-5 * inner.abs().amax())
    if not even or not lowest > 0:
        wanted = "a symmetric, positive definite covariance"
        raise OptionError(where, wanted, f"{covariance.tolist()}"[:120], "Try scale=.")
    return (inner + inner.mT) / 2


def _inside(axes: Tensor, v: Tensor) -> Tensor:  # (m, m), (k, m) -> (k, m)
    """Tangents in the orthonormal frame: lengths are Euclidean there."""
    return torch.linalg.solve(axes, v.mT).mT


def _squared(precision: Tensor, v: Tensor) -> Tensor:  # (m, m), (..., m) -> (...)
    return ((v @ precision) * v).sum(-1)


def gaussian(precision: Tensor) -> Radial:
    """``exp(−½ r² uᵀ C⁻¹ u)``."""

    def weight(u: Tensor, r: Tensor) -> Tensor:  # (d, m), (d, q) -> (d, q)
        return (-r.square() * _squared(precision, u)[:, None] / 2).exp()

    return weight


def _table(
    geometry: Somewhere,
    mean: Tensor,
    inner: Tensor,
    count: int,
    source: torch.Generator | None,
) -> Polar:
    """Polar coordinates as far as the distribution goes.

    Raises:
        NotConvergedError: When it goes on and on.
    """
    m = len(mean)
    weight = gaussian(_inverse(inner))
    directions = Directions.spread(inner, count, source)
    widest = float(torch.linalg.eigvalsh(inner)[-1].sqrt())
    reach = (math.sqrt(m) + _TAIL) * widest
    for _ in range(_LONGEST):
        ray = rays(geometry, mean[None], [directions], [reach])[0]
        polar = Polar.up_to_the_cut(geometry, ray)
        if polar.tail(weight) < _NEGLIGIBLE:
            return polar
        reach *= 1.5
    raise NotConvergedError(
        "RiemannianNormal",
        "a density that falls faster than the volume grows",
        f"{polar.tail(weight):.0%} of its mass beyond a distance of {reach / 1.65:.3g}",
        "Lower the scale.",
        None,
    )


def _uniform(source: torch.Generator | None, count: int) -> Tensor:
    device = "cpu" if source is None else source.device
    return torch.rand(count, generator=source, dtype=torch.float64, device=device)


class Fit:
    """A maximum likelihood estimate in the making: each round moves covariance, then mean.

    Args:
        geometry: Where.
        points: ``(n, m)``.
        mean: Where to begin.
        kind: ``"isotropic"`` or ``"full"``.
        count: Directions of a table.
        generator: Of them; the same ones in every round, where it is a seed.
    """

    def __init__(
        self,
        geometry: Somewhere,
        points: Tensor,
        mean: Tensor,
        kind: str,
        count: int,
        generator: torch.Generator | int | None,
    ) -> None:
        self.geometry = geometry
        self.points = points
        self.mean = mean
        self.kind = kind
        self.count = count
        self.generator = generator
        self.logs: Logarithms | None = None
        self.inner: Tensor | None = None
        self._here = mean
        self._polar: Polar | None = None

    def round(self, share: Tensor) -> bool:  # (n,)
        """Covariance and mean for points with these shares of the weight.

        Returns:
            Whether both have settled.

        Raises:
            OptionError: When the points do not spread in every direction.
            NotConvergedError: When no geodesic to a point is found.
        """
        logs = self._looked_around()
        axes = frame(self.geometry, self.mean[None])[0]
        part = share.clone()
        part[logs.failed] = 0.0
        if not float(part.sum()) > 0:
            wanted, got = "geodesics from the mean to the points", "none that was found"
            raise NotConvergedError("RiemannianNormal.fit", wanted, got, "Give a mean.", self.mean)
        part = part / part.sum()
        vectors = _inside(axes, logs.vectors.nan_to_num())
        moments = self._moments(vectors, part)
        polar = self._table(moments)
        before = moments if self.inner is None else self.inner
        self._here = self.mean
        self.inner = _matched(polar, moments, self.kind)
        change = torch.linalg.solve(before, self.inner) - torch.eye(len(before)).to(before)
        move = part @ vectors - _expected(polar, _inverse(self.inner))
        width = float(moments.diagonal().sum().sqrt())
        settled = float(move.norm()) < _SETTLED * width and float(change.norm()) < 10 * _SETTLED
        if not settled:
            here = self.mean[None]
            space = space_of(self.geometry, here)
            self.mean = stepped(space, here, (axes @ move)[None])[0]
        return settled

    def log_prob(self) -> Tensor:  # -> (n,)
        """Of the points, as the last round saw them; NaN where a geodesic failed.

        With the normaliser of where the table was made: the last round's mean, or nearly.

        Raises:
            OptionError: Before the first round.
        """
        if self.logs is None or self.inner is None or self._polar is None:
            raise OptionError("RiemannianNormal.fit", "a round", "none", "Call round first.")
        precision = _inverse(self.inner)
        axes = frame(self.geometry, self._here[None])[0]
        squared = _squared(precision, _inside(axes, self.logs.vectors))
        values = -squared / 2 - self._polar.integral(gaussian(precision)).log()
        values[self.logs.failed] = torch.nan
        return values

    def normal(self) -> RiemannianNormal:
        """The distribution as it stands.

        Raises:
            OptionError: Before the first round.
        """
        if self.inner is None:
            raise OptionError("RiemannianNormal.fit", "a round", "none", "Call round first.")
        scale = self.inner[0, 0].sqrt() if self.kind == "isotropic" else None
        axes = frame(self.geometry, self.mean[None])[0]
        return RiemannianNormal(
            self.geometry,
            self.mean,
            scale,
            covariance=axes @ self.inner @ axes.mT if scale is None else None,
            n_directions=self.count,
            generator=self.generator,
        )

    def _looked_around(self) -> Logarithms:
        known = None if self.logs is None else self.logs.curves
        rtol = attainable(_LOGS, self.points)
        self.logs = Logarithms.of(self.geometry, self.mean, self.points, rtol, init=known)
        return self.logs

    def _moments(self, vectors: Tensor, part: Tensor) -> Tensor:  # (n, m), (n,) -> (m, m)
        moments = torch.einsum("k,ki,kj->ij", part, vectors, vectors)
        if self.kind == "isotropic":
            moments = moments.diagonal().mean() * torch.eye(len(moments)).to(moments)
        spread = torch.linalg.eigvalsh(moments)
        if not float(spread[0]) > 1e-10 * float(spread[-1]):
            raise OptionError(
                "RiemannianNormal.fit",
                "points that spread in every direction",
                f"second moments with eigenvalues {spread.tolist()}"[:120],
                "Give more points, or kind='isotropic'.",
            )
        return moments

    def _table(self, moments: Tensor) -> Polar:
        """Polar coordinates around the mean; those from before while the mean is nearly there."""
        inner = moments if self.inner is None else self.inner
        if self._polar is not None:
            origin = self._polar.ray.origin
            moved = space_of(self.geometry, origin[None]).norm(
                origin[None], (self.mean - origin)[None]
            )
            still = float(moved) < _STILL * float(moments.diagonal().sum().sqrt())
            if still and self._polar.tail(gaussian(_inverse(inner))) < _NEGLIGIBLE:
                return self._polar
        source = as_generator("RiemannianNormal.fit", self.generator)
        self._polar = _table(self.geometry, self.mean, inner, self.count, source)
        return self._polar


def _inverse(inner: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(inner))


def _expected(polar: Polar, precision: Tensor) -> Tensor:  # -> (m,)
    """The expected logarithm."""
    weight = gaussian(precision)

    def tangent(u: Tensor, r: Tensor) -> Tensor:
        return weight(u, r)[..., None] * r[..., None] * u[:, None]

    mean: Tensor = polar.integral(tangent) / polar.integral(weight)
    return mean


def _matched(polar: Polar, moments: Tensor, kind: str) -> Tensor:  # -> (m, m)
    """The covariance whose distribution has these second moments.

    It minimises ``½ tr(P S) + log Z(P)``, which is convex in the precision P. Where the points
    spread as far as uniform ones there is none, and the widest is taken.
    """
    m = len(moments)
    root = torch.linalg.cholesky(moments)
    factor = torch.zeros(m if kind == "full" else 1, m if kind == "full" else 1).to(moments)
    factor.requires_grad_()
    whitened = torch.linalg.inv(root)

    def precision() -> Tensor:
        # Relative to the moments' own inverse: lower triangular, its diagonal a logarithm.
        if kind == "isotropic":
            return torch.exp(factor[0, 0]) * torch.eye(m).to(moments) / moments[0, 0]
        lower = factor.tril(-1) + torch.diag(factor.diagonal().exp())
        inner = lower @ whitened
        return inner.mT @ inner

    steps = torch.optim.LBFGS(
        [factor],
        max_iter=_MATCHING,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        steps.zero_grad()
        p = precision()
        value = (p * moments).sum() / 2 + polar.integral(gaussian(p)).log()
        value.backward()
        return value

    with torch.enable_grad():
        steps.step(objective)
    with torch.no_grad():
        return _inverse(precision())
