"""Curves: batched cubic splines over [0, 1], and integrals along them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError, OptionError, ShapeError
from riemae.numerics.batch_invariance import apply_matrix
from riemae.numerics.checks import expect_range
from riemae.numerics.precision import in_full_precision
from riemae.numerics.tolerances import tolerance
from riemae.solvers.space import HasSpace, Space, space_of

# Three Gauss-Legendre points per segment integrate the speed to O(h⁶), exactly for the spline's own
# quartic wiggles.
_QUADRATURE_POINTS = 3
# Where points are embedded, five Gauss-Lobatto points per segment, the last of them the next
# segment's first, give its image up to O(h⁸), and four Gauss-Legendre points integrate the speed of
# that.
_SAMPLES = 5
_SAMPLED_POINTS = 4


@dataclass(frozen=True, eq=False)  # tensors have no truth value: identity compares
class Curve:
    """A batch of piecewise cubic curves ``z(t)``, ``t`` in [0, 1], with equally spaced knots.

    Attributes:
        nodes: Values at the knots, ``(*b, n + 1, m)``.
        slopes: Derivatives ``dz/dt`` at the knots, ``(*b, n + 1, m)``.
    """

    nodes: Tensor
    slopes: Tensor

    @classmethod
    def from_nodes(cls, nodes: Tensor) -> Curve:
        """The C² not-a-knot spline through ``nodes`` ``(*b, n + 1, m)``.

        Fourth-order accurate up to the ends.

        Raises:
            ShapeError: With fewer than two nodes.
        """
        check_nodes("Curve.from_nodes", nodes)
        matrix = torch.as_tensor(_slope_matrix(nodes.shape[-2])).to(nodes)
        return cls(nodes, apply_matrix(matrix, nodes))

    @classmethod
    def line(cls, z0: Tensor, z1: Tensor, segments: int = 1) -> Curve:
        """The straight line from ``z0`` to ``z1``, both ``(*b, m)``, at constant latent speed."""
        _check_segments("Curve.line", segments)
        tolerance(z0.dtype)
        t = torch.linspace(0, 1, segments + 1, dtype=z0.dtype, device=z0.device)[:, None]
        # Written so that both end points are met exactly.
        nodes = (1 - t) * z0[..., None, :] + t * z1[..., None, :]
        return cls(nodes, (z1 - z0)[..., None, :].expand(nodes.shape))

    @classmethod
    def through(cls, points: Tensor, segments: int, times: Tensor | None = None) -> Curve:
        """The spline through equally timed points of a polyline.

        Args:
            points: Corners ``(*b, k, m)``, k of at least 2.
            segments: Pieces of the curve.
            times: When each corner is passed, ``(*b, k)``, increasing in any unit; by default
                latent arc length.

        Raises:
            ShapeError: With fewer than two corners.
        """
        check_nodes("Curve.through", points)
        _check_segments("Curve.through", segments)
        if times is None:
            times = torch.nn.functional.pad(points.diff(dim=-2).norm(dim=-1).cumsum(-1), (1, 0))
        if times.shape != points.shape[:-1]:
            raise ShapeError(
                "Curve.through",
                f"times of shape {tuple(points.shape[:-1])}",
                str(tuple(times.shape)),
                "Give one time per corner.",
            )
        times = times.to(points)
        tiny = torch.finfo(points.dtype).tiny
        times = (times / times[..., -1:].clamp(min=tiny)).contiguous()
        wanted = torch.linspace(0, 1, segments + 1, dtype=points.dtype, device=points.device)
        wanted = wanted.expand(*points.shape[:-2], -1).contiguous()
        # The corners before and after every wanted time, and how far it is between them.
        right = torch.searchsorted(times, wanted).clamp(1, points.shape[-2] - 1)
        start = times.gather(-1, right - 1)
        stop = times.gather(-1, right)
        share = ((wanted - start) / (stop - start).clamp(min=tiny)).clamp(0, 1)[..., None]
        before = _corners(points, right - 1)
        after = _corners(points, right)
        return cls.from_nodes((1 - share) * before + share * after)

    @property
    def segments(self) -> int:
        """Number of cubic pieces."""
        return self.nodes.shape[-2] - 1

    @property
    def batch_shape(self) -> torch.Size:
        """Leading axes."""
        return self.nodes.shape[:-2]

    @property
    def times(self) -> Tensor:
        """The knots, ``(n + 1,)``."""
        return torch.linspace(
            0, 1, self.segments + 1, dtype=self.nodes.dtype, device=self.nodes.device
        )

    def __call__(self, t: Tensor | float) -> Tensor:  # () -> (*b, m); (k,) -> (*b, k, m)
        """Points at time ``t``."""
        return self._evaluate(t, 0)

    def velocity(self, t: Tensor | float) -> Tensor:  # () -> (*b, m); (k,) -> (*b, k, m)
        """First derivatives at time ``t``."""
        return self._evaluate(t, 1)

    def acceleration(self, t: Tensor | float) -> Tensor:  # () -> (*b, m); (k,) -> (*b, k, m)
        """Second derivatives at time ``t``."""
        return self._evaluate(t, 2)

    def resample(self, segments: int) -> Curve:
        """The same curve on ``segments`` pieces.

        It is exact where they divide the present ones, and interpolated elsewhere.
        """
        _check_segments("Curve.resample", segments)
        if segments == self.segments:
            return self
        nodes = self.knots(segments)
        if segments % self.segments == 0:
            return Curve(nodes, _subdivided(self, _shares(segments // self.segments), 1))
        return Curve.from_nodes(nodes)

    def knots(self, segments: int) -> Tensor:  # -> (*b, segments + 1, m)
        """Points at equally spaced times, the end points among them.

        Raises:
            OptionError: For less than one segment.
        """
        _check_segments("Curve.knots", segments)
        if self.segments % segments == 0:
            return self.nodes[..., :: self.segments // segments, :]
        if segments % self.segments == 0:
            return _subdivided(self, _shares(segments // self.segments), 0)
        return self(
            torch.linspace(0, 1, segments + 1, dtype=self.nodes.dtype, device=self.nodes.device)
        )

    def __getitem__(self, index: object) -> Curve:
        """Curves of the batch, indexed along its leading axes."""
        index = index if isinstance(index, tuple) else (index,)
        rest = () if any(i is Ellipsis for i in index) else (Ellipsis,)
        # Knots and coordinates are not axes of the batch.
        full = (*index, *rest, slice(None), slice(None))
        return Curve(self.nodes[full], self.slopes[full])

    def __repr__(self) -> str:
        return (
            f"Curve({tuple(self.batch_shape)} curves of {self.segments} segments in "
            f"{self.nodes.shape[-1]} dimensions, {self.nodes.dtype}, {self.nodes.device})"
        )

    def _evaluate(self, t: Tensor | float, order: int) -> Tensor:
        t = torch.as_tensor(t, dtype=self.nodes.dtype, device=self.nodes.device)
        if t.ndim > 1:
            raise ShapeError(
                "Curve", "t of shape () or (k,)", str(tuple(t.shape)), "Evaluate one axis of times."
            )
        if t.numel() and not (t.min() >= 0 and t.max() <= 1):
            raise OptionError(
                "Curve",
                "times in [0, 1]",
                f"[{t.min():.3g}, {t.max():.3g}]",
                "A curve ends at its end points.",
            )
        n = self.segments
        times = t.reshape(-1) * n
        i = times.floor().long().clamp(max=n - 1)
        basis = torch.stack(hermite(times - i, order, n))[..., None]
        nodes, slopes = self.nodes, self.slopes
        z = _combined(
            basis,
            order,
            nodes[..., i, :],
            slopes[..., i, :],
            nodes[..., i + 1, :],
            slopes[..., i + 1, :],
        )
        return z if t.ndim else z[..., 0, :]


def _corners(points: Tensor, i: Tensor) -> Tensor:  # (*b, k, m), (*b, n) -> (*b, n, m)
    return points.gather(-2, i[..., None].expand(*i.shape, points.shape[-1]))


@in_full_precision
def length(space: Space | HasSpace, curve: Curve | Tensor) -> Tensor:  # -> (*b,)
    """Riemannian length ``∫ |ż| dt`` by Gauss-Legendre quadrature.

    Args:
        space: Anything with a ``norm``.
        curve: A :class:`Curve`, or points ``(*b, n, m)`` joined by straight latent lines.
    """
    space = space_of(
        space, curve.nodes if isinstance(curve, Curve) else curve, where="length", finite=True
    )
    speed, weights = speeds(space, curve)
    return (speed * weights).sum(-1)


def speeds(space: Space, curve: Curve | Tensor) -> tuple[Tensor, Tensor]:  # -> (*b, q), (q,)
    """Speeds ``|ż|`` at the quadrature points of a curve, and the weights of these points.

    The weights sum to 1.
    """
    z, v, weights = _quadrature(curve)
    return _norm(space, z, v), weights


@in_full_precision
def energy(space: Space | HasSpace, curve: Curve | Tensor) -> Tensor:  # -> (*b,)
    """Energy ``∫ |ż|² dt`` over ``t`` in [0, 1]; at least the squared length.

    Args:
        space: Anything with a ``norm``.
        curve: A :class:`Curve`, or points ``(*b, n, m)`` joined by straight latent lines in equal
            times.
    """
    space = space_of(
        space, curve.nodes if isinstance(curve, Curve) else curve, where="energy", finite=True
    )
    speed, weights = speeds(space, curve)
    return (speed.square() * weights).sum(-1)


def equalized(curve: Curve, speed: Tensor, weights: Tensor, segments: int) -> Curve:
    """The same path at nearly constant speed.

    Args:
        curve: A batch ``(p,)`` of curves.
        speed: ``(p, q)``, from :func:`speeds`.
        weights: ``(q,)``, from :func:`speeds`.
        segments: Pieces of the new curve.
    """
    corners = torch.nn.functional.pad(weights.cumsum(0), (1, 0)).clamp(max=1.0)
    arc = torch.nn.functional.pad((speed * weights).cumsum(-1), (1, 0))
    return Curve.through(curve(corners), segments, arc)


def _norm(space: Space, z: Tensor, v: Tensor) -> Tensor:
    return space.norm(z.flatten(0, -2), v.flatten(0, -2)).view(z.shape[:-1])


def _quadrature(curve: Curve | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points and velocities ``(*b, n q, m)`` along the curve, and weights ``(n q,)``.

    Raises:
        DTypeError: For anything but a curve or a tensor.
    """
    if isinstance(curve, Curve):
        nodes = curve.nodes
    elif isinstance(curve, Tensor):
        nodes = curve
        check_nodes("length", nodes)
    else:
        hint = "Try a curve of M.geodesic(...).curve, or points as a tensor."
        raise DTypeError("length", "a Curve or a tensor (*b, n, m)", type(curve).__name__, hint)
    n = nodes.shape[-2] - 1
    u = tuple(((_gauss_legendre(_QUADRATURE_POINTS)[0] + 1) / 2).tolist())
    w = quadrature_weights(n, _QUADRATURE_POINTS, nodes)
    if isinstance(curve, Curve):
        z, v = _pieces(curve, u, 0), _pieces(curve, u, 1)
    else:
        left, right = nodes[..., :-1, None, :], nodes[..., 1:, None, :]
        step = right - left
        shares = torch.tensor(u, dtype=torch.float64)[:, None].to(nodes)
        z = (left + shares * step).flatten(-3, -2)
        v = (n * step).expand(*nodes.shape[:-2], n, len(u), nodes.shape[-1]).flatten(-3, -2)
    return z, v, w


def quadrature_weights(n: int, points: int, like: Tensor) -> Tensor:  # -> (n points,)
    """Of ``points`` Gauss-Legendre points on each of ``n`` pieces.

    They sum to 1. Not to be written to.
    """
    return _quadrature_weights(n, points, like.dtype, like.device)


@lru_cache(maxsize=64)
def _quadrature_weights(n: int, points: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept must do for later calls outside of it
        return torch.as_tensor(np.tile(_gauss_legendre(points)[1] / (2 * n), n)).to(device, dtype)


def sampled_points(curve: Curve) -> Tensor:  # -> (*b, s n + 1, m)
    """Points at the Gauss-Lobatto times of every segment."""
    return _subdivided(curve, _lobatto()[0][:-1], 0)


def _subdivided(curve: Curve, u: tuple[float, ...], order: int) -> Tensor:  # -> (*b, n k + 1, m)
    """Points of every piece at times that begin with 0, and the last point.

    Or their first derivatives.
    """
    last = (curve.nodes, curve.slopes)[order][..., -1:, :]
    return torch.cat([_pieces(curve, u, order), last], -2)


def _pieces(curve: Curve, u: tuple[float, ...], order: int) -> Tensor:  # -> (*b, n k, m)
    """Points of every piece, or their derivatives in t.

    They are taken at the k times ``u`` in [0, 1] of each piece.
    """
    basis = torch.as_tensor(_piece_basis(u, order, curve.segments)).to(curve.nodes)
    (left, right), (slope_left, slope_right) = (
        (x[..., :-1, None, :], x[..., 1:, None, :]) for x in (curve.nodes, curve.slopes)
    )
    return _combined(basis, order, left, slope_left, right, slope_right).flatten(-3, -2)


def _combined(
    basis: Tensor, order: int, left: Tensor, slope_left: Tensor, right: Tensor, slope_right: Tensor
) -> Tensor:
    # So that a curve ends where it should, and has no speed at all where it rests.
    z = basis[2] * (right - left) if order else torch.addcmul(basis[0] * left, basis[2], right)
    return torch.addcmul(torch.addcmul(z, basis[1], slope_left), basis[3], slope_right)


def _shares(count: int) -> tuple[float, ...]:
    return tuple(i / count for i in range(count))


def nodes_of_samples(x: Tensor) -> Tensor:  # (p, s n + 1, D) -> (p, n + 1, D)
    """The images of the nodes among those of :func:`sampled_points`."""
    return x[:, :: _SAMPLES - 1]


def speeds_of_chords(chords: Tensor) -> Tensor:  # (p, s n, D) -> (p, n q)
    """Speeds at the quadrature points, from differences of the images of :func:`sampled_points`.

    The image of a segment is interpolated through its points: two thirds of the cost of tangents,
    and closer. In float32 such differences drown in rounding, which tangents do not.
    """
    parts = chords.unflatten(1, (-1, _SAMPLES - 1)).unbind(2)
    velocities = chords.new_empty(_SAMPLED_POINTS, *parts[0].shape)
    for velocity, row in zip(velocities, _lobatto()[1], strict=True):
        # One kernel after the other, not a matrix product: every curve must have the same bits as
        # alone.
        torch.mul(parts[0], row[0], out=velocity)
        for chord, weight in zip(parts[1:], row[1:], strict=True):
            velocity.add_(chord, alpha=weight)
    return parts[0].shape[1] * velocities.square().sum(-1).sqrt().movedim(0, -1).flatten(1)


@lru_cache(maxsize=1)
def _lobatto() -> tuple[tuple[float, ...], list[list[float]]]:
    """Gauss-Lobatto times in [0, 1], and a matrix.

    It maps the chords between them to velocities at Gauss points.
    """
    inner = np.polynomial.legendre.Legendre.basis(_SAMPLES - 1).deriv().roots()
    t = (np.concatenate([[-1.0], np.sort(inner.real), [1.0]]) + 1) / 2
    at = (_gauss_legendre(_SAMPLED_POINTS)[0] + 1) / 2
    powers = np.arange(1, _SAMPLES)
    velocities = powers * at[:, None] ** (powers - 1)  # of t, t², …, whose chords are next
    matrix = np.linalg.solve(np.diff(t[:, None] ** powers, axis=0).T, velocities.T).T
    return tuple(t.tolist()), matrix.tolist()


@lru_cache(maxsize=256)
def _piece_basis(u: tuple[float, ...], order: int, n: int) -> np.ndarray:  # (k,) -> (4, k, 1)
    """The Hermite basis at times of a piece."""
    basis = hermite(torch.tensor(u, dtype=torch.float64), order, n)
    return torch.stack(basis)[..., None].numpy()


def hermite(u: Tensor, order: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cubic Hermite basis on a piece of duration 1/n, differentiated ``order`` times in t."""
    if order == 0:
        return (
            (1 + 2 * u) * (1 - u) ** 2,
            u * (1 - u) ** 2 / n,
            u * u * (3 - 2 * u),
            u * u * (u - 1) / n,
        )
    if order == 1:
        bump = 6 * u * (1 - u) * n
        return -bump, (1 - u) * (1 - 3 * u), bump, u * (3 * u - 2)
    ramp = (12 * u - 6) * n * n
    return ramp, (6 * u - 4) * n, -ramp, (6 * u - 2) * n


_gauss_legendre = lru_cache(np.polynomial.legendre.leggauss)


@lru_cache(maxsize=64)
def _slope_matrix(count: int) -> np.ndarray:
    """Maps node values to the slopes of their not-a-knot spline, for :func:`apply_matrix`.

    An array ``(count, count + r)``: a tensor would keep its mode.
    """
    # A third of a second to import: not before it is needed.
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(np.linspace(0, 1, count), np.eye(count), bc_type="not-a-knot")
    return np.pad(spline(np.linspace(0, 1, count), 1), ((0, 0), (0, -count % 16)))


def check_nodes(where: str, nodes: Tensor) -> None:
    """Whether nodes make a curve.

    Raises:
        ShapeError: With fewer than two nodes.
    """
    if nodes.ndim < 2 or nodes.shape[-2] < 2:
        raise ShapeError(
            where,
            "a curve of shape (*b, n, m) with n of at least 2",
            str(tuple(nodes.shape)),
            "Give both end points.",
        )
    tolerance(nodes.dtype)


def _check_segments(where: str, segments: int) -> None:
    expect_range(where, "segments", segments, 1, integer=True)
