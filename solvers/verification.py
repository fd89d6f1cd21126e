"""Start curves that are geodesics already: looked at, and kept.

A curve that a call is given, such as the result of an earlier one, is taken for a polynomial. Its
points are decoded once, with one gradient; the metric is taken at two of them. That says all that a
certificate needs:

- the Newton decrement, counted several times over, because the metric at two places may promise too
  little in directions in which the curve is soft, which no secant has shown yet;
- what finer modes would gain, extrapolated from the finest ones;
- by how much the length is off by quadrature: the difference of its values on two resolutions, of
  which the coarser one is interpolated from the same images.

A curve of which that is not good enough, but nearly so, takes the step that was promised, and is
looked at once more, now with a secant, and so on a few times. All others go on to the solver, from
where they began.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import labels_of, precision_of, pulled_of
from riemae.solvers.mode_metric import ONE_PLACE_BEYOND, ModeMetric, Settled, joined
from riemae.solvers.polynomials import (
    coarsened,
    energy_force,
    fine_share,
    fine_size,
    lobatto_weights,
    modes_of,
    points_on,
    slope_in_modes,
    velocities,
    velocities_on,
)
from riemae.solvers.secants import Search
from riemae.solvers.solver import Attempt, Columns
from riemae.solvers.space import Space
from riemae.solvers.state import placed, read

_PLACES = 2  # where the metric is looked at, up to some dimensions
# Degrees, of which the first is taken whose curve leaves out at most this share of ``rtol``; and by
# how much coarser the resolution is that lengths are compared with.
_DEGREES, _UNSEEN = (5, 7, 9, 12, 16, 21, 28), 0.01
_COARSER = 1.4
# Along directions in which a curve is soft, its decrement promises too little: by no more than this
# factor at the first look, and at those that follow, where secants have shown the softest ones.
_SOFT, _SOFT_AFTER = 10.0, 4.0
# Looks at a curve, and from so many dimensions on, where second derivatives cost ever more of them.
_LOOKS, _WIDE, _LOOKS_OF_WIDE = 3, 16, 6
# Further looks are taken where what is left is not more than so many times what is allowed.
_NEARLY = 200.0
# By how much lengths of tangents may change from place to place: beyond the first, what is left is
# counted by the square of the excess more; beyond the second, curves are left to the solver.
_STEADY, _UNSTEADY = 1.5, 6.0
# The share of a difference of lengths between two resolutions that the finer one is off by, at
# least; more where the images' highest modes have fallen by less.
_LEAST = 0.05
# Images whose highest modes have not fallen by this factor are not smooth on this scale.
_DECAY, _SHARE = 0.7, 0.5
# What further modes would gain is extrapolated from the finest ones: of these, the finer half gains
# at most this share of what the coarser half does, and counts so many times.
_SLOWEST, _DOUBT = 0.9, 3
_FINEST = 4
# Rounding of an energy, relative to it, so many units per point; and of a length, in units of the
# size of an image.
_ROUNDING, _GRAIN = 16, 4


@dataclass
class _Start(Search):
    """``p`` start curves, of which modes are looked at.

    Attributes:
        z0: ``(p, m)``.
        z1: ``(p, m)``.
        length: ``(p,)``, of the curve at ``x``.
        missed: ``(p,)``, what quadrature may be off by.
        smooth: ``(p,)`` bool: images decay as those of smooth curves do.
        noise: ``(p,)``, what rounding makes of the length.
        left: ``(p,)``, by how much the energy may still fall.
    """

    z0: Tensor
    z1: Tensor
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
    looks = _LOOKS if start.nodes.shape[2] < _WIDE else _LOOKS_OF_WIDE
    places = _PLACES if start.nodes.shape[2] <= ONE_PLACE_BEYOND else 1
    along = ModeMetric.along(space, start.nodes, places)
    known = _Known.of(start)
    ended: list[Settled] = []
    for degree, rows in known.groups(along, rtol):
        look = _Look(space, degree, degree + max(3, degree // 4 + 1), rtol)
        where = placed(rows, start.nodes)
        metric = along.select(where)
        state = look.begun(known.select(where), looks - 1)
        for number in range(looks):
            state = look.taken(state, metric, number)
            soft = _SOFT_AFTER if number else _SOFT
            found = _judged(state, metric, least[rows], soft, rtol)
            good = found.good.nonzero()[0]
            if len(good):
                there = placed(good, state.x)
                part = state.select(there), metric.select(there)
                ended.append(_settled(*part, rows[good], found.error[good], least, number + 1))
            nearly = found.nearly.nonzero()[0]
            if not len(nearly):
                break
            rows = rows[nearly]
            there = placed(nearly, state.x)
            state, metric = state.select(there), metric.select(there)
    return joined(ended, rtol)


def _settled(
    state: _Start,
    metric: ModeMetric,
    rows: np.ndarray,
    error: np.ndarray,
    least: np.ndarray,
    looks: int,
) -> Settled:
    """Curves ``(q,)`` that are good enough after so many looks; ``least`` is of all curves."""
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
        least=least[rows],
        noise=noise,
        left=left / (2 * energy),
        steps=np.full(len(rows), looks),
        index=np.full(len(rows), -1),
    )


@dataclass
class _Known(Columns):
    """What is known of ``p`` curves before their points are decoded.

    Attributes:
        z0: ``(p, m)``.
        z1: ``(p, m)``.
        modes: ``(p, k, m)``, more than are looked at.
    """

    z0: Tensor
    z1: Tensor
    modes: Tensor

    @classmethod
    def of(cls, start: Curve) -> _Known:
        """Of start curves."""
        nodes = start.nodes
        return cls(nodes[:, 0], nodes[:, -1], modes_of(start, 2 * _DEGREES[-1]))

    def groups(self, metric: ModeMetric, rtol: float) -> Iterator[tuple[int, np.ndarray]]:
        """Degrees, and the curves of which all but a small share of ``rtol`` has this degree."""
        shares = metric.energies(self.modes)
        total = metric.squares((self.z1 - self.z0)[:, None]).sum(1) + shares.sum(1)
        beyond = shares.flip(1).cumsum(1).flip(1) / total[:, None] / 2
        left_out = [beyond[:, degree - 1] for degree in _DEGREES]
        regular, *told = read(metric.regular & (metric.change <= _UNSTEADY), *left_out)
        waits = regular.copy()
        for degree, share in zip(_DEGREES, told, strict=True):
            rows = (waits & (share <= _UNSEEN * rtol)).nonzero()[0]
            waits[rows] = False
            if len(rows):
                yield degree, rows


@dataclass(frozen=True)
class _Look:
    """A look at curves from so many points."""

    space: Space
    degree: int
    count: int
    rtol: float

    def begun(self, known: _Known, history: int) -> _Start:
        """About curves of this degree."""
        none = known.z0.new_zeros(len(known.z0))
        # All modes that the points see; those beyond the degree are not the curve's.
        seen = torch.zeros_like(known.modes[:, : self.count - 2])
        seen[:, : self.degree - 1] = known.modes[:, : self.degree - 1]
        return _Start.begin(
            seen,
            history,
            z0=known.z0,
            z1=known.z1,
            length=none,
            missed=none,
            smooth=none > 0,
            noise=none,
            left=none,
        )

    def taken(self, state: _Start, metric: ModeMetric, secants: int) -> _Start:
        """After a look at the trials, with the next ones."""
        seen = self._seen(state)
        eps = precision_of(self.space, state.x.dtype).eps
        state, good = state.seen(seen.energy, seen.gradient, _ROUNDING * eps * self.count)
        state, left = state.aimed(metric.inverse, good, secants)
        return replace(
            state,
            length=torch.where(good, seen.length, state.length),
            missed=torch.where(good, seen.missed, state.missed),
            smooth=torch.where(good, seen.smooth, state.smooth),
            noise=torch.where(good, seen.noise, state.noise),
            left=left,
        )

    def _seen(self, state: _Start) -> _Seen:
        found = pulled_of(
            self.space, points_on(state.z0, state.z1, state.trial, self.count), self._force
        )
        if found is None:
            return self._by_tangents(state)
        along, told = found
        energy, length, fine, size, before, fine_before = told.unbind(1)
        fallen = (fine / fine_before).sqrt()
        missed = (length - before).abs() * fallen.clamp(_LEAST, 1.0)
        eps = precision_of(self.space, state.x.dtype).eps
        # Rounding of images: what does not cancel along the curve, and what uneven speeds add.
        rough = eps * self.count**2 * size
        return _Seen(
            energy=energy,
            gradient=slope_in_modes(along, state.x.shape[1]),
            length=length,
            missed=missed,
            smooth=(fallen < _DECAY) | (missed <= _SHARE * self.rtol * length),
            noise=_GRAIN * eps * (size + length) + rough.square() / length,
        )

    def _force(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (p, q, D) -> (p, q, D), (p, 6)
        """The energy's gradient in the images, and what two resolutions say of them."""
        v = velocities(x)
        energy, length, fine = self._told(v)
        coarse = velocities(coarsened(x, round(self.count / _COARSER)))
        _, before, fine_before = self._told(coarse)
        size = x[:, :: self.count - 1].norm(dim=-1).amax(1)
        told = torch.stack([energy, length, fine, size, before, fine_before], 1)
        return energy_force(v), told

    @staticmethod
    def _told(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (p, q, D) -> (p,) each
        """Energy, length, and the share of the energy in the two finest modes."""
        squares = v.square().sum(-1)
        weights = lobatto_weights(v.shape[1], squares)
        energy = (squares * weights).sum(-1)
        return energy, (squares.sqrt() * weights).sum(-1), fine_share(v) / energy

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
        nearly: bool: a step may make them so.
    """

    error: np.ndarray
    good: np.ndarray
    nearly: np.ndarray


def _judged(
    state: _Start, metric: ModeMetric, least: np.ndarray, soft: float, rtol: float
) -> _Verdict:
    """What is known of curves after a look.

    Args:
        state: The curves.
        metric: Along them.
        least: Lower bounds of their lengths, NaN where unknown.
        soft: The factor by which a decrement may promise too little.
        rtol: The relative accuracy.
    """
    told = state.energy, state.left, state.length, state.missed, state.noise, metric.change
    energy, left, length, missed, noise, change = read(*told)
    smooth, further = read(state.smooth, _further(state))
    with np.errstate(all="ignore"):
        per_energy = length / (2 * energy)
        lower = soft * left * per_energy * np.maximum(change / _STEADY, 1.0) ** 2
        lower = lower + further * per_energy
        error = lower + missed + noise
        sound = smooth & (length > 0) & np.isfinite(error) & ~(length < least - noise)
        allowed = rtol / (1 + rtol) * length  # rtol is a share of the distance, which is shorter
        good = sound & (error <= allowed)
        nearly = sound & ~good & (lower <= _NEARLY * allowed) & (missed + noise <= allowed)
    return _Verdict(error, good, nearly)


def _further(state: _Start) -> Tensor:  # -> (p,)
    """By how much modes beyond those that are seen would lower the energy, extrapolated."""
    step = (state.trial - state.x) / state.stride[:, None, None]
    gains = (state.gradient * step).abs().sum(2)[:, -_FINEST:]
    half = _FINEST // 2
    coarse, fine = gains[:, :half].sum(1), gains[:, half:].sum(1)
    ratio = (fine / coarse).nan_to_num(0.0).clamp(max=_SLOWEST)
    return _DOUBT * fine * ratio / (1 - ratio) / 2
