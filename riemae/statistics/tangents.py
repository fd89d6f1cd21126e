"""Points as seen from one point: logarithms, orthonormal frames, and small steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riemae import solvers
from riemae.exceptions import DTypeError, OptionError
from riemae.numerics.checks import expect_range, expect_rtol
from riemae.solvers import Curve, GeodesicResult, Status
from riemae.solvers.certificate import sound_acceleration
from riemae.solvers.pairs import expect_point_sets
from riemae.solvers.space import HasSpace, Space, space_of
from riemae.statistics.joint import settled
from riemae.statistics.romberg import logarithms

Somewhere = Space | HasSpace
# The finest paths.
_FINEST = 1e-6
# Paths that sharp logarithms begin with, at best, and looks at them that are enough.
_PATH = 1e-4
_LOOKS = 40
# Statuses of geodesics and means that are known, if not as well as was asked for: their lengths are
# those of real curves, and their errors say the rest. Decoders with kinks end like this.
_KNOWN = (
    int(Status.CONVERGED),
    int(Status.MAX_STEPS),
    int(Status.RESOLUTION),
    int(Status.PRECISION),
    int(Status.STALLED),
    int(Status.BUDGET),
)
# Decodings that paths may take: for each pair five times what hard ones take, and for all together
# at least so many. Pairs across a singular metric, or of a very rough decoder, end with BUDGET.
_DECODINGS = 10_000
_AT_LEAST = 200_000
# What geodesics of a dtype come to, in roundings of 1.
_ROUNDINGS = 1e3


@dataclass(frozen=True)
class Logarithms:
    """Logarithms of points ``(n,)`` at one point.

    Attributes:
        vectors: ``(n, m)``, velocities that lead there at time 1.
        lengths: ``(n,)``, their norms: the distances.
        status: ``(n,)`` codes of the geodesics.
        curves: The geodesics, for the next ones to begin with.
    """

    vectors: Tensor
    lengths: Tensor
    status: Tensor
    curves: Curve

    @classmethod
    def of(
        cls,
        geometry: Somewhere,
        point: Tensor,
        points: Tensor,
        rtol: float,
        init: Curve | None = None,
        sharp: bool = False,
    ) -> Logarithms:
        """At a point ``(m,)``.

        Args:
            geometry: Where.
            point: The point.
            points: ``(n, m)``.
            rtol: Of the lengths; with ``sharp`` of the logarithms.
            init: Curves to begin with.
            sharp: Whether the velocities of the paths are not enough.
        """
        return cls.between(geometry, point.expand_as(points), points, rtol, init, sharp)

    @classmethod
    def between(
        cls,
        geometry: Somewhere,
        here: Tensor,
        points: Tensor,
        rtol: float,
        init: Curve | None = None,
        sharp: bool = False,
    ) -> Logarithms:
        """At a point ``(n, m)`` for each.

        Where coordinates are periodic, curves may end at other copies of the points.
        """
        space = space_of(geometry, points)
        path_rtol = max(rtol, _PATH) if sharp else max(rtol, _FINEST)
        found = paths(geometry, here, points, path_rtol, init)
        vectors = found.curve.velocity(0.0)
        if sharp:
            vectors = _sharpened(space, here, found, vectors, rtol)
            lengths = space.norm(here, vectors)
        else:
            lengths = found.length
            speed = space.norm(here, vectors)
            scale = torch.where(speed > 0, lengths / speed, 0.0)
            vectors = scale[:, None] * vectors
        return cls(vectors, lengths, found.status, found.curve)

    @property
    def failed(self) -> Tensor:
        """The numbers of the points whose geodesics did not converge."""
        return (self.status != Status.CONVERGED).nonzero().flatten()


def _sharpened(
    space: Space, here: Tensor, paths: GeodesicResult, vectors: Tensor, rtol: float
) -> Tensor:  # -> (n, m)
    """The velocities of paths, more accurate: extrapolated, or else shot for."""
    curves = paths.curve
    found = settled(space, curves, rtol, _LOOKS)
    exact = logarithms(space, here, found.slopes)
    known = (found.status == Status.CONVERGED) & exact.isfinite().all(-1)
    exact = torch.where(known[:, None], exact, vectors)
    # Where no path was found, there is nothing to shoot along.
    rows = (~known & paths.converged).nonzero().flatten()
    if len(rows):
        ends = curves[rows](1.0)
        shot = solvers.log(space, here[rows], ends, rtol=rtol, init=curves[rows], throw=False)
        sound = shot.isfinite().all(-1, keepdim=True)
        exact[rows] = torch.where(sound, shot, vectors[rows])
    return exact


def paths(
    geometry: Somewhere, z0: Tensor, z1: Tensor, rtol: float, init: Curve | None = None
) -> GeodesicResult:
    """Geodesics; the way around periodic coordinates is a manifold's own to choose.

    They take a limited number of decodings: pairs that take more end with BUDGET.
    """
    most = max(_AT_LEAST, _DECODINGS * len(z0))
    if getattr(geometry, "latent", None) is not None:
        own: Any = geometry
        found: GeodesicResult = own.geodesic(z0, z1, rtol=rtol, throw=False, max_decodings=most)
        return found
    return solvers.geodesic(geometry, z0, z1, rtol=rtol, init=init, throw=False, max_decodings=most)


def roughly_known(status: Tensor) -> Tensor:  # (k,) -> (k,) bool
    """Which codes are those of curves that were found, be it inaccurately."""
    return torch.isin(status, torch.tensor(_KNOWN, device=status.device))


def factor(geometry: Somewhere, z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
    """Upper triangular factors of the metric: ``|R v|`` is the length of a tangent v.

    NaN where the metric is not positive definite, as outside the domain.
    """
    known = getattr(geometry, "metric_factor", None)
    if known is not None:
        found: Tensor = known(z)
        return found
    metric = space_of(geometry, z).metric(z)
    known, problem = torch.linalg.cholesky_ex(metric)
    return torch.where((problem > 0)[:, None, None], torch.nan, known).mT


def frame(geometry: Somewhere, z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
    """Columns that are orthonormal in the metric."""
    upper = factor(geometry, z)
    eye = torch.eye(z.shape[-1]).to(z).expand_as(upper)
    return torch.linalg.solve_triangular(upper, eye, upper=True)


def stepped(space: Space, z: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
    """``exp(z, v)`` to second order in v; NaN where there is no metric."""
    return z + v + sound_acceleration(space, z, v) / 2


def expect_points(where: str, points: Tensor, least: int = 1) -> None:
    """A set of points ``(n, m)``.

    Raises:
        OptionError: When there are too few.
        ShapeError: When it has more or fewer than two axes.
        DTypeError: When it is not a tensor that solvers work with.
        NonFiniteError: When a point is NaN or infinite.
    """
    expect_point_sets(where, points=points)
    if len(points) < least:
        wanted = f"at least {least} point" + ("s" if least > 1 else "")
        raise OptionError(where, wanted, str(len(points)), "Give more of them.")


def normalised(
    where: str, weights: Tensor | None, points: Tensor, graph: bool = False
) -> Tensor:  # (n,)
    """Weights that sum to 1; equal ones by default; with ``graph`` as autograd sees them.

    Raises:
        DTypeError: When they are not a tensor.
        OptionError: When they are not n numbers of at least 0, with a positive sum.
    """
    n = len(points)
    if weights is None:
        return points.new_full((n,), 1 / n)
    if not isinstance(weights, Tensor):
        got = type(weights).__name__
        raise DTypeError(where, "weights as a tensor", got, "Try torch.tensor(weights).")
    if weights.is_complex():
        raise DTypeError(where, "real weights", str(weights.dtype), "Take their real part.")
    known = (weights if graph else weights.detach()).to(points)
    plain = known.detach()
    sound = plain.shape == (n,) and bool(plain.isfinite().all()) and bool((plain >= 0).all())
    if not sound or not float(plain.sum()) > 0:
        wanted = f"{n} weights of at least 0, not all of them 0"
        got = f"{tuple(weights.shape)}, sum {float(plain.sum()):.3g}"
        raise OptionError(where, wanted, got, "One for each point.")
    return known / known.sum()


def accuracy(where: str, rtol: float | None, points: Tensor) -> float:
    """A relative accuracy; by default 1e-6, and 1e-3 in float32.

    Raises:
        OptionError: When it is not positive.
    """
    if rtol is None:
        return 1e-6 if points.dtype == torch.float64 else 1e-3
    return expect_rtol(where, rtol)


def attainable(rtol: float, like: Tensor) -> float:
    """A relative accuracy of geodesics, no finer than the points' dtype allows."""
    return max(rtol, _ROUNDINGS * torch.finfo(like.dtype).eps)


def expect_steps(where: str, name: str, value: int) -> None:
    """A number of steps.

    Raises:
        OptionError: For less than 1.
    """
    expect_range(where, name, value, 1, integer=True, hint="It counts steps.")
