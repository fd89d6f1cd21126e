"""A bounded look for a shorter geodesic than the one next to the start curve.

Most pairs need none, and cost nothing: their geodesic is hardly longer than the ambient distance,
or took a few steps to find. For the others, curves go down a few steps of a gradient-only descent.
Only where one of them is then lower than the geodesic that is known, and elsewhere, is it solved.

Where the curves come from: in two dimensions the shortest ways on a lattice around the geodesic
that is known (:mod:`riemae.solvers.lattice`), which see all of the plane there. In more, a lattice
has too many nodes, and curves swing out to the side, on few segments at first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import RiemaeError
from riemae.numerics.probe import FAILURES
from riemae.solvers.budget import spent, strict
from riemae.solvers.chunk import solve_level
from riemae.solvers.curve import Curve
from riemae.solvers.hooks import labels_of
from riemae.solvers.lattice import ways
from riemae.solvers.methods.newton import Newton
from riemae.solvers.methods.quasi_newton import QuasiNewton
from riemae.solvers.result import GeodesicResult, Status
from riemae.solvers.safeguard import Told
from riemae.solvers.search import ranked, run_together, start_curves
from riemae.solvers.solver import Solver, refined
from riemae.solvers.space import Space
from riemae.solvers.state import placed, select

# Of 200 pairs of digits in two dimensions 8 to 13 end in the wrong valley. Their geodesics are
# longer than twice the chord, in eight dimensions than 1.37 times; they took Newton six steps or
# more, where geodesics without rivals take 2 to 5. A hill between two points takes 8 to 19, and the
# way round it may be hardly longer than the chord.
_STRAIGHT, _STEEP = 1.02, 1.3
_EASY_STEPS, _HARD_STEPS = 5, 7
# Of whole curves, in gradients: 3 to 8 are the rule in eight dimensions at 1e-3, and pairs with a
# shorter geodesic elsewhere took 9 or more.
_EASY_GRADIENTS, _HARD_GRADIENTS = 8, 12
_MANY_GRADIENTS = 24  # of QuasiNewton: 7 to 12 are the rule at 1e-3
# Scouts per pair, and in which rounds they go down: segments, steps, how high they may then be,
# relative to the geodesic that is known, to go on, and how many of a pair do.
_SCOUTS = 4
_ROUNDS = ((8, 5, 1.3, 3), (16, 8, 1.0, 2), (32, 12, 1.03, 1))
# Up to so many dimensions scouts come from a lattice, so many of a pair.
_LATTICE_UP_TO = 2
_WAYS = 3
# A way on a lattice is worth a descent when it is this far from the known geodesic somewhere.
_OFF_THE_WAY = 0.05
# Another geodesic is this far from the known one somewhere, relative to its length.
_ELSEWHERE = 0.1
_TOL = 1e-3
_ROUNDS_OF_WAYS = ((32, 3, 1.2, 2), (32, 9, 1.03, 1))
# What they have found is solved from as many segments as they ended on: on fewer, curves slide off.
SEGMENTS = _ROUNDS[-1][0]
# Without a length, a budget or a metric there is nothing to be compared with.
_HOPELESS = (
    int(Status.SINGULAR),
    int(Status.NON_FINITE),
    int(Status.INVALID_POINT),
    int(Status.BUDGET),
)

# Solves pairs from start curves.
Solve = Callable[[Curve], GeodesicResult]


def scouted(
    space: Space,
    solver: Solver,
    solve: Solve,
    first: Curve,
    result: GeodesicResult,
    told: Told,
    generator: torch.Generator | int | None,
    at_once: Callable[[Tensor], int],
) -> GeodesicResult:  # a flat batch (p,)
    """The result with shorter geodesics where scouts have led to them.

    Of each pair it depends on its own end points and the generator alone, not on its batch.

    Args:
        space: The space.
        solver: What has found the result.
        solve: Solves pairs from start curves of ``SEGMENTS`` segments.
        first: The start curves ``(p,)``.
        result: What came of them.
        told: The same on the host.
        generator: Source of the scouts' directions; None is torch's own.
        at_once: How many curves with such nodes one step may work on.

    Returns:
        The shortest geodesics. Where anything was solved, all distinct ones are its
        ``alternatives``.
    """
    rows = _suspects(solver, told)
    moving = first.nodes.shape[-1] - labels_of(space)
    if moving < 2 or not len(rows) or spent(space):
        return result
    suspects = placed(rows, first.nodes)
    known = result[suspects]
    try:
        chosen, nodes = _descended(space, known, first[suspects], generator, at_once)
    except (RiemaeError, *FAILURES):
        return result  # a function that refuses points off the way: nothing is known of them
    if not len(chosen) or spent(space):
        return result
    found = solve(Curve.from_nodes(nodes))
    p = len(result.length)
    every = GeodesicResult.cat([result, found], torch.Size((p + len(chosen),)))
    pair = torch.cat([torch.arange(p, device=chosen.device), suspects[chosen]])
    return ranked(space, every, pair, p)


def _suspects(solver: Solver, told: Told) -> np.ndarray:
    """Which pairs may have a shorter geodesic elsewhere."""
    usable = ~np.isin(told.status, _HOPELESS) & (told.length > 0)  # False for NaN
    # Without a bound, a comparison is False.
    straight = told.length <= _STRAIGHT * told.bound
    steep = ~(told.length <= _STEEP * told.bound)
    if isinstance(solver, Newton):
        if solver.whole:
            easy, most = _EASY_GRADIENTS, _HARD_GRADIENTS
        else:
            easy, most = _EASY_STEPS, _HARD_STEPS
        hard = (told.steps > most) | ((told.steps > easy) & steep)
    elif isinstance(solver, QuasiNewton):
        hard = steep & ~np.isnan(told.bound) & (told.steps > _MANY_GRADIENTS)
    else:
        hard = steep & ~np.isnan(told.bound)
    return (usable & ~straight & hard).nonzero()[0]


def _descended(
    space: Space,
    known: GeodesicResult,
    first: Curve,
    generator: torch.Generator | int | None,
    at_once: Callable[[Tensor], int],
) -> tuple[Tensor, Tensor]:  # a flat batch (q,) -> (k,), (k, n + 1, m)
    """The pairs for which a scout has found a lower way, and its nodes."""
    if first.nodes.shape[-1] == _LATTICE_UP_TO and not labels_of(space):
        pair, nodes = ways(strict(space), known.curve, known.length, _WAYS, SEGMENTS)
        keep = _elsewhere(space, known, pair, nodes, _OFF_THE_WAY)
        pair = pair[keep]
        nodes = nodes[keep]
        rounds: tuple[tuple[int, int, float, int], ...] = _ROUNDS_OF_WAYS
    else:
        straight = first.resample(_ROUNDS[0][0])
        swung = start_curves(straight, 1 + _SCOUTS, None, generator, labels_of(space))[1:]
        pair = torch.arange(len(known.length), device=swung.device).repeat(len(swung))
        nodes = swung.flatten(0, 1)
        rounds = _ROUNDS
    descent = QuasiNewton()
    state = descent.begin(nodes)
    for segments, steps, highest, count in rounds:
        if not len(pair):
            break
        if segments > state.nodes.shape[1] - 1:
            fine = Curve.from_nodes(state.nodes).resample(segments).nodes
            state = refined(descent, state, fine, np.zeros(len(fine), dtype=bool))
        state = solve_level(
            space=strict(space),
            solver=replace(descent, max_steps=steps),
            state=state,
            tol=_TOL,
            at_once=at_once,
        )
        here = known.curve.resample(segments).nodes
        height = segments * space.squared_chords(here).sum(-1)
        rows = (state.energy < highest * height[pair]).nonzero().flatten()
        rows = rows[_elsewhere(space, known, pair[rows], state.nodes[rows], _ELSEWHERE)]
        rows = rows[_lowest(pair[rows], state.energy[rows], count)]
        pair = pair[rows]
        state = select(state, rows.cpu().numpy())
    return pair, state.nodes


def _elsewhere(
    space: Space, known: GeodesicResult, pair: Tensor, nodes: Tensor, share: float
) -> Tensor:  # (q,), (k,), (k, n + 1, m) -> (j,)
    """Which curves are somewhere farther from the geodesics than a share of their length."""
    here = known.curve.resample(nodes.shape[1] - 1).nodes
    together = run_together(
        space=space,
        one=here[pair][:, 1:-1],
        two=nodes[:, 1:-1],
        length=known.length[pair],
        share=share,
    )
    return (~together).nonzero().flatten()


def _lowest(pair: Tensor, energy: Tensor, count: int) -> Tensor:  # (k,), (k,) -> (q,)
    """The places of the lowest energies of each pair that occurs, so many at most."""
    order = energy.argsort(stable=True)
    order = order[pair[order].argsort(stable=True)]
    ordered = pair[order]
    rank = torch.arange(len(ordered), device=pair.device) - torch.searchsorted(ordered, ordered)
    return order[rank < count]
