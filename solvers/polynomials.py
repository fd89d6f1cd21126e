"""Curves that are one polynomial: a straight line plus integrals of Legendre polynomials.

``z(t) = (1 − t) a + t b + Σ_k c_k ∫₀ᵗ P_k(2s − 1) ds`` for ``k = 1 … d − 1`` passes through both
end points for any modes ``c_k``, and has degree d. Where the metric is constant, its energy is the
sum of those of the line and of each mode alone, ``|c_k|² / (2k + 1)``.

Images of such a curve at q Gauss-Lobatto points are interpolated by a polynomial of degree q − 1,
whose energy the same points integrate exactly.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial.legendre import Legendre, leggauss, legvander
from torch import Tensor

from riemae.numerics.batch_invariance import apply_constant
from riemae.numerics.constants import constant
from riemae.solvers.curve import Curve

_LOOKS = 33  # points at which a curve's velocity is looked at


@lru_cache
def lobatto(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Lobatto points in [0, 1], and their weights, which sum to 1."""
    polynomial = Legendre.basis(count - 1)
    inner = np.sort(polynomial.deriv().roots().real)
    x = np.concatenate([[-1.0], inner, [1.0]])
    weights = 1 / (count * (count - 1) * polynomial(x) ** 2)
    return (x + 1) / 2, weights


def lobatto_weights(count: int, like: Tensor) -> Tensor:  # -> (q,)
    """Of the Gauss-Lobatto points. Not to be written to."""
    return constant(_weights, (count,), like)


def mode_energies(modes: int, like: Tensor) -> Tensor:  # -> (k,)
    """The energy of each mode of size 1 where the metric is the identity. Not to be written to."""
    return constant(_energies, (modes,), like)


def points_on(z0: Tensor, z1: Tensor, modes: Tensor, count: int) -> Tensor:
    """Points ``(p, q, m)`` of curves at the Gauss-Lobatto times.

    Args:
        z0: ``(p, m)``.
        z1: ``(p, m)``.
        modes: ``(p, d − 1, m)``.
        count: q.
    """
    t = constant(_times, (count,), z0)[:, None]
    line = (1 - t) * z0[:, None] + t * z1[:, None]
    return line + apply_constant(_bends, (modes.shape[1], count), modes)


def inner_points(corners: Tensor, modes: Tensor, count: int) -> Tensor:  # -> (p, q − 2, m)
    """The points of :func:`points_on` between the ends ``(p, 2, m)``."""
    every = torch.cat([corners, modes], 1)
    return apply_constant(_inner, (modes.shape[1], count), every)


def velocities_on(z0: Tensor, z1: Tensor, modes: Tensor, count: int) -> Tensor:
    """Velocities ``(p, q, m)`` of the curves at the points of :func:`points_on`."""
    return (z1 - z0)[:, None] + apply_constant(_slopes, (modes.shape[1], count), modes)


def coarsened(x: Tensor, count: int) -> Tensor:  # (p, q, D) -> (p, count, D)
    """The interpolant of images at fewer Gauss-Lobatto points."""
    return apply_constant(_coarsening, (x.shape[1], count), x)


def fine_size(y: Tensor) -> Tensor:  # (p, q) -> (p,)
    """How large the two finest Legendre modes of numbers at the Gauss-Lobatto points are."""
    fine = apply_constant(_finest_values, (y.shape[1],), y[..., None])
    return fine.abs().sum((1, 2))


def slope_of_inner(along: Tensor, modes: int) -> Tensor:  # (p, q − 2, m) -> (p, k, m)
    """The gradient in the modes, from that in the points of :func:`inner_points`."""
    return apply_constant(_inner_transposed, (modes, along.shape[1] + 2), along)


def slope_at_places(along: Tensor, modes: int) -> Tensor:  # (p, s, m) -> (p, k, m)
    """The gradient in the modes, from that in places evenly spaced inside the curve."""
    return apply_constant(_bends_at_places, (modes, along.shape[1]), along)


def velocities(x: Tensor) -> Tensor:  # (p, q, D) -> (p, q, D)
    """Velocities of the interpolant of images at the Gauss-Lobatto times."""
    return apply_constant(_differentiation, (x.shape[1],), x)


def force_and_fine(v: Tensor) -> tuple[Tensor, Tensor]:  # (p, q, D) -> (p, q, D), (p,)
    """The gradient in the images of ``∫ |v|² dt``, from their velocities; and its fine share."""
    count = v.shape[1]
    both = apply_constant(_force_and_finest, (count,), v)
    return both[:, :count], both[:, count:].square().sum((1, 2))


def fine_share(v: Tensor) -> Tensor:  # (p, q, D) -> (p,)
    """``∫ |v|² dt`` of the two finest modes of velocities."""
    fine = apply_constant(_finest, (v.shape[1],), v)
    return fine.square().sum((1, 2))


def stiffness(
    samples: Tensor, modes: int, out: Tensor | None = None
) -> Tensor:  # (p, s, m, m) -> (p, k m, k m)
    """The Hessian of the energy in the modes, with the metric interpolated and fixed.

    Args:
        samples: The metric in the middle of s equally long parts of the curve.
        modes: k.
        out: Memory for it, whole.
    """
    found = apply_constant(_overlaps, (modes, samples.shape[1]), samples.flatten(2))
    return _assembled(found, modes, out)


def gauss_newton(
    blocks: Tensor, modes: int, forms: bool = False, out: Tensor | None = None
) -> Tensor:  # -> (p, k m, k m)
    """The Hessian of the energy in the modes, with Jacobians interpolated between places.

    With ``J(t)`` linear between s places, evenly spaced inside the curve, and constant outside of
    them, Gauss-Newton's is ``2 ∫ ‖d/dt (J δz)‖² dt``. Forms, interpolated alike, add ``∫ C(δz, δz)
    dt``.

    Args:
        blocks: ``(p, 2 s − 1, m, m)``: ``J_aᵀJ_a`` of the s places, then the products
            ``J_aᵀJ_{a+1}`` of neighbours. With forms ``(p, 3 s − 1, m, m)``: then those.
        modes: k.
        forms: Whether there are forms.
        out: Memory for it, whole.
    """
    count = blocks.shape[1]
    places = (count + 1) // (3 if forms else 2)
    turned = blocks[:, places : 2 * places - 1].mT
    every = torch.cat([blocks, turned], 1).flatten(2)
    found = apply_constant(_tangent_overlaps, (modes, places, forms), every)
    return _assembled(found, modes, out)


def _assembled(
    blocks: Tensor, modes: int, out: Tensor | None
) -> Tensor:  # (p, k k, m m) -> (p, k m, k m)
    """Blocks ``(m, m)`` for every two modes as one matrix."""
    p, _, squared = blocks.shape
    m = math.isqrt(squared)
    found = blocks.view(p, modes, modes, m, m).transpose(2, 3)
    if out is None:
        return found.reshape(p, modes * m, modes * m)
    out.view(found.shape).copy_(found)
    return out


def modes_of(curve: Curve, modes: int) -> Tensor:  # (p,) curves -> (p, k, m)
    """The modes of curves: Legendre coefficients of their velocities."""
    known = torch.cat([curve.nodes.diff(dim=1), curve.slopes], 1)
    return apply_constant(_analysis, (modes, curve.segments), known)


def spline_of(z0: Tensor, z1: Tensor, modes: Tensor, segments: int) -> Curve:
    """The curves as Hermite splines that touch them in ``segments + 1`` nodes."""
    known = torch.cat([z0[:, None], z1[:, None], modes], 1)
    both = apply_constant(_splines, (modes.shape[1], segments), known)
    return Curve(both[:, : segments + 1], both[:, segments + 1 :])


def strayed_squares(
    z0: Tensor, z1: Tensor, modes: Tensor, metric: Tensor, segments: tuple[int, ...]
) -> Tensor:  # (p, m) twice, (p, k, m), (p, m, m) -> (p, 1 + s)
    """Mean squares of the curves' velocities, and of what :func:`spline_of` changes of them.

    Args:
        z0: End points.
        z1: End points.
        modes: The curves' modes.
        metric: In which velocities are measured; ``(p, 0, 0)`` for the identity.
        segments: Of the splines.
    """
    known = torch.cat([(z1 - z0)[:, None], modes], 1)
    p, count, _ = known.shape
    v = apply_constant(_strayed, (count - 1, segments), known)
    squares = ((torch.bmm(v, metric) if metric.shape[1] else v) * v).sum(2)
    return squares.view(p, -1, count).sum(2)


def _times(count: int) -> np.ndarray:
    return lobatto(count)[0]


def _weights(count: int) -> np.ndarray:
    return lobatto(count)[1]


def _energies(modes: int) -> np.ndarray:
    return 1 / (2 * np.arange(1, modes + 1) + 1)


def _integrals(t: np.ndarray, modes: int) -> np.ndarray:  # -> (len(t), k)
    """``∫₀ᵗ P_k(2s − 1) ds = (P_{k+1} − P_{k−1})(2t − 1) / (4k + 2)``."""
    values = legvander(2 * t - 1, modes + 1)
    k = np.arange(1, modes + 1)
    return (values[:, 2:] - values[:, :-2]) / (4 * k + 2)


def _bends(modes: int, count: int) -> np.ndarray:
    return _integrals(_times(count), modes)


def _inner(modes: int, count: int) -> np.ndarray:  # (q − 2, 2 + k)
    t = _times(count)[1:-1, None]
    return np.concatenate([1 - t, t, _integrals(t[:, 0], modes)], 1)


def _inner_transposed(modes: int, count: int) -> np.ndarray:
    return _integrals(_times(count)[1:-1], modes).T


def _bends_at_places(modes: int, places: int) -> np.ndarray:
    times = np.linspace(0, 1, places + 2)[1:-1]
    return _integrals(times, modes).T


def _slopes(modes: int, count: int) -> np.ndarray:
    return legvander(2 * _times(count) - 1, modes)[:, 1:]


def _coarsening(fine: int, coarse: int) -> np.ndarray:  # (coarse, fine)
    values, wanted = (legvander(2 * _times(count) - 1, fine - 1) for count in (fine, coarse))
    return np.linalg.solve(values.T, wanted.T).T


def _finest_values(count: int) -> np.ndarray:  # (2, q)
    """Values to the coefficients of their two highest Legendre modes."""
    values = legvander(2 * _times(count) - 1, count - 1)
    return np.linalg.inv(values)[-2:]


@lru_cache
def _differentiation(count: int) -> np.ndarray:  # (q, q)
    """Values at the Gauss-Lobatto points to derivatives of their interpolant there."""
    x = 2 * _times(count) - 1
    values = legvander(x, count - 1)
    slopes = np.stack([2 * Legendre.basis(k).deriv()(x) for k in range(1, count)], 1)
    slopes = np.pad(slopes, ((0, 0), (1, 0)))
    return np.linalg.solve(values.T, slopes.T).T


def _finest(count: int) -> np.ndarray:  # (2, q)
    """Velocities to their two highest modes, scaled so that squares are energies."""
    x = 2 * _times(count) - 1
    # Of degree q − 2, for which the points integrate products up to degree 2q − 3 exactly.
    k = np.array([count - 3, count - 2])
    values = legvander(x, count - 2)[:, k]
    return (values * np.sqrt(2 * k + 1)).T * _weights(count)


def _overlaps(modes: int, samples: int) -> np.ndarray:  # (k k, s)
    """``2 ∫ P_k P_l h_s dt`` with hat functions about the middles of ``s`` parts, flat outside."""
    # Between middles everything is polynomial.
    middles = (np.arange(samples) + 0.5) / samples
    knots = np.concatenate([[0.0], middles, [1.0]])
    x, w = leggauss(modes + 2)
    pieces = np.diff(knots)
    t = (knots[:-1, None] + pieces[:, None] * (x + 1) / 2).ravel()
    weights = (pieces[:, None] * w / 2).ravel()
    hats = np.stack([np.interp(t, middles, row) for row in np.eye(samples)])
    values = legvander(2 * t - 1, modes)[:, 1:]
    shares = 2 * np.einsum("st,tk,tl->kls", hats * weights, values, values)
    return shares.reshape(-1, samples)


def _tangent_overlaps(
    modes: int, places: int, forms: bool
) -> np.ndarray:  # (k k, 3 s − 2 or 4 s − 2)
    """What every block adds to :func:`gauss_newton`, those of neighbours once more turned round.

    With hat functions ``h_a`` about the places, flat outside of them, and integrals ``φ_k`` of the
    modes, it is ``2 ∫ (h_a φ_k)′ (h_b φ_l)′ dt`` for a product of Jacobians, ``∫ h_a φ_k φ_l dt``
    for a form.
    """
    knots = np.linspace(0, 1, places + 2)
    inner = knots[1:-1]
    # Between knots everything is polynomial.
    x, w = leggauss(modes + 3)
    width = knots[1]
    t = (knots[:-1, None] + width * (x + 1) / 2).ravel()
    weights = np.tile(width * w / 2, places + 1)
    hats = np.stack([np.interp(t, inner, row) for row in np.eye(places)])
    slopes = np.stack([np.interp(knots, inner, row) for row in np.eye(places)])
    rises = np.repeat(np.diff(slopes) / width, len(x), 1)
    phi = _integrals(t, modes).T
    moving = hats[:, None] * legvander(2 * t - 1, modes).T[1:] + rises[:, None] * phi
    own = 2 * np.einsum("t,akt,alt->akl", weights, moving, moving)
    beside = 2 * np.einsum("t,akt,alt->akl", weights, moving[:-1], moving[1:])
    parts = [own, beside]
    if forms:
        parts.append(np.einsum("t,at,kt,lt->akl", weights, hats, phi, phi))
    parts.append(beside.swapaxes(1, 2))
    shares = np.concatenate(parts)
    return shares.reshape(len(shares), -1).T


def _force_and_finest(count: int) -> np.ndarray:  # (q + 2, q)
    force = 2 * _differentiation(count).T * _weights(count)
    return np.concatenate([force, _finest(count)])


def _analysis(modes: int, segments: int) -> np.ndarray:  # (k, 2 n + 1)
    """Differences of a spline's nodes, and its slopes, to Legendre coefficients."""
    x, w = leggauss(2 * modes + 2)
    k = np.arange(1, modes + 1)
    coefficients = ((2 * k + 1) * legvander(x, modes)[:, 1:] * w[:, None] / 2).T
    times = segments * (x + 1) / 2
    piece = times.astype(int)
    u = times - piece
    row = np.arange(len(x))
    v = np.zeros((len(x), 2 * segments + 1))
    v[row, piece] = 6 * u * (1 - u) * segments
    v[row, segments + piece] = (1 - u) * (1 - 3 * u)
    v[row, segments + piece + 1] = u * (3 * u - 2)
    return coefficients @ v


def _splines(modes: int, segments: int) -> np.ndarray:  # (2 n + 2, 2 + k)
    """End points and modes to a spline's nodes, and its slopes."""
    t = np.linspace(0, 1, segments + 1)
    bends = _integrals(t, modes)
    bends[[0, -1]] = 0.0  # end points are met exactly
    nodes = np.column_stack([1 - t, t, bends])
    ones = np.ones(segments + 1)
    slopes = np.column_stack([-ones, ones, legvander(2 * t - 1, modes)[:, 1:]])
    return np.concatenate([nodes, slopes])


def _strayed(modes: int, segments: tuple[int, ...]) -> np.ndarray:  # ((1 + s) (k + 1), k + 1)
    """The difference of end points, and modes, to numbers that have these mean squares."""
    slopes = legvander(2 * _times(_LOOKS) - 1, modes)
    parts = [slopes, *(np.pad(_strayed_at(modes, n), ((0, 0), (1, 0))) for n in segments)]
    # As few numbers as there are unknowns have the same sums of squares.
    parts = [np.linalg.qr(x / math.sqrt(len(x))).R for x in parts]
    count = modes + 1
    return np.concatenate([np.pad(x, ((0, count - len(x)), (0, 0))) for x in parts])


def _strayed_at(modes: int, segments: int) -> np.ndarray:
    """Velocities of the Hermite spline of every mode, less its own, where they differ most."""
    nodes = np.linspace(0, 1, segments + 1)
    at, slope = _integrals(nodes, modes), legvander(2 * nodes - 1, modes)[:, 1:]
    u = np.array([0.2, 0.5, 0.8])[:, None, None]
    rise = segments * np.diff(at, axis=0)
    found = 6 * u * (1 - u) * rise
    found = found + (1 - u) * (1 - 3 * u) * slope[:-1] + u * (3 * u - 2) * slope[1:]
    times = (nodes[:-1] + u[:, 0] / segments).ravel()
    true = legvander(2 * times - 1, modes)[:, 1:]
    return found.reshape(-1, modes) - true
