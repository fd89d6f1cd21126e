"""Curves that bend in a few places: a straight line plus cubic B-splines on even knots.

``z(t) = (1 − t) a + t b + Σ_k c_k B_k(t)`` with the clamped B-splines of ``s`` even pieces but the
first and the last, which alone are not 0 at an end: ``s + 1`` coefficients ``c_k``, and curves that
are twice continuously differentiable. All of them resolve a curve as well at its ends as in its
middle, where polynomials of high degree do not.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from riemae.numerics.constants import constant
from riemae.solvers.curve import Curve

_ORDER = 3
_LOOKS = 8  # points per piece at which curves are compared


def bends(pieces: int, segments: int, like: Tensor) -> Tensor:  # -> (n - 1, s + 1)
    """Values of every bump at the interior ones of ``segments + 1`` even times."""
    return constant(_inner, (pieces, segments), like)


def bumps_of(curve: Curve, pieces: int) -> Tensor:  # (p,) curves -> (p, s + 1, m)
    """The coefficients of curves with the same ends, by least squares in points."""
    segments = _LOOKS * pieces
    nodes = curve.resample(segments).nodes
    line = Curve.line(nodes[:, 0], nodes[:, -1], segments).nodes
    return constant(_fit, (pieces, segments), nodes) @ (nodes - line)[:, 1:-1]


def finer(bumps: Tensor, pieces: int) -> Tensor:  # (p, r + 1, m) -> (p, s + 1, m)
    """The coefficients on more pieces, by least squares in points."""
    return constant(_transfer, (bumps.shape[1] - 1, pieces), bumps) @ bumps


def curve_of(z0: Tensor, z1: Tensor, bumps: Tensor, segments: int) -> Curve:
    """The curves as Hermite splines that touch them in ``segments + 1`` nodes.

    These are the curves themselves, where every knot is a node.
    """
    line = Curve.line(z0, z1, segments)
    pieces = bumps.shape[1] - 1
    nodes = line.nodes + constant(_values, (pieces, segments), bumps) @ bumps
    slopes = line.slopes + constant(_slopes, (pieces, segments), bumps) @ bumps
    # End points are met exactly.
    nodes[:, 0] = z0
    nodes[:, -1] = z1
    return Curve(nodes, slopes)


def _splines(t: np.ndarray, pieces: int, order: int) -> np.ndarray:  # -> (len(t), s + order)
    """Clamped B-splines by the recursion of Cox and de Boor."""
    knots = np.concatenate([np.zeros(order), np.linspace(0, 1, pieces + 1), np.ones(order)])
    piece = np.clip((t * pieces).astype(int), 0, pieces - 1)
    values = np.zeros((len(t), len(knots) - 1))
    values[np.arange(len(t)), piece + order] = 1.0
    for d in range(1, order + 1):
        count = len(knots) - 1 - d
        rise = knots[d : d + count] - knots[:count]
        fall = knots[d + 1 : d + 1 + count] - knots[1 : 1 + count]
        up = np.divide(
            t[:, None] - knots[:count], rise, where=rise > 0, out=np.zeros((len(t), count))
        )
        down = np.divide(
            knots[d + 1 : d + 1 + count] - t[:, None],
            fall,
            where=fall > 0,
            out=np.zeros((len(t), count)),
        )
        values = up * values[:, :count] + down * values[:, 1 : count + 1]
    return values


def _values(pieces: int, segments: int) -> np.ndarray:  # (n + 1, s + 1)
    return _splines(np.linspace(0, 1, segments + 1), pieces, _ORDER)[:, 1:-1]


def _slopes(pieces: int, segments: int) -> np.ndarray:  # (n + 1, s + 1)
    """Derivatives: differences of B-splines of one order less, over their widths."""
    t = np.linspace(0, 1, segments + 1)
    lower = _splines(t, pieces, _ORDER - 1)  # s + 2 of them, between s + 3
    knots = np.concatenate([np.zeros(_ORDER), np.linspace(0, 1, pieces + 1), np.ones(_ORDER)])
    count = pieces + _ORDER - 1
    width = knots[_ORDER + 1 : _ORDER + 1 + count] - knots[1 : 1 + count]
    shares = _ORDER * lower / width
    padded = np.pad(shares, ((0, 0), (1, 1)))
    return (padded[:, :-1] - padded[:, 1:])[:, 1:-1]


def _inner(pieces: int, segments: int) -> np.ndarray:
    return _values(pieces, segments)[1:-1]


def _fit(pieces: int, segments: int) -> np.ndarray:
    return np.linalg.pinv(_inner(pieces, segments))


def _transfer(before: int, pieces: int) -> np.ndarray:
    segments = _LOOKS * pieces
    return _fit(pieces, segments) @ _inner(before, segments)
