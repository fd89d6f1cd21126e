"""Curves: batched cubic splines over [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import OptionError, ShapeError
from riemae.numerics.batch_invariance import apply_constant
from riemae.numerics.checks import expect_range
from riemae.numerics.constants import constant
from riemae.numerics.tolerances import tolerance


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
        return cls(nodes, apply_constant(_slope_matrix, (nodes.shape[-2],), nodes))

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
        slopes = subdivided(self, _shares(parts), 1)
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
            return subdivided(self, _shares(parts), 0)
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

    def exchanged(self, rows: Tensor, other: Curve) -> Curve:
        """A batch ``(p,)`` of curves with others, on as many segments, at ``rows``."""
        return Curve(
            self.nodes.index_copy(0, rows, other.nodes),
            self.slopes.index_copy(0, rows, other.slopes),
        )

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
        if t.numel() and not bool(((t >= 0) & (t <= 1)).all()):
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


def subdivided(curve: Curve, u: tuple[float, ...], order: int) -> Tensor:  # -> (*b, n k + 1, m)
    """Points of every piece at times that begin with 0, and the last point.

    Or their first derivatives.
    """
    known = (curve.nodes, curve.slopes)[order]
    last = known[..., -1:, :]
    every = pieces(curve, u, order)
    return torch.cat([every, last], -2)


def pieces(curve: Curve, u: tuple[float, ...], order: int) -> Tensor:  # -> (*b, n k, m)
    """Points of every piece, or their derivatives in t.

    They are taken at the k times ``u`` in [0, 1] of each piece.
    """
    nodes = curve.nodes
    slopes = curve.slopes
    basis = constant(_piece_basis, (u, order, curve.segments), nodes)
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


def _slope_matrix(count: int) -> np.ndarray:
    """Maps node values to the slopes of their not-a-knot spline: ``(count, count)``."""
    # A third of a second to import: not before it is needed.
    from scipy.interpolate import CubicSpline

    knots = np.linspace(0, 1, count)
    spline = CubicSpline(knots, np.eye(count), bc_type="not-a-knot")
    slopes: np.ndarray = spline(knots, 1)
    return slopes


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
