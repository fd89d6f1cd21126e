"""The exponential map: geodesics from a point and a velocity."""

from __future__ import annotations

import math
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from riemae.exceptions import DTypeError, NotConvergedError, OptionError, ShapeError
from riemae.numerics.checks import expect_device
from riemae.numerics.precision import in_full_precision
from riemae.numerics.transforms import refuse_vmap
from riemae.solvers.certificate import sound, sound_acceleration
from riemae.solvers.curve import Curve
from riemae.solvers.flows.integrator import accuracy_of, advance
from riemae.solvers.space import HasSpace, Space, space_of

# Relative change of the speed along a geodesic that counts as an error: this many times what rtol
# allows the velocity, no less than rounding makes of it, and never more than a tenth. On regular
# spaces it stays below a hundredth of that.
_DRIFT = 1e3
_MOST_DRIFT = 0.1
_LEAST_DRIFT = {torch.float64: 1e-8, torch.float32: 1e-2}
# Steps that a sample may lose to it before it is given up: where the speed cannot be kept, smaller
# steps come to nothing.
_REFUSALS = 5


@in_full_precision
def exp(
    space: Space | HasSpace,
    z: Tensor,
    v: Tensor,
    t: float | Tensor = 1.0,
    *,
    rtol: float | None = None,
    max_steps: int = 2000,
    throw: bool = True,
) -> Tensor:  # (*b, m), (*b, m) -> (*b, m) or (*b, k, m)
    """Exponential map: where the geodesic from ``z`` with velocity ``v`` is at time ``t``.

    Dormand and Prince's method of order 8 with error control for every sample alone; differentiable
    in ``z`` and ``v`` (and in whatever the space depends on) through the accepted steps.

    The speed ``|v|_G``, which every geodesic keeps, is checked after every step: a step that loses
    it is repeated with a smaller one, and a sample that cannot keep it fails. That happens where
    coordinates are singular (a horizon, a pole), at which the equation's own error estimate sees
    nothing.

    Args:
        space: Anything with an ``acceleration``, a ``norm`` and a ``metric``.
        z: Start points.
        v: Start velocities; leading axes broadcast.
        t: Time; negative runs backwards. Of times ``(k,)`` that lead away from 0 all points come
            back, ``(*b, k, m)``.
        rtol: Error allowed per unit of travelled coordinates; by default 1e-9 in float64, 1e-5 in
            float32.
        max_steps: Steps that a sample may take.
        throw: Raise when a sample fails; False returns NaN for it.

    Raises:
        ShapeError: When ``z`` and ``v`` do not pair up.
        DTypeError: When ``t`` is not a number or a tensor of them.
        OptionError: When ``rtol`` is not positive, a time not finite, or the times are not in
            order.
        NotConvergedError: When ``throw`` and a sample runs out of steps, into a place without a
            regular metric, or loses its speed; its ``result`` holds the end points of all samples.
    """
    space = space_of(space, z, where="exp")
    times = _times(t)
    points = _flow(
        where="exp", space=space, z=z, v=v, times=times, rtol=rtol, max_steps=max_steps, throw=throw
    )[0]
    if isinstance(t, Tensor) and t.ndim:
        return points
    return points[..., 0, :]


def _times(t: Any) -> list[Any]:
    """One time, or several in the order in which they are reached.

    Raises:
        DTypeError: When they are not numbers.
        OptionError: When they do not lead away from 0.
    """
    if isinstance(t, Tensor) and not t.is_complex() and not t.is_meta:
        if t.ndim > 1 or not t.numel():
            raise OptionError(
                "exp",
                "one time, or times (k,)",
                f"a tensor of shape {tuple(t.shape)}",
                "Try t.flatten().",
            )
        if t.ndim:
            times = list(t.unbind())
        else:
            times = [t]
        steps = t.detach().reshape(-1).diff(prepend=t.new_zeros(1))
        if len(times) > 1 and not bool((steps >= 0).all() or (steps <= 0).all()):
            hint = "Try t.sort().values; times before and after 0 take two calls."
            raise OptionError(
                "exp",
                "times that lead away from 0, one after the other",
                str(t.tolist())[:80],
                hint,
            )
        return times
    if isinstance(t, bool) or not isinstance(t, Real):
        got = f"{type(t).__name__} {t!r}"[:80]
        hint = "Try t=1.0, or torch.linspace(0, 1, k)."
        raise DTypeError("exp", "t as a number, or a tensor of times (k,)", got, hint)
    return [t]


@in_full_precision
def shoot(
    space: Space | HasSpace,
    z: Tensor,
    v: Tensor,
    t: float = 1.0,
    *,
    segments: int = 64,
    rtol: float | None = None,
    max_steps: int = 2000,
    throw: bool = True,
) -> Curve:
    """The geodesic that starts at ``z`` with velocity ``v``, up to time ``t``, over [0, 1].

    Args:
        space: As in :func:`exp`.
        z: Start points ``(*b, m)``.
        v: Start velocities ``(*b, m)``.
        t: Time at the end of the curve.
        segments: Pieces of the curve; its knots and slopes are the integrator's.
        rtol: As in :func:`exp`.
        max_steps: As in :func:`exp`.
        throw: As in :func:`exp`.
    """
    space = space_of(space, z, where="shoot")
    times = [t * (i + 1) / segments for i in range(segments)]
    points, velocities = _flow(
        where="shoot",
        space=space,
        z=z,
        v=v,
        times=times,
        rtol=rtol,
        max_steps=max_steps,
        throw=throw,
    )
    z, v = torch.broadcast_tensors(z, v)
    return Curve(
        torch.cat([z[..., None, :], points], -2),
        torch.cat([t * v[..., None, :], t * velocities], -2),
    )


def _flow(
    where: str,
    space: Space,
    z: Tensor,
    v: Tensor,
    times: list[float],
    rtol: float | None,
    max_steps: int,
    throw: bool,
) -> tuple[Tensor, Tensor]:  # -> (*b, k, m), (*b, k, m)
    """Points and velocities at increasing (or decreasing) times.

    Raises:
        ShapeError: When ``z`` and ``v`` do not pair up.
        DeviceError: When their devices differ.
        OptionError: When a time is not finite.
        NotConvergedError: When ``throw`` and a sample fails.
    """
    expect_device(where, "v", v, "z", z)
    if z.shape[-1:] != v.shape[-1:] or not z.ndim or z.dtype != v.dtype:
        raise ShapeError(
            where,
            "z and v of one shape (*b, m) and dtype",
            f"{tuple(z.shape)} and {tuple(v.shape)}",
            "Pair them up.",
        )
    refuse_vmap(where)
    rtol = accuracy_of(where, rtol, z, 1e-9, 1e-5)
    if not all(math.isfinite(t) for t in times):
        hint = "Choose a finite t: geodesics are integrated step by step."
        raise OptionError(where, "a finite time", str(times[-1]), hint)
    z, v = torch.broadcast_tensors(z, v)
    m = z.shape[-1]
    y = torch.cat([z, v], -1).reshape(-1, 2 * m)
    failed = ~y.detach().isfinite().all(-1)
    speeds = _ConservedSpeed(space, y.detach(), rtol, failed)
    path = _states(space, y, times, rtol, max_steps, speeds)
    shape = (*z.shape[:-1], len(times), m)
    points = path[..., :m].view(shape)
    velocities = path[..., m:].view(shape)
    if throw and bool(failed.any()):
        if len(times) > 1:
            result = points
        else:
            result = points[..., 0, :]
        _raise_failure(
            where=where,
            rtol=rtol,
            failed=failed,
            refused=speeds.refused,
            result=result,
        )
    return points, velocities


def _states(
    space: Space,
    y: Tensor,
    times: list[float],
    rtol: float,
    max_steps: int,
    speeds: _ConservedSpeed,
) -> Tensor:  # (p, 2 m) -> (p, k, 2 m)
    """States at increasing (or decreasing) times, NaN where a sample has failed by then."""
    p, both = y.shape
    reach = max((abs(t) for t in times), default=0.0)
    velocity = y.detach()[:, both // 2 :]
    scale = _scale(velocity, reach, rtol)
    stride = torch.full((p,), 0.1 * reach, dtype=y.dtype, device=y.device)
    steps = torch.zeros(p, dtype=torch.int64, device=y.device)
    states = []
    now = 0.0
    for time in times:
        y, stride = advance(
            rhs=partial(_velocity, space),
            y=y,
            duration=time - now,
            stride=stride,
            scale=scale,
            steps=steps,
            failed=speeds.failed,
            max_steps=max_steps,
            sound=speeds,
        )
        now = time
        # A copy of what has failed so far: it changes, and the backward pass needs what it was.
        lost = speeds.failed[:, None].clone()
        states.append(torch.where(lost, torch.nan, y))
    return torch.stack(states, 1)


def _scale(v: Tensor, reach: float, rtol: float) -> Tensor:  # (p, m) -> (p, 2 m)
    """The error allowed in points and velocities.

    Errors are judged against the travelled coordinates and the velocity, so units do not matter.
    """
    speed = v.abs().amax(-1).clamp(min=torch.finfo(v.dtype).tiny)
    way = speed * max(reach, 1e-30)
    return rtol * torch.cat([way[:, None].expand(v.shape), speed[:, None].expand(v.shape)], 1)


def _raise_failure(
    where: str, rtol: float, failed: Tensor, refused: Tensor, result: Tensor
) -> None:
    """Say which samples failed.

    Raises:
        NotConvergedError: Always; it carries the result.
    """
    rows = failed.nonzero().flatten().tolist()
    lost = int((failed & (refused > 0)).sum())
    if lost:
        reason = f"; at {lost} the speed |v|_G, which a geodesic keeps, is lost"
    else:
        reason = ""
    raise NotConvergedError(
        where,
        f"{len(failed)} geodesics integrated to rtol={rtol:g}",
        f"{len(rows)} that failed (first: {rows[:5]}){reason}",
        "They leave the domain of the metric or meet a singular point, of the metric or of its "
        "coordinates; raise max_steps, loosen rtol, shorten t, or use other coordinates.",
        result,
    )


class _ConservedSpeed:
    """Which states keep the speed ``|v|_G`` of their geodesic.

    An integrator's own error estimate cannot see that.

    Where coordinates are singular (a horizon, a pole), the equation divides rounding by rounding:
    coordinates that hardly move any more look accurate, and the speed tells that they are not.

    Args:
        space: Anything with a ``metric`` and a ``norm``.
        y: Start states ``(p, 2 m)``, points and velocities.
        rtol: The integrator's accuracy.
        failed: ``(p,)`` bool; samples that lose too many steps are marked in place.

    Attributes:
        refused: ``(p,)`` int64, steps refused.
    """

    def __init__(self, space: Space, y: Tensor, rtol: float, failed: Tensor) -> None:
        self.space = space
        self.failed = failed
        self.refused = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        self.speed = torch.zeros_like(y[:, 0])
        self.allowed = torch.zeros_like(y[:, 0])
        rows = y.isfinite().all(-1).nonzero().flatten()
        if not len(rows):
            return
        z, v = y[rows].chunk(2, -1)
        speed = self._of(y[rows])
        m = z.shape[1]
        with torch.no_grad():
            metric = sound(space.metric, torch.Size((m, m)), z)
            trace = metric.diagonal(dim1=-2, dim2=-1).sum(-1)
        # What an error of rtol in every coordinate of the velocity makes of the speed.
        share = rtol * trace.clamp(min=0).sqrt() * v.abs().amax(-1) / speed
        self.allowed[rows] = (_DRIFT * share).clamp(_LEAST_DRIFT[y.dtype], _MOST_DRIFT)
        self.speed[rows] = speed

    def __call__(self, y: Tensor, rows: Tensor) -> Tensor:
        """``(states (k, 2 m), rows (k,)) -> (k,)`` bool."""
        if not len(rows):
            return self.failed[rows]
        before = self.speed[rows]
        change = (self._of(y) - before).abs()
        # Where nothing moves, nothing is lost.
        kept = (change <= self.allowed[rows] * before) | (before == 0)
        self.refused[rows] += ~kept
        self.failed[rows] |= self.refused[rows] >= _REFUSALS
        return kept

    def _of(self, y: Tensor) -> Tensor:
        z, v = y.chunk(2, -1)
        with torch.no_grad():
            return sound(self.space.norm, torch.Size(), z, v)


def _velocity(space: Space, y: Tensor) -> Tensor:
    """``(z, ż) -> (ż, z̈)``.

    NaN where the metric is singular or there is no value: only that sample fails.
    """
    z, w = y.chunk(2, -1)
    return torch.cat([w, sound_acceleration(space, z, w)], -1)
