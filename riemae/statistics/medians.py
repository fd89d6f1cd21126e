"""Geometric medians: the points nearest to all others, by distances that are not squared.

Off the data the sum of distances is smooth, and its minimum is found as a mean is: the median and
all geodesics together (:mod:`riemae.statistics.joint`). At a point of the data it has a kink. That
point is the median exactly where the others pull at it with no more than its own weight: where the
sum of their weights times unit tangents is no longer. So points of the data that the median comes
near are asked first:

=========  =======================================================================================
at a point the others' pull is measured; the search ends here, or leaves along it
beside     Newton's steps, until they are small or end near another point of the data
off        the levels of the joint solve, from where Newton's steps were small
=========  =======================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riemae.solvers import Curve, Status
from riemae.solvers.fans import tapered
from riemae.solvers.space import Space
from riemae.statistics.arguments import takes_codes
from riemae.statistics.groups import Group
from riemae.statistics.implicit import attached, wanted
from riemae.statistics.joint import SEGMENTS, Aim
from riemae.statistics.means import (
    Mean,
    Means,
    Options,
    begun,
    demanded,
    from_curves,
    ranked,
    single,
)
from riemae.statistics.minimum import minimised
from riemae.statistics.tangents import (
    Logarithms,
    Somewhere,
    factor,
    roughly_known,
    stepped,
)

# A point counts as one of the data when it is this near, relative to the spread.
_TOUCHES = 1e-9
# Points of the data are asked when the median is this near to them, relative to the spread.
_NEAR = 0.1
# Accuracy of the paths whose velocities tell the pull, and which surplus of it they tell from none,
# relative to the whole weight; else sharp logarithms are asked. The same where some geodesics are
# known roughly only.
_ROUGH = 1e-3
_DECIDED = 2e-2
_DOUBTED = 5e-2
# Looks and the relative decrement with which Newton's steps come to rest beside a point.
_LOOKS = 30
_BESIDE = 1e-3
# What is left when a search has been at so many points of the data.
_POINTS = 8
# The first step goes at most so much of the way to the next point.
_SHARE = 0.5
_RIDGE = 1e-3


@takes_codes
def geometric_median(
    geometry: Somewhere,
    points: Tensor,
    weights: Tensor | None = None,
    *,
    rtol: float | None = None,
    init: Tensor | None = None,
    n_starts: int = 1,
    max_steps: int = 100,
    generator: torch.Generator | int | None = 0,
    throw: bool = True,
) -> Mean:
    """The geometric median ``argmin_μ Σ wᵢ d(μ, xᵢ)``, differentiable once off the data.

    Newton's method on the median and all geodesics together, as for :func:`frechet_mean`. A point
    of the data is the median exactly where the others do not pull more than its own weight (Y.
    Vardi, C.-H. Zhang, PNAS 97, 2000; on manifolds P. T. Fletcher, S. Venkatasubramanian, S. Joshi,
    The geometric median on Riemannian manifolds, NeuroImage 45, 2009): then ``point`` is that
    point, and its ``error`` is 0. Less than half of the weight far away does not move the median
    far. Points that lie on one geodesic, an even number of them, have many medians: one is found.

    Off the data ``point`` and ``objective`` are differentiable in the points, in the weights and in
    the decoder's parameters. At a point of the data ``point`` follows that point, and ``objective``
    is a constant. ``variance``, distances and logarithms are not differentiable.

    Arguments and errors are those of :func:`frechet_mean`, but that it begins at a point of the
    data.

    Raises:
        NotConvergedError: When ``throw`` and the status is not CONVERGED; it carries the result.
        DifferentiationError: When a gradient of the result is differentiated again.
    """
    options = Options.given(
        "geometric_median", points, rtol, init, n_starts, max_steps, generator, throw
    )
    share, starts, space = begun(geometry, points, weights, options, False)
    known = points.detach()
    keep = wanted(space, points, weights)
    search = _Search(geometry, space, known, share.detach(), options, keep)
    with torch.no_grad():
        found = [search.run(start) for start in starts]
    best = ranked(geometry, space, [one.mean for one in found])
    if keep and best.converged:
        own = next(one for one in found if one.mean.point is best.point)
        best = _differentiable(space, own, best, points, share)
    return demanded(best, options)


@dataclass(frozen=True, eq=False)
class _Found:
    """A median.

    Attributes:
        mean: Its numbers.
        place: The number of the point of the data that it is; −1 for none.
        medians: What the joint solve has found off the data.
    """

    mean: Mean
    place: int
    medians: Means | None = None


def _differentiable(space: Space, own: _Found, best: Mean, points: Tensor, share: Tensor) -> Mean:
    """The same with the graph of point and objective."""
    if own.place >= 0:
        return replace(best, point=points[own.place])
    assert own.medians is not None
    one = Group(torch.zeros_like(share, dtype=torch.int64), share.detach(), 1)
    seen = attached(space, own.medians.joint, points, share, one, roots=True)
    return replace(best, point=seen.centers[0], objective=seen.objectives[0])


@dataclass(frozen=True)
class _Pull:
    """What a point of the data feels.

    Attributes:
        logs: Of all points there.
        held: The weight of the points that are there.
        force: Length of the sum of the others' weights times unit tangents.
        step: ``(m,)``, a tangent along it.
    """

    logs: Logarithms
    held: float
    force: float
    step: Tensor


@dataclass(frozen=True)
class _Search:
    """Medians of the same points, from any start."""

    geometry: Somewhere
    space: Space
    points: Tensor
    weights: Tensor
    options: Options
    keep: bool

    def run(self, start: Tensor) -> _Found:
        """A median near a start ``(m,)``."""
        same = (self.points == start).all(-1) & (self.weights > 0)
        at = int(same.nonzero()[0]) if bool(same.any()) else -1
        group = self._group()
        asked: set[int] = set()
        nodes = None if at >= 0 else self._lines(start)
        status = int(Status.MAX_STEPS)
        steps = 0
        while True:
            if at >= 0:
                asked.add(at)
                steps += 1
                pull = self._pull(at, _ROUGH)
                surplus = pull.force - pull.held
                exact = not len(self._failed(pull.logs))
                if abs(surplus) < _DECIDED and exact:
                    pull = self._pull(at, self.options.rtol, pull.logs.curves, sharp=True)
                    surplus = pull.force - pull.held
                most = self.options.rtol if exact else -_DOUBTED
                if self._lost(pull.logs) or surplus <= most:
                    return self._here(at, pull, steps)
                if status != Status.CONVERGED:
                    nodes = self._beside(at, pull)
            assert nodes is not None
            found = minimised(
                self.space,
                nodes,
                group,
                _BESIDE,
                torch.full_like(group.of[:1], min(_LOOKS, self.options.max_steps)),
                roots=True,
            )
            status = int(found.status[0])
            steps += int(found.steps[0])
            nodes = found.nodes
            reach = _NEAR if status == Status.CONVERGED else torch.inf
            at = self._next(nodes, reach, asked)
            if at < 0 or len(asked) >= _POINTS:
                return self._off(found.centers, nodes, group, steps)

    def _group(self) -> Group:
        zero = torch.zeros(len(self.points), dtype=torch.int64, device=self.points.device)
        return Group(zero, self.weights, 1)

    def _lines(self, start: Tensor) -> Tensor:  # (m,) -> (n, s + 1, m)
        """Geodesics to begin with, from a start that is not a point of the data."""
        found = Logarithms.of(self.geometry, start, self.points, _DECIDED)
        return found.curves.knots(SEGMENTS)

    def _pull(self, at: int, rtol: float, init: Curve | None = None, sharp: bool = False) -> _Pull:
        """What the others do at a point of the data."""
        z = self.points[at]
        logs = Logarithms.of(self.geometry, z, self.points, rtol, init, sharp=sharp)
        spread = (self.weights * logs.lengths.square()).nansum().sqrt()
        touching = logs.lengths <= _TOUCHES * spread
        counted = ~touching & (self.weights > 0)
        upper = factor(self.geometry, z[None])[0]
        lengths = torch.where(counted, logs.lengths, 1.0)
        units = torch.where(counted[:, None], logs.vectors @ upper.T / lengths[:, None], 0.0)
        force = (self.weights[:, None] * units).sum(0)
        held = float(self.weights[touching].sum())
        size = force.norm()
        if not bool(size > held):
            return _Pull(logs, held, float(size), torch.zeros_like(z))
        along = force / size
        # How the pull shrinks along itself, as if space were flat.
        pull = torch.where(counted, self.weights / lengths, 0.0)
        bend = (pull * (1 + _RIDGE - (units @ along).square())).sum()
        most = _SHARE * torch.where(counted, logs.lengths, torch.inf).amin()
        length = torch.minimum((size - held) / bend, most)
        step = torch.linalg.solve_triangular(upper, (length * along)[:, None], upper=True)[:, 0]
        return _Pull(logs, held, float(size), step)

    def _failed(self, logs: Logarithms) -> Tensor:
        """The numbers of the points whose geodesics are less accurate than asked for."""
        return logs.failed[self.weights[logs.failed] > 0]

    def _lost(self, logs: Logarithms) -> bool:
        """Whether some geodesics are not known at all."""
        failed = self._failed(logs)
        known = roughly_known(logs.status[failed]) & logs.lengths[failed].isfinite()
        return not bool(known.all())

    def _here(self, at: int, pull: _Pull, steps: int) -> _Found:
        """The point of the data itself."""
        logs = pull.logs
        lost = self._lost(logs)
        if not len(self._failed(logs)):
            logs = Logarithms.of(
                self.geometry,
                self.points[at],
                self.points,
                self.options.rtol,
                logs.curves,
                sharp=True,
            )
        counted = self.weights > 0
        failed = self._failed(logs)
        # A pull that is more than the weight by no more than is asked for moves it as little.
        z = self.points[at]
        off = self.space.norm(z[None], pull.step[None])[0]
        mean = Mean(
            point=z,
            variance=torch.where(counted, self.weights * logs.lengths.square(), 0.0).sum(),
            objective=torch.where(counted, self.weights * logs.lengths, 0.0).sum(),
            error=off + torch.inf if lost else off,
            status=int(logs.status[failed].max()) if lost else int(Status.CONVERGED),
            distances=logs.lengths,
            logarithms=logs.vectors,
            steps=steps,
            failed=failed,
            curves=Curve.from_nodes(logs.curves.knots(SEGMENTS)),
            weights=self.weights,
            geometry=self.geometry,
            index=-1 if lost else 0,
            power=1,
        )
        return _Found(mean, at)

    def _beside(self, at: int, pull: _Pull) -> Tensor:  # -> (n, s + 1, m)
        """The geodesics from a point of the data, with their starts a step away from it."""
        z = self.points[at]
        move = stepped(self.space, z[None], pull.step[None])[0] - z
        nodes = pull.logs.curves.knots(SEGMENTS)
        taper = torch.nn.functional.pad(tapered(SEGMENTS, nodes), (0, 1))
        return nodes + taper[:, None] * move

    def _next(self, nodes: Tensor, reach: float, asked: set[int]) -> int:
        """A point of the data that may be the median, not asked before; −1 for none.

        It is as near as ``reach``, relative to the spread.
        """
        distances = self.space.squared_chords(nodes).clamp(min=0).sqrt().sum(1)
        spread = (self.weights * distances.square()).nansum().sqrt()
        free = self.weights > 0
        free[list(asked)] = False
        near = torch.where(free, distances, torch.inf).nan_to_num(torch.inf)
        place = int(near.argmin())
        return place if bool(near[place] <= reach * spread) else -1

    def _off(self, centers: Tensor, nodes: Tensor, group: Group, steps: int) -> _Found:
        """The minimum off the data that Newton's steps have led to."""
        medians = from_curves(
            self.geometry,
            self.space,
            centers,
            self.points,
            group,
            Aim(self.options.rtol, self.options.max_steps, self.keep, roots=True),
            Curve.from_nodes(nodes),
        )
        mean = single(self.geometry, medians, 0, group)
        counted = self.weights > 0
        objective = torch.where(counted, self.weights * mean.distances, 0.0).sum()
        return _Found(
            replace(mean, objective=objective, steps=mean.steps + steps, power=1), -1, medians
        )
