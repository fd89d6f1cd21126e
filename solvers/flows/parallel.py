"""Parallel transport along curves."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError, ShapeError
from riemae.numerics.checks import expect_device
from riemae.numerics.precision import in_full_precision
from riemae.numerics.transforms import refuse_vmap
from riemae.solvers.curve import Curve, nodes_of
from riemae.solvers.flows.integrator import accuracy_of, combined, method_of_order_8
from riemae.solvers.hooks import turning_of
from riemae.solvers.space import HasSpace, Space, space_of


class _Level(NamedTuple):
    """How finely every piece of a curve is looked at.

    Attributes:
        parts: Equal parts of a piece.
        points: Gauss points of each part, at which the connection is computed.
        steps: Of the integration, on each part.
    """

    parts: int
    points: int
    steps: int


# Points are what costs. Steps need not be fewer where points are: no two levels share their error.
_LEVELS = (_Level(1, 3, 1), *(_Level(parts, 5, 2) for parts in (1, 2, 4, 8, 16, 32, 64)))


@in_full_precision
def transport(
    space: Space | HasSpace,
    curve: Curve | Tensor,
    v: Tensor,
    *,
    rtol: float | None = None,
    throw: bool = True,
) -> Tensor:  # curve (*b), v (*b, m) -> (*b, m)
    """Parallel transport of tangent vectors from the start to the end of curves.

    It keeps inner products. ``v̇ = −Γ(ż, v)`` is linear in v. Its matrices are computed at n Gauss
    points of every piece of the curve, and are polynomials between them, which leaves an error of
    the order 2n at the end of a piece. The steps are those of an eighth-order method. There are
    more points, and then more and more parts of the pieces, until two resolutions agree.

    Args:
        space: Anything with an ``acceleration``.
        curve: A :class:`Curve`, or points ``(*b, n, m)`` joined by straight latent lines.
        v: Tangent vectors at the start.
        rtol: Relative accuracy; by default 1e-8 in float64, 1e-4 in float32.
        throw: Raise when the resolutions never agree; False returns the finest.

    Raises:
        ShapeError: When ``v`` does not fit the curves.
        DeviceError: When ``v`` is on another device than the curves.
        NotConvergedError: When ``throw`` and a vector misses ``rtol``; its ``result`` holds the
            transported vectors.
    """
    nodes = nodes_of(curve)
    space = space_of(space, nodes, where="transport", finite=True)
    refuse_vmap("transport")
    expect_device("transport", "v", v, "nodes", nodes)
    wanted = (*nodes.shape[:-2], nodes.shape[-1])
    if v.shape != wanted or v.dtype != nodes.dtype:
        raise ShapeError(
            "transport",
            f"vectors of shape {wanted} and dtype {nodes.dtype}",
            f"{tuple(v.shape)} and {v.dtype}",
            "Give one vector per curve.",
        )
    rtol = accuracy_of("transport", rtol, v, 1e-8, 1e-4)
    tiny = torch.finfo(v.dtype).tiny
    now = _transported(space, curve, v, _LEVELS[0])
    for level in _LEVELS[1:]:
        previous = now
        now = _transported(space, curve, v, level)
        size = now.abs().amax(-1).clamp(min=tiny)
        error = (now - previous).abs().amax(-1) / size
        missed = ~(error <= rtol)
        if not bool(missed.any()):
            return now
    if throw:
        raise NotConvergedError(
            "transport",
            f"two resolutions that agree to rtol={rtol:g}",
            f"{int(missed.sum())} of {missed.numel()} vectors that do not",
            "Loosen rtol, or give the curve more segments where the metric varies fast.",
            now,
        )
    return now


def _transported(space: Space, curve: Curve | Tensor, v: Tensor, level: _Level) -> Tensor:
    """One pass: all matrices ``−Γ(ż, ·)`` at once, and steps that are m × m products."""
    segments = curve.segments if isinstance(curve, Curve) else curve.shape[-2] - 1
    count = segments * level.parts
    x, _ = np.polynomial.legendre.leggauss(level.points)
    times = torch.as_tensor((x + 1) / 2, dtype=v.dtype, device=v.device)
    places = torch.arange(count, device=v.device)[:, None]
    piece = (places // level.parts).expand(count, len(times))
    share = (places % level.parts + times) / level.parts
    z, velocity = _along(curve, piece, share)
    m = v.shape[-1]
    known = turning_of(space, z.reshape(-1, m), velocity.reshape(-1, m))
    if known is None:
        turn = connection_matrix(space.acceleration, z, velocity)
    else:
        turn = -known
    turn = turn.view(*v.shape[:-1], count, len(times), m, m)
    method, weights = method_of_order_8(), _between(level)
    steps = count * level.steps
    w = v
    for i in range(steps):
        near = list(turn[..., i // level.steps, :, :, :].unbind(-3))
        stages: list[Tensor] = []
        for j, row in enumerate(method.A):
            inner = w + combined(row, stages) / steps if stages else w
            here = combined(weights[i % level.steps, j], near)
            stages.append((here @ inner[..., None])[..., 0])
        w = w + combined(method.B, stages) / steps
    return w


@lru_cache
def _between(level: _Level) -> np.ndarray:  # (steps, stages, points)
    """A polynomial at every stage of every step, from its values at the Gauss points of a part."""
    x, _ = np.polynomial.legendre.leggauss(level.points)
    times = np.asarray(method_of_order_8().C) + np.arange(level.steps)[:, None]
    at = 2 * times / level.steps - 1
    values = np.polynomial.legendre.legvander(at, level.points - 1)
    return values @ np.linalg.inv(np.polynomial.legendre.legvander(x, level.points - 1))


def _along(curve: Curve | Tensor, piece: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Points and velocities at shares of pieces, ``(k, s), (k, s) -> (*b, k s, m)``.

    At a corner, the piece decides.
    """
    piece = piece.flatten()
    share = share.flatten()
    if isinstance(curve, Curve):
        t = ((piece + share) / curve.segments).clamp(max=1.0)
        return curve(t), curve.velocity(t)
    start = curve[..., piece, :]
    stop = curve[..., piece + 1, :]
    step = stop - start
    return curve[..., piece, :] + share[:, None] * step, (curve.shape[-2] - 1) * step


def connection_matrix(
    acceleration: Callable[[Tensor, Tensor], Tensor], z: Tensor, u: Tensor
) -> Tensor:  # (*b, m), (*b, m) -> (*b, m, m)
    """The matrix of ``v ↦ −Γ(u, v)``, from accelerations alone.

    ``−Γ(u, v) = ¼ [a(u + v) − a(u − v)]``. The basis vectors are scaled to the
    size of ``u``, which balances the difference.
    """
    m = z.shape[-1]
    largest = u.abs().amax(-1, keepdim=True)
    size = largest[..., None, :]  # (*b, 1, 1)
    size = size.clamp(min=torch.finfo(u.dtype).tiny)
    basis = size * torch.eye(m).to(u)  # [..., j, :] = the j-th basis vector
    every = z[..., None, :].expand(basis.shape)
    points = every.reshape(-1, m)
    ends = [(u[..., None, :] + sign * basis).reshape(-1, m) for sign in (1, -1)]
    twice = torch.cat([points, points])
    both = torch.cat(ends)
    there, back = acceleration(twice, both).chunk(2)
    return ((there - back).view(basis.shape) / (4 * size)).mT
