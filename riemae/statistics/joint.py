"""Fréchet means and all their geodesics at once, by Newton's method, for many groups of points.

The unknowns are the mean of each group and the nodes of a discrete curve from it to every member.
Curves of a group share the mean only: their interior nodes are eliminated
(:mod:`riemae.solvers.fans`), and what is left is one system of m equations for the mean, whose
matrix is the Hessian of half the mean squared distance. One iteration costs one look at all curves:
with second derivatives at first, by a gradient alone while steps with the old ones shrink fast.

Discretised on n segments, the mean is off by an expansion in even powers of 1/n, because the chord
energy is symmetric in time. So levels of 8, 16, 32, … segments (from 4 on where lines are resolved)
are extrapolated (Romberg). What the last extrapolation has changed is the error estimate.
Piecewise linear decoders have no such expansion: means are off like 1/n, and only distances are
extrapolated. They show by second derivatives that vanish on all curves.

Each group is in one of these states:

=========  =======================================================================================
open       its step is not small yet at this level
settled    its last step at this level was small: how small the next would be is known
done       all its levels together are accurate, or it has failed: see ``status``
=========  =======================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from riemae.numerics import sums
from riemae.solvers import Curve, Status
from riemae.solvers.energy import discrete_energy
from riemae.solvers.fans import Fan, tapered
from riemae.solvers.space import Space

SEGMENTS = 8
# Fewer are enough to begin with where they measure the energy of a straight line to this share.
COARSEST = 4
_RESOLVED = 0.1
# A better accuracy than this takes one level more from there.
_COARSE = 1e-4
_MOST_SEGMENTS = 256
# A step is halved so often before its group counts as stalled.
_HALVINGS = 20
# A curve whose energy rises by more than this factor tries these parts of its own step.
_RISE = 1.1
_PARTS = (0.5, 0.2, 0.0)
# What is left after a settled level, relative to the accuracy that is wanted: the relative
# decrement, which is the square of the last step. With second derivatives from an earlier look
# it is the last step times the ratio of the last two, and may be so many times as much.
_SETTLED = 0.02
_MEASURED = 10
# Second derivatives are kept from steps of at most this size on, relative to the spread, while each
# is at most so much of the one before. A finer level's first step counts as much.
_NEAR = 0.2
_CONTRACTION = 0.3
# Parts of a step that are tried before kept second derivatives are taken anew.
_TRIED = 3
# Where the change of the last extrapolation deceives, the one before does by no more than this.
_TRUST = 1 / 8
# Levels whose changes must fall, and by which factor at least: kinks have no expansion in 1/n.
_SLOWEST = 1.3
_PATIENCE = 4
# Where decoders are piecewise linear: what may be left at a level, relative to the spread; looks
# and levels that are enough; by how much a mean is off, in units of what the last level has changed
# and at the least: curves rest on kinks, and the means of four such decoders were off by 2 to 5 %
# of the spread, whatever was asked for.
_KINKED = 3e-3
_KINKED_LOOKS = 12
_KINKED_LEVELS = 4
_CHANGES = 2
_ATTAINED = 5e-2
# Eigenvalues of the Hessian, relative to flat space, that are negative, and the least that is
# divided by.
_NEGATIVE = 1e-6
_LEAST = 1e-3
# A relative decrement from which on the Hessian is not believed where it is less than flat.
_FAR = 0.05
# Nothing is more accurate than so many units of rounding of the coordinates.
_ROUNDING = 8
# How far a saddle is left, relative to the spread.
_KICK = 3e-2


@dataclass(frozen=True)
class Group:
    """Points and their means: ``n`` points in ``c`` groups, none of them empty.

    Attributes:
        of: ``(n,)`` int64, the group of each point.
        weights: ``(n,)``, which add up to 1 in every group.
        count: How many groups.
    """

    of: Tensor
    weights: Tensor
    count: int

    def mean(self, x: Tensor) -> Tensor:  # (n, *b) -> (c, *b)
        """Weighted means of what belongs to the points."""
        weights = self.weights.view(len(x), *[1] * (x.ndim - 1))
        # What has no weight may be NaN.
        return sums.summed(torch.where(weights > 0, weights * x, 0.0), self.of, self.count)

    def all(self, x: Tensor) -> Tensor:  # (n,) bool -> (c,) bool
        """Whether all members with any weight are."""
        missing = (~x & (self.weights > 0)).to(torch.int64)
        counts = torch.zeros(self.count, dtype=torch.int64, device=x.device)
        return counts.index_add(0, self.of, missing) == 0

    def first(self) -> Tensor:  # -> (c,)
        """One member of each group."""
        places = torch.arange(len(self.of), device=self.of.device)
        zero = torch.zeros(self.count, dtype=torch.int64, device=self.of.device)
        return zero.scatter(0, self.of, places)

    def part(self, keep: Tensor) -> tuple[Group, Tensor]:  # (c,) bool
        """Some groups, and the rows of their points."""
        rows = keep[self.of].nonzero().flatten()
        places = keep.cumsum(0) - 1
        return Group(places[self.of[rows]], self.weights[rows], int(keep.sum())), rows


@dataclass(frozen=True)
class Minimum:
    """Means of ``c`` groups at one level, where all curves are geodesics.

    Attributes:
        nodes: ``(n, s + 1, m)``; the first ones are the means.
        centers: ``(c, m)``.
        squares: ``(n,)``, least energies: squared distances.
        slopes: ``(n, m)``, their derivatives in the mean.
        hessian: ``(c, m, m)``, of the mean squared distance.
        index: ``(c,)`` int64, its negative eigenvalues.
        rest: ``(c,)``, the relative decrement of the last step.
        steps: ``(c,)`` int64, looks at the curves.
        status: ``(c,)`` int64 codes.
        sure: ``(c,)`` bool: every curve is a minimum among its neighbours.
        kinked: ``(c,)`` bool: second derivatives vanish on all curves.
        fan: The second derivatives of the last looks, of all curves; None where some are missing.
    """

    nodes: Tensor
    centers: Tensor
    squares: Tensor
    slopes: Tensor
    hessian: Tensor
    index: Tensor
    rest: Tensor
    steps: Tensor
    status: Tensor
    sure: Tensor
    kinked: Tensor
    fan: Fan | None


@dataclass(frozen=True)
class Level:
    """A finished level of some groups, for derivatives.

    Attributes:
        groups: ``(a,)``, the numbers of the groups.
        rows: ``(k,)``, the numbers of their points.
        nodes: ``(k, s + 1, m)``.
    """

    groups: Tensor
    rows: Tensor
    nodes: Tensor


@dataclass(eq=False)
class Joint:
    """Means of ``c`` groups of ``n`` points.

    Attributes:
        centers: ``(c, m)``.
        error: ``(c,)``, estimated distances from the minimisers.
        squares: ``(n,)``, squared distances.
        square_errors: ``(n,)``, their estimated errors.
        slopes: ``(n, m)``, derivatives of the squared distances in the mean.
        nodes: The curves at their last levels: ``(n, s + 1, m)`` on the coarsest of their levels.
        index: ``(c,)`` int64.
        status: ``(c,)`` int64 codes.
        steps: ``(c,)`` int64.
        levels: What the results were extrapolated from.
        depth: ``(c,)`` int64, how many levels each group has.
        sure: ``(c,)`` bool: every curve is a minimum among its neighbours.
    """

    centers: Tensor
    error: Tensor
    squares: Tensor
    square_errors: Tensor
    slopes: Tensor
    nodes: Tensor
    index: Tensor
    status: Tensor
    steps: Tensor
    depth: Tensor
    sure: Tensor
    levels: list[Level] = field(default_factory=list)

    def alone(self, name: int, groups: Group) -> Joint:
        """One of the groups."""
        rows = groups.of == name
        places = rows.cumsum(0) - 1
        levels = []
        for level in self.levels:
            own = rows[level.rows]
            if bool(own.any()):
                zero = torch.zeros_like(level.groups[:1])
                levels.append(Level(zero, places[level.rows[own]], level.nodes[own]))
        one = slice(name, name + 1)
        return Joint(
            centers=self.centers[one],
            error=self.error[one],
            squares=self.squares[rows],
            square_errors=self.square_errors[rows],
            slopes=self.slopes[rows],
            nodes=self.nodes[rows],
            index=self.index[one],
            status=self.status[one],
            steps=self.steps[one],
            depth=self.depth[one],
            sure=self.sure[one],
            levels=levels,
        )


def extrapolated(table: list[Tensor], value: Tensor) -> list[Tensor]:
    """The next row of Romberg's table, from the last one and a value on twice as many segments."""
    row = [value]
    for j, old in enumerate(table):
        row.append(row[j] + (row[j] - old) / (4 ** (j + 1) - 1))
    return row


def shares(depth: int) -> list[float]:
    """What each of so many levels contributes to the extrapolated value; they add up to 1."""
    found = []
    for k in range(depth):
        share = 1.0
        for j in range(depth):
            if j != k:
                share *= 4.0**k / (4.0**k - 4.0**j)
        found.append(share)
    return found


def solve(
    space: Space,
    curves: Curve,
    groups: Group,
    rtol: float,
    max_steps: int,
    keep: bool = False,
    segments: int = SEGMENTS,
    straight: bool = False,
    roots: bool = False,
) -> Joint:
    """Means of groups, from curves ``(n,)`` that begin at common points of each.

    Args:
        space: Where.
        curves: Nearly geodesics.
        groups: Who belongs together.
        rtol: Accuracy of the means, relative to the spread of their groups.
        max_steps: Looks at the curves of a group.
        keep: Whether derivatives are wanted, which need all levels.
        segments: Of the first level.
        straight: Whether the curves are far from geodesics: the first step is Gauss and Newton's.
        roots: Whether distances are summed up, not their squares: medians.
    """
    return _Ascent(
        space,
        curves,
        groups,
        rtol,
        max_steps,
        keep,
        segments=segments,
        straight=straight,
        roots=roots,
    ).run()


def first_segments(space: Space, curves: Curve, groups: Group, rtol: float) -> int:
    """How many segments straight lines ``(n,)`` begin with."""
    if rtol < _COARSE:
        return SEGMENTS
    squares = space.squared_chords(curves.knots(SEGMENTS))
    coarse = space.squared_chords(curves.knots(COARSEST))
    fine = discrete_energy(squares)
    resolved = (fine - discrete_energy(coarse)).abs() <= _RESOLVED * fine
    return COARSEST if bool(groups.all(resolved).all()) else SEGMENTS


def settled(space: Space, curves: Curve, rtol: float, max_steps: int) -> Joint:
    """Logarithms at the starts of curves ``(n,)``, which stay: every curve is a group of its own.

    Args:
        space: Where.
        curves: Nearly geodesics.
        rtol: Accuracy of the logarithms, relative to their lengths.
        max_steps: Looks at each curve.
    """
    n = len(curves.nodes)
    every = torch.arange(n, device=curves.nodes.device)
    groups = Group(every, curves.nodes.new_ones(n), n)
    return _Ascent(space, curves, groups, rtol, max_steps, keep=False, fixed=True).run()


class _Ascent:
    """From coarse to fine."""

    def __init__(
        self,
        space: Space,
        curves: Curve,
        groups: Group,
        rtol: float,
        max_steps: int,
        keep: bool,
        fixed: bool = False,
        segments: int = SEGMENTS,
        straight: bool = False,
        roots: bool = False,
    ) -> None:
        self.space = space
        self.straight = straight
        self.roots = roots
        self.rtol = rtol
        self.fixed = fixed
        self.max_steps = max_steps
        self.keep = keep
        nodes = curves.knots(segments).clone()
        n, _, m = nodes.shape
        c = groups.count
        like = nodes
        self.result = Joint(
            centers=like.new_full((c, m), torch.nan),
            error=like.new_full((c,), torch.inf),
            squares=like.new_full((n,), torch.nan),
            square_errors=like.new_full((n,), torch.inf),
            slopes=like.new_full((n, m), torch.nan),
            nodes=curves.knots(SEGMENTS).clone(),
            index=torch.zeros(c, dtype=torch.int64, device=like.device),
            status=torch.full((c,), int(Status.MAX_STEPS), device=like.device),
            steps=torch.zeros(c, dtype=torch.int64, device=like.device),
            depth=torch.zeros(c, dtype=torch.int64, device=like.device),
            sure=torch.zeros(c, dtype=torch.bool, device=like.device),
        )
        self.rows = torch.arange(n, device=like.device)
        self.names = torch.arange(c, device=like.device)
        self.groups = groups
        self.nodes = nodes
        self.coarser: Tensor | None = None
        self.fan: Fan | None = None
        self.centers: list[Tensor] = []
        self.squares: list[Tensor] = []
        self.slopes: list[Tensor] = []
        self.earlier: list[Tensor] = []
        self.changes: list[Tensor] = []
        self.raw: list[Tensor] = []
        self.kinked = self.result.sure.clone()
        self.spent = self.result.steps.clone()

    def run(self) -> Joint:
        """Levels, until every group is done."""
        while len(self.names):
            found = minimised(
                self.space,
                self.nodes,
                self.groups,
                _SETTLED * self.rtol,
                self.max_steps - self.spent,
                leave_saddles=not self.centers,
                fixed=self.fixed,
                fan=self.fan,
                straight=self.straight,
                roots=self.roots,
            )
            self.straight = False
            self.spent = self.spent + found.steps
            self._record(found)
        return self.result

    def _record(self, found: Minimum) -> None:
        """Extrapolate, note what is known, and refine what is not accurate."""
        if self.keep:
            self.result.levels.append(Level(self.names, self.rows, found.nodes))
        before = self.centers
        roots = self.squares
        self.kinked = self.kinked | found.kinked
        raw = self.squares[0] if self.squares else found.squares
        self.raw = [*self.raw, found.centers]
        self.centers = extrapolated(self.centers, found.centers)
        self.squares = extrapolated(self.squares, found.squares)
        self.earlier = self.slopes
        self.slopes = extrapolated(self.slopes, found.slopes)
        kinked = self.kinked[self.groups.of]
        self.centers[-1] = torch.where(self.kinked[:, None], found.centers, self.centers[-1])
        self.slopes[-1] = torch.where(kinked[:, None], found.slopes, self.slopes[-1])
        # Squared distances are off like 1/n there.
        self.squares[-1] = torch.where(kinked, 2 * found.squares - raw, self.squares[-1])
        centers = found.centers
        spread = self.groups.mean(self.squares[-1]).clamp(min=0).sqrt()
        error = self._error(before, found.centers)
        worst = self._unextrapolated(found.centers)
        # Where no kink is met, space is flat, and all levels agree.
        met = worst > torch.finfo(spread.dtype).eps ** 0.5 * spread
        worst = torch.where(met, torch.maximum(worst, _ATTAINED * spread), worst)
        error = torch.where(self.kinked, worst, error)
        error = error + found.rest * spread
        at_level = found.status == Status.CONVERGED
        floor = _ROUNDING * torch.finfo(spread.dtype).eps * self.space.norm(centers, centers)
        enough = at_level & (error <= self.rtol * spread + floor)
        n = found.nodes.shape[1] - 1
        plenty = self.kinked & (len(self.raw) >= _KINKED_LEVELS)
        hopeless = at_level & ~enough & (self._slow(error) | plenty)
        last = at_level & ~enough & ((2 * n > _MOST_SEGMENTS) | hopeless)
        status = torch.where(enough, int(Status.CONVERGED), found.status)
        status = torch.where(last, int(Status.RESOLUTION), status)
        self._put(found, error, status, roots)
        on = at_level & ~enough & ~last
        self._refine(found, on)

    def _error(self, before: list[Tensor], centers: Tensor) -> Tensor:  # -> (c,)
        """Of the extrapolated means, but for what Newton's method has left over."""
        if not before:
            return torch.full_like(centers[:, 0], torch.inf)
        if self.fixed:
            # What counts are the logarithms.
            table = [logarithms(self.space, centers, slope) for slope in self.slopes]
            earlier = logarithms(self.space, centers, self.earlier[-1])
        else:
            table = self.centers
            earlier = before[-1]
        own = self.space.norm(centers, table[-1] - table[-2])
        other = self.space.norm(centers, table[-1] - earlier)
        return torch.maximum(own, _TRUST * other)

    def _unextrapolated(self, centers: Tensor) -> Tensor:  # -> (c,)
        """The error of the means at a level, which falls like 1/n."""
        worst = torch.full_like(centers[:, 0], torch.inf)
        if len(self.raw) < 2:
            return worst
        worst = _CHANGES * self.space.norm(centers, centers - self.raw[-2])
        if len(self.raw) > 2:
            earlier = self.space.norm(centers, self.raw[-2] - self.raw[-3])
            worst = torch.maximum(worst, _CHANGES / 2 * earlier)
        return worst

    def _slow(self, error: Tensor) -> Tensor:  # (c,) -> (c,) bool
        """Errors that have not fallen for some levels."""
        self.changes = [*self.changes, error]
        if len(self.changes) < _PATIENCE + 1:
            return torch.zeros_like(error, dtype=torch.bool)
        return error * _SLOWEST**_PATIENCE > self.changes[-1 - _PATIENCE]

    def _put(self, found: Minimum, error: Tensor, status: Tensor, before: list[Tensor]) -> None:
        """The best that is known, of all groups of this level."""
        result = self.result
        result.centers[self.names] = self.centers[-1]
        result.error[self.names] = error
        result.status[self.names] = status
        result.index[self.names] = found.index
        result.sure[self.names] = found.sure
        result.steps[self.names] = self.spent
        result.depth[self.names] = len(self.centers)
        result.squares[self.rows] = self.squares[-1]
        result.slopes[self.rows] = self.slopes[-1]
        result.nodes[self.rows] = Curve.from_nodes(found.nodes).knots(SEGMENTS)
        if len(self.squares) > 1:
            best = self.squares[-1]
            own = (best - self.squares[-2]).abs()
            other = (best - before[-1]).abs()
            rest = (found.rest[self.groups.of] * found.squares).abs()
            result.square_errors[self.rows] = torch.maximum(own, _TRUST * other) + rest

    def _refine(self, found: Minimum, on: Tensor) -> None:
        """Go on with some groups on twice as many segments."""
        groups, rows = self.groups.part(on)
        nodes = found.nodes[rows]
        if self.coarser is not None and len(rows):
            # The expansion in 1/n tells what the next level will change.
            change = (nodes[:, ::2] - self.coarser[rows]) / 4
            shift = Curve.from_nodes(change).knots(2 * (nodes.shape[1] - 1))
        else:
            shift = None
        self.coarser = nodes
        n = nodes.shape[1] - 1
        fine = Curve.from_nodes(nodes).knots(2 * n).clone()
        if shift is not None:
            fine += shift
            # All curves of a group begin at one point, to the last bit.
            fine[:, 0] = fine[groups.first(), 0][groups.of]
        fine[:, -1] = nodes[:, -1]
        self.fan = None
        if found.fan is not None and len(rows):
            self.fan = _some(found.fan, rows).finer(self.space, fine)
        self.nodes = fine
        self.groups = groups
        self.rows = self.rows[rows]
        self.names = self.names[on]
        self.spent = self.spent[on]
        self.raw = [x[on] for x in self.raw]
        self.kinked = self.kinked[on]
        self.centers = [x[on] for x in self.centers]
        self.changes = [x[on] for x in self.changes]
        self.squares = [x[rows] for x in self.squares]
        self.slopes = [x[rows] for x in self.slopes]


def logarithms(space: Space, z: Tensor, slopes: Tensor) -> Tensor:  # (n, m) twice -> (n, m)
    """Tangents at ``z`` whose squared lengths have these derivatives in ``z``: ``−½ G⁻¹ ∂d²``."""
    metric = space.metric(z)
    found, info = torch.linalg.solve_ex(metric, slopes[..., None])
    return torch.where((info == 0)[:, None], -found[..., 0] / 2, torch.nan)


def minimised(
    space: Space,
    nodes: Tensor,
    groups: Group,
    tol: float,
    max_steps: Tensor,
    leave_saddles: bool = True,
    fixed: bool = False,
    fan: Fan | None = None,
    straight: bool = False,
    roots: bool = False,
) -> Minimum:
    """Means of groups on the segments that their curves have.

    Args:
        space: Where.
        nodes: ``(n, s + 1, m)``.
        groups: Who belongs together.
        tol: Relative decrement of the last step.
        max_steps: ``(c,)``, looks at the curves of each group.
        leave_saddles: Whether a mean with a direction of descent goes on along it.
        fixed: Whether the starts stay where they are.
        fan: About the curves, with second derivatives that are good enough to begin with.
        straight: Whether the first step is Gauss and Newton's.
        roots: Whether distances are summed up, not their squares.
    """
    run = _Newton(space, nodes, groups, tol, max_steps, leave_saddles, fixed, fan, straight, roots)
    while bool(run.open.any()):
        run.step()
    return run.minimum()


class _Newton:
    """One level."""

    def __init__(
        self,
        space: Space,
        nodes: Tensor,
        groups: Group,
        tol: float,
        max_steps: Tensor,
        leave_saddles: bool,
        fixed: bool,
        fan: Fan | None,
        straight: bool,
        roots: bool,
    ) -> None:
        n, count, m = nodes.shape
        c = groups.count
        self.space = space
        self.groups = groups
        self.tol = tol
        self.max_steps = max_steps
        self.leave_saddles = leave_saddles
        self.fixed = fixed
        self.nodes = nodes.clone()
        self.open = torch.ones(c, dtype=torch.bool, device=nodes.device)
        self.status = torch.full((c,), int(Status.MAX_STEPS), device=nodes.device)
        self.steps = torch.zeros(c, dtype=torch.int64, device=nodes.device)
        self.index = torch.zeros_like(self.steps)
        self.rest = nodes.new_full((c,), torch.inf)
        self.hessian = nodes.new_zeros(c, m, m)
        self.squares = nodes.new_full((n,), torch.nan)
        self.slopes = nodes.new_full((n, m), torch.nan)
        self.kicked = torch.zeros_like(self.open)
        self.sure = torch.zeros_like(self.open)
        self.size = torch.full_like(self.rest, torch.inf)
        self.kinked = torch.zeros_like(self.open)
        # The last fans, of all curves that were open then; whether they serve for the next look,
        # and those of groups that are settled.
        self.fan = fan
        self.rows = torch.arange(n, device=nodes.device)
        self.kept = torch.full_like(self.open, fan is not None)
        self.old = self.kept.clone()
        self.first = fan is not None
        self.past: list[tuple[Tensor, Fan]] = []
        # Whether this look is one without second derivatives.
        self.rough = False
        self.straight = straight
        self.roots = roots

    def step(self) -> None:
        """One look at the curves of all open groups, and the next step of each."""
        groups, rows = self.groups.part(self.open)
        names = self.open.nonzero().flatten()
        fan = self._look(groups, rows, self.kept[names])
        self.steps[names] += 1
        finite = groups.all(fan.energy.isfinite() & fan.slide.isfinite().all(1))
        regular = groups.all(fan.regular)
        self._end(names[~finite], int(Status.NON_FINITE))
        self._end(names[finite & ~regular], int(Status.SINGULAR))
        good = finite & regular
        if bool(good.any()):
            some, members = groups.part(good)
            self._advance(some, rows[members], names[good], _some(fan, members))
        tired = self.open & self.kinked & (self.steps >= _KINKED_LOOKS)
        self._stall(names[tired[names]])
        spent = self.open & (self.steps >= self.max_steps)
        self._end(names[spent[names]], int(Status.MAX_STEPS))

    def _look(self, groups: Group, rows: Tensor, kept: Tensor) -> Fan:
        """About the curves of open groups, with second derivatives of earlier looks for some."""
        old = kept[groups.of]
        self.rough = self.straight
        self.straight = False
        parts = []
        if bool(old.any()):
            assert self.fan is not None
            last = _some(self.fan, torch.searchsorted(self.rows, rows[old]))
            # A finer level's first look has been taken already.
            parts.append(last if self.first else last.again(self.space, self.nodes[rows[old]]))
        if not bool(old.all()):
            parts.append(Fan.of(self.space, self.nodes[rows[~old]], not self.rough))
        fan = parts[0]
        if len(parts) > 1:
            order = torch.cat([old.nonzero().flatten(), (~old).nonzero().flatten()])
            fan = Fan.cat(parts).select(order.argsort())
        self.first = False
        self.fan = fan
        self.rows = rows
        return fan

    def _flat(self, groups: Group, fan: Fan) -> Tensor:  # -> (c,) bool
        """Whether second derivatives vanish on all curves of groups, though these are bent."""
        known = fan.expansion
        if known is None or known.correction is None or not known.separate:
            return torch.zeros(groups.count, dtype=torch.bool, device=fan.energy.device)
        return groups.all((known.correction.diagonal == 0).flatten(1).all(1))

    def _end(self, names: Tensor, status: int) -> None:
        self.open[names] = False
        self.status[names] = status

    def _advance(self, groups: Group, rows: Tensor, names: Tensor, fan: Fan) -> None:
        """Newton steps of groups, as far as they lower their energies."""
        value, first, second = summed(fan.energy, self.roots)
        energy = groups.mean(value)
        grain = groups.mean(first * fan.noise)
        metric = 2 * self.space.metric(self.nodes[rows[groups.first()], 0])
        # A curve that could be shorter in another way tells nothing of its least energy: it goes
        # along with the mean for now.
        sure = fan.definite[:, None]
        slopes = torch.where(sure, fan.gradient, fan.slide)
        bends = torch.where(sure[..., None], fan.hessian, metric[groups.of])
        hessian = groups.mean(chained(first, second, slopes, bends))
        flat = groups.mean(first)[:, None, None] * metric
        pull = groups.mean(first[:, None] * slopes)
        start, drop, index = _descended(pull, hessian, flat, energy)
        if self.fixed:
            start, drop, index = torch.zeros_like(start), torch.zeros_like(drop), 0 * index
        decrement = drop + 2 * groups.mean(first * fan.gain)
        rest = torch.where(energy > 0, decrement / energy, 0.0)
        if self.roots:
            # Where all points lie nearly on a line, a long step gains little.
            squared = torch.einsum("ci,cij,cj->c", start, metric, start)
            spread = groups.mean(fan.energy)
            rest = torch.maximum(rest, torch.where(spread > 0, squared / spread, 0.0))
        kept = self.kept[names]
        size = rest.clamp(min=0).sqrt()
        ratio = size / self.size[names]
        # Nothing is known of the first step with second derivatives of a coarser level.
        ratio = torch.where(self.size[names].isinf(), _CONTRACTION, ratio)
        rest = torch.where(kept, size * ratio, rest)
        self.size[names] = size
        kinked = self._flat(groups, fan)
        # At kinks a step is followed by others of its size.
        rest = torch.where(kinked & ~kept, size, rest)
        sure = groups.all(fan.definite)
        self.sure[names] = sure
        self.old[names] = kept
        self.kinked[names] = kinked
        silent = decrement <= 2 * grain
        # Old second derivatives find neither maxima nor saddles, and come to an end by their steps
        # alone: the energy is less accurate than its gradient.
        measured = kept & sure & (index == 0) & (rest <= _MEASURED * self.tol)
        small = measured | (~kept & (silent | (rest <= self.tol)))
        small |= kinked & sure & (rest <= _KINKED)
        if self.rough:
            small = torch.zeros_like(small)
        blind = silent & kept & ~small
        keeps = (not self.rough) & sure & torch.where(kept, ratio <= _CONTRACTION, size <= _NEAR)
        self.kept[names] = keeps & ~blind
        saddle = small & (index > 0) & self.leave_saddles & ~self.kicked[names]
        start = torch.where(saddle[:, None], self._kick(hessian, energy), start)
        # Points that all but coincide stay together, to the last bit.
        still = energy <= 2 * grain
        start = torch.where(still[:, None], 0.0, start)
        self.kicked[names[saddle]] = True
        settled = small & ~saddle
        self.hessian[names] = hessian
        self.index[names] = index
        self.rest[names] = rest
        # Where the last step leads, by the model itself.
        along = start[groups.of]
        bent = (bends @ along[..., None])[..., 0]
        change = ((slopes + bent / 2) * along).sum(-1)
        nothing = (fan.energy <= 2 * fan.noise) & still[groups.of]
        self.squares[rows] = torch.where(nothing, 0.0, fan.energy - fan.gain + change)
        self.slopes[rows] = slopes + bent
        moves = torch.where(still[groups.of][:, None, None], 0.0, fan.steps(along))
        self._end(names[settled], int(Status.CONVERGED))
        done = settled[groups.of]
        self.nodes[rows[done]] += moves[done]
        followed = blind[groups.of]
        self.nodes[rows[followed]] += moves[followed]
        if bool(done.any()):
            self.past.append((rows[done], _some(fan, done.nonzero().flatten())))
        searched = ~settled & ~blind
        others, members = groups.part(searched)
        if others.count:
            self._search(
                others,
                rows[members],
                names[searched],
                along[members],
                moves[members],
                fan.energy[members],
            )

    def _search(
        self,
        groups: Group,
        rows: Tensor,
        names: Tensor,
        along: Tensor,
        moves: Tensor,
        energy: Tensor,
    ) -> None:
        """Place the nodes where a share of the steps leads that lowers the energy of each group.

        Every curve chooses on its own how much of its Newton step it takes, beyond going along.
        """
        base = self.nodes[rows]
        n = base.shape[1] - 1
        slide = tapered(n, base)[:, None] * along[:, None]
        slide = torch.nn.functional.pad(slide, (0, 0, 0, 1))
        before = groups.mean(summed(energy, self.roots)[0])
        # Whether the step was made with second derivatives of an earlier look.
        kept = self.old[names]
        share = base.new_ones(groups.count)
        pending = torch.ones_like(share, dtype=torch.bool)
        for tries in range(_HALVINGS):
            if tries == _TRIED:
                # Those look again, with second derivatives.
                self.kept[names[pending & kept]] = False
                pending &= ~kept
                if not bool(pending.any()):
                    return
            some, members = groups.part(pending)
            part = share[pending][some.of][:, None, None]
            nodes, found = self._best(
                base[members], part * slide[members], part * moves[members], energy[members]
            )
            lower = some.mean(summed(found, self.roots)[0]) < before[pending]  # False for NaN
            taken = lower[some.of]
            self.nodes[rows[members[taken]]] = nodes[taken]
            pending = pending.masked_scatter(pending, ~lower)
            if not bool(pending.any()):
                return
            share = torch.where(pending, share / 2, share)
        self._stall(names[pending])

    def _stall(self, names: Tensor) -> None:
        """Groups whose energy no part of the step lowers, as at kinks: as good as their steps."""
        # Half of the relative decrement is the square of the step, relative to the spread.
        left = (self.rest[names] / 2).sqrt()
        near = left <= self.tol / _SETTLED
        self.rest[names] = left
        near |= self.kinked[names]
        self._end(names[near], int(Status.CONVERGED))
        self._end(names[~near], int(Status.STALLED))

    def _best(
        self, base: Tensor, slide: Tensor, moves: Tensor, energy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The lowest curves of some that go along, with more or less of their own steps."""
        best = base + moves
        lowest = self._energy(best)
        # Most get lower: only the others are tried again.
        rows = (~(lowest <= _RISE * energy)).nonzero().flatten()
        for part in _PARTS:
            if not len(rows):
                break
            trial = base[rows] + (1 - part) * slide[rows] + part * moves[rows]
            found = self._energy(trial)
            better = ~(lowest[rows] <= found)
            best[rows[better]] = trial[better]
            lowest[rows[better]] = found[better]
        return best, lowest

    def _energy(self, nodes: Tensor) -> Tensor:  # (k, s + 1, m) -> (k,)
        return discrete_energy(self.space.squared_chords(nodes))

    def _kick(self, hessian: Tensor, energy: Tensor) -> Tensor:  # -> (c, m)
        """Off a saddle, along the direction of the most negative curvature."""
        values, vectors = torch.linalg.eigh(hessian)
        size = _KICK * (energy / values.abs().amax(1)).sqrt()
        return size[:, None] * vectors[:, :, 0]

    def minimum(self) -> Minimum:
        """What is known of all groups."""
        return Minimum(
            nodes=self.nodes,
            centers=self.nodes[self.groups.first(), 0],
            squares=self.squares,
            slopes=self.slopes,
            hessian=self.hessian,
            index=self.index,
            rest=self.rest,
            steps=self.steps,
            status=self.status,
            sure=self.sure,
            kinked=self.kinked,
            fan=self._fans(),
        )

    def _fans(self) -> Fan | None:
        """The last ones of all groups."""
        rows = torch.cat([rows for rows, _ in self.past]) if self.past else self.rows[:0]
        if len(rows) < len(self.nodes):
            return None
        if len(self.past) == 1:
            return self.past[0][1]
        return Fan.cat([fan for _, fan in self.past]).select(rows.argsort())


def summed(energy: Tensor, roots: bool) -> tuple[Tensor, Tensor, Tensor]:  # (n,) -> (n,) thrice
    """What is summed up of squared distances, and its first two derivatives; 0 at distance 0."""
    if not roots:
        return energy, torch.ones_like(energy), torch.zeros_like(energy)
    distance = energy.clamp(min=0).sqrt()
    apart = distance > 0
    inverse = torch.where(apart, 1 / torch.where(apart, distance, 1.0), 0.0)
    return distance, inverse / 2, -(inverse**3) / 4


def chained(first: Tensor, second: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """Second derivatives ``(n, m, m)`` of a function of what has this slope and this Hessian."""
    outer = slope[:, :, None] * slope[:, None, :]
    return first[:, None, None] * bend + second[:, None, None] * outer


def _some(fan: Fan, rows: Tensor) -> Fan:
    """Some of the curves, in order, or all of them as they are."""
    return fan if len(rows) == len(fan.energy) else fan.select(rows)


def _descended(
    slope: Tensor, hessian: Tensor, metric: Tensor, energy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps ``(c, m)`` that descend, their decrements, and negative eigenvalues ``(c,)``.

    In flat space the Hessian is ``metric``, twice the metric tensor. Far from the minimum less
    curvature than that is not believed: the step is then the mean of the logarithms.
    """
    eye = torch.eye(hessian.shape[-1]).to(hessian)
    factor, info = torch.linalg.cholesky_ex(metric)
    known = (info == 0) & hessian.isfinite().all(-1).all(-1) & slope.isfinite().all(-1)
    factor = torch.where(known[:, None, None], factor, eye)
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    relative = torch.where(known[:, None, None], inverse @ hessian @ inverse.mT, eye)
    values, vectors = torch.linalg.eigh(relative)
    index = (values < -_NEGATIVE).sum(1)
    along = (vectors.mT @ (inverse @ slope[..., None]))[..., 0]
    sizes = values.abs().clamp(min=_LEAST)
    # The decrement by the flat Hessian: twice the squared length of the mean logarithm.
    far = (along.square().sum(1) > _FAR * energy) | (index > 0)
    sizes = torch.where(far[:, None], sizes.clamp(min=1.0), sizes)
    step = -(inverse.mT @ (vectors @ (along / sizes)[..., None]))[..., 0]
    return step, (along.square() / sizes).sum(1), index
