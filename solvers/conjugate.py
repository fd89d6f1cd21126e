"""Conjugate points: where geodesics from one point meet again, and stop being shortest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.solvers.exceptions import NotConvergedError, OptionError
from riemae.solvers.jacobi import Moment, Variation, _paired
from riemae.solvers.space import Space

_SAMPLES = 64
_LEAP = math.pi / 2  # angles that turn by more between two samples might be mistaken for one another
_HALVINGS = 8  # of the sampling
_TOGETHER = 1e-6  # crossings this close, relative to the whole time, are one of higher multiplicity


@dataclass(frozen=True)
class ConjugatePoints:
    """Conjugate points along geodesics; ``c`` is the largest number on any of them.

    Attributes:
        times: When they are passed, ``(*b, c)``, ascending; NaN beyond the last.
        multiplicity: Dimension of the Jacobi fields that vanish there, ``(*b, c)`` int64; 0 beyond the last.
        points: Where, ``(*b, c, m)``; NaN beyond the last.
    """

    times: Tensor
    multiplicity: Tensor
    points: Tensor

    @property
    def index(self) -> Tensor:
        """``(*b,)``, how many there are with multiplicity: the Morse index of a geodesic that ends beyond the last."""
        return self.multiplicity.sum(-1)


def conjugate_points(
    space: Space,
    z: Tensor,
    v: Tensor,
    t: float = 1.0,
    *,
    rtol: float | None = None,
    max_steps: int = 2000,
    throw: bool = True,
) -> ConjugatePoints:
    """Conjugate points of ``z`` along the geodesic with velocity ``v``, for times in ``(0, t)``.

    ``A(s)`` maps ``DJ/dt(0)`` to ``J(s)`` for the Jacobi fields that vanish at 0; it is singular at a conjugate point.
    In an orthonormal frame ``(A, DA)`` spans a Lagrangian plane, so ``U = (DA + iA)(DA − iA)⁻¹`` is unitary, and its
    eigenvalues pass through 1 at conjugate points only, always in the same sense. Following the angles of the
    eigenvalues counts every point with its multiplicity, even where the determinant of ``A`` does not change sign.

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
        J. J. Duistermaat, On the Morse index in variational calculus, 1976 (the angles); do Carmo, chapter 11.
    """
    if not (t > 0 and math.isfinite(t)):
        raise OptionError("conjugate_points", "a positive finite time", str(t), "")
    z, v = _paired("conjugate_points", z, v)
    m, batch = z.shape[-1], z.shape[:-1]
    flat_z, flat_v = z.detach().reshape(-1, m), v.detach().reshape(-1, m)
    with torch.no_grad():
        track = _Track(space, flat_z, flat_v, t, rtol, max_steps)
        crossings = track.crossings()
    if throw and bool(track.failed.any()):
        raise NotConvergedError(
            "conjugate_points",
            f"{len(flat_z)} geodesics followed to t={t:g}",
            f"{int(track.failed.sum())} that failed (first: {track.failed.nonzero().flatten().tolist()[:5]})",
            "They leave the domain of the metric or meet a singular point; shorten t, or loosen rtol.",
            track.failed,
        )
    width = max((len(found) for found in crossings), default=0)
    times = z.new_full((len(flat_z), width), torch.nan)
    points = z.new_full((len(flat_z), width, m), torch.nan)
    count = torch.zeros(len(flat_z), width, dtype=torch.int64, device=z.device)
    for row, found in enumerate(crossings):
        for k, (time, multiplicity, point) in enumerate(found):
            times[row, k], count[row, k], points[row, k] = time, multiplicity, point
    return ConjugatePoints(times.view(*batch, width), count.view(*batch, width), points.view(*batch, width, m))


class _Track:
    """The angles of ``U`` along geodesics, sampled so densely that none is mistaken for another."""

    def __init__(self, space: Space, z: Tensor, v: Tensor, t: float, rtol: float | None, max_steps: int) -> None:
        self.space, self.t, self.rtol, self.max_steps = space, t, rtol, max_steps
        p, m = z.shape
        identity = torch.eye(m).to(z).expand(p, m, m) / t  # at unit scale whatever the time
        flow = Variation(space, z, v, torch.zeros_like(identity), identity, t, rtol, max_steps)
        self.moments = [flow.at(0.0)]
        self.times = [0.0]
        for k in range(1, _SAMPLES + 1):
            self.times.append(t * k / _SAMPLES)
            self.moments.append(flow.at(self.times[-1]))
        self.failed = flow.failed

    def crossings(self) -> list[list[tuple[float, int, Tensor]]]:
        """Of every sample: time, multiplicity and place of its conjugate points."""
        p = len(self.failed)
        found: list[list[tuple[float, Tensor]]] = [[] for _ in range(p)]
        angles = [self._angles(moment) for moment in self.moments]
        angles[0] = torch.zeros_like(angles[0])  # all fields vanish at the start
        sound = (~self.failed).nonzero().flatten()
        for k in range(_SAMPLES):
            for row in sound.tolist():
                start = _row(self.moments[k], row)
                self._between(
                    start, angles[k][row], angles[k + 1][row], self.times[k], self.times[k + 1], found[row], 0
                )
        return [_merged(times, self.t) for times in found]

    def _between(
        self,
        start: Moment,
        before: Tensor,
        after: Tensor,
        left: float,
        right: float,
        found: list[tuple[float, Tensor]],
        depth: int,
    ) -> None:
        lifted, leap = _lifted(before, after)
        if leap > _LEAP and depth < _HALVINGS:
            half = (left + right) / 2
            middle = self._flow(start, half - left)
            angles = self._angles(middle)[0]
            self._between(start, before, angles, left, half, found, depth + 1)
            self._between(middle, angles, after, half, right, found, depth + 1)
            return
        for rank in (lifted >= 2 * torch.pi).nonzero().flatten().tolist():
            found.append(self._located(start, before, rank, left, right))

    def _located(self, start: Moment, before: Tensor, rank: int, left: float, right: float) -> tuple[float, Tensor]:
        """When and where the angle of this rank passes 2π."""
        from scipy.optimize import brentq

        def excess(duration: float) -> float:
            return float(_lifted(before, self._angles(self._flow(start, duration))[0])[0][rank]) - 2 * math.pi

        last = right - left
        # Rounding of the integrator can put the end of the interval on the other side of a root at it.
        duration = last if excess(last) <= 0 else brentq(excess, 0.0, last, xtol=1e-12 * self.t, rtol=1e-14)
        return left + duration, self._flow(start, duration).z[0]

    def _flow(self, start: Moment, duration: float) -> Moment:
        fields, derivatives = start.fields, start.derivatives
        flow = Variation(self.space, start.z, start.v, fields, derivatives, self.t, self.rtol, self.max_steps)
        return flow.at(duration)

    def _angles(self, moment: Moment) -> Tensor:  # -> (p, m), ascending in [0, 2π)
        """Angles of the eigenvalues of ``U``."""
        a, da = moment.fields.mT, moment.derivatives.mT * self.t
        sound = (a.isfinite() & da.isfinite()).flatten(1).all(1)
        out = a.new_full(a.shape[:2], torch.nan)
        metric = self.space.metric(moment.z[sound])
        frame = torch.linalg.cholesky(metric).mT  # rows of an orthonormal coframe: |Lᵀ u|² = uᵀ G u
        stacked = torch.cat([frame @ a[sound], frame @ da[sound]], 1)
        q = torch.linalg.qr(stacked)[0]  # the plane, whatever the growth of the fields
        top, bottom = q.chunk(2, 1)
        u = torch.linalg.solve((bottom - 1j * top).mT, (bottom + 1j * top).mT).mT
        out[sound] = torch.linalg.eigvals(u).angle().remainder(2 * torch.pi).sort(-1).values
        return out


def _lifted(before: Tensor, after: Tensor) -> tuple[Tensor, float]:  # (m,), (m,) -> (m,)
    """The second angles as continuations of the first, and by how much they have turned at most.

    Sorted angles on a circle keep their order, so the second are a shift of the first; the one that moves them least
    is right. An angle of 2π or more has passed a conjugate point.
    """
    m = len(before)
    shifts = [torch.cat([after[k:], after[:k] + 2 * torch.pi]) for k in range(m + 1)]
    shifts += [torch.cat([after[-k:] - 2 * torch.pi, after[:-k]]) for k in range(1, m + 1)]
    leaps = [float((lifted - before).abs().max()) for lifted in shifts]
    best = min(range(len(shifts)), key=leaps.__getitem__)
    return shifts[best], leaps[best]


def _merged(times: list[tuple[float, Tensor]], t: float) -> list[tuple[float, int, Tensor]]:
    """Crossings at one time as one point of higher multiplicity."""
    merged: list[tuple[float, int, Tensor]] = []
    for time, point in sorted(times, key=lambda pair: pair[0]):
        if merged and time - merged[-1][0] <= _TOGETHER * t:
            merged[-1] = (merged[-1][0], merged[-1][1] + 1, merged[-1][2])
        else:
            merged.append((time, 1, point))
    return merged


def _row(moment: Moment, row: int) -> Moment:
    return Moment(*(x[row : row + 1] for x in (moment.z, moment.v, moment.fields, moment.derivatives)))
