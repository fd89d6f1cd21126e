"""Speeds along curves, and what they add up to: length and energy by quadrature."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError
from riemae.numerics.constants import constant
from riemae.numerics.precision import in_full_precision
from riemae.solvers.curve import Curve, check_nodes, nodes_of, pieces, subdivided
from riemae.solvers.polynomials import lobatto
from riemae.solvers.space import HasSpace, Space, space_of

# Three Gauss-Legendre points per segment integrate the speed to O(h⁶), exactly for the spline's own
# quartic wiggles.
_QUADRATURE_POINTS = 3
# Where points are embedded, five Gauss-Lobatto points per segment, the last of them the next
# segment's first, give its image up to O(h⁸), and four Gauss-Legendre points integrate the speed of
# that.
_SAMPLES = 5
_SAMPLED_POINTS = 4

_gauss_legendre = lru_cache(np.polynomial.legendre.leggauss)


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


def speeds_and_size(
    space: Space, curve: Curve
) -> tuple[Tensor, Tensor, Tensor]:  # -> (p, q), (q,), (p,)
    """As :func:`speeds`, and the length of the first nodes as vectors, in the same call."""
    z, v, weights = _quadrature(curve)
    first = curve.nodes[:, :1]
    lengths = _norm(space, torch.cat([z, first], 1), torch.cat([v, first], 1))
    return lengths[:, :-1], weights, lengths[:, -1]


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
    times = torch.nn.functional.pad(ends, (1, 0))
    corners = times.clamp(max=1.0)
    pieces_of_length = speed * weights
    travelled = pieces_of_length.cumsum(-1)
    arc = torch.nn.functional.pad(travelled, (1, 0))
    points = curve(corners)
    return Curve.through(points, segments, arc)


def _norm(space: Space, z: Tensor, v: Tensor) -> Tensor:
    flat_z = z.flatten(0, -2)
    flat_v = v.flatten(0, -2)
    lengths = space.norm(flat_z, flat_v)
    return lengths.view(z.shape[:-1])


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
    in_unit = (knots + 1) / 2
    u = tuple(in_unit.tolist())
    w = quadrature_weights(n, _QUADRATURE_POINTS, nodes)
    if isinstance(curve, Curve):
        z = pieces(curve, u, 0)
        v = pieces(curve, u, 1)
    else:
        left = nodes[..., :-1, None, :]
        right = nodes[..., 1:, None, :]
        step = right - left
        column = torch.tensor(u, dtype=torch.float64)[:, None]
        shares = column.to(nodes)
        points = left + shares * step
        velocities = (n * step).expand(points.shape)
        z = points.flatten(-3, -2)
        v = velocities.flatten(-3, -2)
    return z, v, w


def quadrature_weights(n: int, points: int, like: Tensor) -> Tensor:  # -> (n points,)
    """Of ``points`` Gauss-Legendre points on each of ``n`` pieces.

    They sum to 1. Not to be written to.
    """
    return constant(_quadrature_weights, (n, points), like)


def _quadrature_weights(n: int, points: int) -> np.ndarray:  # -> (n points,)
    _, weights = _gauss_legendre(points)
    return np.tile(weights / (2 * n), n)


def sampled_points(curve: Curve) -> Tensor:  # -> (*b, s n + 1, m)
    """Points at the Gauss-Lobatto times of every segment."""
    return subdivided(curve, _lobatto_times()[:-1], 0)


def nodes_of_samples(x: Tensor) -> Tensor:  # (p, s n + 1, D) -> (p, n + 1, D)
    """The images of the nodes among those of :func:`sampled_points`."""
    return x[:, :: _SAMPLES - 1]


def speeds_of_chords(chords: Tensor) -> Tensor:  # (p, s n, D) -> (p, n q)
    """Speeds at the quadrature points, from differences of the images of :func:`sampled_points`.

    The image of a segment is interpolated through its points: two thirds of the cost of tangents,
    and closer. In float32 such differences drown in rounding, which tangents do not.
    """
    by_segment = chords.unflatten(1, (-1, _SAMPLES - 1))
    first, *others = by_segment.unbind(2)
    # One chord after the other, not a matrix product: every curve must have the same bits as alone.
    weight, *weights = constant(_velocity_weights, (), chords).unbind()
    velocities = weight * first
    for chord, weight in zip(others, weights, strict=True):
        velocities.addcmul_(chord, weight)
    segments = first.shape[1]
    squares = velocities.square().sum(-1)
    sizes = squares.sqrt()
    along = sizes.movedim(0, -1).flatten(1)
    return segments * along


def _velocity_weights() -> np.ndarray:  # -> (chords, points, 1, 1, 1)
    """From the chords between Gauss-Lobatto times to velocities at Gauss points."""
    t, _ = lobatto(_SAMPLES)
    knots, _ = _gauss_legendre(_SAMPLED_POINTS)
    at = (knots + 1) / 2
    powers = np.arange(1, _SAMPLES)
    slopes = at[:, None] ** (powers - 1)
    velocities = powers * slopes  # of t, t², …, whose chords are next
    monomials = t[:, None] ** powers
    chords = np.diff(monomials, axis=0)
    matrix = np.linalg.solve(chords.T, velocities.T)
    return matrix[:, :, None, None, None]


@lru_cache(maxsize=1)
def _lobatto_times() -> tuple[float, ...]:
    """Gauss-Lobatto times in [0, 1]."""
    t, _ = lobatto(_SAMPLES)
    return tuple(t.tolist())
