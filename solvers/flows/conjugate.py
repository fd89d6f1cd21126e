"""Conjugate points: where geodesics from one point meet again, and stop being shortest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError, OptionError
from riemae.numerics.precision import in_full_precision
from riemae.solvers.flows.jacobi import Moment, Variation, paired
from riemae.solvers.space import HasSpace, Space, space_of

# Samples along a geodesic before any is added.
_SAMPLES = 16
# The time, as a share of the whole, that weighs A against DA.
_UNIT = 1 / 8
# Angles that turn by more between two samples might be mistaken for one another.
_LEAP = math.pi / 2
_HALVINGS = 8  # of the sampling
# Of the root finder.
_ITERATIONS = 40
_EXACT = 1e-10
_TOGETHER = 1e-6  # crossings this close, relative to the whole time, are one of higher multiplicity


@dataclass(frozen=True)
class ConjugatePoints:
    """Conjugate points along geodesics; ``c`` is the largest number on any of them.

    Attributes:
        times: When they are passed, ``(*b, c)``, ascending; NaN beyond the last.
        multiplicity: Dimension of the Jacobi fields that vanish there, ``(*b, c)`` int64; 0 beyond
            the last.
        points: Where, ``(*b, c, m)``; NaN beyond the last.
    """

    times: Tensor
    multiplicity: Tensor
    points: Tensor

    @property
    def index(self) -> Tensor:
        """``(*b,)``, how many there are, counted with multiplicity.

        It is the Morse index of a geodesic that ends beyond the last.
        """
        return self.multiplicity.sum(-1)


@in_full_precision
def conjugate_points(
    space: Space | HasSpace,
    z: Tensor,
    v: Tensor,
    t: float = 1.0,
    *,
    rtol: float | None = None,
    max_steps: int = 2000,
    throw: bool = True,
) -> ConjugatePoints:
    """Conjugate points of ``z`` along the geodesic with velocity ``v``, for times in ``(0, t)``.

    ``A(s)`` maps ``DJ/dt(0)`` to ``J(s)`` for the Jacobi fields that vanish at 0; it is singular at
    a conjugate point. In an orthonormal frame ``(A, DA)`` spans a Lagrangian plane, so
    ``U = (DA + iA)(DA − iA)⁻¹`` is unitary, and its eigenvalues pass through 1 at conjugate points
    only, always in the same sense. Following the angles of the eigenvalues counts every point with
    its multiplicity, even where the determinant of ``A`` does not change sign.

    Args:
        space: As in :func:`jacobi`.
        z: Start points ``(*b, m)``.
        v: Velocities ``(*b, m)``.
        t: Positive time at which to stop.
        rtol: Of the integration.
        max_steps: Of the integration.
        throw: Raise when a sample fails; False reports no conjugate points for it.

    Raises:
        OptionError: When ``t`` is not positive and finite.
        NotConvergedError: When ``throw`` and a geodesic cannot be followed to ``t``.

    References:
        J. J. Duistermaat, On the Morse index in variational calculus, 1976 (the angles); do Carmo,
        chapter 11.
    """
    space = space_of(space, z, where="conjugate_points")
    if not (t > 0 and math.isfinite(t)):
        raise OptionError("conjugate_points", "a positive finite time", str(t), "Try t=1.0.")
    z, v = paired("conjugate_points", z, v)
    m = z.shape[-1]
    batch = z.shape[:-1]
    flat_z = z.detach().reshape(-1, m)
    flat_v = v.detach().reshape(-1, m)
    with torch.no_grad():
        track = _Track(space, flat_z, flat_v, t, rtol, max_steps)
        crossings = track.crossings()
    if throw and bool(track.failed.any()):
        rows = track.failed.nonzero().flatten()
        first = rows.tolist()[:5]
        raise NotConvergedError(
            "conjugate_points",
            f"{len(flat_z)} geodesics followed to t={t:g}",
            f"{int(track.failed.sum())} that failed (first: {first})",
            "They leave the domain of the metric or meet a singular point; shorten t, or loosen "
            "rtol.",
            track.failed,
        )
    return _table(crossings, len(flat_z), m, batch, t)


@dataclass
class _Intervals:
    """Stretches of geodesics, ``q`` of them.

    Attributes:
        row: ``(q,)``, which geodesic.
        left: ``(q,)``, when it begins.
        span: ``(q,)``, how long it lasts.
        start: Geodesic and fields where it begins.
        before: ``(q, m)``, the angles there.
        after: ``(q, m)``, the angles where it ends.
    """

    row: Tensor
    left: Tensor
    span: Tensor
    start: Moment
    before: Tensor
    after: Tensor

    def select(self, index: Tensor) -> _Intervals:
        start = self.start.select(index)
        return _Intervals(
            row=self.row[index],
            left=self.left[index],
            span=self.span[index],
            start=start,
            before=self.before[index],
            after=self.after[index],
        )


@dataclass
class _Crossings:
    """Conjugate points, not in order: of which geodesic, when, where.

    Those of multiplicity several times.
    """

    row: Tensor
    time: Tensor
    point: Tensor


class _Track:
    """The angles of ``U`` along geodesics, sampled so densely that none is mistaken for another."""

    def __init__(
        self, space: Space, z: Tensor, v: Tensor, t: float, rtol: float | None, max_steps: int
    ) -> None:
        self.space = space
        self.t = t
        self.rtol = rtol
        self.max_steps = max_steps
        p, m = z.shape
        identity = torch.eye(m).to(z)
        identity = identity.expand(p, m, m) / t  # of unit size whatever the time
        flow = Variation(
            space=space,
            z=z,
            v=v,
            fields=torch.zeros_like(identity),
            derivatives=identity,
            reach=t,
            rtol=rtol,
            max_steps=max_steps,
        )
        self.moments = [flow.at(t * k / _SAMPLES) for k in range(_SAMPLES + 1)]
        self.failed = flow.failed

    def crossings(self) -> _Crossings:
        """All conjugate points."""
        sound = (~self.failed).nonzero().flatten()
        angles = [self._angles(moment)[sound] for moment in self.moments]
        angles[0] = torch.zeros_like(angles[0])  # all fields vanish at the start
        first = self.moments[0]
        span = torch.full_like(first.z[sound, 0], self.t / _SAMPLES)
        number = torch.arange(_SAMPLES).to(span)
        left = number[:, None] * span
        every = _Intervals(
            row=sound.repeat(_SAMPLES),
            left=left.flatten(),
            span=span.repeat(_SAMPLES),
            start=Moment.cat([moment.select(sound) for moment in self.moments[:-1]]),
            before=torch.cat(angles[:-1]),
            after=torch.cat(angles[1:]),
        )
        return self._inside(every, _HALVINGS)

    def _inside(self, part: _Intervals, halvings: int) -> _Crossings:
        lifted, leap = _lifted(part.before, part.after)
        coarse = (leap > _LEAP) & (halvings > 0)
        fine = (~coarse).nonzero().flatten()
        passed = (lifted[fine] >= 2 * torch.pi).nonzero()
        crossing = part.select(fine[passed[:, 0]])
        found = [self._located(crossing, passed[:, 1])]
        if bool(coarse.any()):
            long = part.select(coarse.nonzero().flatten())
            half = long.span / 2
            middle = self._flow(long.start, half)
            between = self._angles(middle)
            first = _Intervals(
                row=long.row,
                left=long.left,
                span=half,
                start=long.start,
                before=long.before,
                after=between,
            )
            second = _Intervals(
                row=long.row,
                left=long.left + half,
                span=half,
                start=middle,
                before=between,
                after=long.after,
            )
            found += [self._inside(part, halvings - 1) for part in (first, second)]
        return _Crossings(
            *(torch.cat([getattr(x, name) for x in found]) for name in ("row", "time", "point"))
        )

    def _located(self, part: _Intervals, rank: Tensor) -> _Crossings:
        """When and where the angles of these ranks pass 2π.

        By the Illinois variant of regula falsi, all at once.
        """

        def excess(after: Tensor) -> Tensor:
            lifted = _lifted(part.before, after)[0]
            return lifted.gather(1, rank[:, None])[:, 0] - 2 * torch.pi

        low = torch.zeros_like(part.span)
        high = part.span.clone()
        start = part.before.gather(1, rank[:, None])[:, 0]
        below = start - 2 * torch.pi
        above = excess(part.after)
        root = high.clone()
        point = part.start.z
        kept = torch.zeros_like(rank)  # which end stayed last: −1 low, 1 high
        for _ in range(_ITERATIONS):
            if not len(rank) or bool(((high - low) <= _EXACT * self.t).all()):
                break
            root = (low * above - high * below) / (above - below).clamp(
                min=torch.finfo(low.dtype).tiny
            )
            moment = self._flow(part.start, root)
            point = moment.z
            value = excess(self._angles(moment))
            if bool((value.abs() <= _EXACT).all()):
                break
            right = value > 0
            # An end that stays twice is held back by half, or the other would creep.
            below = torch.where(right, torch.where(kept == -1, below / 2, below), value)
            above = torch.where(right, value, torch.where(kept == 1, above / 2, above))
            high = torch.where(right, root, high)
            low = torch.where(right, low, root)
            kept = torch.where(right, -1, 1)
        return _Crossings(part.row, part.left + root, point)

    def _flow(self, start: Moment, duration: Tensor) -> Moment:
        fields = start.fields
        derivatives = start.derivatives
        flow = Variation(
            space=self.space,
            z=start.z,
            v=start.v,
            fields=fields,
            derivatives=derivatives,
            reach=self.t,
            rtol=self.rtol,
            max_steps=self.max_steps,
        )
        return flow.at(duration)

    def _angles(self, moment: Moment) -> Tensor:  # -> (p, m), ascending in [0, 2π)
        """Angles of the eigenvalues of ``U``."""
        a = moment.fields.mT
        da = moment.derivatives.mT * (_UNIT * self.t)
        finite = a.isfinite() & da.isfinite()
        sound = finite.flatten(1).all(1)
        out = a.new_full(a.shape[:2], torch.nan)
        if not bool(sound.any()):
            return out
        metric = self.space.metric(moment.z[sound])
        frame = torch.linalg.cholesky(metric).mT  # rows of an orthonormal coframe: |Lᵀ u|² = uᵀ G u
        # Orthonormal columns, however much the fields have grown.
        values = frame @ a[sound]
        slopes = frame @ da[sound]
        plane = torch.cat([values, slopes], 1)
        q = torch.linalg.qr(plane)[0]
        top, bottom = q.chunk(2, 1)
        plus = bottom + 1j * top
        minus = bottom - 1j * top
        u = torch.linalg.solve(minus.mT, plus.mT).mT
        angles = torch.linalg.eigvals(u).angle()
        turned = angles.remainder(2 * torch.pi)
        out[sound] = turned.sort(-1).values
        return out


def _lifted(
    before: Tensor, after: Tensor
) -> tuple[Tensor, Tensor]:  # (q, m), (q, m) -> (q, m), (q,)
    """The second angles as continuations of the first, and by how much they have turned at most.

    Sorted angles on a circle keep their order, so the second are a shift of the first; the one that
    moves them least is right. An angle of 2π or more has passed a conjugate point.
    """
    m = before.shape[1]
    turn = 2 * torch.pi
    shifts = [torch.cat([after[:, k:], after[:, :k] + turn], 1) for k in range(m + 1)]
    shifts += [torch.cat([after[:, m - k :] - turn, after[:, : m - k]], 1) for k in range(1, m + 1)]
    every = torch.stack(shifts)  # (2m + 1, q, m)
    turns = (every - before).abs()
    leap, best = turns.amax(-1).min(0)
    pair = torch.arange(len(before), device=before.device)
    return every[best, pair], leap


def _table(found: _Crossings, p: int, m: int, batch: torch.Size, t: float) -> ConjugatePoints:
    """Crossings sorted into rows; those at one time are one point of higher multiplicity."""
    rows: list[list[tuple[float, int, Tensor]]] = [[] for _ in range(p)]
    for k in found.time.argsort().tolist():
        row = rows[int(found.row[k])]
        time = float(found.time[k])
        if row and time - row[-1][0] <= _TOGETHER * t:
            row[-1] = (row[-1][0], row[-1][1] + 1, row[-1][2])
        else:
            row.append((time, 1, found.point[k]))
    width = max(map(len, rows), default=0)
    times = found.time.new_full((p, width), torch.nan)
    points = found.point.new_full((p, width, m), torch.nan)
    count = torch.zeros(p, width, dtype=torch.int64, device=times.device)
    for i, row in enumerate(rows):
        for k, (time, multiplicity, point) in enumerate(row):
            times[i, k] = time
            count[i, k] = multiplicity
            points[i, k] = point
    return ConjugatePoints(
        times.view(*batch, width), count.view(*batch, width), points.view(*batch, width, m)
    )
