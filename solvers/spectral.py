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
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import precision_of, pulled_of
from riemae.solvers.mode_metric import ONE_PLACE_BEYOND, as_splines, change_along
from riemae.solvers.path_metric import PathMetric, sampled_metric
from riemae.solvers.polynomials import (
    energy_force,
    fine_share,
    gauss_newton,
    lobatto_weights,
    modes_of,
    points_on,
    slope_in_modes,
    spline_of,
    stiffness,
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
# With second derivatives to follow, up to so many dimensions, tangents are, at so many places.
_FEW, _PLACES = 15, 3
# Second derivatives follow at so many places of the present curve, after so many steps, and again
# after as many, so often on one level.
_PLACES_ANEW, _TIRED, _RENEWALS = 4, 3, 2
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
    def about(cls, start: Curve, modes: int, history: int, first: _First) -> _Modes:
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

    def squared(self, rows: Tensor, v: Tensor) -> Tensor:  # (q,), (q, j, m) -> (q,)
        """The mean square of velocities, in the mean metric along the start where it is known."""
        if not self.mean.shape[1]:
            return v.square().sum(2).mean(1)
        return ((v @ self.mean[rows]) * v).sum(2).mean(1)


def _products(space: Space, nodes: Tensor, second_order: bool) -> tuple[Tensor, Tensor]:
    """What :func:`gauss_newton` is made of, at the inner nodes of curves ``(p, s + 2, m)``.

    Eigenvalues of the metric within rounding of 0, relative to the largest at any place, are
    raised.

    Returns:
        The blocks ``(p, 2 s − 1 or 3 s − 1, m, m)``, and ``(p,)``, 0 where there is no metric.
    """
    n = nodes.shape[1] - 1
    found = space.expand(nodes, second_order)
    g = found.gauss_newton.diagonal / (4 * n)
    links = found.gauss_newton.upper / (-2 * n)
    if not found.separate:  # they may average over neighbours
        links = (g[:, :-1] + g[:, 1:]) / 2
    parts = [g, links]
    if second_order:
        assert found.correction is not None
        parts.append(n * found.correction.diagonal)
    top = g.diagonal(dim1=2, dim2=3).sum(-1).amax(1)
    sound = torch.stack([x.isfinite().flatten(1).all(1) for x in parts]).all(0) & (top > 0)
    eye = torch.eye(nodes.shape[-1]).to(g)
    floor = 1e2 * torch.finfo(g.dtype).eps * top
    parts[0] = g + floor[:, None, None, None] * eye
    parts = [torch.where(sound[:, None, None, None], x, eye) for x in parts]
    return torch.cat(parts, 1), sound.to(g)


class _First:
    """The inverse Hessian before any secant, for the curves of a state.

    Args:
        space: The space.
        nodes: ``(p, n + 1, m)``, of the start curves.
        second_order: Whether second derivatives may follow.
    """

    def __init__(self, space: Space, nodes: Tensor, second_order: bool) -> None:
        p, _, m = nodes.shape
        self.sketch: PathMetric | None = None
        self.second_order = second_order
        if m > _SKETCHED_BEYOND:
            sketch = PathMetric.sketched(space, nodes, _SKETCH)
            self.regular = (sketch.rest > 0).to(nodes)
            self.sketch = PathMetric(sketch.basis, sketch.values, sketch.rest.nan_to_num(0.0))
            self.mean = nodes.new_zeros(p, 0, 0)
            self.change = nodes.new_ones(p)
            return
        if second_order:
            evenly = torch.linspace(0, nodes.shape[1] - 1, _PLACES + 2).round().long()
            self.blocks, self.regular = _products(space, nodes[:, evenly], second_order=False)
            metrics = self.blocks[:, :_PLACES]
        else:
            few = _SAMPLES_OF_MANY if m <= ONE_PLACE_BEYOND else 1
            samples = sampled_metric(space, nodes, _SAMPLES if m <= _MANY else few)
            sound = samples.isfinite().flatten(1).all(1)
            eye = torch.eye(m).to(samples)
            metrics = torch.where(sound[:, None, None, None], samples, eye)
            self.blocks, self.regular = metrics, sound.to(nodes)
        self.anew = nodes.new_zeros(p, 3 * _PLACES_ANEW - 1 if second_order else 0, m, m)
        self.newer = np.zeros(p, dtype=bool)
        self.mean = metrics.mean(1)
        self.change = change_along(space, nodes, metrics)

    def extended(self, modes: int) -> None:
        """For curves of so many modes."""
        like = self.mean
        k = torch.arange(1, modes + 1, device=like.device).to(like)
        self.scale = (2 * k + 1)[:, None] / 2
        if self.sketch is not None:
            return
        self.dense = self.second_order or modes * like.shape[1] <= _DENSE
        if not self.dense:
            self.root = torch.linalg.cholesky(like)
            return
        old, new = (~self.newer).nonzero()[0], self.newer.nonzero()[0]
        if not len(new):
            matrix = gauss_newton if self.second_order else stiffness
            self.root = _sound_root(matrix(self.blocks, modes))
            return
        n = modes * like.shape[1]
        self.root = like.new_empty(len(like), n, n)
        for rows, blocks, forms in ((old, self.blocks, False), (new, self.anew, True)):
            if len(rows):
                those = placed(rows, like)
                self.root[those], _ = _rooted(blocks[those], modes, forms)

    def renewed(self, space: Space, rows: np.ndarray, nodes: Tensor, modes: int) -> Tensor:
        """Look at second derivatives of the curves at ``rows``, along nodes ``(q, s + 2, m)``.

        Returns:
            ``(q,)``: 1 where the energy is convex.
        """
        those = placed(rows, nodes)
        blocks, regular = _products(space, nodes, second_order=True)
        root, convex = _rooted(blocks, modes, forms=True)
        self.anew[those] = blocks
        self.newer[rows] = True
        self.root[those] = root
        return convex * regular

    def select(self, rows: np.ndarray) -> _First:
        """Of the curves at ``rows``."""
        found = copy(self)
        those = placed(rows, self.mean)
        if self.sketch is not None:
            found.sketch = self.sketch.select(those)
            return found
        found.newer = self.newer[rows]
        for name in ("blocks", "anew", "mean", "root"):
            setattr(found, name, getattr(self, name)[those])
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


def _rooted(blocks: Tensor, modes: int, forms: bool) -> tuple[Tensor, Tensor]:
    """Cholesky factors of the Hessians in the modes, and ``(p,)``: 1 where they are convex.

    Elsewhere the forms count half, or not at all.
    """
    if not forms:
        return _sound_root(gauss_newton(blocks, modes)), blocks.new_ones(len(blocks))
    whole = gauss_newton(blocks, modes, forms=True)
    root, info = torch.linalg.cholesky_ex(whole)
    (failed,) = read(info != 0)
    rows = failed.nonzero()[0]
    convex = (info == 0).to(blocks)
    if len(rows):
        those = placed(rows, blocks)
        few = (blocks.shape[1] + 1) // 3 * 2 - 1
        flat = gauss_newton(blocks[those, :few], modes)
        half, still = torch.linalg.cholesky_ex((whole[those] + flat) / 2)
        sound = (still == 0)[:, None, None]
        root[those] = torch.where(sound, half, _sound_root(flat))
    return root, convex


def _sound_root(matrix: Tensor) -> Tensor:  # (p, n, n) -> (p, n, n)
    """The Cholesky factor; where rounding has made it indefinite, of the diagonal."""
    root, info = torch.linalg.cholesky_ex(matrix)
    own = matrix.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(matrix.dtype).tiny)
    return torch.where((info == 0)[:, None, None], root, torch.diag_embed(own.sqrt()))


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
        renews: Whether second derivatives are looked at where a few steps were not enough; after as
            many more the next level goes on. None for as many steps as it takes.
    """

    space: Space
    degree: int
    count: int
    rtol: float
    max_gradients: int
    secants: int = 0
    renews: bool | None = None

    def taken_up(self, state: _Modes, first: _First) -> _Modes:
        """The curves as this level sees them, and their next trials."""
        state = state.extended(self.degree - 1)
        first.extended(self.degree - 1)
        every = torch.arange(len(state.x), device=state.x.device)
        return self._stepped(state, first.of(every), self.secants)

    def descended(
        self, state: _Modes, first: _First, least: np.ndarray
    ) -> tuple[_Modes, int]:  # (p,)
        """The curves after as many steps as this level is good for, and the most secants of one.

        Nothing shorter than ``least`` joins their ends.
        """
        every = torch.arange(len(state.x), device=state.x.device)
        secants = self.secants
        renewals = np.full(len(state.x), _RENEWALS if self.renews else 0)
        while True:
            going = (state.left > self._goal(state)) & self.alive(state)
            running, since, renewed, length, misses = read(
                going, state.since, state.renewed, state.length, state.misses
            )
            tired = running & (since > _TIRED) & (misses == 0)
            renewable = renewals > 0
            if self.renews is not None:
                # Where the manifold bends much, tangents alone do not tell what is left.
                unsure = (renewed == 0) & ~running & ~(length <= _STEEP * least)
                tired |= unsure & renewable
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
            those = placed(active, every)
            known = min(secants, int(since[active].max()))
            state.update(those, self._stepped(state.select(those), first.of(those), known))

    def _renew(self, state: _Modes, first: _First, rows: np.ndarray) -> None:
        """Curves at ``rows`` with second derivatives, in place of secants."""
        those = placed(rows, state.x)
        part = state.select(those)
        nodes = spline_of(part.z0, part.z1, part.x, _PLACES_ANEW + 1).nodes
        convex = first.renewed(self.space, rows, nodes, self.degree - 1)
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
        before = state.left
        state, left = state.aimed(first, good, secants)
        left = left / (2 * state.energy)
        since = state.since + 1
        doubt = state.doubt
        if self.renews is not None:
            # Secants across a trial that was too long do not tell what is left here.
            since = torch.where(good & (doubt > 0), _TIRED + 1, since)
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
        Those that are good enough; None where the space has no images.
    """
    if not _has_images(space, start):
        return None
    tried = settings.levels
    rows = np.arange(len(least))
    second_order = settings.second_order and start.nodes.shape[-1] <= _FEW
    first = _First(space, start.nodes, second_order)
    state = _Modes.about(start, tried[0][0] - 1, settings.history, first)
    ended: list[tuple[np.ndarray, np.ndarray, _Modes]] = []
    secants = 0
    for number, (degree, points) in enumerate(tried):
        # Where the first level is far from enough, second derivatives are for the next one.
        renews = (number > 0 or rtol >= _LOOSE) if second_order else None
        level = _Level(space, degree, points, rtol, settings.max_gradients, secants, renews)
        state = level.taken_up(state, first)
        if number == 0:
            state.begun = state.length.clone()
        known = tried[number - 1][0] - 1 if number else 0
        error, on = _judged(state, least[rows], rtol, known, second_order)
        # rtol is a share of the distance, which is shorter.
        good = (error <= rtol / (1 + rtol) * read(state.length)[0]).nonzero()[0]
        if len(good):
            ended.append((rows[good], error[good], state.select(placed(good, state.x))))
        on[good] = False
        those = on.nonzero()[0]
        if not len(those) or number == len(tried) - 1:
            break
        if len(those) < len(rows):
            rows = rows[those]
            state, first = state.select(placed(those, state.x)), first.select(those)
        state, secants = level.descended(state, first, least[rows])
    return _joined(ended, least, rtol)


def _judged(
    state: _Modes, least: np.ndarray, rtol: float, known: int, second_order: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Errors of lengths, NaN on the first level; and ``(p,)`` bool: where to go on makes sense.

    Args:
        state: Curves as a level sees them that have been descended on the level before.
        least: Lower bounds of their lengths, NaN where unknown.
        rtol: The relative accuracy.
        known: Modes of the level before; 0 on the first.
        second_order: Whether second derivatives are looked at.
    """
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
        steep = ~(length <= _STEEP * least) & second_order & (renewed == 0)
        sure = sound & convex & ~steep
        if not known:
            return np.full(len(length), np.nan), sound & (change <= _UNSTEADY)
        beyond = _further(state, known)
        fine, before, fine_before, further = read(
            state.fine, state.before, state.fine_before, beyond
        )
        fallen = np.sqrt(fine / fine_before)
        missed = np.abs(length - before) * np.clip(fallen, _LEAST, 1.0)
        error = np.where(sure, (left + further) * length + missed + noise, np.nan)
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
    columns: list[list[np.ndarray]] = [[] for _ in range(7)]
    curves = []
    count = 0
    for rows, error, state in ended:
        told = (state.length, state.energy, state.left, state.noise, state.steps, state.renewed)
        length, energy, left, noise, steps, renewed = read(*told)
        # Nothing is shorter than the bound, where there is one.
        error = np.fmin(error, np.maximum(length - least[rows], 0.0) + noise)
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


def _has_images(space: Space, start: Curve) -> bool:
    """Whether the space has images of points, and knows how forces on them act."""
    ends = start.nodes[:1, :: start.segments]
    if not len(ends):
        return False
    return pulled_of(space, ends, lambda x: (torch.zeros_like(x), x[:, 0, :1])) is not None
