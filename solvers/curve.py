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
        t = _knot_times(segments, z0)[:, None]
        # Written so that both end points are met exactly.
        start = (1 - t) * z0[..., None, :]
        stop = t * z1[..., None, :]
        nodes = start + stop
        slope = (z1 - z0)[..., None, :]
        return cls(nodes, slope.expand(nodes.shape))

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
            arc = points.diff(dim=-2).norm(dim=-1).cumsum(-1)
            times = torch.nn.functional.pad(arc, (1, 0))
        if times.shape != points.shape[:-1]:
            raise ShapeError(
                "Curve.through",
                f"times of shape {tuple(points.shape[:-1])}",
                str(tuple(times.shape)),
                "Give one time per corner.",
            )
        times = times.to(points)
        tiny = torch.finfo(points.dtype).tiny
        total = times[..., -1:].clamp(min=tiny)
        times = (times / total).contiguous()
        wanted = _knot_times(segments, points)
        wanted = wanted.expand(*points.shape[:-2], -1).contiguous()
        # The corners before and after every wanted time, and how far it is between them.
        last = points.shape[-2] - 1
        right = torch.searchsorted(times, wanted).clamp(1, last)
        left = right - 1
        start = times.gather(-1, left)
        stop = times.gather(-1, right)
        duration = (stop - start).clamp(min=tiny)
        share = ((wanted - start) / duration).clamp(0, 1)[..., None]
        before = (1 - share) * _corners(points, left)
        after = share * _corners(points, right)
        return cls.from_nodes(before + after)

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
        return _knot_times(self.segments, self.nodes)

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
        parts, rest = divmod(segments, self.segments)
        if rest:
            return Curve.from_nodes(nodes)
        slopes = _subdivided(self, _shares(parts), 1)
        return Curve(nodes, slopes)

    def knots(self, segments: int) -> Tensor:  # -> (*b, segments + 1, m)
        """Points at equally spaced times, the end points among them.

        Raises:
            OptionError: For less than one segment.
        """
        _check_segments("Curve.knots", segments)
        stride, rest = divmod(self.segments, segments)
        if not rest:
            return self.nodes[..., ::stride, :]
        parts, rest = divmod(segments, self.segments)
        if not rest:
            return _subdivided(self, _shares(parts), 0)
        return self(_knot_times(segments, self.nodes))

    def __getitem__(self, index: object) -> Curve:
        """Curves of the batch, indexed along its leading axes."""
        if not isinstance(index, tuple):
            index = (index,)
        if not any(i is Ellipsis for i in index):
            index = (*index, Ellipsis)
        # Knots and coordinates are not axes of the batch.
        full = (*index, slice(None), slice(None))
        return Curve(self.nodes[full], self.slopes[full])

    def __repr__(self) -> str:
        batch = tuple(self.batch_shape)
        m = self.nodes.shape[-1]
        place = f"{self.nodes.dtype}, {self.nodes.device}"
        return f"Curve({batch} curves of {self.segments} segments in {m} dimensions, {place})"

    def _evaluate(self, t: Tensor | float, order: int) -> Tensor:
        nodes = self.nodes
        slopes = self.slopes
        t = torch.as_tensor(t, dtype=nodes.dtype, device=nodes.device)
        if t.ndim > 1:
            raise ShapeError(
                "Curve",
                "t of shape () or (k,)",
                str(tuple(t.shape)),
                "Evaluate one axis of times.",
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
        share = times - i
        basis = torch.stack(hermite(share, order, n))[..., None]
        z = _combined(
            basis=basis,
            order=order,
            left=nodes[..., i, :],
            slope_left=slopes[..., i, :],
            right=nodes[..., i + 1, :],
            slope_right=slopes[..., i + 1, :],
        )
        if t.ndim:
            return z
        return z[..., 0, :]


def _knot_times(segments: int, like: Tensor) -> Tensor:  # -> (segments + 1,)
    """Equally spaced times from 0 to 1."""
    return torch.linspace(0, 1, segments + 1, dtype=like.dtype, device=like.device)


def _corners(points: Tensor, i: Tensor) -> Tensor:  # (*b, k, m), (*b, n) -> (*b, n, m)
    m = points.shape[-1]
    index = i[..., None].expand(*i.shape, m)
    return points.gather(-2, index)


def nodes_of(curve: Curve | Tensor) -> Tensor:
    """The nodes of a curve; points as they are."""
    if isinstance(curve, Curve):
        return curve.nodes
    return curve


@in_full_precision
def length(space: Space | HasSpace, curve: Curve | Tensor) -> Tensor:  # -> (*b,)
    """Riemannian length ``∫ |ż| dt`` by Gauss-Legendre quadrature.

    Args:
        space: Anything with a ``norm``.
        curve: A :class:`Curve`, or points ``(*b, n, m)`` joined by straight latent lines.
    """
    space = space_of(space, nodes_of(curve), where="length", finite=True)
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
    space = space_of(space, nodes_of(curve), where="energy", finite=True)
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
    ends = weights.cumsum(0)
    corners = torch.nn.functional.pad(ends, (1, 0)).clamp(max=1.0)
    travelled = (speed * weights).cumsum(-1)
    arc = torch.nn.functional.pad(travelled, (1, 0))
    return Curve.through(curve(corners), segments, arc)


def _norm(space: Space, z: Tensor, v: Tensor) -> Tensor:
    flat_z = z.flatten(0, -2)
    flat_v = v.flatten(0, -2)
    return space.norm(flat_z, flat_v).view(z.shape[:-1])


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
    knots, _ = _gauss_legendre(_QUADRATURE_POINTS)
    u = tuple(((knots + 1) / 2).tolist())
    w = quadrature_weights(n, _QUADRATURE_POINTS, nodes)
    if isinstance(curve, Curve):
        z = _pieces(curve, u, 0)
        v = _pieces(curve, u, 1)
    else:
        left = nodes[..., :-1, None, :]
        right = nodes[..., 1:, None, :]
        step = right - left
        shares = torch.tensor(u, dtype=torch.float64)[:, None].to(nodes)
        points = left + shares * step
        velocities = (n * step).expand(points.shape)
        z = points.flatten(-3, -2)
        v = velocities.flatten(-3, -2)
    return z, v, w


def quadrature_weights(n: int, points: int, like: Tensor) -> Tensor:  # -> (n points,)
    """Of ``points`` Gauss-Legendre points on each of ``n`` pieces.

    They sum to 1. Not to be written to.
    """
    return _quadrature_weights(n, points, like.dtype, like.device)


@lru_cache(maxsize=64)
def _quadrature_weights(n: int, points: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    _, weights = _gauss_legendre(points)
    every = np.tile(weights / (2 * n), n)
    with torch.inference_mode(False):  # what is kept must do for later calls outside of it
        return torch.as_tensor(every).to(device, dtype)


def sampled_points(curve: Curve) -> Tensor:  # -> (*b, s n + 1, m)
    """Points at the Gauss-Lobatto times of every segment."""
    times, _ = _lobatto()
    return _subdivided(curve, times[:-1], 0)


def _subdivided(curve: Curve, u: tuple[float, ...], order: int) -> Tensor:  # -> (*b, n k + 1, m)
    """Points of every piece at times that begin with 0, and the last point.

    Or their first derivatives.
    """
    known = (curve.nodes, curve.slopes)[order]
    last = known[..., -1:, :]
    pieces = _pieces(curve, u, order)
    return torch.cat([pieces, last], -2)


def _pieces(curve: Curve, u: tuple[float, ...], order: int) -> Tensor:  # -> (*b, n k, m)
    """Points of every piece, or their derivatives in t.

    They are taken at the k times ``u`` in [0, 1] of each piece.
    """
    nodes = curve.nodes
    slopes = curve.slopes
    basis = torch.as_tensor(_piece_basis(u, order, curve.segments)).to(nodes)
    left = nodes[..., :-1, None, :]
    right = nodes[..., 1:, None, :]
    slope_left = slopes[..., :-1, None, :]
    slope_right = slopes[..., 1:, None, :]
    z = _combined(
        basis=basis,
        order=order,
        left=left,
        slope_left=slope_left,
        right=right,
        slope_right=slope_right,
    )
    return z.flatten(-3, -2)


def _combined(
    basis: Tensor, order: int, left: Tensor, slope_left: Tensor, right: Tensor, slope_right: Tensor
) -> Tensor:
    # So that a curve ends where it should, and has no speed at all where it rests.
    if order:
        z = basis[2] * (right - left)
    else:
        z = torch.addcmul(basis[0] * left, basis[2], right)
    z = torch.addcmul(z, basis[1], slope_left)
    return torch.addcmul(z, basis[3], slope_right)


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
    first, *others = chords.unflatten(1, (-1, _SAMPLES - 1)).unbind(2)
    velocities = chords.new_empty(_SAMPLED_POINTS, *first.shape)
    _, matrix = _lobatto()
    for velocity, row in zip(velocities, matrix, strict=True):
        # One kernel after the other, not a matrix product: every curve must have the same bits as
        # alone.
        torch.mul(first, row[0], out=velocity)
        for chord, weight in zip(others, row[1:], strict=True):
            velocity.add_(chord, alpha=weight)
    segments = first.shape[1]
    sizes = velocities.square().sum(-1).sqrt()
    return segments * sizes.movedim(0, -1).flatten(1)


@lru_cache(maxsize=1)
def _lobatto() -> tuple[tuple[float, ...], list[list[float]]]:
    """Gauss-Lobatto times in [0, 1], and a matrix.

    It maps the chords between them to velocities at Gauss points.
    """
    polynomial = np.polynomial.legendre.Legendre.basis(_SAMPLES - 1)
    inner = np.sort(polynomial.deriv().roots().real)
    t = (np.concatenate([[-1.0], inner, [1.0]]) + 1) / 2
    knots, _ = _gauss_legendre(_SAMPLED_POINTS)
    at = (knots + 1) / 2
    powers = np.arange(1, _SAMPLES)
    velocities = powers * at[:, None] ** (powers - 1)  # of t, t², …, whose chords are next
    chords = np.diff(t[:, None] ** powers, axis=0)
    matrix = np.linalg.solve(chords.T, velocities.T).T
    return tuple(t.tolist()), matrix.tolist()


@lru_cache(maxsize=256)
def _piece_basis(u: tuple[float, ...], order: int, n: int) -> np.ndarray:  # (k,) -> (4, k, 1)
    """The Hermite basis at times of a piece."""
    basis = hermite(torch.tensor(u, dtype=torch.float64), order, n)
    return torch.stack(basis)[..., None].numpy()


def hermite(u: Tensor, order: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cubic Hermite basis on a piece of duration 1/n, differentiated ``order`` times in t."""
    if order == 0:
        left = (1 + 2 * u) * (1 - u) ** 2
        slope_left = u * (1 - u) ** 2 / n
        right = u * u * (3 - 2 * u)
        slope_right = u * u * (u - 1) / n
    elif order == 1:
        right = 6 * u * (1 - u) * n
        left = -right
        slope_left = (1 - u) * (1 - 3 * u)
        slope_right = u * (3 * u - 2)
    else:
        left = (12 * u - 6) * n * n
        right = -left
        slope_left = (6 * u - 4) * n
        slope_right = (6 * u - 2) * n
    return left, slope_left, right, slope_right


_gauss_legendre = lru_cache(np.polynomial.legendre.leggauss)


@lru_cache(maxsize=64)
def _slope_matrix(count: int) -> np.ndarray:
    """Maps node values to the slopes of their not-a-knot spline, for :func:`apply_matrix`.

    An array ``(count, count + r)``: a tensor would keep its mode.
    """
    # A third of a second to import: not before it is needed.
    from scipy.interpolate import CubicSpline

    knots = np.linspace(0, 1, count)
    spline = CubicSpline(knots, np.eye(count), bc_type="not-a-knot")
    slopes = spline(knots, 1)
    spare = -count % 16
    return np.pad(slopes, ((0, 0), (0, spare)))


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
