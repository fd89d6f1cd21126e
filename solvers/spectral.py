"""Whole curves as polynomials of growing degree: few points, gradients alone, spectral accuracy.

A level is a degree d and a number q of Gauss-Lobatto points. On each, the energy of the images'
interpolant is minimised over the modes (:mod:`riemae.solvers.polynomials`) by limited-memory BFGS,
preconditioned by the energy's Hessian in a metric that is known at a few places of the start curve.
On request that is the Gauss-Newton matrix of tangents at a few places (:mod:`mode_hessian
<riemae.solvers.mode_hessian>`), whose images also tell the first step. Where a few steps were not
enough, and where curves are much longer than their bound, second derivatives at a few places of the
present curve then follow, in place of secants. How a level is descended:
:mod:`riemae.solvers.mode_descent`.
The next level has more modes and more points, to which the same curve is taken. One gradient there
says nearly all that is still unknown of it:

- the Newton decrement, which counts the modes that were missing as well as the steps that were;
- how far the length was off by quadrature, which is the difference of its values on both levels;
- whether the highest modes of the images have fallen, without which neither can be trusted.

Of what is left in the energy, lengths do not see what makes the speed even. Where that is most of
it, one more look, by the gradient of the length, tells the error of a curve that is good enough.

Curves of which that is not good enough take further steps there, are judged again, and then go on,
up to the highest degree. Those that do not get there, and those that show no spectral decay, are
left to the solver's segments: the former from where they are, where that is shorter than the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.budget import lenient
from riemae.solvers.curve import Curve
from riemae.solvers.hooks import embedding_of, precision_of
from riemae.solvers.mode_descent import STEEP, Level, ModeState, Patience
from riemae.solvers.mode_hessian import ModeHessian
from riemae.solvers.mode_looks import (
    DECAY,
    LEAST_MISSED,
    beyond,
    energy_and_length,
    length_rounding,
    with_ends,
)
from riemae.solvers.mode_metric import Settled, joined
from riemae.solvers.polynomials import (
    lobatto,
    spline_of,
    velocities,
)
from riemae.solvers.secants import hoped
from riemae.solvers.solver import Attempt
from riemae.solvers.space import Space
from riemae.solvers.state import placed, read

_FEW = 15  # dimensions up to which second derivatives may follow
# Curves after their first step that are not shorter than this share of what tangents say of their
# start's length: that is measured.
_CLEARLY = 0.97
# Tolerances for which the first degree is nearly enough.
_LOOSE = 3e-4
# What may be left counts so many times, by the first tolerance that is not above what is asked for:
# where it is sharp, curves that are accepted come close to it. On random networks, beyond it were
# 10 of 1,727 without, 7 with 1.6 throughout, and 7 of Newton's; at 1e-4 1.3 does as well.
_MARGINS = (_LOOSE, 1.0), (1e-4, 1.3), (0.0, 1.6)
# By how much lengths of tangents may change from one place to the next: up to the first number, as
# they do on decoders, what is left is believed; beyond the second, curves are not tried. Known at
# one place, a metric that changes takes more steps, and these are what counts.
_STEADY, _UNSTEADY = 1.5, 3.0
# What no level has seen is extrapolated from the last two: on rough maps it is up to so many times
# as much. On smooth ones it is little beside what is left.
_UNSEEN = 2.5
# Images that are not smooth do no harm where lengths differ by less than this share of ``rtol``.
_HARMLESS = 0.5
# By how much the highest modes have fallen of a curve that is accepted: those of decoders on digits
# by 0.35 and less, those of maps with a jump in a second derivative by 0.4 and more, and what
# follows is then not foreseen.
_FALLEN, _SETTLED = 0.4, 0.005
# Where they have fallen by this factor, what steps promise is the energy that is left, of which
# lengths do not see what makes the speed even: on spheres, Grassmannians, rotations and
# distributions, lengths were off by 0.7 to 1.7 times the rest. Where that is less than this share,
# it is lost in what steps do not know of the energy, and the gradient of the length is looked at.
_CLEAR, _SEEN_BY_LENGTHS = 0.03, 0.3
# To make the speed even gains no more than steps promise. Where it is less even than so many times
# that, steps promise too little, or modes that no level has would make it even, and as good as this
# share of it they shorten.
_EVEN, _SHORTENED = 1.5, 0.5
# In the geometric mean that is the error, the weight of the worst that may be left, there and else.
_FEARED_IF_CLEAR, _FEARED = 0.15, 0.25
# Where the metric at a few places fits, a curve takes some three steps and half as many again per
# digit. More of them say that it does not, and that most of what is left may lie where no secant
# has been: that counts by the cube of their number.
_STEPS, _STEPS_A_DIGIT = 3.0, 1.5
# Where the metric is known at one place, more steps are taken, and what is left is more than they
# say: on random networks with 33 to 64 dimensions and gains up to 1.4, and on trained convolutions,
# 1.1 times as much in 95 % and 1.5 times at most, after more than 13 steps up to 2.2 times.
_STEPS_ONE_PLACE, _STEPS_A_DIGIT_ONE_PLACE, _LEAST_ONE_PLACE = 4.0, 2.0, 2.0
# How many degrees are tried, the lowest, how many one digit takes, and how they grow.
_LEVELS, _COARSEST = 4, 6
# Of curves on which many steps are taken, a degree before them: of decoders, it carries 1e-4.
COARSE = 4
_DEGREES_A_DIGIT = 3.0
_GROWTH = 1.45


def levels(degree: int, rtol: float, coarse: int | None = None) -> list[tuple[int, int]]:
    """Degrees from ``degree`` at most, and points that see curves of these.

    The first is for the way down. The second is what most curves of decoders need for ``rtol``.

    Args:
        degree: Of the first, at most.
        rtol: The relative accuracy.
        coarse: A degree that goes before them.
    """
    wanted = round(_DEGREES_A_DIGIT * -math.log10(rtol))
    degrees = [max(min(degree, wanted), _COARSEST)]
    degrees.append(max(wanted - 1, round(_GROWTH * degrees[0])))
    while len(degrees) < _LEVELS:
        degrees.append(round(_GROWTH * degrees[-1]))
    if coarse is not None:
        degrees.insert(0, coarse)
    return [(d, d + max(min(3, d // 2), d // 4 + 1)) for d in degrees]


@dataclass(frozen=True)
class Settings:
    """How curves are tried.

    Attributes:
        levels: Degrees and numbers of points.
        history: Secants that are remembered.
        max_gradients: That a curve may take in all, without the look that tells its error.
        second_order: Whether second derivatives are looked at where gradients are not enough.
    """

    levels: Sequence[tuple[int, int]]
    history: int
    max_gradients: int
    second_order: bool = False


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
    ended: list[Settled] = []
    starts: list[tuple[np.ndarray, Curve]] = []
    for some, ends in with_ends(space, start.nodes):
        if ends is None:
            return None
        trial = _Trial(space, start[some], ends, least[some], rtol, settings)
        trial.run()
        ended += [replace(group, rows=group.rows + some.start) for group in trial.ended]
        starts += [(rows + some.start, curves) for rows, curves in trial.starts]
    return replace(joined(ended, rtol), starts=starts)


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
        resolved: bool: they have fallen far enough for a curve to be accepted.
        clear: bool: they have fallen so far that steps tell how much energy is left.
        secants: Of the curve that has most of them.
        ended: Curves that are good enough.
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
        self.start = start
        self.second_order = settings.second_order and start.nodes.shape[-1] <= _FEW
        self.rows = np.arange(len(least))
        self.first = ModeHessian(space, start.nodes, self.second_order)
        degree, _ = settings.levels[0]
        self.state = ModeState.about(start, degree - 1, settings.history, self.first, ends)
        self.ends = ends
        self.least = least
        self.patience = _patience(rtol, self.first.one_place)
        self.unseen = np.full(len(least), np.nan)
        self.smooth = np.ones(len(least), dtype=bool)
        self.resolved = np.zeros(len(least), dtype=bool)
        self.clear = np.zeros(len(least), dtype=bool)
        self.secants = 0
        self.ended: list[Settled] = []
        self.starts: list[tuple[np.ndarray, Curve]] = []

    def run(self) -> None:
        """All levels."""
        known = 0
        for degree, count in self.settings.levels:
            level = self._level(degree, count, known > 0)
            self.state = level.taken_up(self.state, self.first)
            if known:
                self._compare(known)
            else:
                self.state.begun = self._begun()
            self._settle(level, known)
            if not len(self.rows):
                break
            level = replace(level, ends=self.ends)
            self.state, self.secants = level.descended(self.state, self.first, self.least)
            if known:
                self._settle(level, known)
            if not len(self.rows):
                break
            known = degree - 1
        self._leave()

    def _level(self, degree: int, count: int, later: bool) -> Level:
        # Where the first level is far from enough, second derivatives are for the next one.
        renews = (later or self.rtol >= _LOOSE) if self.second_order else None
        return Level(
            space=self.space,
            ends=self.ends,
            degree=degree,
            count=count,
            rtol=self.rtol,
            max_gradients=self.settings.max_gradients,
            secants=self.secants,
            renews=renews,
            patience=self.patience if self.first.one_place else None,
        )

    def _begun(self) -> Tensor:  # -> (q,)
        """Lengths of the start curves.

        Where their tangents have been looked at, roughly; those that the curves are not clearly
        shorter than are measured.
        """
        state = self.state
        if self.first.speeds is None:
            return state.length.clone()
        begun = self.first.speeds.mean(1)
        (close,) = read(~(state.length <= _CLEARLY * begun))
        rows = close.nonzero()[0]
        if len(rows):
            there = placed(rows, begun)
            measured = self._measured(there)
            if measured is not None:
                begun[there] = measured
        return begun

    def _measured(self, rows: Tensor) -> Tensor | None:  # (r,) -> (r,)
        """Lengths of some of the start curves, as the first level's points see them.

        None where their images are too many to be held at once.
        """
        _, count = self.settings.levels[0]
        times = torch.from_numpy(lobatto(count)[0]).to(self.ends)
        points = self.start[rows](times[1:-1])
        ends = self.ends[rows]
        embedded = embedding_of(self.space)
        x = None if embedded is None else embedded(points, lambda x: x)
        if x is None:
            return None
        _, length = energy_and_length(velocities(torch.cat([ends[:, :1], x, ends[:, 1:]], 1)))
        return length

    def _rounding(self, level: Level, length: np.ndarray, size: np.ndarray) -> np.ndarray:
        eps = precision_of(self.space, self.ends.dtype).eps
        return length_rounding(eps, level.count, length, size)

    def _compare(self, known: int) -> None:
        """Curves as this level sees them with what the level before has seen of the same ones."""
        state = self.state
        # Later on this level, nothing is left to gain in the modes that are new now.
        further = beyond(state.promised()[:, known:]) / (4 * state.energy)
        told = state.length, state.before, state.fine, state.fine_before, further
        length, before, fine, fine_before, unseen = read(*told)
        with np.errstate(all="ignore"):
            fallen = np.sqrt(fine / fine_before)
            missed = np.abs(length - before) * np.clip(fallen, LEAST_MISSED, 1.0)
            share = missed / (self.rtol * length)
            self.smooth = (fallen < DECAY) | (share <= _HARMLESS)
            self.resolved = (fallen < _FALLEN) | (share <= _SETTLED)
            self.clear = fallen < _CLEAR
            self.unseen = _UNSEEN * (missed + unseen * length)

    def _settle(self, level: Level, known: int) -> None:
        """Curves that are good enough end, and those on which nothing can come of it.

        Args:
            level: This level.
            known: Modes of the level before; 0 on the first.
        """
        found = self._judged(level, known)
        # rtol is a share of the distance, which is shorter.
        margin = next(times for least, times in _MARGINS if self.rtol >= least)
        good = margin * found.worst <= self.rtol / (1 + self.rtol) * found.length
        rows = good.nonzero()[0]
        if len(rows):
            seen, looks = self._seen(level, found, rows)
            self._end(level, rows, found.left[rows] * seen + found.rest[rows], looks)
        self._keep((found.on & ~good).nonzero()[0])

    def _seen(
        self, level: Level, found: _Verdict, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:  # (r,) -> (r,) twice
        """Of what is left of the curves at ``rows``, the share that lengths see.

        And how many looks were taken at each of them to tell.
        """
        seen = found.seen[rows]
        hidden = (seen < _SEEN_BY_LENGTHS) & (found.left[rows] > found.rest[rows])
        share = np.clip(seen, _SEEN_BY_LENGTHS, 1.0)
        if hidden.any():
            those = rows[hidden]
            there = placed(those, self.ends)
            closer = replace(
                level,
                space=lenient(self.space),
                ends=self.ends[there],
                secants=self.secants,
            )
            (told,) = read(closer.shortening(self.state.select(there), self.first.of(there)))
            part = told / found.promised[those]
            # All of it where that says nothing.
            share[hidden] = np.where(part >= 0, np.minimum(part, 1.0), 1.0)
        return share, hidden.astype(np.int64)

    def _end(
        self, level: Level, rows: np.ndarray, error: np.ndarray, looks: np.ndarray
    ) -> None:  # (r,) each
        state = self.state
        if len(rows) < len(self.rows):
            state = state.select(placed(rows, state.x))
        told = state.length, state.energy, state.size, state.left, state.steps, state.renewed
        length, energy, size, left, steps, renewed = read(*told)
        settled = Settled(
            rows=self.rows[rows],
            z0=state.z0,
            z1=state.z1,
            modes=state.x,
            metric=state.mean,
            length=length,
            energy=energy,
            error=error,
            least=self.least[rows],
            noise=self._rounding(level, length, size),
            left=left,
            steps=steps + looks,
            # What is left of a curve whose second derivatives are not known says nothing of
            # saddles.
            index=np.where(renewed > 0, 0, -1),
        )
        self.ended.append(settled)

    def _keep(self, those: np.ndarray) -> None:
        if len(those) == len(self.rows):
            return
        self.rows = self.rows[those]
        if not len(those):
            return
        there = placed(those, self.ends)
        self.state, self.first = self.state.select(there), self.first.select(those)
        self.ends = self.ends[there]
        self.least = self.least[those]
        self.unseen, self.smooth = self.unseen[those], self.smooth[those]
        self.resolved, self.clear = self.resolved[those], self.clear[those]

    def _leave(self) -> None:
        """What has come of curves that are not good enough, for segments to begin with."""
        if not len(self.rows):
            return
        (shorter,) = read(self.state.length < self.state.begun)
        rows = shorter.nonzero()[0]
        if len(rows):
            part = self.state.select(placed(rows, self.state.x))
            curves = spline_of(part.z0, part.z1, part.x, self.start.segments)
            self.starts.append((self.rows[rows], curves))

    def _judged(self, level: Level, known: int) -> _Verdict:
        state, least, rtol = self.state, self.least, self.rtol
        told = (
            state.length,
            state.left,
            state.size,
            state.regular,
            state.convex,
            state.begun,
            self.patience.doubt(state),
            state.change,
            state.renewed,
            state.slope,
            state.energy,
        )
        length, left, size, regular, convex, begun, *more = read(*told)
        doubt, change, renewed, slope, energy = more
        # Second derivatives were looked at where the curve is.
        change = np.where(renewed > 0, 1.0, change)
        left = left * doubt
        if not self.first.one_place:
            left = left * np.maximum(change / _STEADY, 1.0)
        # Where they had to be looked at again and again, they change with every step.
        left = left * np.maximum(renewed - 1, 1)
        with np.errstate(all="ignore"):
            noise = self._rounding(level, length, size)
            # Between nothing that is shorter, and what it began with.
            within = ~(length < least - noise) & (length <= (1 + rtol) * begun)
            sound = (regular > 0) & (length > 0) & np.isfinite(left) & within
            if not known:
                unknown = np.full(len(length), np.nan)
                on = sound & (change <= _UNSTEADY)
                return _Verdict(length, unknown, unknown, unknown, unknown, unknown, on)
            steep = ~(length <= STEEP * least) & self.second_order & (renewed == 0)
            sure = sound & (convex > 0) & ~steep & self.resolved
            promised = -slope / (4 * energy)
            uneven = (1 - length**2 / energy) / 2
            surprise = np.where(promised > 0, uneven / (_EVEN * promised), 1.0)
            left = left * np.maximum(surprise, 1.0)
            most = np.where(sure, left * length, np.nan)
            # Steps that gain digits leave less than their gains so far make one fear.
            hopes = self.patience.least * hoped(promised) * length
            clear = self.clear & (not self.first.one_place)
            feared = np.where(clear, _FEARED_IF_CLEAR, _FEARED)
            usual = most**feared * np.minimum(most, hopes) ** (1 - feared)
            seen = 1 - uneven / promised
            # Where images may have further modes, half of the other part is counted as well.
            seen = np.where(clear | (seen < _SEEN_BY_LENGTHS), seen, (1 + seen) / 2)
            seen = np.where((promised > 0) & (not self.first.one_place), seen, 1.0)
            finer = _SHORTENED * np.maximum(uneven - _EVEN * promised, 0.0)
            rest = self.unseen + finer * length + noise
        return _Verdict(length, most + rest, usual, seen, promised, rest, sound & self.smooth)


@dataclass(frozen=True)
class _Verdict:
    """What is known of curves; arrays ``(p,)``, NaN on the first level but for two.

    Attributes:
        length: Their lengths.
        worst: What these may be off by at worst, absolute.
        left: What steps would gain, usually, absolute.
        seen: The share of it that lengths see. Of less than 0.3 the number says nothing.
        promised: What the next step promises, as a share of the length.
        rest: What is added to ``left``: what no level has seen, and rounding; absolute.
        on: bool: to go on makes sense.
    """

    length: np.ndarray
    worst: np.ndarray
    left: np.ndarray
    seen: np.ndarray
    promised: np.ndarray
    rest: np.ndarray
    on: np.ndarray


def _patience(rtol: float, one_place: bool) -> Patience:
    digits = -math.log10(rtol)
    if one_place:
        expected = _STEPS_ONE_PLACE + _STEPS_A_DIGIT_ONE_PLACE * digits
        return Patience(_LEAST_ONE_PLACE, expected)
    return Patience(1.0, _STEPS + _STEPS_A_DIGIT * digits)
