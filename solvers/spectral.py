"""Whole curves as polynomials of growing degree: few points, gradients alone, spectral accuracy.

A level is a degree d and a number q of Gauss-Lobatto points. On each, the energy of the images'
interpolant is minimised over the modes (:mod:`riemae.solvers.polynomials`) by limited-memory BFGS,
preconditioned by the energy's Hessian in a metric that is known at a few places of the start curve.
The next level has more modes and more points, to which the same curve is taken. One gradient there
says all that is still unknown of it:

- the Newton decrement, which counts the modes that were missing as well as the steps that were;
- how far the length was off by quadrature, which is the difference of its values on both levels;
- whether the highest modes of the images have fallen, without which neither can be trusted.

Curves of which that is not good enough go on, up to the highest degree. Those that do not get there
in a few steps, and those that show no spectral decay, are left to the solver's segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import precision_of, pulled_of
from riemae.solvers.mode_metric import ONE_PLACE_BEYOND, change_along
from riemae.solvers.path_metric import PathMetric, sampled_metric
from riemae.solvers.polynomials import (
    energy_force,
    fine_share,
    lobatto_weights,
    modes_of,
    points_on,
    slope_in_modes,
    spline_of,
    stiffness,
    strayed,
    velocities,
)
from riemae.solvers.secants import Search
from riemae.solvers.solver import Attempt
from riemae.solvers.space import Space
from riemae.solvers.state import placed, read

# Latent dimensions beyond which the metric is sketched, the sketch's rank, and how large a Hessian
# is factorised.
_SKETCHED_BEYOND, _SKETCH, _DENSE = 64, 32, 256
# At so many places of the start curve the metric is looked at, and beyond so many dimensions; at
# one beyond some more.
_SAMPLES, _MANY, _SAMPLES_OF_MANY = 4, 12, 2
# By how much lengths of tangents may change from one place to the next: up to the first number, as
# they do on decoders, what is left is believed; beyond the second, curves are not tried.
_STEADY, _UNSTEADY = 1.5, 3.0
# A level ends where what is left falls below this share of what is asked for, or of what its own
# highest modes suggest that it cannot see.
_SHARE = 0.5
_TRUNCATED = 0.3
# The share of a difference of lengths between two levels that the finer one is off by, at least;
# more where the images' highest modes have fallen by less.
_LEAST = 0.05
# Images whose highest modes have not fallen by this factor are not smooth on this scale.
_DECAY = 0.7
# Where the metric at a few places fits, a curve takes some three steps and half as many again per
# digit. More of them say that it does not, and that most of what is left may lie where no secant
# has been: that counts by the cube of their number.
_STEPS, _STEPS_A_DIGIT = 3.0, 1.5
# What further modes would gain is extrapolated from those that are new on a level, of which the
# finer half gains at most this share of what the coarser half does, and counts so many times.
_SLOWEST = 0.9
_DOUBT = 3
_MISSES = 5  # trials in a row that were too long
# Rounding of an energy, relative to it, so many units per point; and of a length, in units of the
# size of an image.
_ROUNDING = 16
_GRAIN = 4
# A spline in place of the polynomial may add this share of what is asked for to the length.
_SPLINE = 0.05
_SEGMENTS = (8, 16, 32, 64, 128)
_LOOKS = 33  # points at which a curve's latent velocity is looked at


@dataclass(frozen=True)
class Settings:
    """How curves are tried.

    Attributes:
        levels: Degrees and numbers of points.
        history: Secants that are remembered.
        max_gradients: That a curve may take in all.
    """

    levels: list[tuple[int, int]]
    history: int
    max_gradients: int


@dataclass
class _Modes(Search):
    """Progress on ``p`` curves, whose modes are sought.

    Attributes:
        z0: ``(p, m)``.
        z1: ``(p, m)``.
        begun: ``(p,)``, the length of the start curves.
        length: ``(p,)``, of the present curves as this level sees them.
        fine: ``(p,)``, the share of the images' highest modes in their energy.
        noise: ``(p,)``, what rounding makes of the length.
        before: ``(p,)``, the length at which the level before ended.
        fine_before: ``(p,)``, the share there.
        left: ``(p,)``, the relative length that is left to gain.
        steps: ``(p,)``, gradients taken.
        samples: ``(p, s, m, m)``, the metric along the start; none where it is sketched.
        basis: ``(p, m, r)``, with the next two: its sketch.
        values: ``(p, r)``.
        rest: ``(p,)``; 0 where there is no metric.
        change: ``(p,)``, the largest factor by which lengths of tangents change between places
            where the metric is known.
    """

    z0: Tensor
    z1: Tensor
    begun: Tensor
    length: Tensor
    fine: Tensor
    noise: Tensor
    before: Tensor
    fine_before: Tensor
    left: Tensor
    steps: Tensor
    samples: Tensor
    basis: Tensor
    values: Tensor
    rest: Tensor
    change: Tensor

    @classmethod
    def about(cls, space: Space, start: Curve, modes: int, history: int) -> _Modes:
        """About start curves."""
        nodes = start.nodes
        p, _, m = nodes.shape
        none = nodes.new_zeros(p)
        if m <= _SKETCHED_BEYOND:
            few = _SAMPLES_OF_MANY if m <= ONE_PLACE_BEYOND else 1
            samples = sampled_metric(space, nodes, _SAMPLES if m <= _MANY else few)
            sound = samples.isfinite().flatten(1).all(1)
            eye = torch.eye(m).to(samples)
            samples = torch.where(sound[:, None, None, None], samples, eye)
            basis, values = nodes.new_zeros(p, m, 0), nodes.new_zeros(p, 0)
            rest = sound.to(none)
            change = change_along(space, nodes, samples)
        else:
            samples = nodes.new_zeros(p, 0, m, m)
            sketch = PathMetric.sketched(space, nodes, _SKETCH)
            basis, values, rest = sketch.basis, sketch.values, sketch.rest.nan_to_num(0.0)
            change = torch.ones_like(none)
        return cls.begin(
            modes_of(start, modes),
            history,
            z0=nodes[:, 0],
            z1=nodes[:, -1],
            begun=none,
            length=torch.full_like(none, torch.nan),
            fine=torch.full_like(none, torch.nan),
            noise=none,
            before=none,
            fine_before=none,
            left=torch.full_like(none, torch.inf),
            steps=torch.zeros(p, dtype=torch.int64, device=nodes.device),
            samples=samples,
            basis=basis,
            values=values,
            rest=rest,
            change=change,
        )

    def extended(self, modes: int) -> _Modes:
        """With further modes, which are 0, and nothing known of the energy."""
        more = modes - self.x.shape[1]

        def wide(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, 0, 0, more))

        x = wide(self.x)
        return replace(
            self,
            x=x,
            trial=x,
            energy=torch.full_like(self.energy, torch.inf),
            gradient=wide(self.gradient),
            moves=wide(self.moves),
            changes=wide(self.changes),
            misses=torch.zeros_like(self.misses),
            before=self.length,
            fine_before=self.fine,
        )

    def squared(self, v: Tensor) -> Tensor:  # (p, j, m) -> (p,)
        """The mean square of velocities, in the mean metric along the start where it is known."""
        if not self.samples.shape[1]:
            return v.square().sum(2).mean(1)
        g = self.samples.mean(1)
        return ((v @ g) * v).sum(2).mean(1)


class _First:
    """The inverse Hessian before any secant, for the curves of a state."""

    def __init__(self, state: _Modes) -> None:
        _, modes, m = state.x.shape
        k = torch.arange(1, modes + 1, device=state.x.device).to(state.x)
        self.scale = (2 * k + 1)[:, None] / 2
        self.sketch: PathMetric | None = None
        self.dense = modes * m <= _DENSE
        if not state.samples.shape[1]:
            self.sketch = PathMetric(state.basis, state.values, state.rest)
        elif self.dense:
            self.root = torch.linalg.cholesky(stiffness(state.samples, modes))
        else:
            self.root = torch.linalg.cholesky(state.samples.mean(1))

    def select(self, rows: Tensor) -> _First:
        """Of the curves at ``rows``."""
        found = copy(self)
        if self.sketch is not None:
            found.sketch = self.sketch.select(rows)
        else:
            found.root = self.root[rows]
        return found

    def of(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """For the curves at ``rows``."""
        if self.sketch is not None:
            sketch = self.sketch.select(rows)
            return lambda g: self.scale * sketch.inverse(g)
        root = self.root[rows]
        if self.dense:
            return lambda g: torch.cholesky_solve(g.flatten(1)[..., None], root).view(g.shape)
        return lambda g: self.scale * torch.cholesky_solve(g.mT, root).mT


@dataclass(frozen=True)
class _Level:
    """Curves of one degree, seen at so many points.

    Attributes:
        space: The space.
        degree: Of the curves.
        count: Points.
        rtol: The relative accuracy that is asked for.
        max_gradients: That a curve may take in all.
        secants: That curves remember from the levels before, at most.
    """

    space: Space
    degree: int
    count: int
    rtol: float
    max_gradients: int
    secants: int = 0

    def taken_up(self, state: _Modes) -> tuple[_Modes, _First]:
        """The curves as this level sees them, and their next trials."""
        state = state.extended(self.degree - 1)
        first = _First(state)
        every = torch.arange(len(state.x), device=state.x.device)
        return self._stepped(state, first.of(every), self.secants), first

    def descended(self, state: _Modes, first: _First) -> tuple[_Modes, int]:
        """The curves after as many steps as this level is good for, and the most secants of one."""
        every = torch.arange(len(state.x), device=state.x.device)
        secants = self.secants
        while True:
            (running,) = read((state.left > self._goal(state)) & self.alive(state))
            active = running.nonzero()[0]
            if not len(active):
                return state, secants
            secants += 1
            those = placed(active, every)
            state.update(those, self._stepped(state.select(those), first.of(those), secants))

    def alive(self, state: _Modes) -> Tensor:  # -> (p,)
        """Whether curves may take another gradient."""
        return (state.misses < _MISSES) & (state.steps < self.max_gradients)

    def _goal(self, state: _Modes) -> Tensor:  # -> (p,)
        """What may be left to gain on this level, relatively."""
        k = torch.arange(1, self.degree, device=state.x.device).to(state.x)
        shares = state.x.square().sum(2) / (2 * k + 1)
        total = (state.z1 - state.z0).square().sum(1) + shares.sum(1)
        unseen = shares[:, -2:].sum(1) / total / 2
        return (_TRUNCATED * unseen).clamp(min=_SHARE * self.rtol)

    def _stepped(self, state: _Modes, first: Callable[[Tensor], Tensor], secants: int) -> _Modes:
        """After a look at the trials, with the next ones."""
        eps = precision_of(self.space, state.x.dtype).eps
        points = points_on(state.z0, state.z1, state.trial, self.count)
        found = pulled_of(self.space, points, self._force)
        assert found is not None
        along, told = found
        energy, length, fine, size = told.unbind(1)
        gradient = slope_in_modes(along, self.degree - 1)
        state, good = state.seen(energy, gradient, _ROUNDING * eps * self.count)
        # Rounding of images: what does not cancel along the curve, and what uneven speeds add.
        rough = eps * self.count**2 * size
        noise = _GRAIN * eps * (size + length) + rough.square() / length
        state, left = state.aimed(first, good, secants)
        return replace(
            state,
            length=torch.where(good, length, state.length),
            fine=torch.where(good, fine / energy, state.fine),
            noise=torch.where(good, noise, state.noise),
            left=left / (2 * state.energy),
            steps=state.steps + 1,
        )

    def _force(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (p, q, D) -> (p, q, D), (p, 4)
        """The energy's gradient in the images, and energy, length, fine share and size."""
        v = velocities(x)
        squares = v.square().sum(-1)
        weights = lobatto_weights(self.count, squares)
        energy = (squares * weights).sum(-1)
        length = (squares.sqrt() * weights).sum(-1)
        size = x[:, :: self.count - 1].norm(dim=-1).amax(1)
        return energy_force(v), torch.stack([energy, length, fine_share(v), size], 1)


def attempt(
    space: Space,
    start: Curve,
    least: np.ndarray,
    rtol: float,
    settings: Settings,
) -> Attempt | None:
    """Try curves ``(p,)`` as polynomials.

    Args:
        space: The space.
        start: Start curves.
        least: ``(p,)``, lower bounds of the lengths, NaN where unknown.
        rtol: The relative accuracy.
        settings: How.

    Returns:
        Those that are good enough; None where the space has no images.
    """
    if not _has_images(space, start):
        return None
    levels = settings.levels
    rows = np.arange(len(least))
    state = _Modes.about(space, start, levels[0][0] - 1, settings.history)
    ended: list[tuple[np.ndarray, np.ndarray, _Modes]] = []
    secants = 0
    for number, (degree, points) in enumerate(levels):
        level = _Level(space, degree, points, rtol, settings.max_gradients, secants)
        state, first = level.taken_up(state)
        if number == 0:
            state.begun = state.length
        known = levels[number - 1][0] - 1 if number else 0
        error, on = _judged(state, least[rows], rtol, known)
        # rtol is a share of the distance, which is shorter.
        good = (error <= rtol / (1 + rtol) * read(state.length)[0]).nonzero()[0]
        if len(good):
            ended.append((rows[good], error[good], state.select(placed(good, state.x))))
        on[good] = False
        those = on.nonzero()[0]
        if not len(those) or number == len(levels) - 1:
            break
        rows = rows[those]
        where = placed(those, state.x)
        state, first = state.select(where), first.select(where)
        state, secants = level.descended(state, first)
    return _joined(ended, least, rtol)


def _judged(
    state: _Modes, least: np.ndarray, rtol: float, known: int
) -> tuple[np.ndarray, np.ndarray]:
    """Errors of lengths, NaN on the first level; and ``(p,)`` bool: where to go on makes sense.

    Args:
        state: Curves as a level sees them that have been descended on the level before.
        least: Lower bounds of their lengths, NaN where unknown.
        rtol: The relative accuracy.
        known: Modes of the level before; 0 on the first.
    """
    told = (
        state.length,
        state.left,
        state.noise,
        state.rest > 0,
        state.begun,
        state.steps,
        state.change,
    )
    length, left, noise, regular, begun, steps, change = read(*told)
    usual = _STEPS + _STEPS_A_DIGIT * -math.log10(rtol)
    left = left * np.maximum(steps / usual, 1.0) ** 3 * np.maximum(change / _STEADY, 1.0)
    with np.errstate(all="ignore"):
        # Between nothing that is shorter, and what it began with.
        within = ~(length < least - noise) & (length <= (1 + rtol) * begun)
        sound = regular & (length > 0) & np.isfinite(left) & within
        if not known:
            return np.full(len(length), np.nan), sound & (change <= _UNSTEADY)
        beyond = _further(state, known)
        fine, before, fine_before, further = read(
            state.fine, state.before, state.fine_before, beyond
        )
        fallen = np.sqrt(fine / fine_before)
        missed = np.abs(length - before) * np.clip(fallen, _LEAST, 1.0)
        error = np.where(sound, (left + further) * length + missed + noise, np.nan)
        smooth = (fallen < _DECAY) | (missed <= _SHARE * rtol * length)
    return error, sound & smooth


def _further(state: _Modes, known: int) -> Tensor:  # -> (p,)
    """The relative length that modes beyond those of this level would gain, extrapolated."""
    step = (state.trial - state.x) / state.stride[:, None, None]
    gains = (state.gradient * step).abs().sum(2)[:, known:]
    half = gains.shape[1] // 2
    coarse, fine = gains[:, :half].sum(1), gains[:, -half:].sum(1)
    ratio = (fine / coarse).nan_to_num(0.0).clamp(max=_SLOWEST)
    return _DOUBT * fine * ratio / (1 - ratio) / (4 * state.energy)


def _joined(
    ended: list[tuple[np.ndarray, np.ndarray, _Modes]], least: np.ndarray, rtol: float
) -> Attempt:
    """The curves that are good enough, as splines."""
    columns: list[list[np.ndarray]] = [[] for _ in range(6)]
    curves = []
    count = 0
    for rows, error, state in ended:
        told = (state.length, state.energy, state.left, state.noise, state.steps)
        length, energy, left, noise, steps = read(*told)
        # Nothing is shorter than the bound, where there is one.
        error = np.fmin(error, np.maximum(length - least[rows], 0.0) + noise)
        uneven = np.sqrt(np.maximum(energy / length**2 - 1, 0.0))
        found = (rows, length, error, left, uneven, steps)
        for column, values in zip(columns, found, strict=True):
            column.append(values)
        for places, curve in _splines(state, rtol):
            curves.append((count + places, curve))
        count += len(rows)
    joined = [np.concatenate(column) if column else np.zeros(0) for column in columns]
    rows, length, error, left, uneven, steps = joined
    return Attempt(rows.astype(np.int64), length, error, left, uneven, steps, curves)


def _splines(state: _Modes, rtol: float) -> Iterator[tuple[np.ndarray, Curve]]:
    """The curves in groups: on as few segments as follow them closely enough."""
    whole = state.squared(velocities(points_on(state.z0, state.z1, state.x, _LOOKS)))
    rest = np.arange(len(state.x))
    for segments in _SEGMENTS:
        those = placed(rest, state.x)
        part = state.select(those)
        share = part.squared(strayed(part.x, segments)) / whole[those] / 2
        (close,) = read(share <= _SPLINE * rtol)
        close = close | (segments == _SEGMENTS[-1])
        if close.any():
            where = placed(close.nonzero()[0], state.x)
            ends = part.z0[where], part.z1[where]
            yield rest[close], spline_of(*ends, part.x[where], segments)
        rest = rest[~close]
        if not len(rest):
            return


def _has_images(space: Space, start: Curve) -> bool:
    """Whether the space has images of points, and knows how forces on them act."""
    ends = start.nodes[:1, :: start.segments]
    if not len(ends):
        return False
    return pulled_of(space, ends, lambda x: (torch.zeros_like(x), x[:, 0, :1])) is not None
