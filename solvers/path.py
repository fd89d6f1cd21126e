"""The driver of all path solvers: levels of resolution, the active set, error control, and the
verdict on each pair.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import (
    DeviceError,
    DTypeError,
    FallbackWarning,
    GraphError,
    NotConvergedError,
    OptionError,
    ShapeError,
    stack_level,
)
from riemae.numerics.checks import expect_dense, expect_rtol, expect_values
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import evidently_finite
from riemae.solvers.certificate import sound_acceleration, unevenness
from riemae.solvers.curve import Curve, equalized, speeds
from riemae.solvers.graph import Graph
from riemae.solvers.measure import RATIO, Evidence, Measure
from riemae.solvers.methods.newton import Newton
from riemae.solvers.methods.newton_cg import NewtonCG
from riemae.solvers.progress import Progress, reported
from riemae.solvers.result import GeodesicResult, Status, remedies
from riemae.solvers.search import SCOUT_SEGMENTS, search
from riemae.solvers.solver import Solver, expect_solver
from riemae.solvers.space import Space, embedding_of, labels_of, velocities_of
from riemae.solvers.state import RUNNING, on_host, placed

# The solver's own error must be small beside the discretisation error that is being estimated;
# rounding may stop it at 50 times as much.
_SOLVER_SHARE, _ACCEPTABLE = 3e-3, 50
# On the first level, curves whose speed wobbles by more than this get the geodesic's own velocities
# at once.
_WOBBLE = 1e-2

_STARTS_WITH_GRAPH = 4
# Steps of the solver that takes over where the metric is singular: enough where its rank is the
# same everywhere. Where a curve ran into a singular point, more of them come to nothing.
_RESORT_STEPS = 50

# Points of a straight line that is kept, where its speed is looked at.
_LOOKS = 24

# Start curves are looked at on this many segments. A pair starts on the first level whose chords
# show this share of the true length, at the latest on the limit; a curve whose speed exceeds the
# mean by more than this factor is walked anew.
_START_SEGMENTS, _RESOLVED, _COARSEST_LIMIT, _UNEVEN = 32, 0.8, 64, 1.5

# What the pairs of one chunk may hold in matrices: so many numbers a pair for systems that are
# solved densely and for indefinite ones (three matrices of 192 x 192), and so many times m² for
# blocks. A state keeps four blocks a segment (twice that while it is refined), up to 64 segments; a
# step works with some two dozen, on as many pairs as fit.
_BYTES, _FEWEST_PAIRS = 2**30, 16
_DENSE_NUMBERS, _BLOCK_NUMBERS, _BLOCKS_A_STEP = 3 * 192**2, 8 * 64, 24
# In place of m rows a block, matrix-free: room for the decoder's layers at the nodes, which the
# products keep.
_ROWS_MATRIX_FREE = 64

# Latent dimensions. Measured with an MLP m → 512 → 512 → 784 on one core, 2 to 4 pairs, rtol 1e-4:
# NewtonCG takes as long as Newton at m = 32, 0.5 to 0.85 times as long at 64, 0.25 to 0.6 times at
# 128, where Newton's index and its indifference to the metric's condition weigh less; at 512 Newton
# holds a gigabyte for 4 pairs, NewtonCG a tenth of it.
MATRIX_FREE_FROM = 96


def geodesic(
    space: Space,
    z0: Tensor,
    z1: Tensor,
    *,
    rtol: float | None = None,
    solver: Solver | None = None,
    init: Curve | Tensor | None = None,
    n_starts: int | None = None,
    graph: Graph | None = None,
    seed: int | torch.Generator = 0,
    throw: bool = True,
    progress: Progress | bool | None = None,
) -> GeodesicResult:
    """Geodesics between pairs of points, each to a relative accuracy ``rtol`` of its length.

    Every pair is solved on 8 segments, then on 16, 32, … until lengths, energies and speeds of its
    levels say that it is accurate; pairs that are done leave the batch. The reported length is that
    of a smooth curve through the nodes, by quadrature of its true speed: an upper bound of the
    distance. It is the C² spline; where the coordinates move unevenly, so that a spline overshoots,
    it has the velocities of the geodesic itself. The shortest curve of all levels counts; one that
    minimises is not longer than its start. Its error: :mod:`riemae.solvers.measure`.

    Args:
        space: A :class:`riemae.Manifold`, a :class:`MetricSpace`, or anything with the
            :class:`Space` protocol.
        z0: Start points, ``(*b, m)``.
        z1: End points, ``(*b, m)``; leading axes broadcast.
        rtol: Relative accuracy of the length; 1e-4 in float64, 1e-3 in float32 unless given.
        solver: Settings. By default :class:`Newton`, or from 96 dimensions on :class:`NewtonCG`,
            which is faster there but knows no Morse index; it also takes over pairs along which the
            metric is singular. Any :class:`Solver` will do: :class:`Adam`, :class:`LBFGS`,
            :class:`CubicSpline`, :class:`GEORCE`, :class:`Shooting`, :class:`BVP`.
        init: Start curves: a :class:`Curve` with batch ``(*b,)`` or ``()``, or nodes
            ``(*b, k, m)``; their end points are replaced by ``z0`` and ``z1``. The straight line
            unless given. With ``init`` and no ``solver``, Newton keeps a start curve that is nearly
            a geodesic, even where it does not minimise (``target="stationary"``).
        n_starts: Start curves a pair: the straight line (or ``init``), routes through ``graph``,
            perturbations. The shortest geodesic is returned, the others are its ``alternatives``. 1
            without a graph, 4 with one, unless given.
        graph: A neighbourhood graph on data, from :func:`graph`; end points enter it at the point
            next to them.
        seed: Decides the perturbations.
        throw: Raise when a pair misses ``rtol``; False returns the result with its status codes.
        progress: Called with (pairs done, pairs in all) after every level; True shows a bar.

    Returns:
        One entry a pair. Not differentiable: see ``Manifold.distance`` for gradients.

    Raises:
        ShapeError: When ``z0`` and ``z1`` do not pair up, or ``init`` does not fit them.
        DTypeError: When their dtypes differ, or are not float32 or float64.
        DeviceError: When their devices differ, or they have no values (meta device).
        GraphError: When ``graph`` is on points of another dimension, dtype or device.
        OptionError: When ``rtol`` is not positive, or ``n_starts`` not a positive number.
        NotConvergedError: When ``throw`` and a pair ends with another status than CONVERGED; it
            carries the result.

    Warns:
        FallbackWarning: When the metric is singular along a pair, and NewtonCG has solved it.
    """
    z0, z1 = paired_points(z0, z1)
    rtol = expect_rtol("geodesic", tolerance(z0.dtype).geodesic if rtol is None else rtol)
    expect_solver("geodesic", solver)
    _check_graph(graph, z0[..., : z0.shape[-1] - labels_of(space)])
    if n_starts is not None and (
        isinstance(n_starts, bool) or not isinstance(n_starts, int) or n_starts < 1
    ):
        raise OptionError(
            "geodesic",
            "n_starts of at least 1",
            repr(n_starts),
            "It counts the start curves of a pair.",
        )
    if n_starts is None:
        n_starts = 1 if graph is None else _STARTS_WITH_GRAPH
    resort: Solver | None = None
    if solver is None:
        solver = default_solver(
            z0.shape[-1] - labels_of(space),
            "minimum" if init is None or n_starts != 1 else "stationary",
        )
        resort = NewtonCG(max_steps=_RESORT_STEPS) if isinstance(solver, Newton) else None
    with torch.no_grad(), reported("geodesic", progress, "geodesics") as report:
        start = start_curve(z0.detach(), z1.detach(), init)
        if n_starts == 1 or not len(start.nodes):
            result = _solve(space, solver, resort, start, rtol, report)
        else:
            segments = min(max(solver.segments, SCOUT_SEGMENTS), solver.max_segments)
            fine: Solver = replace(
                cast(Any, solver), segments=segments
            )  # a frozen dataclass, all of them
            result = search(
                partial(_solve, space, fine, resort),
                space,
                start,
                n_starts,
                graph,
                seed,
                rtol,
                report,
            )
    if z0.ndim != 2:
        result = result[torch.arange(len(start.nodes)).view(z0.shape[:-1])]
    return demand_convergence(result) if throw else result


def default_solver(m: int, target: Literal["minimum", "stationary"] = "minimum") -> Solver:
    """Settings for ``m`` latent dimensions: Newton with its certificate, matrix-free where its
    blocks cost too much.
    """
    return Newton(target=target) if m < MATRIX_FREE_FROM else NewtonCG()


def demand_convergence(result: GeodesicResult) -> GeodesicResult:
    """``result``, when every pair converged.

    Raises:
        NotConvergedError: When one did not; it carries the result.
    """
    if not bool(result.converged.all()):
        raise NotConvergedError(
            "geodesic",
            f"every pair accurate to rtol={result.rtol:g}",
            result.summary(),
            f"{remedies(result.status)} The error's .result holds all pairs; throw=False returns it instead.",
            result,
        )
    return result


@dataclass
class _Outcome:
    """What is known of all ``p`` pairs so far, on the host.

    The curves of those that are done stay where they are.
    """

    length: np.ndarray
    error: np.ndarray
    decrement: np.ndarray
    speed_deviation: np.ndarray
    status: np.ndarray
    index: np.ndarray
    segments: np.ndarray
    steps: np.ndarray
    curves: dict[int, list[tuple[np.ndarray, Curve]]]

    @classmethod
    def unknown(cls, p: int) -> _Outcome:
        length, error, decrement, deviation = np.full((4, p), np.nan)
        status, index, segments, steps = np.zeros((4, p), dtype=np.int64)
        status[:], index[:] = RUNNING, -1
        return cls(length, error, decrement, deviation, status, index, segments, steps, {})

    def running(self) -> np.ndarray:
        """Where no verdict has fallen yet."""
        return (self.status == RUNNING).nonzero()[0]

    def keep(self, rows: np.ndarray, curve: Curve) -> None:
        self.segments[rows] = curve.segments
        self.curves.setdefault(curve.segments, []).append((rows, curve))

    def curve(self, like: Tensor, coarsest: int) -> Curve:  # (p, m)
        """All curves on the finest grid that any of them needs.

        Subdividing a spline changes no point of it.
        """
        segments = max(self.curves, default=coarsest)
        groups = [group for groups in self.curves.values() for group in groups]
        if len(groups) == 1 and (np.diff(groups[0][0]) > 0).all():
            return groups[0][1]
        nodes, slopes = (like.new_empty(len(like), segments + 1, like.shape[-1]) for _ in range(2))
        for rows, curve in groups:
            fine, where = curve.resample(segments), placed(rows, like)
            nodes[where], slopes[where] = fine.nodes, fine.slopes
        return Curve(nodes, slopes)


def _solve(
    space: Space,
    solver: Solver,
    resort: Solver | None,
    start: Curve,
    rtol: float,
    progress: Progress | None,
) -> GeodesicResult:  # a flat batch (p,)
    """All pairs, those along which the metric is singular by ``resort``, if any.

    None longer than its start curve.
    """
    result, lengths = _solve_all(space, solver, start, rtol, progress)
    if resort is not None:
        singular = (result.status == Status.SINGULAR).nonzero().flatten()
        if len(singular):
            again, _ = _solve_all(space, resort, start[singular], rtol, None)
            solved = again.converged
            result = _exchanged(result, singular[solved], again[solved])
            if bool(solved.any()):
                warnings.warn(
                    f"geodesic: the metric is singular along {len(singular)} of {len(start.nodes)} pairs; "
                    f"{int(solved.sum())} of them are solved by NewtonCG, which moves across the directions that "
                    "have no length as little as it can, and knows no Morse index (-1).",
                    FallbackWarning,
                    stacklevel=stack_level(),
                )
    return _not_longer(space, solver, start, lengths, result, rtol)


def _solve_all(
    space: Space, solver: Solver, start: Curve, rtol: float, progress: Progress | None
) -> tuple[GeodesicResult, np.ndarray]:
    """All pairs, some at a time, and their start curves' lengths: memory grows with the chunk, only
    results with p.
    """
    p, m = len(start.nodes), start.nodes.shape[-1]
    numbers = _DENSE_NUMBERS + _BLOCK_NUMBERS * m * (
        _ROWS_MATRIX_FREE if isinstance(solver, NewtonCG) else m
    )
    size = max(_FEWEST_PAIRS, _BYTES // (start.nodes.element_size() * numbers))
    parts, lengths = [], []
    for first in range(0, max(p, 1), size):
        report = None if progress is None else partial(_report, progress, first, p)
        part, seen = _solve_chunk(space, solver, start[first : first + size], rtol, report)
        parts.append(part)
        lengths.append(seen)
    return GeodesicResult.cat(parts, torch.Size((p,))), np.concatenate(lengths)


def _exchanged(result: GeodesicResult, rows: Tensor, other: GeodesicResult) -> GeodesicResult:
    """The result with other pairs at ``rows``."""
    if not len(rows):
        return result
    place = torch.zeros_like(result.status)
    place[rows] = torch.arange(len(rows), device=rows.device)
    there = torch.zeros_like(result.converged)
    there[rows] = True
    return GeodesicResult.where(there, other[place], result)


def _not_longer(
    space: Space,
    solver: Solver,
    start: Curve,
    lengths: np.ndarray,
    result: GeodesicResult,
    rtol: float,
) -> GeodesicResult:
    """The results, none longer than the curve that it started from.

    On the way down from few segments a curve may slide out of a shallow valley. Then a descent from
    the start curve at its own resolution, or in the end that curve itself, takes its place.

    Args:
        space: The space.
        solver: The solver.
        start: The start curves.
        lengths: Lengths of their polygons, which are shorter than the curves; NaN where nobody
            looked.
        result: What came of them.
        rtol: The accuracy.
    """
    slack = 16 * tolerance(start.nodes.dtype).length
    # A geodesic that does not minimise may be longer than a curve beside it. False for NaN.
    saddle = on_host(result.converged & (result.index > 0))
    longer = ((on_host(result.length) > (1 + slack) * lengths) & ~saddle).nonzero()[0]
    if not len(longer):
        return result
    rows = placed(longer, start.nodes)
    part, found = start[rows], result[rows]
    own = Measure.of(space, part)
    worse = on_host(found.length) > (1 + slack) * own.length
    if not worse.any():
        return result
    keep = worse.nonzero()[0]
    where = placed(keep, rows)
    longer, rows, part, found, own = (
        longer[keep],
        rows[where],
        part[where],
        found[where],
        own.select(keep, where),
    )
    far = (on_host(found.length) > (1 + rtol) * own.length).nonzero()[0]
    if len(far) and start.segments > solver.segments:
        those = placed(far, rows)
        most = max(solver.max_segments, start.segments)
        finer: Solver = replace(cast(Any, solver), segments=start.segments, max_segments=most)
        again = _solve_chunk(space, finer, part[those], rtol, None)[0]
        better = (again.length < found.length[those]).nonzero().flatten()
        found = _exchanged(found, those[better], again[better])
    # What is still longer than its start has failed as a minimum, by at least the difference.
    excess = on_host(found.length) - own.length
    failed = excess > slack * own.length
    if failed.any():
        error = np.maximum(on_host(found.error), excess)
        converged = on_host(found.converged) & (excess <= rtol * own.length)
        # What holds the longer one's length to rtol holds the shorter one's, too: its error is less
        # by the excess.
        error = np.where(converged, np.minimum(error, rtol * own.length), error)
        status = np.where(converged, int(Status.CONVERGED), int(Status.STALLED))
        number = lambda x: placed(x, rows).to(start.nodes.dtype)  # noqa: E731 (one expression)
        kept = replace(
            found,
            length=number(own.length),
            error=number(error),
            status=placed(status, rows),
            curve=part,
            speed_deviation=unevenness(own.speed, own.weights),
        )
        found = GeodesicResult.where(placed(failed, rows), kept, found)
    return _exchanged(result, rows, found)


def _report(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


@np.errstate(all="ignore")  # what comes of NaN is NaN, and has a status
def _solve_chunk(
    space: Space, solver: Solver, start: Curve, rtol: float, progress: Progress | None
) -> tuple[GeodesicResult, np.ndarray]:  # a flat batch (p,)
    """Some pairs, and the lengths of their start curves' polygons, NaN where nobody looked."""
    z0, z1 = start.nodes[:, 0], start.nodes[:, -1]
    p = len(z0)
    out = _started(start)
    settled = (out.status != RUNNING).nonzero()[0]
    if len(settled):
        those = placed(settled, z0)
        out.keep(settled, Curve.line(z0[those], z1[those], solver.segments))
    bound = space.ambient_distance(z0, z1) if p else None
    least = np.full(p, np.nan) if bound is None else on_host(bound).astype(np.float64)

    queue = _Queue(space, start, out.running(), solver)
    begun = np.full(p, np.nan)
    begun[queue.rows] = queue.lengths
    _keep_near(space, solver, queue, out, least, rtol)
    evidence, best = Evidence(p), _Best(space, p)
    ratio = getattr(solver, "refinement_ratio", RATIO)
    segments = solver.segments
    rows, nodes = queue.admit(segments)
    state = solver.begin(nodes)
    while len(rows) or len(queue.rows):
        if len(rows):
            state = _solve_level(space, solver, state, rtol)
            measure = Measure.of(space, Curve.from_nodes(state.nodes))
            evidence.add(rows, measure.length, measure.root_energy)
            measure = _straightened(space, measure, evidence, rows, rtol)
            status, left, steps = map(on_host, (state.status, state.decrement, state.steps))
            length, grain = best.take(rows, measure), measure.grain
            spent, last = steps >= solver.max_steps, 2 * segments > solver.max_segments
            error, worst, beyond = _claims(
                evidence, measure, rows, length, status, left, least[rows], ratio
            )
            verdict = _verdict(status, length, worst, grain, spent, last, rtol)
            error = np.where(
                verdict == Status.CONVERGED, np.minimum(error, rtol * length), np.fmax(error, worst)
            )
            error = np.where(np.isnan(error), np.maximum(beyond, grain), error)
            out.length[rows], out.error[rows], out.steps[rows], out.status[rows] = (
                length,
                error,
                steps,
                verdict,
            )
            done = verdict != RUNNING
            over, on = done.nonzero()[0], (~done).nonzero()[0]
            if len(over):
                those = placed(over, z0)
                out.index[rows[over]] = on_host(state.index[those])
                out.decrement[rows[over]] = left[over]
                out.speed_deviation[rows[over]] = on_host(
                    unevenness(measure.speed[those], measure.weights)
                )
                for pairs, curve in best.curves(rows[over]):
                    out.keep(pairs, curve)
            if progress is not None:
                progress(p - len(on) - len(queue.rows), p)
            if not len(on) and not len(queue.rows):
                break
            if len(over):
                those = placed(on, z0)
                state, rows, steps = state.select(those), rows[on], steps[on]
                measure = measure.select(on, those)
            measure, lost = _recovered(space, measure, best, rows, rtol)
            finer = _even(measure.curve, measure.speed, measure.weights, 2 * segments, lost)
            state = state.refined(*finer) if hasattr(state, "refined") else solver.begin(finer[0])
            state.steps = placed(steps, z0)
        segments *= 2
        if len(queue.rows):
            joined, nodes = queue.admit(segments)
            new = solver.begin(nodes)
            state = type(new).cat([state, new]) if len(rows) else new
            rows = np.concatenate([rows, joined])

    # A curve that ran away to where rounding rules has no length to speak of.
    out.length[(out.status > 0) & (out.length < (1 - 1e-3) * least)] = np.nan
    number = lambda x: placed(x, z0).to(z0.dtype)  # noqa: E731 (one expression)
    result = GeodesicResult(
        length=number(out.length),
        error=number(out.error),
        status=placed(out.status, z0),
        index=placed(out.index, z0),
        curve=out.curve(z0, solver.segments),
        lower_bound=z0.new_full((p,), torch.nan) if bound is None else bound,
        speed_deviation=number(out.speed_deviation),
        rtol=rtol,
        stats={
            "segments": placed(out.segments, z0),
            "steps": placed(out.steps, z0),
            "decrement": number(out.decrement),
        },
        space=space,
    )
    return result, begun


def _keep_near(
    space: Space, solver: Solver, queue: _Queue, out: _Outcome, least: np.ndarray, rtol: float
) -> None:
    """Settle pairs so near that rounding moves a curve's nodes further than the metric bends it.

    Their straight line is kept, and measured by tangents, which rounding leaves alone. With the
    covariant acceleration ``a`` of a straight line at velocity ``v`` its length exceeds the
    geodesic's by the share ``|a|² / 24|v|²``.
    """
    if not len(queue.rows):
        return
    line = queue.start.nodes
    eps = tolerance(line.dtype).eps
    noise = eps * solver.segments * queue.size / queue.lengths
    near = noise > _ACCEPTABLE * _SOLVER_SHARE * rtol  # False for NaN
    if not near.any():
        return
    where = placed(near.nonzero()[0], line)
    ends = line[where][:, [0, -1]]
    straight = Curve.line(ends[:, 0], ends[:, 1], queue.start.segments).nodes
    same = (
        ((line[where] - straight).abs() <= 16 * eps * straight.abs().amax((1, 2), keepdim=True))
        .all(2)
        .all(1)
    )
    curve = Curve.line(
        ends[:, 0], ends[:, 1]
    )  # one segment: differences of nodes in between would be rounding
    speed, weights = speeds(space, curve)
    middle, velocity = ends.mean(1), ends[:, 1] - ends[:, 0]
    turn = space.norm(middle, sound_acceleration(space, middle, velocity))
    long = (speed * weights).sum(-1)
    # A kink between the few points of the quadrature shows in the mean of many.
    times = (torch.arange(_LOOKS, device=line.device) + 0.5).to(line) / _LOOKS
    along = ends[:, :1] + times[:, None] * velocity[:, None]
    looked = (
        space.norm(along.flatten(0, 1), velocity.repeat_interleave(_LOOKS, 0))
        .view(-1, _LOOKS)
        .mean(-1)
    )
    length, excess, straight_away = map(on_host, (long, (turn / long).square() / 24, same))
    unseen = np.abs(on_host(looked) - length)
    error = (excess + tolerance(line.dtype).length) * length + unseen
    # And a narrow fold between these in the distance of the ends, which nothing is shorter than.
    error = np.fmax(error, least[queue.rows[near]] - length - 4 * eps * queue.size[near])
    settled = (straight_away & (error <= rtol * length)).nonzero()[0]
    rows = queue.rows[near][settled]
    out.length[rows], out.error[rows], out.decrement[rows] = (
        length[settled],
        error[settled],
        excess[settled],
    )
    out.status[rows], out.index[rows] = Status.CONVERGED, 0
    those = placed(settled, speed)
    out.speed_deviation[rows] = on_host(unevenness(speed[those], weights))
    out.keep(rows, curve[those])
    rest = ~np.isin(queue.rows, rows)
    queue.keep(rest)


def _started(start: Curve) -> _Outcome:
    """The outcome before anything is solved: invalid points, start curves with NaN, and pairs of
    one point are done.
    """
    nodes = start.nodes
    out = _Outcome.unknown(len(nodes))
    if not evidently_finite(nodes):
        finite = on_host(nodes.isfinite().all(-1))
        out.status[~finite.all(-1)] = Status.NON_FINITE
        out.status[~(finite[:, 0] & finite[:, -1])] = Status.INVALID_POINT
    # Equal end points may ask for a closed geodesic, but not with a start curve that never leaves
    # them.
    closed = on_host((nodes[:, 0] == nodes[:, -1]).all(-1)).nonzero()[0]
    if len(closed):
        part = nodes[placed(closed, nodes)]
        span, size = (on_host(x.abs().amax((1, 2))) for x in (part - part[:, :1], part))
        still = closed[span <= 16 * tolerance(nodes.dtype).eps * size]
        for known in (out.length, out.error, out.decrement, out.speed_deviation, out.index):
            known[still] = 0
        out.status[still] = Status.CONVERGED
    return out


def _solve_level(space: Space, solver: Solver, state: Any, rtol: float) -> Any:
    """Iterate at one resolution until every curve has ended or spent its steps.

    Those that have leave the batch.
    """
    _, count, m = state.nodes.shape
    blocks = _BLOCKS_A_STEP * count * m * (_ROWS_MATRIX_FREE if isinstance(solver, NewtonCG) else m)
    size = max(_FEWEST_PAIRS, _BYTES // (state.nodes.element_size() * blocks))
    while True:
        running = (on_host(state.status) == RUNNING) & (on_host(state.steps) < solver.max_steps)
        active = running.nonzero()[0]
        if not len(active):
            return state
        if len(active) == len(running) <= size:
            state = solver.step(space, state, _SOLVER_SHARE * rtol)
            continue
        for first in range(0, len(active), size):
            rows = placed(active[first : first + size], state.nodes)
            state.update(rows, solver.step(space, state.select(rows), _SOLVER_SHARE * rtol))


def _claims(
    evidence: Evidence,
    measure: Measure,
    rows: np.ndarray,
    length: np.ndarray,
    status: np.ndarray,
    left: np.ndarray,
    least: np.ndarray,
    ratio: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The error of the shortest lengths, what it may be at worst, and their distance from the lower
    bound.

    Args:
        evidence: Of all pairs.
        measure: This level's curves.
        rows: Their pairs.
        length: Their shortest lengths so far.
        status: How the solver left them at this level.
        left: The relative length that it has left over, if it knows.
        least: Lower bounds of all curves' lengths, NaN where unknown.
        ratio: By which the solver's error falls from level to level.
    """
    grain = measure.grain
    ended = (status == Status.CONVERGED) | (status == Status.PRECISION)
    rest = np.where(ended & (left > 0), left * length, 0.0)
    # A length below the bound has been measured too coarsely, by as much at least.
    short = least - length
    floor = np.fmax(np.maximum(measure.length - length, grain), short - grain)
    beyond = np.where(short > grain, np.inf, np.maximum(-short, 0.0))
    # Where the solver did not finish, only the bound says anything.
    floor = np.where(ended, floor, np.nan)
    flat = beyond <= 4 * grain  # nothing is shorter: no second level is needed to say so
    claims = []
    for claim in evidence.error(rows, measure.wobble, ratio):
        found = np.maximum(claim + rest, floor)
        found = np.where(beyond < found, np.maximum(beyond, grain), found)  # NaN where it was
        claims.append(np.where(flat, grain, found))
    # The bound is rounded as well, which is reported but decides nothing.
    reported = np.where(
        flat | (beyond <= claims[0]), np.maximum(beyond, claims[0]) + measure.blur, claims[0]
    )
    return reported, claims[1], beyond


def _straightened(
    space: Space, measure: Measure, evidence: Evidence, rows: np.ndarray, rtol: float
) -> Measure:
    """The curves with the geodesic's own velocities in place of the spline's where that makes them
    shorter.

    A spline overshoots where the coordinates move unevenly, though its nodes be right: then its
    length exceeds by far what the nodes say. The velocities cost a Jacobian at every node, and are
    asked for only there.
    """
    first = np.isnan(evidence.lengths[1, rows])
    over = evidence.unexplained(rows) > rtol / 2 * measure.length
    wanted = np.where(first, measure.wobble > _WOBBLE, over).nonzero()[0]
    if not len(wanted):
        return measure
    where = placed(wanted, measure.speed)
    nodes = measure.curve.nodes[where]
    slopes = velocities_of(space, nodes)
    if slopes is None:
        return measure
    sound = slopes.isfinite().flatten(1).all(1)[:, None, None]
    other = Measure.of(space, Curve(nodes, torch.where(sound, slopes, measure.curve.slopes[where])))
    shorter = (other.length < measure.length[wanted]).nonzero()[0]
    if not len(shorter):
        return measure
    rows, wanted = rows[wanted[shorter]], wanted[shorter]
    other = other.select(shorter, placed(shorter, nodes))
    evidence.replace(rows, other.length)
    return measure.put(wanted, placed(wanted, nodes), other)


def _verdict(
    status: np.ndarray,
    length: np.ndarray,
    worst: np.ndarray,
    grain: np.ndarray,
    spent: np.ndarray,
    last: bool,
    rtol: float,
) -> np.ndarray:
    """Status after a level that a solver left with ``status``.

    RUNNING where a finer one is needed.
    """
    met = status == Status.CONVERGED
    solved = met | (status == Status.PRECISION)
    accurate = worst <= rtol * length  # False while the error is NaN
    at_floor = worst <= 2 * grain

    verdict = np.where(solved, int(Status.RESOLUTION) if last else RUNNING, status)
    verdict[solved & (accurate | at_floor)] = Status.PRECISION
    verdict[met & accurate] = Status.CONVERGED
    verdict[(status == RUNNING) | ((verdict == RUNNING) & spent)] = Status.MAX_STEPS
    return verdict


class _Best:
    """The shortest curve of each pair so far: where tangents nearly vanish, a finer level may end
    with a longer one.
    """

    def __init__(self, space: Space, p: int) -> None:
        self.space = space
        self.length = np.full(p, np.inf)
        self.shelf: list[Curve] = []
        self.level, self.place = np.zeros((2, p), dtype=np.int64)

    def take(self, rows: np.ndarray, measure: Measure) -> np.ndarray:
        """Take in a level's curves of the pairs at ``rows``.

        The shortest lengths so far, NaN where there is none.
        """
        doubted = (measure.length > self.length[rows]).nonzero()[0]
        if len(
            doubted
        ):  # what a coarse level has seen of a curve may be too little: look again, as closely as now
            again = Measure.of(
                self.space, self.curve(rows[doubted]).resample(measure.curve.segments)
            ).length
            self.length[rows[doubted]] = again
        better = (~(self.length[rows] <= measure.length)).nonzero()[0]
        self.length[rows[better]], self.place[rows[better]] = measure.length[better], better
        self.level[rows[better]] = len(self.shelf)
        self.shelf.append(measure.curve)
        return self.length[rows]

    def curves(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Curve]]:
        """The shortest curves of the pairs at ``rows``, in groups of pairs."""
        for level in np.unique(self.level[rows]):
            pairs, curve = rows[self.level[rows] == level], self.shelf[level]
            whole = len(pairs) == len(curve.nodes) and (np.diff(self.place[pairs]) > 0).all()
            yield pairs, curve if whole else curve[placed(self.place[pairs], curve.nodes)]

    def curve(self, rows: np.ndarray) -> Curve:
        """The shortest curves of the pairs at ``rows``, on the finest grid among them."""
        groups = list(self.curves(rows))
        segments = max(curve.segments for _, curve in groups)
        fine = [curve.resample(segments) for _, curve in groups]
        order = np.concatenate([pairs for pairs, _ in groups])
        where = placed(np.argsort(order)[np.searchsorted(np.sort(order), rows)], fine[0].nodes)
        return Curve(
            torch.cat([c.nodes for c in fine])[where], torch.cat([c.slopes for c in fine])[where]
        )


class _Queue:
    """Pairs that wait for a resolution at which their start curve can be seen.

    On too few nodes a chord cuts through the ambient space where the manifold folds, and the energy
    rewards it: the solver would converge to a curve that jumps. A pair joins once its chords show
    most of what fine ones show.
    """

    def __init__(self, space: Space, start: Curve, rows: np.ndarray, solver: Solver) -> None:
        self.rows, self.solver, self.space = rows, solver, space
        self.start = start if len(rows) == len(start.nodes) else start[placed(rows, start.nodes)]
        points, fine = self.start.nodes, start.segments
        # The chords of the fine start curve stand for its speed: values of the decoder only, no
        # derivatives. They are summed up for all levels to come while the decoder's values are at
        # hand.
        self.chords: dict[int, Tensor] = {}
        coarse = (solver.segments * 2**i for i in range(fine.bit_length()))
        levels = [fine, *(n for n in coarse if n < fine and fine % n == 0)]
        embedded = embedding_of(space)
        seen = None
        if embedded is not None and len(rows):
            seen = embedded(
                points,
                lambda x: torch.cat([*(_chords(x, fine // n) for n in levels), _sizes(x)], 1),
            )
        if seen is not None:
            *chords, size = seen.split([*levels, 1], 1)
            self.chords, self.size = dict(zip(levels, chords, strict=True)), on_host(size[:, 0])
        elif len(rows):
            self.chords = {fine: space.squared_chords(points).sqrt()}
            self.size = on_host(space.norm(points[:, 0], points[:, 0]))
        self.speed = fine * self.chords[fine] if len(rows) else points.diff(dim=1)[..., 0]
        self.weights = points.new_full((fine,), 1 / fine)
        if not len(rows):
            self.size = np.zeros(0)
        # Lengths of the start curves' own polygons: no result may be longer than its start.
        self.lengths = on_host(self.speed.mean(-1)).astype(np.float64)

    def admit(self, segments: int) -> tuple[np.ndarray, Tensor]:
        """The pairs that join at this resolution, and their nodes; they leave the queue."""
        nodes, moved = _even(self.start, self.speed, self.weights, segments)
        if not len(self.rows):
            return self.rows, nodes
        known = segments in self.chords and not bool(moved.any())
        seen = self.chords[segments] if known else self.space.squared_chords(nodes).sqrt()
        share, true = on_host(seen.sum(-1)), on_host(self.speed.mean(-1))
        ready = ~(share < _RESOLVED * true)  # NaN joins, to be reported by the solver
        if ready.all() or 2 * segments > min(_COARSEST_LIMIT, self.solver.max_segments):
            joined, self.rows = self.rows, self.rows[:0]
            return joined, nodes
        joined, join = self.rows[ready], placed(ready.nonzero()[0], nodes)
        self.keep(~ready)
        return joined, nodes[join]

    def keep(self, those: np.ndarray) -> None:
        """Go on with some of the pairs that wait."""
        where = placed(those.nonzero()[0], self.speed)
        self.rows, self.size = self.rows[those], self.size[those]
        self.start, self.speed, self.lengths = (
            self.start[where],
            self.speed[where],
            self.lengths[those],
        )
        self.chords = {n: x[where] for n, x in self.chords.items()}


def _sizes(x: Tensor) -> Tensor:  # (p, n + 1, D) -> (p, 1)
    """Norm of the larger end point."""
    return torch.linalg.vector_norm(x[:, [0, -1]], dim=-1).amax(-1, keepdim=True)


def _chords(x: Tensor, stride: int) -> Tensor:  # (p, n + 1, D) -> (p, n / stride)
    """Lengths of the chords between every so many points."""
    return torch.linalg.vector_norm(x[:, stride::stride] - x[:, :-stride:stride], dim=-1)


def _recovered(
    space: Space, measure: Measure, best: _Best, rows: np.ndarray, rtol: float
) -> tuple[Measure, np.ndarray]:
    """Go on with the shortest curves where this level's are longer; and which these are.

    A start of uneven speed has more energy than its length says, enough to slide into a longer
    geodesic.
    """
    lost = measure.length > (1 + rtol) * best.length[rows]
    those = lost.nonzero()[0]
    if len(those):
        shorter = best.curve(rows[those]).resample(measure.curve.segments)
        measure = measure.put(those, placed(those, measure.speed), Measure.of(space, shorter))
    return measure, lost


def _even(
    curve: Curve, speed: Tensor, weights: Tensor, segments: int, wanted: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Nodes ``(p, segments + 1, m)`` for the next level, and which curves ``(p,)`` were walked
    anew.

    A curve of uneven speed hides a jump: it is walked at constant speed first, and so are those
    ``wanted``.
    """
    nodes = curve.knots(segments)
    uneven = speed.amax(-1) > _UNEVEN * (speed * weights).sum(-1)
    if wanted is not None and wanted.any():
        uneven = uneven | placed(wanted, uneven)
    if bool(uneven.any()):
        nodes = nodes.clone()
        nodes[uneven, 1:-1] = equalized(curve[uneven], speed[uneven], weights, segments).nodes[
            :, 1:-1
        ]
    return nodes, uneven


def start_curve(z0: Tensor, z1: Tensor, init: Curve | Tensor | None) -> Curve:  # a flat batch (p,)
    """The start curves of pairs ``(*b, m)``: straight lines, or those given, with the end points of
    the pairs.

    Raises:
        DTypeError: When ``init`` is neither a curve nor a tensor, or of another dtype.
        ShapeError: When it does not fit the pairs.
    """
    m = z0.shape[-1]
    if init is None:
        return Curve.line(z0.reshape(-1, m), z1.reshape(-1, m), _START_SEGMENTS)
    if not isinstance(init, (Curve, Tensor)):
        raise DTypeError(
            "geodesic", "init as a Curve or a tensor (*b, k, m)", type(init).__name__, ""
        )
    if isinstance(init, Tensor):
        init = Curve.through(init, _START_SEGMENTS)
    if init.nodes.dtype != z0.dtype:
        raise DTypeError(
            "geodesic", f"init of dtype {z0.dtype}", str(init.nodes.dtype), "Convert one of them."
        )
    segments = max(init.segments, _START_SEGMENTS)
    try:
        nodes = (
            init.resample(segments).nodes.detach().expand(*z0.shape[:-1], segments + 1, m).clone()
        )
    except RuntimeError:
        raise ShapeError(
            "geodesic",
            f"init curves for {tuple(z0.shape[:-1])} pairs in {m} dimensions",
            f"{tuple(init.nodes.shape)}",
            "Give one curve for all pairs, or one for each.",
        ) from None
    nodes[..., 0, :], nodes[..., -1, :] = z0, z1
    return Curve.from_nodes(nodes.view(-1, segments + 1, m))


def _check_graph(graph: Graph | None, z: Tensor) -> None:
    """Refuse a graph on points that cannot be among these.

    Raises:
        DTypeError: When it is not a graph of this package.
        GraphError: When its points have another dimension, dtype or device.
    """
    if graph is None:
        return
    if not isinstance(graph, Graph):
        raise DTypeError(
            "geodesic",
            "a graph made by M.graph(points)",
            type(graph).__name__,
            "Try M.graph(points).",
        )
    own = graph.points
    if own.shape[-1] != z.shape[-1] or own.dtype != z.dtype or own.device != z.device:
        got = f"{own.shape[-1]} of {own.dtype} on {own.device}"
        expected = f"a graph on points with {z.shape[-1]} coordinates of {z.dtype} on {z.device}"
        raise GraphError(
            "geodesic", expected, got, "Is it a graph of another manifold? Try M.graph(points)."
        )


def paired_points(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Points of one shape.

    Raises:
        DTypeError: When they are not tensors of one dtype that solvers work with.
        DeviceError: When their devices differ.
        ShapeError: When they do not broadcast.
    """
    for name, z in (("z0", z0), ("z1", z1)):
        expect_dense("geodesic", name, z)
    if z0.device != z1.device:
        raise DeviceError(
            "geodesic",
            "z0 and z1 on one device",
            f"{z0.device} and {z1.device}",
            "Move one of them.",
        )
    for name, z in (("z0", z0), ("z1", z1)):
        expect_values("geodesic", name, z)
    if z0.dtype != z1.dtype:
        raise DTypeError(
            "geodesic",
            "z0 and z1 of one dtype",
            f"{z0.dtype} and {z1.dtype}",
            "Convert one of them.",
        )
    problem = ShapeError(
        "geodesic",
        "z0 and z1 of one shape (*b, m)",
        f"{tuple(z0.shape)} and {tuple(z1.shape)}",
        "Pair them up.",
    )
    if not z0.ndim or not z1.ndim or z0.shape[-1] != z1.shape[-1]:
        raise problem
    try:
        z0, z1 = torch.broadcast_tensors(z0, z1)
    except RuntimeError:
        raise problem from None
    return z0, z1
