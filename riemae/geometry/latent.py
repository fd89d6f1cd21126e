"""Latent spaces that are not a plain R^m: periodic coordinates, and geoopt manifolds.

``Manifold(decoder, latent=(2 * torch.pi, None))`` is an angle and a number;
``latent=geoopt.PoincareBall()`` is a ball. The decoder's geometry is the pull-back metric as ever.
The latent space says where the search for a geodesic starts, which coordinates mean the same point,
and what distortion is relative to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from riemae.ambient import AmbientMetric
from riemae.ambient.geoopt import metric_tensor
from riemae.differential.conditions import Condition
from riemae.exceptions import DecoderError, OptionError, ShapeError
from riemae.geometry.coordinates import telling
from riemae.geometry.decoder import Decoder
from riemae.geometry.pullback import PullbackMetric
from riemae.numerics.tolerances import tolerance
from riemae.solvers import GeodesicResult, Solver
from riemae.solvers.choice import default_solver
from riemae.solvers.path import demand_convergence, geodesic

# Periods, a geoopt manifold, or one of the classes below.
LatentSpace = Any
# Data (k, D) of points (k, m) that belong to pairs (k,), counted along the batch.
Decode = Callable[[Tensor, Tensor], Tensor]

_SEGMENTS = 32


class Periodic:
    """Coordinates of which some come round: angles, phases, hours of the day.

    Args:
        periods: The period of each coordinate, None for those that have none.

    Raises:
        OptionError: When a period is not positive, or there is none.
    """

    metric = None

    def __init__(self, periods: tuple[float | None, ...]) -> None:
        known = [p for p in periods if p is not None]
        if not known or not all(0 < p < float("inf") for p in known):
            hint = "Try latent=(2 * torch.pi, None): an angle and a number."
            raise OptionError(
                "Manifold", "positive periods, None for coordinates without", str(periods), hint
            )
        self.periods = tuple(periods)

    def __repr__(self) -> str:
        periods = ["None" if p is None else f"{p:.4g}" for p in self.periods]
        return f"Periodic({', '.join(periods)})"

    def wrap(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b, m)
        """The same points with each periodic coordinate in [−period/2, period/2)."""
        period = self._tensor(z)
        periodic = period > 0
        wrapped = (z + period / 2) % torch.where(periodic, period, 1.0) - period / 2
        return torch.where(periodic, wrapped, z)

    def between(self, z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:  # (k, m), (k, m), (k, 1)
        """Points ``z0 + t (z1 − z0)`` on the short way round; t may be outside of [0, 1]."""
        gap = z1 - z0
        short = torch.where(self._tensor(z0) > 0, self.wrap(gap), gap)
        return z0 + t * short

    def candidates(self, z0: Tensor, z1: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """End points to search: the short way in all coordinates, the long way in one or two."""
        period = self._tensor(z0)
        periodic = period > 0
        gap = torch.where(periodic, self.wrap(z1 - z0), z1 - z0)
        short = z0 + gap
        turn = -gap.sign() * period
        places = [i for i, p in enumerate(self.periods) if p is not None]
        # z1 plus whole periods, exactly: z0 + gap would round.
        turns = ((short - z1) / torch.where(periodic, period, 1.0)).round()
        turns = torch.where(periodic, turns, 0.0)
        for count in range(min(2, len(places)) + 1):
            for flipped in combinations(places, count):
                mask = torch.zeros_like(period)
                mask[list(flipped)] = 1.0
                stop = z1 + turns * period + mask * turn
                # Of a point and itself some turns on, rounding must not leave a distance.
                rounding = 8 * tolerance(z0.dtype).eps * (z0.abs() + z1.abs())
                yield torch.where((stop - z0).abs() <= rounding, z0, stop), None

    def check(self, decode: Decode, z: Tensor) -> None:  # (*b, m)
        """Refuse a decoder without these periods.

        Raises:
            DecoderError: With the coordinate.
        """
        points = z.detach().reshape(-1, z.shape[-1])[:2]
        rows = points.isfinite().all(-1).nonzero().flatten()
        points = points[rows]
        if not len(points):
            return
        x = decode(points, rows)
        for i, period in enumerate(self.periods):
            if period is None:
                continue
            around = points.clone()
            around[:, i] += period
            # Rounding of the coordinate itself moves the data too.
            limit = tolerance(z.dtype).check * (1 + float(x.abs().max()))
            if not bool(((decode(around, rows) - x).abs() <= limit).all()):
                raise DecoderError(
                    "Manifold.geodesic",
                    f"a decoder with period {period:.6g} in coordinate {i}",
                    "other data one period on",
                    "Let the decoder see the coordinate through sin and cos only.",
                )

    def _tensor(self, z: Tensor) -> Tensor:
        if z.shape[-1] != len(self.periods):
            raise ShapeError(
                "Manifold",
                f"points with {len(self.periods)} coordinates",
                str(tuple(z.shape)),
                "Give latent= one period, or None, per coordinate.",
            )
        return torch.tensor([p or 0.0 for p in self.periods], dtype=z.dtype, device=z.device)


class Chart:
    """A geoopt manifold whose points are coordinates: stereographic, Euclidean, their products.

    Args:
        manifold: The manifold.

    Raises:
        OptionError: For manifolds whose points are vectors or matrices of a surrounding space: in
            these coordinates the pull-back metric would be singular.
    """

    def __init__(self, manifold: Any) -> None:
        if not _in_coordinates(manifold):
            raise OptionError(
                "Manifold",
                "a latent geoopt manifold in coordinates",
                repr(manifold),
                "Try PoincareBall or SphereProjection, in which m coordinates are m dimensions.",
            )
        self.manifold = manifold

    def __repr__(self) -> str:
        return repr(self.manifold)

    def metric(self, z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        """The manifold's metric tensor in its coordinates."""
        return metric_tensor(self.manifold, z)

    def between(self, z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:  # (k, m), (k, m), (k, 1)
        """Points on the manifold's own geodesics from z0 to z1; t may be outside of [0, 1]."""
        apart = (z0 != z1).any(-1, keepdim=True)
        # A logarithm of nothing has no gradient.
        other = torch.where(apart, z1, z1 / 2 + 0.1)
        velocity = self.manifold.logmap(z0, other)
        found = self.manifold.projx(self.manifold.expmap(z0, t * velocity)).to(z0)
        return torch.where(apart, found, z0)

    def candidates(self, z0: Tensor, z1: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """``z1``, by way of the manifold's own geodesic."""
        t = torch.linspace(0, 1, _SEGMENTS + 1).to(z0)[:, None]
        *batch, m = z0.shape
        start = z0[..., None, :].expand(*batch, len(t), m)
        velocity = self.manifold.logmap(z0, z1)[..., None, :]
        yield z1, self.manifold.expmap(start, t * velocity).to(z0)

    def check(self, decode: Decode, z: Tensor) -> None:  # (*b, m)
        """Refuse points that do not lie on the manifold.

        Raises:
            OptionError: With geoopt's reason.
        """
        finite = z.detach()[z.isfinite().all(-1)]
        if not len(finite):
            return
        ok, reason = self.manifold.check_point_on_manifold(finite, explain=True)
        if not ok:
            raise OptionError(
                "Manifold.geodesic",
                f"points of {self.manifold}",
                str(reason),
                "Try manifold.projx(z).",
            )


def as_latent(latent: LatentSpace | None) -> Periodic | Chart | None:
    """What ``Manifold(latent=)`` accepts, as an object.

    Raises:
        OptionError: For anything else.
    """
    if latent is None or isinstance(latent, (Periodic, Chart)):
        return latent
    if isinstance(latent, (tuple, list)):
        if not all(p is None or isinstance(p, (int, float)) for p in latent):
            hint = "Try latent=(2 * torch.pi, None)."
            raise OptionError("Manifold", "latent periods as numbers or None", repr(latent), hint)
        return Periodic(tuple(latent))
    if hasattr(latent, "expmap") and hasattr(latent, "logmap"):
        return Chart(latent)
    raise OptionError(
        "Manifold",
        "latent as a tuple of periods or a geoopt manifold",
        repr(latent),
        "Try latent=(2 * torch.pi, None).",
    )


def latent_geodesic(
    latent: Periodic | Chart,
    solve: Callable[..., GeodesicResult],
    decode: Decode,
    z0: Tensor,
    z1: Tensor,
    rtol: float,
    solver: Solver | None,
    throw: bool,
    progress: Callable[[int, int], object] | None,
    certify: bool = False,
) -> GeodesicResult:
    """Geodesics from every candidate of the latent space; per pair the shortest that converged.

    Args:
        latent: The latent space.
        solve: :func:`riemae.solvers.geodesic` in the decoder's space.
        decode: Data of points of some of the pairs.
        z0: As in ``Manifold.geodesic``, and so are all others.
        z1: End points.
        rtol: Accuracy.
        solver: Settings.
        throw: Raise when a pair fails.
        progress: Called with (pairs done, pairs in all).
        certify: Count the Morse index where the solver knows none.

    Raises:
        NotConvergedError: When ``throw`` and a pair fails.
    """
    try:
        z0, z1 = torch.broadcast_tensors(z0, z1)
    except RuntimeError:
        return solve(z0, z1, rtol=rtol)  # raises what it has to say
    for z in (z0, z1):
        latent.check(decode, z)
    solver = default_solver(z0.shape[-1]) if solver is None else solver
    best: GeodesicResult | None = None
    with torch.no_grad():
        for stop, init in latent.candidates(z0.detach(), z1.detach()):
            found = solve(
                z0,
                stop,
                rtol=rtol,
                solver=solver,
                init=init,
                throw=False,
                progress=progress,
                certify=certify,
            )
            if best is None:
                best = found
                continue
            alike = found.converged == best.converged
            better = (alike & (found.length < best.length)) | (found.converged & ~best.converged)
            best = GeodesicResult.where(better, found, best)
    assert best is not None
    return demand_convergence(best) if throw else best


class LatentMetric(PullbackMetric):
    """A pull-back metric on a latent space that knows where geodesics may start.

    Args:
        decoder: As in :class:`~riemae.geometry.pullback.PullbackMetric`.
        ambient: As there.
        chunk_size: As there.
        latent: The latent space.
    """

    def __init__(
        self,
        decoder: Decoder,
        ambient: AmbientMetric | None,
        chunk_size: int | None,
        latent: Periodic | Chart,
    ) -> None:
        super().__init__(decoder, ambient, chunk_size)
        self.latent = latent

    def __reduce__(self) -> tuple[Any, ...]:
        condition = None if self.condition is None else self.condition.detached()
        arguments = (self.decoder.arguments, self.given, self.chunk_size, self.latent)
        return _rebuilt, (condition, *arguments)

    def geodesic(
        self,
        z0: Tensor,
        z1: Tensor,
        *,
        rtol: float,
        solver: Solver | None,
        throw: bool,
        progress: Callable[[int, int], object] | None,
    ) -> GeodesicResult:
        """Geodesics from every candidate of the latent space: see :func:`latent_geodesic`.

        Matrices of distances ask for it; :func:`riemae.solvers.geodesic` does not.
        """

        def decoded(z: Tensor, rows: Tensor) -> Tensor:
            return telling(self, z)

        solve = partial(geodesic, self)
        return latent_geodesic(self.latent, solve, decoded, z0, z1, rtol, solver, throw, progress)


def _rebuilt(
    condition: Condition | None, decoder: tuple[Any, ...], *arguments: Any
) -> LatentMetric:
    return LatentMetric(Decoder(*decoder), *arguments).at(condition)


def _in_coordinates(manifold: Any) -> bool:
    import geoopt

    if isinstance(manifold, geoopt.Scaled):
        return _in_coordinates(manifold.base)
    if isinstance(manifold, geoopt.ProductManifold):
        return all(_in_coordinates(part) for part in manifold.manifolds)
    return isinstance(manifold, (geoopt.Stereographic, geoopt.Euclidean))
