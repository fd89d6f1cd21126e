"""Whole curves as polynomials of growing degree: few points, gradients alone, spectral accuracy.

A level is a degree d and a number q of Gauss-Lobatto points. On each, the energy of the images'
interpolant is minimised over the modes (:mod:`riemae.solvers.polynomials`) by limited-memory BFGS,
preconditioned by the energy's Hessian in a metric that is known at a few places of the start curve.
On request that is the Gauss-Newton matrix of tangents at a few places. Where a few steps were not
enough, and where curves are much longer than their bound, second derivatives at a few places of the
present curve then follow, in place of secants.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import embedding_of, precision_of, pulled_of
from riemae.solvers.mode_hessian import ModeHessian
from riemae.solvers.mode_metric import as_splines
from riemae.solvers.polynomials import (
    energy_force,
    fine_share,
    lobatto_weights,
    modes_of,
    points_on,
    slope_in_modes,
    spline_of,
    velocities,
)
from riemae.solvers.secants import Search
from riemae.solvers.solver import Attempt
from riemae.solvers.space import Space
from riemae.solvers.state import placed, read

# Up to so many dimensions second derivatives may follow, after so many steps, and again after as
# many, so often on one level.
_FEW, _TIRED, _RENEWALS = 15, 4, 2
# How much longer than the bound curves may be whose second derivatives need no look.
_STEEP = 1.4
# Tolerances for which the first degree is nearly enough.
_LOOSE = 3e-4
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


# How many degrees are tried, the lowest, how many one digit takes, and how they grow.
_LEVELS, COARSEST = 4, 6
_DEGREES_A_DIGIT = 3.0
_GROWTH = 1.45


def levels(degree: int, rtol: float) -> list[tuple[int, int]]:
    """Degrees from ``degree`` at most, and points that see curves of these.

    The first is for the way down. The second is what most curves of decoders need for ``rtol``.
    """
    wanted = round(_DEGREES_A_DIGIT * -math.log10(rtol))
    degrees = [max(min(degree, wanted), COARSEST)]
    degrees.append(max(wanted - 1, round(_GROWTH * degrees[0])))
    while len(degrees) < _LEVELS:
        degrees.append(round(_GROWTH * degrees[-1]))
    return [(d, d + max(3, d // 4 + 1)) for d in degrees]


@dataclass(frozen=True)
class Settings:
    """How curves are tried.

    Attributes:
        levels: Degrees and numbers of points.
        history: Secants that are remembered.
        max_gradients: That a curve may take in all.
        second_order: Whether second derivatives are looked at where gradients are not enough.
    """

    levels: Sequence[tuple[int, int]]
    history: int
    max_gradients: int
    second_order: bool = False


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
        doubt: ``(p,)``, no less of that is believed before second derivatives are looked at.
        steps: ``(p,)``, gradients taken.
        since: ``(p,)``, of them since second derivatives were looked at.
        renewed: ``(p,)``, how often that was.
        convex: ``(p,)``, 0 where the last ones had directions in which the energy falls.
        regular: ``(p,)``, 0 where there is no metric.
        mean: ``(p, m, m)``, the mean metric along the start; none where it is sketched.
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
    doubt: Tensor
    steps: Tensor
    since: Tensor
    renewed: Tensor
    convex: Tensor
    regular: Tensor
    mean: Tensor
    change: Tensor

    @classmethod
    def about(cls, start: Curve, modes: int, history: int, first: ModeHessian) -> _Modes:
        """About start curves."""
        nodes = start.nodes
        p = len(nodes)
        none = nodes.new_zeros(p)
        one = torch.ones_like(none)
        count = torch.zeros(p, dtype=torch.int64, device=nodes.device)
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
            doubt=none,
            steps=count,
            since=count,
            renewed=count,
            convex=one,
            regular=first.regular,
            mean=first.mean,
            change=first.change,
        )

    def extended(self, modes: int) -> _Modes:
        """With further modes, which are 0, and nothing known of the energy."""
        more = modes - self.x.shape[1]

        def wide(x: Tensor) -> Tensor:
            return pad(x, (0, 0, 0, more))

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

    def squared(self, rows: Tensor, v: Tensor) -> Tensor:  # (q,), (q, j, m) -> (q,)
        """The mean square of velocities, in the mean metric along the start where it is known."""
        if not self.mean.shape[1]:
            return v.square().sum(2).mean(1)
        return ((v @ self.mean[rows]) * v).sum(2).mean(1)


@dataclass(frozen=True)
class _Level:
    """Curves of one degree, seen at so many points.

    Attributes:
        space: The space.
        ends: ``(p, 2, D)``, images of the curves' end points, which are the same on every level.
        degree: Of the curves.
        count: Points.
        rtol: The relative accuracy that is asked for.
        max_gradients: That a curve may take in all.
        secants: That curves remember from the levels before, at most.
        renews: Whether second derivatives are looked at where a few steps were not enough; after as
            many more the next level goes on. None for as many steps as it takes.
    """

    space: Space
    ends: Tensor
    degree: int
    count: int
    rtol: float
    max_gradients: int
    secants: int = 0
    renews: bool | None = None

    def taken_up(self, state: _Modes, first: ModeHessian) -> _Modes:
        """The curves as this level sees them, and their next trials."""
        state = state.extended(self.degree - 1)
        first.extended(self.degree - 1)
        return self._stepped(state, self.ends, first.of(), self.secants)

    def descended(
        self, state: _Modes, first: ModeHessian, least: np.ndarray
    ) -> tuple[_Modes, int]:  # (p,)
        """The curves after as many steps as this level is good for, and the most secants of one.

        Nothing shorter than ``least`` joins their ends.
        """
        secants = self.secants
        renewals = np.full(len(state.x), _RENEWALS if self.renews else 0)
        while True:
            going = (state.left > self._goal(state)) & self.alive(state)
            running, since, renewed, length, misses, convex = read(
                going, state.since, state.renewed, state.length, state.misses, state.convex > 0
            )
            tired = running & (since > _TIRED) & (misses == 0)
            renewable = renewals > 0
            if self.renews is not None:
                # Where the manifold bends much, tangents alone do not tell what is left.
                unsure = np.where(renewed > 0, ~convex & (since > 0), ~(length <= _STEEP * least))
                tired |= unsure & ~running & renewable
                running = (running & ~tired) | (tired & renewable)
            active = running.nonzero()[0]
            if not len(active):
                return state, secants
            anew = (tired & renewable).nonzero()[0]
            if len(anew):
                renewals[anew] -= 1
                self._renew(state, first, anew)
                continue
            secants += 1
            known = min(secants, int(since[active].max()))
            if len(active) == len(running):
                state = self._stepped(state, self.ends, first.of(), known)
                continue
            those = placed(active, state.x)
            part = self._stepped(state.select(those), self.ends[those], first.of(those), known)
            state.update(those, part)

    def _renew(self, state: _Modes, first: ModeHessian, rows: np.ndarray) -> None:
        """Curves at ``rows`` with second derivatives, in place of secants."""
        those = placed(rows, state.x)
        part = state.select(those)
        convex = first.renewed(self.space, rows, part.z0, part.z1, part.x)
        zero = torch.zeros_like(part.since)
        part = replace(
            part,
            moves=torch.zeros_like(part.moves),
            changes=torch.zeros_like(part.changes),
            gains=torch.full_like(part.gains, torch.nan),
            misses=torch.zeros_like(part.misses),
            since=zero,
            doubt=torch.zeros_like(part.left),
            renewed=part.renewed + 1,
            convex=convex,
        )
        every = torch.ones_like(part.left, dtype=torch.bool)
        part, left = part.aimed(first.of(those), every, 0)
        state.update(those, replace(part, left=left / (2 * part.energy)))

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

    def _stepped(
        self, state: _Modes, ends: Tensor, first: Callable[[Tensor], Tensor], secants: int
    ) -> _Modes:
        """After a look at the trials, with the next ones."""
        eps = precision_of(self.space, state.x.dtype).eps
        points = points_on(state.z0, state.z1, state.trial, self.count)
        found = pulled_of(self.space, points[:, 1:-1], self._force, ends)
        assert found is not None
        inner, told = found
        along = pad(inner, (0, 0, 1, 1))
        energy, length, fine, size = told.unbind(1)
        gradient = slope_in_modes(along, self.degree - 1)
        state, good = state.seen(energy, gradient, _ROUNDING * eps * self.count)
        # Rounding of images: what does not cancel along the curve, and what uneven speeds add.
        rough = eps * self.count**2 * size
        noise = _GRAIN * eps * (size + length) + rough.square() / length
        before = state.left
        state, left = state.aimed(first, good, secants)
        left = left / (2 * state.energy)
        since = state.since + 1
        doubt = state.doubt
        if self.renews is not None:
            # Secants across a trial that was too long do not tell what is left here.
            doubt = torch.where(good, doubt, torch.maximum(doubt, before))
        return replace(
            state,
            doubt=doubt,
            length=torch.where(good, length, state.length),
            fine=torch.where(good, fine / energy, state.fine),
            noise=torch.where(good, noise, state.noise),
            left=torch.maximum(left, doubt),
            steps=state.steps + 1,
            since=since,
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
        Those that are good enough, and start curves for others; None where the space has no images.
    """
    embedded = embedding_of(space)
    ends = None if embedded is None else embedded(start.nodes[:, :: start.segments], lambda x: x)
    if ends is None:
        return None
    return _Trial(space, start, ends, least, rtol, settings).run()


class _Trial:
    """Curves that are tried together; arrays ``(q,)`` for those that are still tried.

    Attributes:
        rows: Which of all curves.
        state: Progress on them.
        first: Their Hessians.
        ends: ``(q, 2, D)``, the images of their end points.
        least: Lower bounds of their lengths.
        unseen: By how much their lengths may be off by quadrature, and by modes that this level
            does not have; NaN on the first level.
        smooth: bool: the images' highest modes have fallen, or do not matter.
        secants: Of the curve that has most of them.
        ended: Curves that are good enough: which, their errors, and their states.
        starts: Start curves for others: which, and the curves.
    """

    def __init__(
        self,
        space: Space,
        start: Curve,
        ends: Tensor,
        least: np.ndarray,
        rtol: float,
        settings: Settings,
    ) -> None:
        self.space = space
        self.settings = settings
        self.rtol = rtol
        self.segments = start.segments
        self.second_order = settings.second_order and start.nodes.shape[-1] <= _FEW
        self.rows = np.arange(len(least))
        self.first = ModeHessian(space, start.nodes, self.second_order)
        degree, _ = settings.levels[0]
        self.state = _Modes.about(start, degree - 1, settings.history, self.first)
        self.ends = ends
        self.least = least
        self.unseen = np.full(len(least), np.nan)
        self.smooth = np.ones(len(least), dtype=bool)
        self.secants = 0
        self.ended: list[tuple[np.ndarray, np.ndarray, _Modes]] = []
        self.starts: list[tuple[np.ndarray, Curve]] = []

    def run(self) -> Attempt:
        """All levels."""
        known = 0
        for degree, count in self.settings.levels:
            level = self._level(degree, count, known > 0)
            self.state = level.taken_up(self.state, self.first)
            if known:
                self._compare(known)
            else:
                self.state.begun = self.state.length.clone()
            self._settle(known)
            if not len(self.rows):
                break
            level = replace(level, ends=self.ends)
            self.state, self.secants = level.descended(self.state, self.first, self.least)
            if known:
                self._settle(known)
            if not len(self.rows):
                break
            known = degree - 1
        self._leave()
        return replace(_joined(self.ended, self.rtol), starts=self.starts)

    def _level(self, degree: int, count: int, later: bool) -> _Level:
        # Where the first level is far from enough, second derivatives are for the next one.
        renews = (later or self.rtol >= _LOOSE) if self.second_order else None
        return _Level(
            space=self.space,
            ends=self.ends,
            degree=degree,
            count=count,
            rtol=self.rtol,
            max_gradients=self.settings.max_gradients,
            secants=self.secants,
            renews=renews,
        )

    def _compare(self, known: int) -> None:
        """Curves as this level sees them with what the level before has seen of the same ones."""
        state = self.state
        told = state.length, state.before, state.fine, state.fine_before
        length, before, fine, fine_before = read(*told)
        with np.errstate(all="ignore"):
            fallen = np.sqrt(fine / fine_before)
            missed = np.abs(length - before) * np.clip(fallen, _LEAST, 1.0)
            self.smooth = (fallen < _DECAY) | (missed <= _SHARE * self.rtol * length)
            # Later on this level, nothing is left to gain in the modes that are new now.
            (further,) = read(_further(state, known))
            self.unseen = missed + further * length

    def _settle(self, known: int) -> None:
        """Curves that are good enough end, and those on which nothing can come of it.

        Args:
            known: Modes of the level before; 0 on the first.
        """
        error, on = self._judged(known)
        # rtol is a share of the distance, which is shorter.
        good = error <= self.rtol / (1 + self.rtol) * read(self.state.length)[0]
        rows = good.nonzero()[0]
        if len(rows):
            there = placed(rows, self.state.x)
            # Nothing is shorter than the bound, where there is one.
            length, noise = (x[rows] for x in read(self.state.length, self.state.noise))
            above = np.maximum(length - self.least[rows], 0.0) + noise
            error = np.fmin(error[rows], above)
            self.ended.append((self.rows[rows], error, self.state.select(there)))
        self._keep((on & ~good).nonzero()[0])

    def _keep(self, those: np.ndarray) -> None:
        if len(those) == len(self.rows):
            return
        there = placed(those, self.ends)
        self.state, self.first = self.state.select(there), self.first.select(those)
        self.ends = self.ends[there]
        self.rows, self.least = self.rows[those], self.least[those]
        self.unseen, self.smooth = self.unseen[those], self.smooth[those]

    def _leave(self) -> None:
        """What has come of curves that are not good enough, for segments to begin with."""
        if not len(self.rows):
            return
        (shorter,) = read(self.state.length < self.state.begun)
        rows = shorter.nonzero()[0]
        if len(rows):
            part = self.state.select(placed(rows, self.state.x))
            curves = spline_of(part.z0, part.z1, part.x, self.segments)
            self.starts.append((self.rows[rows], curves))

    def _judged(self, known: int) -> tuple[np.ndarray, np.ndarray]:
        """Errors of lengths, NaN on the first level; and bool: where to go on makes sense."""
        state, least, rtol = self.state, self.least, self.rtol
        told = (
            state.length,
            state.left,
            state.noise,
            state.regular > 0,
            state.convex > 0,
            state.begun,
            state.since,
            state.change,
            state.renewed,
        )
        length, left, noise, regular, convex, begun, steps, change, renewed = read(*told)
        usual = _STEPS + _STEPS_A_DIGIT * -math.log10(rtol)
        # Second derivatives were looked at where the curve is.
        change = np.where(renewed > 0, 1.0, change)
        left = left * np.maximum(steps / usual, 1.0) ** 3 * np.maximum(change / _STEADY, 1.0)
        with np.errstate(all="ignore"):
            # Between nothing that is shorter, and what it began with.
            within = ~(length < least - noise) & (length <= (1 + rtol) * begun)
            sound = regular & (length > 0) & np.isfinite(left) & within
            if not known:
                return np.full(len(length), np.nan), sound & (change <= _UNSTEADY)
            steep = ~(length <= _STEEP * least) & self.second_order & (renewed == 0)
            error = left * length + self.unseen + noise
        return np.where(sound & convex & ~steep, error, np.nan), sound & self.smooth


def _further(state: _Modes, known: int) -> Tensor:  # -> (p,)
    """The relative length that modes beyond those of this level would gain, extrapolated."""
    step = (state.trial - state.x) / state.stride[:, None, None]
    gains = (state.gradient * step).abs().sum(2)[:, known:]
    half = gains.shape[1] // 2
    coarse, fine = gains[:, :half].sum(1), gains[:, -half:].sum(1)
    ratio = (fine / coarse).nan_to_num(0.0).clamp(max=_SLOWEST)
    return _DOUBT * fine * ratio / (1 - ratio) / (4 * state.energy)


def _joined(ended: list[tuple[np.ndarray, np.ndarray, _Modes]], rtol: float) -> Attempt:
    """The curves that are good enough, as splines."""
    columns: list[list[np.ndarray]] = [[] for _ in range(7)]
    curves = []
    count = 0
    for rows, error, state in ended:
        told = (state.length, state.energy, state.left, state.steps, state.renewed)
        length, energy, left, steps, renewed = read(*told)
        uneven = np.sqrt(np.maximum(energy / length**2 - 1, 0.0))
        # What is left of a curve whose second derivatives are not known says nothing of saddles.
        index = np.where(renewed > 0, 0, -1)
        found = (rows, length, error, left, uneven, steps, index)
        for column, values in zip(columns, found, strict=True):
            column.append(values)
        for places, curve in as_splines(state.z0, state.z1, state.x, state.squared, rtol):
            curves.append((count + places, curve))
        count += len(rows)
    joined = [np.concatenate(column) if column else np.zeros(0) for column in columns]
    rows, length, error, left, uneven, steps, index = joined
    return Attempt(rows.astype(np.int64), length, error, left, uneven, steps, index, curves)
