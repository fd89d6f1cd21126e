"""Fréchet means: the points nearest to all others, by squared distances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError
from riemae.numerics.checks import expect_range, expect_shape
from riemae.numerics.random import as_generator
from riemae.solvers import Curve, Status
from riemae.solvers.result import remedies
from riemae.solvers.space import Space, space_of
from riemae.statistics.arguments import takes_codes
from riemae.statistics.groups import Group
from riemae.statistics.implicit import attached, wanted
from riemae.statistics.joint import SEGMENTS, Aim, Joint, first_segments, solve
from riemae.statistics.romberg import logarithms
from riemae.statistics.tangents import (
    Somewhere,
    accuracy,
    expect_points,
    expect_steps,
    normalised,
    paths,
)
from riemae.statistics.uniqueness import largest_curvature, shortest_loop, uniqueness_radius

# Accuracy of the paths that means begin with where lines have not led to one, by these statuses;
# and statuses with which paths lead nowhere.
_PATHS = 1e-2
_ASTRAY = (int(Status.STALLED), int(Status.SINGULAR), int(Status.NON_FINITE))
_LOST = (int(Status.SINGULAR), int(Status.NON_FINITE), int(Status.INVALID_POINT))
# How often geodesics that are not the shortest any more are replaced, and from which ratio of
# lengths on, of straight lines on so many segments.
_ROUTES = 3
_SHORTER = 0.98
_LINE = 16
# Points of the data that a mean may begin with: near their average, and in all.
_CENTRAL = 4
_CANDIDATES = 256
# Two minima are one when they are this close, relative to the spread.
_SAME = 1e-2


@dataclass(frozen=True, eq=False)
class Mean:
    """A point that minimises a mean of distances.

    Attributes:
        point: ``(m,)``.
        variance: The weighted mean of squared distances to it; ``()``.
        objective: What is minimised: ``variance``, or for a median the mean distance; ``()``.
        error: Estimated distance of ``point`` from the minimiser; ``()``. It assumes that there is
            one nearby, and that the last levels tell how fast what is left would shrink. Infinite
            where the steps did not come to rest.
        status: A :class:`~riemae.solvers.Status` code: CONVERGED when ``error`` is at most ``rtol``
            times the points' spread, the root of ``variance``; MAX_STEPS when it took too long;
            the status of a geodesic where one did not converge.
        distances: ``(n,)``, to the points.
        logarithms: ``(n, m)``, tangents at ``point`` that lead to the points.
        steps: How many looks at all geodesics it took.
        index: How many directions lower the objective: 0 for a local minimum; −1 where unknown.
        failed: Numbers of the points whose geodesics failed.
        alternatives: Other local minima that were found from other starts, the best first.
        curves: Geodesics from ``point`` to the points, as polygons of 8 segments.
        weights: ``(n,)``, of the points; they add up to 1.
        geometry: Where it lies.
        power: Of the distances whose mean is minimised: 2, or 1 for a median.
    """

    point: Tensor
    variance: Tensor
    objective: Tensor
    error: Tensor
    status: int
    distances: Tensor
    logarithms: Tensor
    steps: int
    failed: Tensor
    curves: Curve
    weights: Tensor
    geometry: Somewhere
    index: int = -1
    power: int = 2
    alternatives: tuple[Mean, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether the point is as accurate as was asked for."""
        return self.status == Status.CONVERGED

    @cached_property
    def largest_curvature(self) -> Tensor:  # -> ()
        """The largest sectional curvature found at the point, at the data and along the geodesics.

        NaN where there is none: at a singular metric, and for decoders with kinks. In four and more
        dimensions it may be too large: it is the largest eigenvalue of the curvature operator. It
        is computed when it is first asked for, from the Riemann tensor at up to ``8 n + 1`` places.

        Warns:
            SmoothnessWarning: As of :meth:`riemae.Manifold.riemann`.
        """
        return largest_curvature(self.geometry, self.curves)

    @property
    def uniqueness_radius(self) -> Tensor:  # -> ()
        """Data within this distance of one place have no second mean, by curvature; ``()``.

        ``π / (2 √K)`` with :attr:`largest_curvature` K, and half of that for medians of points that
        do not lie on one geodesic; infinite where no curvature is positive, NaN where none is known
        (B. Afsari, Riemannian Lᵖ center of mass, Proc. Amer. Math. Soc. 139, 2011). Where latent
        coordinates are periodic, at most a quarter of the length of their lines through the point.
        Two things are taken for granted: beside the geodesics curvature is no larger than on them,
        and no other geodesic loop is shorter than four times this radius. Surfaces with a
        bottleneck may have several means even where they are flat; ``n_starts`` looks for those.
        """
        radius = uniqueness_radius(self.largest_curvature, self._farthest, self.power)
        with torch.no_grad():
            return radius.minimum(shortest_loop(self.geometry, self.point.detach()) / 4)

    @property
    def within_uniqueness(self) -> bool:
        """Whether all points with any weight are nearer to the mean than ``uniqueness_radius``.

        If so, and if what is said there holds, there is no other mean. If not, there may be none
        all the same. False where the radius is not known.
        """
        return bool(self._farthest < self.uniqueness_radius)

    @property
    def _farthest(self) -> Tensor:  # -> ()
        """The largest distance to a point that counts."""
        return torch.where(self.weights > 0, self.distances.detach(), 0.0).amax()

    def __repr__(self) -> str:
        return (
            f"Mean(variance {float(self.variance.detach()):.4g}, error {float(self.error):.1e}, "
            f"{Status(self.status).name} after {self.steps} steps, "
            f"{len(self.alternatives)} other minima found)"
        )


@takes_codes
def frechet_mean(
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
    """The Fréchet mean ``argmin_μ Σ wᵢ d(μ, xᵢ)²``, differentiable once.

    Newton's method on the mean and all geodesics together: each is a discrete curve from the mean
    to a point, and these share only their start. Levels of 8, 16, 32, … segments are extrapolated;
    ``error`` is what the last extrapolation has changed (H. Karcher, Riemannian center of mass and
    mollifier smoothing, Comm. Pure Appl. Math. 30, 1977). Data that spread far where space is
    positively curved may have several means: ``n_starts`` looks for them, and the result's
    ``uniqueness_radius`` and ``within_uniqueness`` tell when there is one only.

    ``point`` and ``variance`` are differentiable in the points, in the weights and in the
    decoder's parameters, by the implicit function theorem and the envelope theorem; distances and
    logarithms are not. That takes one more look at all curves, and memory for it; under
    ``torch.no_grad()`` it is left out.

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        points: ``(n, m)``.
        weights: ``(n,)``, at least 0; equal by default.
        rtol: Accuracy of the point, relative to the points' spread; by default 1e-6, and 1e-3 in
            float32.
        init: Where to begin, ``(m,)``; by default the average of the coordinates, or a point of the
            data near it, whichever is nearer to all by straight lines.
        n_starts: Starts: the first, and some of the points, drawn by chance. The best minimum is
            returned, the others are its ``alternatives``.
        max_steps: Looks at all curves, for each start.
        generator: Of the draws.
        throw: Raise when the mean is not accurate.

    Raises:
        NotConvergedError: When ``throw`` and the status is not CONVERGED; it carries the result.
        DifferentiationError: When a gradient of the result is differentiated again.
        ShapeError: When ``points`` has more or fewer than two axes.
        NonFiniteError: When a point is NaN or infinite.
        OptionError: For weights that are none, or an option out of range.
    """
    options = Options.given(
        "frechet_mean", points, rtol, init, n_starts, max_steps, generator, throw
    )
    return _mean(geometry, points, weights, options)


@dataclass(frozen=True)
class Options:
    """What a call of a mean or median was given, checked."""

    where: str
    rtol: float
    init: Tensor | None
    n_starts: int
    max_steps: int
    source: torch.Generator | None
    throw: bool

    @classmethod
    def given(
        cls,
        where: str,
        points: Tensor,
        rtol: float | None,
        init: Tensor | None,
        n_starts: int,
        max_steps: int,
        generator: torch.Generator | int | None,
        throw: bool,
    ) -> Options:
        """Of arguments as a user gives them."""
        expect_points(where, points)
        rtol = accuracy(where, rtol, points)
        expect_steps(where, "max_steps", max_steps)
        expect_range(where, "n_starts", n_starts, 1, integer=True, hint="It counts starts.")
        if init is not None:
            expect_shape(where, "init", init, (points.shape[1],), "One point.")
            init = init.detach().to(points)
        return cls(where, rtol, init, n_starts, max_steps, as_generator(where, generator), throw)


def _mean(
    geometry: Somewhere,
    points: Tensor,
    weights: Tensor | None,
    options: Options,
) -> Mean:
    """The best of several starts, all solved at once."""
    # Where coordinates are periodic, their average may be on the other side.
    between = getattr(geometry, "latent", None) is None
    share, starts, space = begun(geometry, points, weights, options, between)
    known = points.detach()
    n = len(known)
    count = len(starts)
    of = torch.arange(count, device=known.device).repeat_interleave(n)
    groups = Group(of, share.detach().repeat(count), count)
    keep = wanted(space, points, weights)
    with torch.no_grad():
        every = known.repeat(count, 1)
        aim = Aim(options.rtol, options.max_steps, keep)
        found = means_of_groups(geometry, space, starts, every, groups, aim)
        means = [single(geometry, found, name, groups) for name in range(count)]
    best = ranked(geometry, space, means)
    if keep and best.converged:
        # Of the start that counts alone.
        name = next(i for i, mean in enumerate(means) if mean.point is best.point)
        one = Group(of[:n], share.detach(), 1)
        own = found.joint.alone(name, groups)
        seen = attached(space, own, points, share, one)
        variance = seen.objectives[0]
        best = replace(best, point=seen.centers[0], variance=variance, objective=variance)
    return demanded(best, options)


def begun(
    geometry: Somewhere,
    points: Tensor,
    weights: Tensor | None,
    options: Options,
    between: bool,
) -> tuple[Tensor, Tensor, Space]:
    """Weights that add up to 1, starts ``(s, m)``, and the space."""
    share = normalised(options.where, weights, points, graph=True)
    known = points.detach()
    with torch.no_grad():
        space = space_of(geometry, known, where=options.where, finite=True)
        first = options.init
        if first is None:
            first = central(space, known, share.detach(), between)
        starts = first[None]
        if options.n_starts > 1:
            drawn = torch.randperm(len(known), generator=options.source)[: options.n_starts - 1]
            starts = torch.cat([starts, known[drawn.to(known.device)]])
    return share, starts, space


@dataclass(frozen=True)
class Means:
    """Means of ``c`` groups of ``n`` points.

    Attributes:
        joint: Their numbers.
        status: ``(c,)`` int64 codes.
        failed: ``(n,)`` bool: the geodesic was not found.
        distances: ``(n,)``.
        logarithms: ``(n, m)``.
    """

    joint: Joint
    status: Tensor
    failed: Tensor
    distances: Tensor
    logarithms: Tensor


def means_of_groups(
    geometry: Somewhere,
    space: Space,
    starts: Tensor,
    points: Tensor,
    groups: Group,
    aim: Aim,
    curves: Curve | None = None,
) -> Means:
    """Fréchet means of groups of points, in one batch.

    Args:
        geometry: Where.
        space: Its space.
        starts: ``(c, m)``, a point near each mean.
        points: ``(n, m)``.
        groups: Who belongs together; none is empty.
        aim: What is looked for.
        curves: From the starts to the points, if they are known.
    """
    here = starts[groups.of]
    if curves is not None:
        return from_curves(geometry, space, starts, points, groups, aim, curves)
    if getattr(geometry, "latent", None) is None:
        # Straight lines are good enough to begin with, nearly always.
        lines = Curve.line(here, points, SEGMENTS)
        segments = first_segments(space, lines, groups, aim.rtol)
        found = from_curves(
            geometry, space, starts, points, groups, aim, lines, segments, straight=True
        )
        astray = torch.tensor(_ASTRAY, device=points.device)
        if not bool((torch.isin(found.status, astray) | ~found.joint.sure).any()):
            return found
    first = paths(geometry, here, points, _PATHS)
    return from_curves(
        geometry, space, starts, points, groups, aim, first.curve, status=first.status
    )


def from_curves(
    geometry: Somewhere,
    space: Space,
    starts: Tensor,
    points: Tensor,
    groups: Group,
    aim: Aim,
    curves: Curve,
    segments: int = SEGMENTS,
    straight: bool = False,
    status: Tensor | None = None,
) -> Means:
    """Means from curves, of these statuses, that lead from the starts to the points."""
    if status is None:
        status = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    lost = ~curves.nodes.flatten(1).isfinite().all(1)
    lost |= torch.isin(status, torch.tensor(_LOST, device=status.device))
    status = torch.where(lost & (status == 0), int(Status.NON_FINITE), status)
    alive = groups.all(~lost)
    # Curves that lead nowhere have a place in the batch, but no weight in any mean.
    some, rows = groups.part(alive)
    own = None
    if some.count:
        own = solve(space, curves[rows], some, aim, segments, straight)
    for _ in range(_ROUTES):
        if own is None:
            break
        better = _shorter(geometry, space, own, points[rows], some)
        if better is None:
            break
        own = solve(space, better, some, aim)
    joint = _whole(own, alive, rows, starts, groups, curves)
    names = joint.status.clone()
    for name in (~alive).nonzero().flatten().tolist():
        members = lost & (groups.of == name) & (groups.weights > 0)
        names[name] = status[members].max()
    distances = joint.squares.clamp(min=0).sqrt()
    vectors = logarithms(space, joint.centers[groups.of], joint.slopes)
    size = space.norm(joint.centers[groups.of], vectors)
    # Lengths are more accurate than directions.
    vectors = torch.where(size > 0, distances / size, 1.0)[:, None] * vectors
    return Means(joint, names, lost, distances, vectors)


def _whole(
    own: Joint | None,
    alive: Tensor,
    rows: Tensor,
    starts: Tensor,
    groups: Group,
    curves: Curve,
) -> Joint:
    """The numbers of all groups; those that could not be solved stay at their starts."""
    if own is not None and bool(alive.all()):
        return own
    joint = Joint.unknown(starts.clone(), curves, int(Status.NON_FINITE))
    joint.index -= 1
    joint.steps += 1
    if own is not None:
        names = alive.nonzero().flatten()
        for name in ("centers", "error", "index", "status", "steps", "depth", "sure"):
            getattr(joint, name)[names] = getattr(own, name)
        for name in ("squares", "square_errors", "slopes", "nodes"):
            getattr(joint, name)[rows] = getattr(own, name)
        joint.levels = [
            replace(level, groups=names[level.groups], rows=rows[level.rows])
            for level in own.levels
        ]
    return joint


def _shorter(
    geometry: Somewhere, space: Space, joint: Joint, points: Tensor, groups: Group
) -> Curve | None:
    """The curves, with shorter ones in place of some; None where none is known.

    As a mean moves, its geodesics go along, and another way may become the shortest.
    """
    here = joint.centers[groups.of]
    distances = joint.squares.clamp(min=0).sqrt()
    if getattr(geometry, "latent", None) is not None:
        rows = torch.arange(len(points), device=points.device)
    else:
        line = Curve.line(here, points, _LINE)
        lengths = space.squared_chords(line.nodes).clamp(min=0).sqrt().sum(1)
        rows = (lengths < _SHORTER * distances).nonzero().flatten()
    if not len(rows):
        return None
    found = paths(geometry, here[rows], points[rows], _PATHS)
    shorter = found.converged & (found.length < _SHORTER * distances[rows])
    if not bool(shorter.any()):
        return None
    nodes = joint.nodes.clone()
    # Extrapolated means are not where the curves of one level begin.
    nodes[:, 0] = here
    nodes[rows[shorter]] = found.curve.knots(SEGMENTS)[shorter]
    return Curve.from_nodes(nodes)


def single(geometry: Somewhere, found: Means, name: int, groups: Group) -> Mean:
    """The mean of one of the groups."""
    joint = found.joint.alone(name, groups)
    rows = groups.of == name
    weights = groups.weights[rows]
    variance = torch.where(weights > 0, weights * joint.squares, 0.0).sum()
    failed = (found.failed[rows] & (weights > 0)).nonzero().flatten()
    return Mean(
        point=joint.centers[0],
        variance=variance,
        objective=variance,
        error=joint.error[0],
        status=int(found.status[name]),
        distances=found.distances[rows],
        logarithms=found.logarithms[rows],
        steps=int(joint.steps[0]),
        failed=failed,
        curves=Curve.from_nodes(joint.nodes),
        weights=weights,
        geometry=geometry,
        index=int(joint.index[0]),
    )


def demanded(best: Mean, options: Options) -> Mean:
    """The result, unless it is not accurate and must be.

    Raises:
        NotConvergedError: When it is not accurate.
    """
    if options.throw and not best.converged:
        kind = Status(best.status).name
        raise NotConvergedError(
            options.where,
            f"a point accurate to rtol={options.rtol:g} of the spread",
            f"{kind} after {best.steps} steps, error {float(best.error):.1e}"
            + (
                f", geodesics to points {best.failed[:5].tolist()} failed"
                if len(best.failed)
                else ""
            ),
            f"{remedies(torch.tensor([best.status]))} The error's .result holds the point; "
            "throw=False returns it.",
            best,
        )
    return best


def central(
    space: Space, points: Tensor, weights: Tensor, between: bool
) -> Tensor:  # (n, m) -> (m,)
    """Where the sum of squared lengths of straight lines is small.

    One of the points, or, if it may lie ``between`` them, the average of their coordinates.
    """
    if len(points) == 1:
        return points[0]
    if between:
        average = (weights[:, None] * points).sum(0)
        near = _lines(space, average, points).nan_to_num(torch.inf)
        some = points[near.argsort(stable=True)[:_CENTRAL]]
        candidates = torch.cat([some, average[None]])
    else:
        # Of many points some are enough.
        candidates = points[:: -(-len(points) // _CANDIDATES)]
    # Weights of 0 may belong to points that no line reaches.
    squares = [_lines(space, z, points).square() for z in candidates]
    sums = [torch.where(weights > 0, weights * x, 0.0).sum() for x in squares]
    return candidates[int(torch.stack(sums).nan_to_num(torch.inf).argmin())]


def _lines(space: Space, z: Tensor, points: Tensor) -> Tensor:  # (m,), (n, m) -> (n,)
    """Lengths of straight lines."""
    line = Curve.line(z.expand_as(points), points, 4)
    return space.squared_chords(line.nodes).clamp(min=0).sqrt().sum(-1)


def ranked(geometry: Somewhere, space: Space, found: list[Mean]) -> Mean:
    """The best minimum, with the other distinct ones.

    Where coordinates are periodic, points that are whole periods apart are one.
    """
    wrapped = getattr(getattr(geometry, "latent", None), "wrap", None)
    order = sorted(found, key=lambda mean: (not mean.converged, float(mean.objective)))
    kept: list[Mean] = []
    for mean in order:
        near = False
        for other in kept:
            apart = mean.point - other.point
            if wrapped is not None:
                apart = wrapped(apart)
            gap = space.norm(other.point[None], apart[None])[0]
            near = near or bool(gap <= _SAME * other.variance.sqrt())
        if not near and (mean.converged or not kept):
            kept.append(mean)
    return replace(kept[0], alternatives=tuple(kept[1:]))
