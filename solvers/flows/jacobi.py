"""Jacobi fields: how a geodesic moves when its start does.

They are the derivative of the exponential map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError, OptionError, ShapeError
from riemae.numerics.checks import expect_device
from riemae.numerics.precision import in_full_precision
from riemae.numerics.threads import jvp
from riemae.solvers.certificate import sound, sound_acceleration
from riemae.solvers.flows.integrator import accuracy_of, advance
from riemae.solvers.flows.parallel import connection_matrix
from riemae.solvers.hooks import deviation_of
from riemae.solvers.space import HasSpace, Space, space_of


@dataclass(frozen=True)
class JacobiField:
    """A Jacobi field along geodesics, at the times asked for.

    Its parts are ``(*b, m)`` at one time, and ``(*b, k, m)`` at k times.

    Attributes:
        points: Where the geodesic is.
        velocities: Its velocity there.
        values: The field ``J``.
        derivatives: Its covariant derivative ``DJ/dt``.
    """

    points: Tensor
    velocities: Tensor
    values: Tensor
    derivatives: Tensor


@in_full_precision
def jacobi(
    space: Space | HasSpace,
    z: Tensor,
    v: Tensor,
    start: Tensor | None = None,
    slope: Tensor | None = None,
    t: float | Tensor = 1.0,
    *,
    rtol: float | None = None,
    max_steps: int = 2000,
    throw: bool = True,
) -> JacobiField:
    """The Jacobi field along ``exp(z, t v)`` with given initial value and covariant derivative.

    It solves ``D²J/dt² + R(J, ż) ż = 0`` and is what the geodesic does to first order when ``z``
    moves along ``start`` and ``v`` turns by ``slope``, integrated together with the geodesic itself
    and under one error control. A space that knows its curvature
    (:class:`~riemae.solvers.hooks.HasDeviation`) gives the equation as it stands; for others it is
    the variation of the geodesic equation, by forward mode through ``acceleration``.

    Args:
        space: Anything with a ``deviation``, or an ``acceleration`` that forward mode can
            differentiate.
        z: Start points ``(*b, m)``.
        v: Velocities ``(*b, m)``.
        start: ``J(0)``, ``(*b, m)``; by default 0.
        slope: ``DJ/dt(0)``, ``(*b, m)``; by default 0.
        t: One time, or increasing times ``(k,)``.
        rtol: As in :func:`~riemae.solvers.exp`.
        max_steps: As in :func:`~riemae.solvers.exp`.
        throw: Raise when a sample fails; False returns NaN for it.

    Raises:
        ShapeError: When the vectors do not pair up.
        OptionError: When times are not finite and in order.
        NotConvergedError: When ``throw`` and a sample fails; its ``result`` holds the values of all
            samples.

    References:
        M. P. do Carmo, Riemannian Geometry, chapter 5.
    """
    space = space_of(space, z, where="jacobi")
    zero = torch.zeros_like(z)
    if start is None:
        start = zero
    if slope is None:
        slope = zero
    z, v, start, slope = paired("jacobi", z, v, start, slope)
    m = z.shape[-1]
    batch = z.shape[:-1]
    flat = [x.reshape(-1, m) for x in (z, v, start, slope)]
    times = _times("jacobi", t)
    flow = Variation(
        space=space,
        z=flat[0],
        v=flat[1],
        fields=flat[2][:, None],
        derivatives=flat[3][:, None],
        reach=max(map(abs, times)),
        rtol=rtol,
        max_steps=max_steps,
    )
    found = [flow.at(time) for time in times]
    single = not isinstance(t, Tensor) or not t.ndim

    def shaped(parts: list[Tensor]) -> Tensor:  # of (p, m) each
        stacked = torch.stack(parts, 1)
        whole = stacked.view(*batch, len(times), m)
        if single:
            return whole[..., 0, :]
        return whole

    result = JacobiField(
        points=shaped([moment.z for moment in found]),
        velocities=shaped([moment.v for moment in found]),
        values=shaped([moment.fields[:, 0] for moment in found]),
        derivatives=shaped([moment.derivatives[:, 0] for moment in found]),
    )
    if throw and bool(flow.failed.any()):
        first = flow.failed.nonzero().flatten().tolist()[:5]
        raise NotConvergedError(
            "jacobi",
            f"{len(flow.failed)} geodesics integrated with their fields",
            f"{int(flow.failed.sum())} that failed (first: {first})",
            "They leave the domain of the metric or meet a singular point; raise max_steps, loosen "
            "rtol, shorten t.",
            result.values,
        )
    return result


@dataclass
class Moment:
    """Geodesics and fields along them at one time: ``(p, m)``, and ``(p, c, m)`` for c fields."""

    z: Tensor
    v: Tensor
    fields: Tensor
    derivatives: Tensor

    def select(self, index: Tensor) -> Moment:
        """The geodesics at ``index``."""
        return Moment(
            z=self.z[index],
            v=self.v[index],
            fields=self.fields[index],
            derivatives=self.derivatives[index],
        )

    @classmethod
    def cat(cls, parts: list[Moment]) -> Moment:
        """One batch from several."""
        return cls(
            z=torch.cat([part.z for part in parts]),
            v=torch.cat([part.v for part in parts]),
            fields=torch.cat([part.fields for part in parts]),
            derivatives=torch.cat([part.derivatives for part in parts]),
        )


class Variation:
    """Geodesics with ``c`` Jacobi fields each, integrated forward from one time to the next.

    Args:
        space: The space.
        z: ``(p, m)``.
        v: ``(p, m)``.
        fields: ``J(0)``, ``(p, c, m)``.
        derivatives: ``DJ/dt(0)``, ``(p, c, m)``.
        reach: The time in which the whole journey is made, however short a part of it: errors are
            judged against it.
        rtol: Error allowed per unit of travelled coordinates, and of the fields' size.
        max_steps: Steps that a sample may take.
    """

    def __init__(
        self,
        space: Space,
        z: Tensor,
        v: Tensor,
        fields: Tensor,
        derivatives: Tensor,
        reach: float,
        rtol: float | None,
        max_steps: int,
    ) -> None:
        self.space = space
        self.reach = max(abs(reach), 1e-30)
        self.max_steps = max_steps
        self.rtol = accuracy_of("jacobi", rtol, z, 1e-9, 1e-5)
        self.count = fields.shape[1]
        # Whether the states hold DJ/dt; else the coordinates' own derivative of J.
        self.covariant = _deviation(space, z[:1], v[:1]) is not None
        rates = derivatives
        if not self.covariant:  # dJ/dt = DJ/dt − Γ(ż, J)
            rates = derivatives + torch.einsum(
                "pij,pcj->pci", sound_connection_matrix(space, z, v), fields
            )
        parts = [z[:, None], v[:, None], fields, rates]
        self.y = torch.cat(parts, 1).flatten(1)
        self.steps = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        self.failed = ~self.y.isfinite().all(1)
        self.stride: Tensor | None = None
        self.now: float | Tensor = 0.0

    def at(self, time: float | Tensor) -> Moment:
        """Everything at ``time`` (one for all, or ``(p,)``).

        NaN for samples that failed on the way.
        """
        spans = torch.as_tensor(time - self.now, dtype=self.y.dtype, device=self.y.device).expand(
            len(self.y)
        )
        if bool(spans.any()):
            if self.stride is None:
                self.stride = spans.abs().clamp(max=0.1 * self.reach)
            scale = self._scale()
            self.y, self.stride = advance(
                rhs=self._rhs,
                y=self.y,
                duration=spans,
                stride=self.stride,
                scale=scale,
                steps=self.steps,
                failed=self.failed,
                max_steps=self.max_steps,
            )
            self.now = time
        return self._moment()

    def _moment(self) -> Moment:
        c = self.count
        parts = self.y.unflatten(1, (2 + 2 * c, -1))
        parts = torch.where(self.failed[:, None, None], torch.nan, parts)
        z = parts[:, 0]
        v = parts[:, 1]
        fields = parts[:, 2 : 2 + c]
        rates = parts[:, 2 + c :]
        if self.covariant:
            return Moment(z, v, fields, rates)
        turned = torch.einsum("pij,pcj->pci", sound_connection_matrix(self.space, z, v), fields)
        return Moment(z, v, fields, rates - turned)

    def _scale(self) -> Tensor:
        """The errors allowed.

        They are judged against the coordinates travelled in all, the speed, and the fields' size.
        """
        c = self.count
        signed = self.y.detach().unflatten(1, (2 + 2 * c, -1))
        parts = signed.abs()
        tiny = torch.finfo(parts.dtype).tiny
        speed = parts[:, 1].amax(-1)
        units = [speed * self.reach, speed]
        if c:
            size = torch.maximum(
                parts[:, 2 : 2 + c].amax((1, 2)), self.reach * parts[:, 2 + c :].amax((1, 2))
            )
            units += [*[size] * c, *[size / self.reach] * c]
        columns = torch.stack(units, 1)[:, :, None]
        scale = columns.expand(parts.shape).flatten(1)
        return self.rtol * scale.clamp(min=tiny)

    def _rhs(self, y: Tensor) -> Tensor:
        """Derivatives of points, velocities, fields, and the fields' own coordinate derivatives."""
        c = self.count
        parts = y.unflatten(1, (2 + 2 * c, -1))
        point = parts[:, 0]
        velocity = parts[:, 1]
        if not c:
            force = sound_acceleration(self.space, point, velocity)
            return torch.cat([velocity, force], 1)
        if self.covariant:
            return self._by_curvature(parts)
        # One directional derivative of the acceleration per field, all in one batch.
        z = point.repeat_interleave(c, 0)
        v = velocity.repeat_interleave(c, 0)
        fields = parts[:, 2 : 2 + c]
        rates = parts[:, 2 + c :]
        tangents = fields.flatten(0, 1).contiguous(), rates.flatten(0, 1).contiguous()
        acceleration = partial(sound_acceleration, self.space)
        value, tangent, *_ = jvp(acceleration, (z, v), tangents)
        every = value.unflatten(0, (len(y), c))
        force = every[:, :1]
        bend = tangent.unflatten(0, (len(y), c))
        moved = parts[:, 1:2]
        return torch.cat([moved, force, rates, bend], 1).flatten(1)

    def _by_curvature(self, parts: Tensor) -> Tensor:  # (k, 2 + 2 c, m) -> (k, (2 + 2 c) m)
        """``D²J/dt² = −R(J, ż) ż``, with ``d/dt = D/dt − Γ(ż, ·)`` in coordinates."""
        c = self.count
        velocity = parts[:, 1:2]
        known = _deviation(self.space, parts[:, 0], parts[:, 1])
        assert known is not None
        turning, bending = known.mT.unbind(1)
        derivatives = parts[:, 2 + c :]
        moving = parts[:, 1:]  # velocity, fields, derivatives: all of them turn
        turned = moving @ turning
        pulled = parts[:, 2 : 2 + c] @ bending
        rates = torch.cat([torch.zeros_like(velocity), derivatives, -pulled], 1) - turned
        return torch.cat([velocity, rates], 1).flatten(1)


def _deviation(space: Space, z: Tensor, v: Tensor) -> Tensor | None:  # -> (k, 2, m, m)
    """As the space's hook, NaN where the metric is singular or there is no value."""
    m = z.shape[-1]
    shape = torch.Size([2, m, m])

    def call(z: Tensor, v: Tensor) -> Any:
        return deviation_of(space, z, v)

    return sound(call, shape, z, v)


def sound_connection_matrix(
    space: Space, z: Tensor, u: Tensor
) -> Tensor:  # (p, m), (p, m) -> (p, m, m)
    """The matrix of ``w ↦ −Γ(u, w)``, NaN where there is none."""
    point_finite = z.isfinite().all(-1)
    vector_finite = u.isfinite().all(-1)
    finite = point_finite & vector_finite
    m = z.shape[-1]
    out = z.new_full((*z.shape, m), torch.nan)
    if bool(finite.any()):
        acceleration = partial(sound_acceleration, space)
        out[finite] = connection_matrix(acceleration, z[finite], u[finite])
    return out


def paired(where: str, *vectors: Tensor) -> tuple[Tensor, ...]:
    """Points and vectors of one shape.

    Raises:
        ShapeError: When they do not broadcast, or their dtypes differ.
        DeviceError: When their devices differ.
    """
    for x in vectors[1:]:
        expect_device(where, "v", x, "z", vectors[0])
    shapes = ", ".join(str(tuple(x.shape)) for x in vectors)
    problem = ShapeError(
        where, "points and vectors of one shape (*b, m) and dtype", shapes, "Pair them up."
    )
    if any(
        not x.ndim or x.shape[-1] != vectors[0].shape[-1] or x.dtype != vectors[0].dtype
        for x in vectors
    ):
        raise problem
    try:
        return tuple(torch.broadcast_tensors(*vectors))
    except RuntimeError:
        raise problem from None


def _times(where: str, t: float | Tensor) -> list[float]:
    if not isinstance(t, Tensor):
        times = [float(t)]
    else:
        times = [float(x) for x in t.reshape(-1)]
    ascending = all(a <= b for a, b in zip(times, times[1:], strict=False))
    ordered = ascending and (len(times) == 1 or times[0] >= 0)
    if not times or not all(map(math.isfinite, times)) or not ordered:
        hint = "Try t.sort().values; times before and after 0 take two calls."
        raise OptionError(where, "a finite time, or increasing times from 0 on", str(times), hint)
    return times
