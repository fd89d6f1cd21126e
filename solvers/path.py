"""The call for geodesics: its arguments, who solves which pairs, and how many go at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import FallbackWarning, NotConvergedError, OptionError, stack_level
from riemae.numerics.checks import expect_choice, expect_range, expect_rtol, expect_shape
from riemae.numerics.memory import within_memory
from riemae.numerics.precision import in_full_precision
from riemae.numerics.random import as_generator
from riemae.solvers.brackets import Search, bracketed, searches, starts
from riemae.solvers.budget import limited, metered
from riemae.solvers.choice import Choice, choice
from riemae.solvers.chunk import solve_chunk
from riemae.solvers.curve import Curve
from riemae.solvers.graph import Graph
from riemae.solvers.hooks import labels_of, precision_of
from riemae.solvers.methods.newton_cg import NewtonCG
from riemae.solvers.morse import certified
from riemae.solvers.pairs import expect_graph, paired_points, start_curve
from riemae.solvers.progress import Progress, reported
from riemae.solvers.result import GeodesicResult, Status, remedies
from riemae.solvers.safeguard import Told, exchanged, not_longer
from riemae.solvers.scouts import SEGMENTS, scouted
from riemae.solvers.search import SCOUT_SEGMENTS, ranked, search
from riemae.solvers.solver import Solver, expect_solver
from riemae.solvers.space import HasSpace, Space, space_of
from riemae.solvers.state import placed

_STARTS_WITH_GRAPH = 4
_STARTS_WITH_LATTICE = 3
_LATTICE_UP_TO = 3  # dimensions
_NULL_FLOOR = 1e-2
# Where a method of first order makes no headway, as at kinks, second derivatives may.
_STUCK = (int(Status.STALLED), int(Status.MAX_STEPS), int(Status.PRECISION))

# What the pairs of one chunk may hold in matrices, in bytes, and how few pairs may share it.
_BYTES = 2**30
_FEWEST_PAIRS = 16
# Numbers per pair for systems that are solved densely and for indefinite ones: three matrices of
# 192 x 192.
_DENSE_NUMBERS = 3 * 192**2
# Numbers per pair in units of m²: a state keeps four blocks per segment (twice that while it is
# refined), up to 64 segments.
_BLOCK_NUMBERS = 8 * 64
# Blocks per node that a step works with, on as many pairs as fit.
_BLOCKS_A_STEP = 24
# Matrix-free, this stands in place of the m rows of a block: room for the decoder's layers at the
# nodes, which the products keep.
_ROWS_MATRIX_FREE = 64


@within_memory
@in_full_precision
def geodesic(
    space: Space | HasSpace,
    z0: Tensor,
    z1: Tensor,
    *,
    rtol: float | None = None,
    solver: Solver | None = None,
    init: Curve | Tensor | None = None,
    n_starts: int | None = None,
    graph: Graph | None = None,
    generator: torch.Generator | int | None = 0,
    throw: bool = True,
    progress: Progress | bool | None = None,
    max_decodings: int | None = None,
    max_seconds: float | None = None,
    method: Literal["path", "lattice"] = "path",
    region: tuple[Tensor, Tensor] | None = None,
    certify: bool = False,
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
        rtol: Relative accuracy of the length; by default 1e-4 in float64, 1e-3 in float32.
        solver: Settings. By default :class:`Newton` below 16 dimensions, with whole curves first
            from 3 on where ``rtol`` is 3e-5 or more (3e-4 in float32 and on accelerators);
            :class:`Spectral` up to 64 and :class:`QuasiNewton` from there on, which know no Morse
            index (−1). The last one under an ambient metric on 64 numbers or more that is known by
            its products alone, too. :class:`GaussNewton` takes over the pairs on which gradients
            creep, in float64. Newton takes over those that are left, from 64 dimensions on for an
            ``rtol`` below 1e-4 only; in its place :class:`NewtonCG`, from 96 dimensions on, and
            where ``(1 + 2m)`` times the widest layer of the decoder at 16 points is more than a
            sixteenth of the memory. That also takes over pairs along which the metric is singular.
            Any :class:`Solver` will do: :class:`Adam`, :class:`LBFGS`, :class:`CubicSpline`,
            :class:`GEORCE`, :class:`Shooting`, :class:`BVP`.
        init: Start curves: a :class:`Curve` with batch ``(*b,)`` or ``()``, or nodes
            ``(*b, k, m)``; their end points are replaced by ``z0`` and ``z1``. By default straight
            lines. With ``init`` and no ``solver``, a start curve that is a geodesic to ``rtol`` by
            the certificate of :mod:`riemae.solvers.verification` is kept, as a polynomial that may
            be longer by less than its ``error``, without a Morse index (−1) unless ``certify``;
            from others on, Newton keeps one that is nearly a geodesic. Both do so even where it
            does not minimise (``target="stationary"``).
        n_starts: Start curves per pair: the straight line (or ``init``), routes through ``graph``,
            perturbations. The shortest geodesic is returned, the others are its ``alternatives``.
            By default 4 with a graph, else 1; then a call without ``solver`` and ``init`` also
            looks for shorter geodesics of pairs that were hard to solve, which costs about half as
            much again on rough decoders: see :mod:`riemae.solvers.scouts`. With 1 it does not.
        graph: A neighbourhood graph on data, from :func:`graph`; end points enter it at the
            nearest point.
        generator: Source of the perturbations: a generator, or the seed of a new one; None draws
            from torch's own.
        throw: Raise when a pair misses ``rtol``; False returns the result with its status codes.
        progress: Called with (pairs done, pairs in all) after every step of the solver, so that a
            long level is seen to go on; True shows a bar.
        max_decodings: What all pairs together may cost. One decoding is the decoder's value at one
            point; a derivative in one direction counts as another, and so does a reverse pass. No
            step of a solver begins that would exceed it; what comes on top is the first look at the
            start curves, and the last one at the curves as they are, some ten decodings per
            segment. Pairs that are not done end with BUDGET, with their shortest curve so far, and
            as error the distance from ``lower_bound`` where nothing better is known; those not
            begun have their start curve and the length NaN. The result depends on this number, but
            not on the machine.
        max_seconds: The same for seconds, by the clock: results depend on the machine.
        method: With ``"lattice"``, in up to 3 dimensions, start curves are the straight line (or
            ``init``) and the shortest ways on a lattice of 65 nodes along each axis (25 in three
            dimensions), ``n_starts`` in all, by default 3. The result then also has lower bounds of
            the distance: see ``GeodesicResult.bracket`` and :mod:`riemae.solvers.brackets`. The
            metric is computed at all nodes, which ``max_decodings`` counts and does not prevent.
        region: The lowest and the highest corner ``(m,)`` of the lattice, for all pairs. By default
            each pair has its own, around its start curve, as large as it must be for shorter curves
            to stay in it, as far as five times the start curve's longest side.
        certify: Count the Morse index of pairs whose solver knows none: see
            :func:`riemae.solvers.morse.certified`. It takes a few dozen decodings per node, or m
            of them.

    Returns:
        One entry per pair. Not differentiable: see ``Manifold.distance`` for gradients.

    Raises:
        ShapeError: When ``z0`` and ``z1`` do not pair up, or ``init`` does not fit them.
        DTypeError: When their dtypes differ, or are not float32 or float64.
        DeviceError: When their devices differ, or they have no values (meta device).
        GraphError: When ``graph`` is on points of another dimension, dtype or device.
        OptionError: When ``rtol``, ``n_starts``, ``max_decodings`` or ``max_seconds`` is not
            positive, or a lattice cannot be had: in more than 3 dimensions, with ``graph`` or with
            conditions, or where an end is not inside ``region``.
        NotConvergedError: When ``throw`` and a pair ends with another status than CONVERGED; it
            carries the result.

    Warns:
        FallbackWarning: When the metric is singular along a pair, and NewtonCG has solved it.
    """
    space = space_of(space, z0, z1, where="geodesic")
    z0, z1 = paired_points(z0, z1)
    m = z0.shape[-1] - labels_of(space)
    rtol = expect_rtol("geodesic", precision_of(space, z0.dtype).geodesic if rtol is None else rtol)
    expect_solver("geodesic", solver)
    expect_graph(graph, z0[..., :m])
    source = as_generator("geodesic", generator)
    corners = _expect_method(method, region, z0[..., :m], graph, labels_of(space))
    alone = solver is None and init is None and n_starts is None and graph is None
    if method == "lattice" and n_starts is None:
        n_starts = _STARTS_WITH_LATTICE
    n_starts = _starts(n_starts, graph)
    kept = solver is None and init is not None and n_starts == 1
    if solver is None:
        chosen = choice(space, z0, m, rtol, "stationary" if kept else "minimum")
    else:
        chosen = Choice(solver)
    with (
        torch.no_grad(),
        limited("geodesic", max_decodings, max_seconds) as budget,
        reported("geodesic", progress, "geodesics") as report,
    ):
        space = metered(space, budget)
        start = start_curve(z0.detach(), z1.detach(), init)
        if method == "lattice" and len(start.nodes):
            found = searches(space, start, corners)
            fine = _at_least(chosen, SCOUT_SEGMENTS)
            result = _from_lattice(
                partial(_solve, space, fine),
                space,
                start,
                found,
                n_starts,
                rtol,
                report,
            )
        elif n_starts == 1 or not len(start.nodes):
            result, told = _solve(space, chosen, start, rtol, report, verify=kept)
            if alone:
                result = _with_scouts(space, chosen, start, rtol, source, result, told)
        else:
            fine = _at_least(chosen, SCOUT_SEGMENTS)
            result = search(
                solve=lambda *start: _solve(space, fine, *start)[0],
                space=space,
                first=start,
                count=n_starts,
                graph=graph,
                generator=source,
                rtol=rtol,
                progress=report,
            )
        if certify:
            result = certified(space, result)
    if z0.ndim != 2:
        result = result[torch.arange(len(start.nodes)).view(z0.shape[:-1])]
    if throw:
        return demand_convergence(result)
    return result


def _at_least(chosen: Choice, segments: int) -> Choice:
    """With so many segments on the solver's coarsest level, as far as it may have them."""
    solver = chosen.solver
    # A solver is a frozen dataclass.
    wanted = min(max(solver.segments, segments), solver.max_segments)
    finer: Solver = replace(cast(Any, solver), segments=wanted)
    return replace(chosen, solver=finer)


def _expect_method(
    method: str,
    region: tuple[Tensor, Tensor] | None,
    z: Tensor,
    graph: Graph | None,
    labels: int,
) -> tuple[Tensor, Tensor] | None:  # (*b, m) -> (m,), (m,)
    """The corners of the region, like the points.

    Raises:
        OptionError: For another method, or a lattice that cannot be had.
        ShapeError: When a corner is not a point.
    """
    expect_choice("geodesic", "method", method, ("path", "lattice"))
    if method == "path":
        if region is not None:
            got = "method='path'"
            raise OptionError("geodesic", "a lattice for region", got, "Try method='lattice'.")
        return None
    m = z.shape[-1]
    if m > _LATTICE_UP_TO:
        hint = "Lattices grow as n^m: use n_starts= or graph= there."
        raise OptionError("geodesic (method='lattice')", "1 to 3 dimensions", str(m), hint)
    if graph is not None or labels:
        got = "a graph" if graph is not None else "conditions"
        hint = "Leave one of them out."
        raise OptionError("geodesic (method='lattice')", "no graph, no conditions", got, hint)
    if region is None:
        return None
    low, high = (torch.as_tensor(x).detach().to(z) for x in region)
    for name, corner in (("low", low), ("high", high)):
        expect_shape("geodesic", f"region ({name})", corner, (m,), "One corner of a box.")
    return low, high


def _from_lattice(
    solve: Callable[[Curve, float, Progress | None], tuple[GeodesicResult, Told]],
    space: Space,
    start: Curve,
    found: list[Search],
    count: int,
    rtol: float,
    progress: Progress | None,
) -> GeodesicResult:  # a flat batch (p,)
    """The shortest geodesics that start curves and ways on a lattice lead to, with brackets."""
    pair, nodes = starts(found, start, count - 1, SCOUT_SEGMENTS)
    p = len(start.nodes)
    own = torch.arange(p, device=pair.device)
    first = start.resample(SCOUT_SEGMENTS).nodes
    every, _ = solve(Curve.from_nodes(torch.cat([first, nodes])), rtol, progress)
    return bracketed(found, ranked(space, every, torch.cat([own, pair]), p))


def _starts(count: int | None, graph: Graph | None) -> int:
    """How many start curves each pair gets.

    Raises:
        OptionError: For less than one.
    """
    if count is None:
        return 1 if graph is None else _STARTS_WITH_GRAPH
    hint = "It counts the start curves per pair."
    expect_range("geodesic", "n_starts", count, 1, integer=True, hint=hint)
    return count


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
            f"{remedies(result.status)} The error's .result holds all pairs; throw=False returns "
            "it instead.",
            result,
        )
    return result


def _with_scouts(
    space: Space,
    chosen: Choice,
    start: Curve,
    rtol: float,
    generator: torch.Generator | None,
    result: GeodesicResult,
    told: Told,
) -> GeodesicResult:  # a flat batch (p,)
    """The result after a bounded look for shorter geodesics."""
    fine = replace(_at_least(chosen, SEGMENTS), resort=None)

    def solve(found: Curve) -> GeodesicResult:
        return _solve(space, fine, found, rtol, None)[0]

    return scouted(
        space=space,
        solver=chosen.solver,
        solve=solve,
        first=start,
        result=result,
        told=told,
        generator=generator,
        at_once=partial(_curves_a_step, chosen.solver),
    )


def _solve(
    space: Space,
    chosen: Choice,
    start: Curve,
    rtol: float,
    progress: Progress | None,
    verify: bool = False,
) -> tuple[GeodesicResult, Told]:  # a flat batch (p,)
    """All pairs, none longer than its start curve, and what is told of them on the host.

    Those along which the metric is singular are solved by the last resort, those on which the
    solver makes no headway by further ones in turn, if there are such.
    """
    solver, resort = chosen.solver, chosen.resort
    result, lengths = _solve_all(
        space=space, solver=solver, start=start, rtol=rtol, progress=progress, verify=verify
    )
    told = Told.of(result)
    for other in chosen.further:
        stuck = np.isin(told.status, _STUCK).nonzero()[0]
        if not len(stuck):
            break
        result = _taken_over(space, other, start, rtol, result, placed(stuck, start.nodes))
        told = Told.of(result)
    singular = (told.status == Status.SINGULAR).nonzero()[0]
    if resort is not None and len(singular):
        result = _resorted(space, resort, start, rtol, result, placed(singular, start.nodes))
        told = Told.of(result)
    finer = start.segments > solver.segments
    if finer:
        again = partial(_again, space, solver, rtol)
    else:
        again = None
    found = not_longer(
        space=space, start=start, lengths=lengths, result=result, told=told, rtol=rtol, again=again
    )
    return found, (told if found is result else Told.of(found))


def _resorted(
    space: Space,
    resort: NewtonCG,
    start: Curve,
    rtol: float,
    result: GeodesicResult,
    singular: Tensor,
) -> GeodesicResult:
    """The result with pairs along which the metric is singular solved by another solver.

    Warns:
        FallbackWarning: When that solves some of them.
    """
    again = _across_null_directions(space, resort, start[singular], rtol)
    solved = again.converged
    if bool(solved.any()):
        warnings.warn(
            f"geodesic: the metric is singular along {len(singular)} of {len(start.nodes)} pairs; "
            f"{int(solved.sum())} of them are solved by NewtonCG, which moves across the "
            "directions that have no length as little as it can, and knows no Morse index (-1).",
            FallbackWarning,
            stacklevel=stack_level(),
        )
    return exchanged(result, singular[solved], again[solved])


def _taken_over(
    space: Space,
    other: Solver,
    start: Curve,
    rtol: float,
    result: GeodesicResult,
    stuck: Tensor,
) -> GeodesicResult:
    """The result with pairs that a solver made no headway on solved by another one.

    It begins where the first one began: levels that begin at a curve that has stuck at kinks may
    agree by accident. What converges counts where it is no longer, and what is shorter in any case.
    """
    left = result[stuck]
    again, _ = _solve_all(space, other, start[stuck], rtol, None)
    solved = again.converged & ~(again.length > (1 + rtol) * left.length)
    better = solved | (again.length < left.length)
    return exchanged(result, stuck[better], again[better])


def _across_null_directions(
    space: Space, resort: NewtonCG, start: Curve, rtol: float
) -> GeodesicResult:
    """Pairs along which the metric is singular.

    First with a preconditioner that leaves directions without length alone, which takes a few
    steps. What that finds is taken where it is as short as the ambient distance allows. Else it is
    the start for the preconditioner that explores them.
    """
    found, _ = _solve_all(space, replace(resort, floor=_NULL_FLOOR), start, rtol, None)
    short = found.length <= (1 + rtol) * found.lower_bound  # False for NaN
    rest = (~(found.converged & short)).nonzero().flatten()
    if not len(rest):
        return found
    left = found[rest]
    straight = start[rest].nodes
    usable = left.length.isfinite()[:, None, None]
    nodes = left.curve.resample(straight.shape[1] - 1).nodes
    better = Curve.from_nodes(torch.where(usable, nodes, straight))
    again, _ = _solve_all(space, resort, better, rtol, None)
    return exchanged(found, rest, again)


def _again(space: Space, solver: Solver, rtol: float, start: Curve) -> GeodesicResult:
    """Start curves solved at their own resolution."""
    most = max(solver.max_segments, start.segments)
    # A solver is a frozen dataclass.
    finer: Solver = replace(cast(Any, solver), segments=start.segments, max_segments=most)
    return solve_chunk(
        space=space,
        solver=finer,
        start=start,
        rtol=rtol,
        progress=None,
        at_once=partial(_curves_a_step, finer),
    )[0]


def _solve_all(
    space: Space,
    solver: Solver,
    start: Curve,
    rtol: float,
    progress: Progress | None,
    verify: bool = False,
) -> tuple[GeodesicResult, np.ndarray]:
    """All pairs, some at a time, and their start curves' lengths.

    Memory grows with the chunk; only results grow with p.
    """
    p = len(start.nodes)
    m = start.nodes.shape[-1]
    numbers = _DENSE_NUMBERS + _BLOCK_NUMBERS * m * _rows_of_a_block(solver, m)
    size = max(_FEWEST_PAIRS, _BYTES // (start.nodes.element_size() * numbers))
    parts = []
    lengths = []
    for first in range(0, max(p, 1), size):
        if progress is None:
            report = None
        else:
            report = partial(_report, progress, first, p)
        some = start[first : first + size]
        at_once = partial(_curves_a_step, solver)
        part, seen = solve_chunk(
            space=space,
            solver=solver,
            start=some,
            rtol=rtol,
            progress=report,
            at_once=at_once,
            verify=verify,
        )
        parts.append(part)
        lengths.append(seen)
    return GeodesicResult.cat(parts, torch.Size((p,))), np.concatenate(lengths)


def _curves_a_step(solver: Solver, nodes: Tensor) -> int:  # (p, n + 1, m)
    """How many curves with such nodes one step may work on."""
    _, count, m = nodes.shape
    blocks = _BLOCKS_A_STEP * count * m * _rows_of_a_block(solver, m)
    return max(_FEWEST_PAIRS, _BYTES // (nodes.element_size() * blocks))


def _rows_of_a_block(solver: Solver, m: int) -> int:
    if isinstance(solver, NewtonCG):
        return _ROWS_MATRIX_FREE
    return m


def _report(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)
