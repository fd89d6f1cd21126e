"""Fréchet means and all their geodesics at once, by Newton's method, for many groups of points.

The unknowns are the mean of each group and the nodes of a discrete curve from it to every member.
Curves of a group share the mean only: their interior nodes are eliminated
(:mod:`riemae.solvers.fans`), and what is left is one system of m equations for the mean, whose
matrix is the Hessian of half the mean squared distance. One iteration costs one look at all curves:
with second derivatives at first, by a gradient alone while steps with the old ones shrink fast
(:mod:`riemae.statistics.minimum`).

Levels of 8, 16, 32, … segments, from 4 on where lines are resolved, are extrapolated, which also
tells the errors (:mod:`riemae.statistics.romberg`). A group is done when all its levels together
are accurate, or when it has failed: see ``status``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from riemae.solvers import Curve, Status
from riemae.solvers.energy import discrete_energy
from riemae.solvers.fans import Fan
from riemae.solvers.space import Space
from riemae.statistics.groups import Group
from riemae.statistics.minimum import SETTLED, Minimum, minimised, some_of
from riemae.statistics.romberg import Romberg

SEGMENTS = 8
# Fewer are enough to begin with where they measure the energy of a straight line to this share.
COARSEST = 4
_RESOLVED = 0.1
# A better accuracy than this takes one level more from there.
_COARSE = 1e-4
_MOST_SEGMENTS = 256
# A curve that is longer than its chords by this factor jumps somewhere.
_JUMP = 1.25
# Nothing is more accurate than so many units of rounding of the coordinates.
_ROUNDING = 8


@dataclass(frozen=True)
class Aim:
    """What is looked for, and how long.

    Attributes:
        rtol: Accuracy of the means, relative to the spread of their groups.
        max_steps: Looks at the curves of a group.
        keep: Whether derivatives are wanted, which need all levels.
        roots: Whether distances are summed up, not their squares: medians.
        fixed: Whether the starts stay where they are, and the logarithms count.
    """

    rtol: float
    max_steps: int
    keep: bool = False
    roots: bool = False
    fixed: bool = False


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

    @classmethod
    def unknown(cls, centers: Tensor, curves: Curve, status: int) -> Joint:
        """Nothing but centers ``(c, m)`` and curves ``(n,)``."""
        zero = torch.zeros(len(centers), dtype=torch.int64, device=centers.device)
        n = len(curves.nodes)
        return cls(
            centers=centers,
            error=centers.new_full((len(centers),), torch.inf),
            squares=centers.new_full((n,), torch.nan),
            square_errors=centers.new_full((n,), torch.inf),
            slopes=centers.new_full((n, centers.shape[1]), torch.nan),
            nodes=curves.knots(SEGMENTS).clone(),
            index=zero.clone(),
            status=zero + status,
            steps=zero.clone(),
            depth=zero.clone(),
            sure=zero > 0,
        )

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


def solve(
    space: Space,
    curves: Curve,
    groups: Group,
    aim: Aim,
    segments: int = SEGMENTS,
    straight: bool = False,
) -> Joint:
    """Means of groups, from curves ``(n,)`` that begin at common points of each.

    Args:
        space: Where.
        curves: Nearly geodesics.
        groups: Who belongs together.
        aim: What is looked for.
        segments: Of the first level.
        straight: Whether the curves are far from geodesics: the first step is Gauss and Newton's.
    """
    return _Ascent(space, curves, groups, aim, segments, straight).run()


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
    return solve(space, curves, groups, Aim(rtol, max_steps, fixed=True))


class _Ascent:
    """From coarse to fine."""

    def __init__(
        self,
        space: Space,
        curves: Curve,
        groups: Group,
        aim: Aim,
        segments: int = SEGMENTS,
        straight: bool = False,
    ) -> None:
        self.space = space
        self.aim = aim
        self.straight = straight
        self.nodes = curves.knots(segments).clone()
        self.result = Joint.unknown(
            self.nodes.new_full((groups.count, self.nodes.shape[-1]), torch.nan),
            curves,
            int(Status.MAX_STEPS),
        )
        self.table = Romberg(space, self.result.centers, aim.fixed)
        self.rows = torch.arange(len(self.nodes), device=self.nodes.device)
        self.names = torch.arange(groups.count, device=self.nodes.device)
        self.groups = groups
        self.coarser: Tensor | None = None
        self.fan: Fan | None = None
        self.spent = self.result.steps.clone()

    def run(self) -> Joint:
        """Levels, until every group is done."""
        while len(self.names):
            found = minimised(
                self.space,
                self.nodes,
                self.groups,
                SETTLED * self.aim.rtol,
                self.aim.max_steps - self.spent,
                leave_saddles=not self.table.centers,
                fixed=self.aim.fixed,
                fan=self.fan,
                straight=self.straight,
                roots=self.aim.roots,
            )
            self.straight = False
            self.spent = self.spent + found.steps
            self._record(found)
        return self.result

    def _record(self, found: Minimum) -> None:
        """Extrapolate, note what is known, and refine what is not accurate."""
        if self.aim.keep:
            self.result.levels.append(Level(self.names, self.rows, found.nodes))
        at_level = found.status == Status.CONVERGED
        first = not self.table.centers
        self.table.add(found, self.groups)
        spread = self.groups.mean(self.table.squares[-1]).clamp(min=0).sqrt()
        # Where there is no minimum at this level, what the others have told is not about one.
        error = torch.where(at_level, self.table.error(found, spread), torch.inf)
        centers = found.centers
        floor = _ROUNDING * torch.finfo(spread.dtype).eps * self.space.norm(centers, centers)
        enough = at_level & (error <= self.aim.rtol * spread + floor)
        jumped = self._jumped(found, enough)
        error = torch.where(jumped, torch.inf, error)
        enough = enough & ~jumped
        n = found.nodes.shape[1] - 1
        hopeless = self.table.hopeless() | jumped
        last = at_level & ~enough & ((2 * n > _MOST_SEGMENTS) | hopeless)
        status = torch.where(enough, int(Status.CONVERGED), found.status)
        status = torch.where(last, int(Status.RESOLUTION), status)
        self.result.error[self.names] = error
        self.result.status[self.names] = status
        self.result.steps[self.names] = self.spent
        self._put(found, at_level if not first else torch.ones_like(at_level))
        if first:
            self._unsettled(found, ~at_level)
        self._refine(found, at_level & ~enough & ~last)

    def _jumped(self, found: Minimum, some: Tensor) -> Tensor:  # (c,) bool -> (c,) bool
        """Which of some groups have a curve whose polygon is far longer than its chords.

        Where the decoder folds, two nodes may have one image, and all levels agree on the jump.
        """
        groups, rows = self.groups.part(some)
        out = torch.zeros_like(some)
        if len(rows):
            nodes = found.nodes[rows]
            fine = Curve.from_nodes(nodes).knots(2 * (nodes.shape[1] - 1))
            inner = self.space.squared_chords(fine).clamp(min=0).sqrt().sum(1)
            outer = self.space.squared_chords(nodes).clamp(min=0).sqrt().sum(1)
            # Of points that all but coincide there is rounding alone.
            centers = found.centers[some]
            floor = torch.finfo(inner.dtype).eps ** 0.5 * self.space.norm(centers, centers)
            out[some] = ~groups.all(inner <= _JUMP * outer + floor[groups.of])
        return out

    def _put(self, found: Minimum, known: Tensor) -> None:  # (c,) bool
        """The best that is known, of some groups of this level."""
        result = self.result
        names = self.names[known]
        result.centers[names] = self.table.centers[-1][known]
        result.index[names] = found.index[known]
        result.sure[names] = found.sure[known]
        result.depth[names] = len(self.table.centers)
        some = known[self.groups.of]
        rows = self.rows[some]
        result.squares[rows] = self.table.squares[-1][some]
        result.square_errors[rows] = self.table.square_errors(found, self.groups)[some]
        result.slopes[rows] = self.table.slopes[-1][some]
        result.nodes[rows] = Curve.from_nodes(found.nodes[some]).knots(SEGMENTS)

    def _unsettled(self, found: Minimum, lost: Tensor) -> None:  # (c,) bool
        """Groups without a minimum at the first level: their curves as they are, not as modelled.

        The model of the last look tells where a step would lead, and that step was not good.
        """
        some = lost[self.groups.of]
        if bool(some.any()):
            chords = self.space.squared_chords(found.nodes[some])
            self.result.squares[self.rows[some]] = discrete_energy(chords)

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
            self.fan = some_of(found.fan, rows).finer(self.space, fine)
        self.nodes = fine
        self.groups = groups
        self.rows = self.rows[rows]
        self.names = self.names[on]
        self.spent = self.spent[on]
        self.table.keep(on, rows)
