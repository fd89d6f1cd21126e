"""Initial-value problems: geodesics from a point and a velocity, and parallel transport along a
curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from riemae.exceptions import DTypeError, NotConvergedError, OptionError, ShapeError
from riemae.numerics.checks import expect_rtol
from riemae.numerics.tolerances import tolerance
from riemae.numerics.transforms import refuse_transforms, refuse_vmap
from riemae.solvers.certificate import sound, sound_acceleration
from riemae.solvers.curve import Curve
from riemae.solvers.methods.newton import Newton
from riemae.solvers.path import geodesic
from riemae.solvers.solver import Solver
from riemae.solvers.space import Space

# Step control of Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section II.4.
_SAFETY, _SHRINK, _GROW, _ORDER = 0.9, 0.2, 8.0, 8
# Relative change of the speed along a geodesic that counts as an error: this many times what rtol
# allows the velocity, no less than rounding makes of it, and never more than a tenth. On regular
# spaces it stays below a hundredth of that.
_DRIFT, _MOST_DRIFT = 1e3, 0.1
_LEAST_DRIFT = {torch.float64: 1e-8, torch.float32: 1e-2}
# Steps a sample may lose to it before it is given up: where the speed cannot be kept, smaller steps
# come to nothing.
_REFUSALS = 5
_SHOTS = 12
_MAX_PARTS = 64


def exp(
    space: Space,
    z: Tensor,
    v: Tensor,
    t: float | Tensor = 1.0,
    *,
    rtol: float | None = None,
    max_steps: int = 2000,
    throw: bool = True,
) -> Tensor:  # (*b, m), (*b, m) -> (*b, m) or (*b, k, m)
    """Exponential map: where the geodesic that starts at ``z`` with velocity ``v`` is at time
    ``t``.

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
        rtol: Error allowed a unit of travelled coordinates; 1e-9 in float64, 1e-5 in float32 unless
            given.
        max_steps: Steps a sample may take.
        throw: Raise when a sample fails; False returns NaN for it.

    Raises:
        ShapeError: When ``z`` and ``v`` do not pair up.
        DTypeError: When ``t`` is not a number or a tensor of them.
        OptionError: When ``rtol`` is not positive, a time not finite, or the times are not in
            order.
        NotConvergedError: When ``throw`` and a sample runs out of steps, into a place without a
            regular metric, or loses its speed; its ``result`` holds the end points of all samples.
    """
    times = _times(t)
    points = _flow("exp", space, z, v, times, rtol, max_steps, throw)[0]
    return points if isinstance(t, Tensor) and t.ndim else points[..., 0, :]


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
        times = list(t.unbind()) if t.ndim else [t]
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
        raise DTypeError(
            "exp", "t as a number, or a tensor of times (k,)", f"{type(t).__name__} {t!r}"[:80], ""
        )
    return [t]


def shoot(
    space: Space,
    z: Tensor,
    v: Tensor,
    t: float = 1.0,
    *,
    segments: int = 64,
    rtol: float | None = None,
    max_steps: int = 2000,
    throw: bool = True,
) -> Curve:
    """The geodesic that starts at ``z`` with velocity ``v``, up to time ``t``, as a curve over [0,
    1].

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
    times = [t * (i + 1) / segments for i in range(segments)]
    points, velocities = _flow("shoot", space, z, v, times, rtol, max_steps, throw)
    z, v = torch.broadcast_tensors(z, v)
    return Curve(
        torch.cat([z[..., None, :], points], -2),
        torch.cat([t * v[..., None, :], t * velocities], -2),
    )


def log(
    space: Space,
    z0: Tensor,
    z1: Tensor,
    *,
    rtol: float = 1e-6,
    solver: Solver | Newton | None = None,
    init: Curve | Tensor | None = None,
    refine: bool = True,
    throw: bool = True,
) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
    """Logarithm: the velocity with which the geodesic from ``z0`` reaches ``z1`` at time 1. Not
    differentiable.

    Args:
        space: The space.
        z0: Start points.
        z1: End points; leading axes broadcast.
        rtol: Accuracy of the path; with ``refine`` also how close ``exp(z0, v)`` comes to ``z1``,
            relative to ``|v|``.
        solver: As in :func:`~riemae.solvers.geodesic`.
        init: As in :func:`~riemae.solvers.geodesic`.
        refine: Improve the path's velocity by shooting; without it the error is of second order in
            the path's segments.
        throw: Raise when a pair fails; False returns the path's velocity for it.

    Raises:
        NotConvergedError: When ``throw`` and the path or the shooting misses ``rtol``; ``result``
            holds the velocities, or the path's result.
    """
    refuse_transforms("log", "It is not differentiable: use exp, or batch axes in place of vmap.")
    rtol = expect_rtol("log", rtol)
    result = geodesic(space, z0, z1, rtol=max(rtol, 1e-6), solver=solver, init=init, throw=throw)
    velocity = result.curve.velocity(0.0)
    if not refine or not velocity.numel():
        return velocity
    m = velocity.shape[-1]
    start, stop = (x.detach().reshape(-1, m) for x in torch.broadcast_tensors(z0, z1))
    flat = velocity.reshape(-1, m).clone()
    rows = (flat.isfinite().all(-1) & (flat != 0).any(-1)).nonzero().flatten()
    with torch.no_grad():
        missed = _shooting(space, start, stop, flat, rows, rtol)
    velocity = flat.view(velocity.shape)
    if throw and len(missed):
        raise NotConvergedError(
            "log",
            f"shooting to within rtol={rtol:g}",
            f"{len(missed)} of {len(flat)} pairs that miss it (first: {missed[:5].tolist()})",
            "Loosen rtol, or take the path's velocity with refine=False: the end points may be conjugate.",
            velocity,
        )
    return velocity


def transport(
    space: Space, curve: Curve | Tensor, v: Tensor, *, rtol: float | None = None, throw: bool = True
) -> Tensor:  # curve (*b), v (*b, m) -> (*b, m)
    """Parallel transport of tangent vectors from the start to the end of curves.

    Keeps inner products.

    ``v̇ = −Γ(ż, v)``, by an eighth-order method on every piece of the curve, with twice as many
    pieces until two resolutions agree.

    Args:
        space: Anything with an ``acceleration``.
        curve: A :class:`Curve`, or points ``(*b, n, m)`` joined by straight latent lines.
        v: Tangent vectors at the start.
        rtol: Relative accuracy; 1e-8 in float64, 1e-4 in float32 unless given.
        throw: Raise when the resolutions never agree; False returns the finest.

    Raises:
        ShapeError: When ``v`` does not fit the curves.
        NotConvergedError: When ``throw`` and a vector misses ``rtol``; its ``result`` holds the
            transported vectors.
    """
    refuse_vmap("transport")
    nodes = curve.nodes if isinstance(curve, Curve) else curve
    if v.shape != (*nodes.shape[:-2], nodes.shape[-1]) or v.dtype != nodes.dtype:
        raise ShapeError(
            "transport",
            f"vectors of shape {(*nodes.shape[:-2], nodes.shape[-1])} and dtype {nodes.dtype}",
            f"{tuple(v.shape)} and {v.dtype}",
            "One a curve.",
        )
    rtol = accuracy_of("transport", rtol, v, 1e-8, 1e-4)
    previous = _transported(space, curve, v, 1)
    parts = 2
    while True:
        now = _transported(space, curve, v, parts)
        error = (now - previous).abs().amax(-1) / now.abs().amax(-1).clamp(
            min=torch.finfo(v.dtype).tiny
        )
        missed = ~(error <= rtol)
        if not bool(missed.any()):
            return now
        if parts >= _MAX_PARTS:
            break
        previous, parts = now, 2 * parts
    if throw:
        raise NotConvergedError(
            "transport",
            f"two resolutions that agree to rtol={rtol:g}",
            f"{int(missed.sum())} of {missed.numel()} vectors that do not",
            "Loosen rtol, or give the curve more segments where the metric varies fast.",
            now,
        )
    return now


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
        OptionError: When a time is not finite.
        NotConvergedError: When ``throw`` and a sample fails.
    """
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
        raise OptionError(where, "a finite time", str(times[-1]), "")
    z, v = torch.broadcast_tensors(z, v)
    m, batch = z.shape[-1], z.shape[:-1]
    y = torch.cat([z, v], -1).reshape(-1, 2 * m)
    p = len(y)
    reach = max((abs(t) for t in times), default=0.0)
    # Errors are judged against the travelled coordinates and the velocity, so units do not matter.
    speed = v.detach().reshape(-1, m).abs().amax(-1).clamp(min=torch.finfo(z.dtype).tiny)
    scale = rtol * torch.cat(
        [(speed * max(reach, 1e-30))[:, None].expand(p, m), speed[:, None].expand(p, m)], 1
    )
    stride = torch.full((p,), 0.1 * reach, dtype=z.dtype, device=z.device)
    steps = torch.zeros(p, dtype=torch.int64, device=z.device)
    failed = ~y.detach().isfinite().all(-1)
    points, now = [], 0.0
    rhs = lambda w: _velocity(space, w)  # noqa: E731 (one expression)
    speeds = _ConservedSpeed(space, y.detach(), rtol, failed)
    for time in times:
        y, stride = advance(rhs, y, time - now, stride, scale, steps, failed, max_steps, speeds)
        now = time
        points.append(
            torch.where(failed[:, None].clone(), torch.nan, y)
        )  # failed changes, backward needs what it was
    path = torch.stack(points, 1)
    ends = path[..., :m].view(*batch, len(times), m), path[..., m:].view(*batch, len(times), m)
    if throw and bool(failed.any()):
        rows = failed.nonzero().flatten().tolist()
        lost = failed & (speeds.refused > 0)
        reason = (
            f"; at {int(lost.sum())} the speed |v|_G, which a geodesic keeps, is lost"
            if bool(lost.any())
            else ""
        )
        raise NotConvergedError(
            where,
            f"{p} geodesics integrated to rtol={rtol:g}",
            f"{len(rows)} that failed (first: {rows[:5]}){reason}",
            "They leave the domain of the metric or meet a singular point, of the metric or of its coordinates; raise "
            "max_steps, loosen rtol, shorten t, or use other coordinates.",
            ends[0] if len(times) > 1 else ends[0][..., 0, :],
        )
    return ends


class _ConservedSpeed:
    """Which states keep the speed ``|v|_G`` of their geodesic: what an integrator's own error
    estimate cannot see.

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
        self.space, self.failed = space, failed
        self.refused = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        self.speed = torch.zeros_like(y[:, 0])
        self.allowed = torch.zeros_like(y[:, 0])
        rows = y.isfinite().all(-1).nonzero().flatten()
        if not len(rows):
            return
        z, v = y[rows].chunk(2, -1)
        speed = self._of(y[rows])
        with torch.no_grad():
            steepest = (
                sound(space.metric, torch.Size((z.shape[1], z.shape[1])), z)
                .diagonal(dim1=-2, dim2=-1)
                .sum(-1)
            )
        # What an error of rtol in every coordinate of the velocity makes of the speed.
        share = rtol * steepest.clamp(min=0).sqrt() * v.abs().amax(-1) / speed
        self.allowed[rows] = (_DRIFT * share).clamp(_LEAST_DRIFT[y.dtype], _MOST_DRIFT)
        self.speed[rows] = speed

    def __call__(self, y: Tensor, rows: Tensor) -> Tensor:
        """``(states (k, 2 m), rows (k,)) -> (k,)`` bool."""
        if not len(rows):
            return self.failed[rows]
        before = self.speed[rows]
        # Where nothing moves, nothing is lost.
        kept = ((self._of(y) - before).abs() <= self.allowed[rows] * before) | (before == 0)
        self.refused[rows] += ~kept
        self.failed[rows] |= self.refused[rows] >= _REFUSALS
        return kept

    def _of(self, y: Tensor) -> Tensor:
        z, v = y.chunk(2, -1)
        with torch.no_grad():
            return sound(self.space.norm, torch.Size(), z, v)


def advance(
    rhs: Callable[[Tensor], Tensor],
    y: Tensor,
    duration: float | Tensor,
    stride: Tensor,
    scale: Tensor,
    steps: Tensor,
    failed: Tensor,
    max_steps: int,
    sound: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Integrate ``ẏ = rhs(y)`` over ``duration``, every sample with its own steps.

    Args:
        rhs: ``(k, d) -> (k, d)``, NaN where a sample has none.
        y: States ``(p, d)``.
        duration: Time, one for all or ``(p,)``; negative runs backwards.
        stride: ``(p,)``, step to try first.
        scale: ``(p, d)``, error allowed in each component.
        steps: ``(p,)``, steps spent; counted up in place.
        failed: ``(p,)`` bool; samples that failed are skipped, new failures marked in place.
        max_steps: Steps a sample may take.
        sound: ``(states (k, d), rows (k,)) -> (k,)`` bool, whether a state is one that the solution
            can have. A step that leads elsewhere is repeated with a smaller one, as if its error
            were too large.

    Returns:
        The states at the end, and the step each sample would try next.
    """
    spans = torch.as_tensor(duration, dtype=y.dtype, device=y.device).expand(len(y))
    sign, total = spans.sign(), spans.abs()
    left = total.clone()
    least = (
        1e-13 if y.dtype == torch.float64 else 1e-7
    )  # of the time: shorter steps are lost in rounding
    while True:
        rows = ((left > 1e-12 * total) & ~failed).nonzero().flatten()
        if not len(rows):
            return y, stride
        h = torch.minimum(stride[rows], left[rows])
        trial, error = _dop853(rhs, y[rows], sign[rows] * h, scale[rows])
        good = error <= 1  # False for NaN
        if sound is not None:
            small = good.nonzero().flatten()
            kept = sound(trial[small].detach(), rows[small])
            good = good.index_put((small,), kept)
            error = error.index_put((small,), torch.where(kept, error[small], torch.inf))
        y = y.index_put((rows,), torch.where(good[:, None], trial, y[rows]))
        left[rows] = torch.where(good, left[rows] - h, left[rows])
        factor = (
            (_SAFETY * error.clamp(min=1e-12) ** (-1 / _ORDER))
            .nan_to_num(_SHRINK)
            .clamp(_SHRINK, _GROW)
        )
        grown = h * torch.where(good, factor, factor.clamp(max=1.0))
        # A step cut short by the end of the interval says nothing about how long the next may be.
        stride[rows] = torch.where(good & (h < stride[rows]), stride[rows], grown)
        steps[rows] += 1
        failed[rows] |= (steps[rows] >= max_steps) | (h < least * total[rows])


def _dop853(
    rhs: Callable[[Tensor], Tensor], y: Tensor, h: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of Dormand and Prince's 8(5,3) method (coefficients from scipy) and its error
    relative to ``scale``.
    """
    step = h[:, None]
    stages = [rhs(y)]
    method = _method()
    for row in method.A[1:]:
        stages.append(rhs(y + step * _combined(row, stages)))
    new = y + step * _combined(method.B, stages)
    # The error estimates weigh the slope at the new state by 0: it is left to the next step.
    with torch.no_grad():
        fifth, third = (
            (_combined(weights, stages) / scale).square().mean(-1)
            for weights in (method.E5, method.E3)
        )
        denominator = (fifth + 0.01 * third).clamp(min=torch.finfo(y.dtype).tiny)
        return new, h.abs() * fifth / denominator.sqrt()


@lru_cache(maxsize=1)
def _method() -> Any:
    """The coefficients, from scipy's class; imported when they are needed."""
    from scipy.integrate import DOP853

    return DOP853


def _combined(weights: Any, stages: list[Tensor]) -> Tensor:
    total = torch.zeros_like(stages[0])
    for weight, stage in zip(weights, stages, strict=False):
        if weight:
            total = total + float(weight) * stage
    return total


def _velocity(space: Space, y: Tensor) -> Tensor:
    """``(z, ż) -> (ż, z̈)``.

    NaN where the metric is singular or there is no value: only that sample fails.
    """
    z, w = y.chunk(2, -1)
    return torch.cat([w, sound_acceleration(space, z, w)], -1)


def _transported(space: Space, curve: Curve | Tensor, v: Tensor, parts: int) -> Tensor:
    """One pass of the eighth-order method with ``parts`` steps a piece.

    The equation is linear: its matrices ``−Γ(ż, ·)`` at all stages are computed at once, the steps
    are m × m products.
    """
    method, m = _method(), v.shape[-1]
    segments = curve.segments if isinstance(curve, Curve) else curve.shape[-2] - 1
    count = segments * parts
    nodes = torch.as_tensor(method.C, dtype=v.dtype, device=v.device)
    steps = torch.arange(count, device=v.device)[:, None]
    z, velocity = _along(
        curve, (steps // parts).expand(count, len(nodes)), (steps % parts + nodes) / parts
    )
    turn = connection_matrix(space.acceleration, z, velocity).view(
        *v.shape[:-1], count, len(nodes), m, m
    )
    w = v
    for i in range(count):
        stages: list[Tensor] = []
        for j, row in enumerate(method.A):
            inner = w + _combined(row, stages) / count if stages else w
            stages.append((turn[..., i, j, :, :] @ inner[..., None])[..., 0])
        w = w + _combined(method.B, stages) / count
    return w


def _along(curve: Curve | Tensor, piece: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Points and velocities at shares of pieces, ``(k, s), (k, s) -> (*b, k s, m)``.

    At a corner, the piece decides.
    """
    piece, share = piece.flatten(), share.flatten()
    if isinstance(curve, Curve):
        t = ((piece + share) / curve.segments).clamp(max=1.0)
        return curve(t), curve.velocity(t)
    step = curve[..., piece + 1, :] - curve[..., piece, :]
    return curve[..., piece, :] + share[:, None] * step, (curve.shape[-2] - 1) * step


def connection_matrix(
    acceleration: Callable[[Tensor, Tensor], Tensor], z: Tensor, u: Tensor
) -> Tensor:  # (*b, m), (*b, m) -> (*b, m, m)
    """The matrix of ``v ↦ −Γ(u, v)`` from accelerations alone:
    ``−Γ(u, v) = ¼ [a(u + v) − a(u − v)]``.

    The basis vectors are scaled to the size of ``u``, which balances the difference.
    """
    m = z.shape[-1]
    size = (
        u.abs().amax(-1, keepdim=True)[..., None, :].clamp(min=torch.finfo(u.dtype).tiny)
    )  # (*b, 1, 1)
    basis = size * torch.eye(m).to(u)  # [..., j, :] = the j-th basis vector
    points = z[..., None, :].expand(basis.shape).reshape(-1, m)
    ends = [(u[..., None, :] + sign * basis).reshape(-1, m) for sign in (1, -1)]
    there, back = acceleration(torch.cat([points, points]), torch.cat(ends)).chunk(2)
    return ((there - back).view(basis.shape) / (4 * size)).mT


def _shooting(
    space: Space, start: Tensor, stop: Tensor, v: Tensor, rows: Tensor, rtol: float
) -> Tensor:
    """Improve ``v[rows]`` in place until ``exp(start, v)`` meets ``stop``.

    Returns the rows that never did.

    Newton's method with a Jacobian by differences, taken anew only when it stops helping.
    """
    accuracy = max(rtol / 10, 1e-10 if v.dtype == torch.float64 else 1e-5)
    shot = lambda z, w: exp(space, z, w, rtol=accuracy, throw=False)  # noqa: E731 (one expression)
    best = torch.full_like(v[:, 0], torch.inf)
    slope = torch.zeros(len(v), v.shape[-1], v.shape[-1], dtype=v.dtype, device=v.device)
    current = v.clone()
    fresh = False
    for attempt in range(_SHOTS):
        miss = stop[rows] - shot(start[rows], current[rows])
        size = current[rows].norm(dim=-1)
        gap = (miss.norm(dim=-1) / size).nan_to_num(torch.inf)
        better = gap < best[rows]
        v[rows[better]] = current[rows[better]]
        helped = gap < best[rows] / 4
        best[rows] = torch.minimum(gap, best[rows])
        keep = gap > rtol
        if not bool(keep.any()) or attempt == _SHOTS - 1:
            break
        rows, miss, size, helped = rows[keep], miss[keep], size[keep], helped[keep]
        if not fresh or not bool(helped.all()):
            difference = tolerance(v.dtype).eps ** 0.4 * size[:, None]
            base = stop[rows] - miss
            for j, e in enumerate(torch.eye(v.shape[-1]).to(v)):
                slope[rows, :, j] = (
                    shot(start[rows], current[rows] + difference * e) - base
                ) / difference
            fresh = True
        update, info = torch.linalg.solve_ex(slope[rows], miss[..., None])
        current[rows] = current[rows] + torch.where((info == 0)[:, None], update[..., 0], 0.0)
    return (best > rtol).logical_and(best.isfinite()).nonzero().flatten()


def accuracy_of(
    where: str, rtol: float | None, like: Tensor, double: float, single: float
) -> float:
    """``rtol`` as it was given, or the default of the dtype of ``like``.

    Raises:
        OptionError: When it is not positive.
        DTypeError: When it is not a number.
    """
    tolerance(like.dtype)
    if rtol is None:
        return double if like.dtype == torch.float64 else single
    return expect_rtol(where, rtol)
