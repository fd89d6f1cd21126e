"""Start curves that are geodesics already: looked at, and kept.

A curve that a call is given, such as the result of an earlier one, is taken for a polynomial. Its
ends are decoded, its other points with one gradient, and the metric is taken at two places, or at
one. That says all that a certificate needs:

- the Newton decrement, counted several times over, because the metric at few places promises too
  little in directions in which the curve is soft;
- what finer modes would gain, extrapolated from the finest ones;
- by how much the length is off by quadrature: the difference of its values on two resolutions, of
  which the coarser one is interpolated from the same images.

A curve of which that is not good enough, but nearly so, takes the step that was promised, and is
looked at once more, now with a secant, and so on a few times, in the end at more points. All others
go on to the solver, from where they began.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import labels_of, precision_of
from riemae.solvers.mode_looks import (
    DECAY,
    LEAST_MISSED,
    ModeSearch,
    beyond,
    energy_and_length,
    energy_rounding,
    length_rounding,
    looked_at,
    with_ends,
)
from riemae.solvers.mode_metric import ONE_PLACE_BEYOND, ModeMetric, Settled, joined
from riemae.solvers.polynomials import (
    coarsened,
    fine_share,
    fine_size,
    force_and_fine,
    lobatto_weights,
    modes_of,
    points_on,
    velocities,
    velocities_on,
)
from riemae.solvers.solver import Attempt, Columns
from riemae.solvers.space import Space
from riemae.solvers.state import placed, read

_PLACES = 2  # where the metric is looked at, up to some dimensions
# Degrees, of which the first is taken whose curve leaves out at most this share of ``rtol``, the
# last at most this one; and by how much coarser the resolution is that lengths are compared with.
_DEGREES, _UNSEEN, _UNSEEN_AT_LAST = (5, 7, 9, 12, 16, 21, 28), 0.01, 0.1
_COARSER = 1.4
# Looks at a curve, and from so many dimensions on, where second derivatives cost ever more of them.
_LOOKS, _WIDE, _LOOKS_OF_WIDE = 3, 16, 6
_LOOKS_CLOSER = 3  # with more points
# They are taken where the decrement is not more than so many times what is allowed, nor what
# quadrature misses.
_NEARLY, _BLURRED = 20.0, 10.0
# A decrement promises too little along directions in which a curve is soft. What curvature takes
# from the energy's second derivative falls with the square of a mode's number: by no more than
# these factors in the lowest mode and in the others.
_SOFT, _FIRM = 10.0, 2.0
# By how much lengths of tangents may change from place to place: beyond the first, what is left is
# counted by the square of the excess more; beyond the second, curves are left to the solver.
_STEADY, _UNSTEADY = 1.5, 6.0
# Images that are not smooth do no harm where quadrature misses less than this share of ``rtol``.
_SHARE = 0.5
_FINEST = 4  # modes that what finer ones would gain is extrapolated from


@dataclass
class _Start(ModeSearch):
    """``p`` start curves, of which modes are looked at.

    Attributes:
        ends: ``(p, 2, D)``, images of the end points; ``(p, 0, 0)`` where there are none.
        length: ``(p,)``, of the curve at ``x``.
        missed: ``(p,)``, what quadrature may be off by.
        smooth: ``(p,)`` bool: images decay as those of smooth curves do.
        noise: ``(p,)``, what rounding makes of the length.
        left: ``(p,)``, by how much the energy may still fall.
    """

    ends: Tensor
    length: Tensor
    missed: Tensor
    smooth: Tensor
    noise: Tensor
    left: Tensor


@dataclass(frozen=True)
class _Seen:
    """Curves as their points show them; ``(p,)`` each, the gradient ``(p, k, m)``."""

    energy: Tensor
    gradient: Tensor
    length: Tensor
    missed: Tensor
    smooth: Tensor
    noise: Tensor


def verified(space: Space, start: Curve, least: np.ndarray, rtol: float) -> Attempt:
    """Start curves ``(p,)`` that are good enough.

    Args:
        space: The space.
        start: The start curves.
        least: ``(p,)``, lower bounds of the lengths, NaN where unknown.
        rtol: The relative accuracy that is asked for.
    """
    ended: list[Settled] = []
    for some, ends in with_ends(space, start.nodes):
        for settled in _kept(space, start[some], ends, least[some], rtol):
            ended.append(replace(settled, rows=settled.rows + some.start))
    return joined(ended, rtol)


def _kept(
    space: Space, start: Curve, ends: Tensor | None, least: np.ndarray, rtol: float
) -> Iterator[Settled]:
    """The same of some of the curves; ``ends`` are the images ``(q, 2, D)`` of their end points."""
    places = _PLACES if start.nodes.shape[2] <= ONE_PLACE_BEYOND else 1
    along = ModeMetric.along(space, start.nodes, places)
    known = _Known.of(start, ends)
    for number, rows in known.groups(along, rtol):
        there = placed(rows, start.nodes)
        group = known.select(there), along.select(there)
        for settled in _looked_into(space, *group, number, least[rows], rtol):
            yield replace(settled, rows=rows[settled.rows])


def _looked_into(
    space: Space,
    known: _Known,
    metric: ModeMetric,
    number: int,
    least: np.ndarray,
    rtol: float,
) -> Iterator[Settled]:
    """Those of curves that are good enough, after so many looks as they take.

    Args:
        space: The space.
        known: The curves.
        metric: Along them.
        number: Of their degree.
        least: Lower bounds of their lengths, NaN where unknown.
        rtol: The relative accuracy.
    """
    wide = known.modes.shape[2] >= _WIDE
    looks = (_LOOKS_OF_WIDE if wide else _LOOKS), _LOOKS_CLOSER
    state = known.begun(_DEGREES[number], sum(looks) - 1)
    rows = np.arange(len(least))
    taken = 0
    # Points see modes beyond the degree, which steps may use. Those that are nearly good enough are
    # seen more closely in the end.
    for degree, most in zip(_DEGREES[number : number + 2], looks, strict=False):
        look = _Look(space, degree + max(3, degree // 4 + 1), rtol)
        state = state.extended(look.count - 2)
        for again in range(most):
            state = look.taken(state, metric, taken, fresh=not again)
            taken += 1
            found = _judged(state, metric, least[rows], rtol)
            good = found.good.nonzero()[0]
            if len(good):
                there = placed(good, state.x)
                part = state.select(there), metric.select(there)
                yield _settled(*part, rows[good], found.error[good], least[rows[good]], taken)
            on = found.nearly.nonzero()[0]
            if not len(on):
                return
            there = placed(on, state.x)
            rows, state, metric = rows[on], state.select(there), metric.select(there)
            if not found.resolved[on].any():
                break


def _settled(
    state: _Start,
    metric: ModeMetric,
    rows: np.ndarray,
    error: np.ndarray,
    least: np.ndarray,
    looks: int,
) -> Settled:
    """Curves ``(q,)`` that are good enough after so many looks."""
    length, energy, left, noise = read(state.length, state.energy, state.left, state.noise)
    return Settled(
        rows=rows,
        z0=state.z0,
        z1=state.z1,
        modes=state.x,
        metric=metric.mean,
        length=length,
        energy=energy,
        error=error,
        least=least,
        noise=noise,
        left=left / (2 * energy),
        steps=np.full(len(rows), looks),
        index=np.full(len(rows), -1),
    )


@dataclass
class _Known(Columns):
    """What is known of ``p`` curves before their points are decoded.

    Attributes:
        corners: ``(p, 2, m)``, their end points.
        ends: ``(p, 2, D)``, images of these; ``(p, 0, 0)`` where there are none.
        modes: ``(p, k, m)``, more than are looked at.
    """

    corners: Tensor
    ends: Tensor
    modes: Tensor

    @classmethod
    def of(cls, start: Curve, ends: Tensor | None) -> _Known:
        """Of start curves."""
        nodes = start.nodes
        if ends is None:
            ends = nodes.new_zeros(len(nodes), 0, 0)
        return cls(nodes[:, :: start.segments], ends, modes_of(start, 2 * _DEGREES[-1]))

    def groups(self, metric: ModeMetric, rtol: float) -> Iterator[tuple[int, np.ndarray]]:
        """Which degree, and the curves of which all but a small share of ``rtol`` has it."""
        shares = metric.energies(self.modes)
        total = metric.squares(self.corners.diff(dim=1)).sum(1) + shares.sum(1)
        beyond = shares.flip(1).cumsum(1).flip(1) / total[:, None] / 2
        left_out = [beyond[:, degree - 1] for degree in _DEGREES]
        regular, *told = read(metric.regular & (metric.change <= _UNSTEADY), *left_out)
        waits = regular.copy()
        for number, share in enumerate(told):
            last = number == len(_DEGREES) - 1
            allowed = (_UNSEEN_AT_LAST if last else _UNSEEN) * rtol
            rows = (waits & (share <= allowed)).nonzero()[0]
            waits[rows] = False
            if len(rows):
                yield number, rows

    def begun(self, degree: int, history: int) -> _Start:
        """The curves, of this degree."""
        none = self.corners.new_zeros(len(self.corners))
        return _Start.begin(
            self.modes[:, : degree - 1],
            history,
            corners=self.corners,
            ends=self.ends,
            length=none,
            missed=none,
            smooth=none > 0,
            noise=none,
            left=none,
        )


@dataclass(frozen=True)
class _Look:
    """A look at curves from so many points."""

    space: Space
    count: int
    rtol: float

    def taken(self, state: _Start, metric: ModeMetric, secants: int, fresh: bool) -> _Start:
        """After a look at the trials, with the next ones.

        ``fresh``: it is the first one from these points.
        """
        seen = self._seen(state)
        told = {name: getattr(seen, name) for name in ("length", "missed", "smooth", "noise")}
        good = None
        if fresh:
            state = state.set_out(seen.energy, seen.gradient)
        else:
            eps = precision_of(self.space, state.x.dtype).eps
            state, good = state.seen(seen.energy, seen.gradient, energy_rounding(eps, self.count))
            told = {name: torch.where(good, x, getattr(state, name)) for name, x in told.items()}
        state, left = state.aimed(metric.inverse, good, secants)
        return state.replaced(left=left, **told)

    def _seen(self, state: _Start) -> _Seen:
        if not state.ends.shape[1]:
            return self._by_tangents(state)
        gradient, told = looked_at(self.space, state, self.count, self._force, state.ends)
        energy, length, fine, size, before, fine_before = told.unbind(1)
        fallen = (fine / fine_before).sqrt()
        missed = (length - before).abs() * fallen.clamp(LEAST_MISSED, 1.0)
        eps = precision_of(self.space, state.x.dtype).eps
        return _Seen(
            energy=energy,
            gradient=gradient,
            length=length,
            missed=missed,
            smooth=(fallen < DECAY) | (missed <= _SHARE * self.rtol * length),
            noise=length_rounding(eps, self.count, length, size),
        )

    def _force(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (p, q, D) -> (p, q, D), (p, 6)
        """The energy's gradient in the images, and what two resolutions say of them."""
        v = velocities(x)
        energy, length = energy_and_length(v)
        force, fine = force_and_fine(v)
        coarse = velocities(coarsened(x, round(self.count / _COARSER)))
        energy_before, before = energy_and_length(coarse)
        fine_before = fine_share(coarse) / energy_before
        size = x[:, :: self.count - 1].norm(dim=-1).amax(1)
        return force, torch.stack([energy, length, fine / energy, size, before, fine_before], 1)

    def _by_tangents(self, state: _Start) -> _Seen:
        """Without images: from the lengths of the curves' tangents, with their derivatives."""
        p, _, m = state.x.shape
        free = m - labels_of(self.space)
        with torch.inference_mode(False), torch.enable_grad():
            x = state.trial.detach().clone().requires_grad_()
            points = points_on(state.z0, state.z1, x, self.count).flatten(0, 1)
            v = velocities_on(state.z0, state.z1, x, self.count).flatten(0, 1)
            speed = self.space.norm(points, v).view(p, self.count)
            weights = lobatto_weights(self.count, speed)
            energy = (speed.square() * weights).sum(-1)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        gradient[..., free:] = 0
        speed, energy = speed.detach(), energy.detach()
        length = (speed * weights).sum(-1)
        missed = fine_size(speed)
        known = precision_of(self.space, x.dtype)
        return _Seen(
            energy=energy,
            gradient=gradient,
            length=length,
            missed=missed,
            smooth=missed <= _SHARE * self.rtol * length,
            noise=known.length * length,
        )


@dataclass(frozen=True)
class _Verdict:
    """What a look says of curves; arrays ``(p,)``.

    Attributes:
        error: Of their lengths.
        good: bool: they are good enough.
        nearly: bool: steps may make them so, or more points.
        resolved: bool: no more points are needed.
    """

    error: np.ndarray
    good: np.ndarray
    nearly: np.ndarray
    resolved: np.ndarray


def _judged(state: _Start, metric: ModeMetric, least: np.ndarray, rtol: float) -> _Verdict:
    """What is known of curves after a look.

    Args:
        state: The curves.
        metric: Along them.
        least: Lower bounds of their lengths, NaN where unknown.
        rtol: The relative accuracy.
    """
    told = state.energy, state.left, state.length, state.missed, state.noise, metric.change
    energy, left, length, missed, noise, change = read(*told)
    gains = state.promised()
    share = (gains[:, 0] / gains.sum(1)).nan_to_num(0.0)
    # Each mode of the curve has lowered the energy by its own, as good as.
    worth = gains + 2 * metric.energies(state.x)
    smooth, further, lowest = read(state.smooth, beyond(worth[:, -_FINEST:]) / 2, share)
    with np.errstate(all="ignore"):
        per_energy = length / (2 * energy)
        left = left * per_energy
        factor = _FIRM + (_SOFT - _FIRM) * lowest
        lower = factor * left * np.maximum(change / _STEADY, 1.0) ** 2
        lower = lower + further * per_energy
        error = lower + missed + noise
        sound = smooth & (length > 0) & np.isfinite(error) & ~(length < least - noise)
        allowed = rtol / (1 + rtol) * length  # rtol is a share of the distance, which is shorter
        good = sound & (error <= allowed)
        near = (left <= _NEARLY * allowed) & (missed + noise <= _BLURRED * allowed)
        nearly = sound & ~good & near
        resolved = missed + noise <= allowed
    return _Verdict(error, good, nearly, resolved)
