"""A look ahead, before a curve is accepted that two levels alone speak for.

Two levels may agree by accident, and where a curve has just left one valley for another, so may
three: the differences before tell nothing of the new one. What the level before has to say is then
worth little. What the next level would say can be asked of it: the curve's points on twice as many
segments, at equal distances along it, have a gradient, and a Newton decrement. It is what the next
level would take off in its first step.

With the matrix that the level has, taken to the finer one, that costs a gradient, and mostly shows
that there is nothing more to say. Where there may be, a new matrix is asked, which costs an
expansion: a part of what the next level costs.

Most curves need no look: their speed is even, and nothing is left between the levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.measure import Evidence
from riemae.solvers.queue import even
from riemae.solvers.result import Status
from riemae.solvers.solver import Foresighted, refined
from riemae.solvers.space import Space
from riemae.solvers.state import on_host, placed, select
from riemae.solvers.verdict import Claims, Level, allowed

# A look is worth its cost where the error may be this share of what is allowed, or where the speed
# is more uneven than the error that is claimed can explain, by this factor.
_CLOSE = 0.05
_UNEXPLAINED = 4.0
# What a level of twice as many segments takes off is most of what all of them would. Measured on
# steep networks: the error is at most this many times as large in 99 % of cases.
_BEYOND = 2.0
# A new matrix promises up to so many times what the level's own does; in 3 of 777 looks on rough
# spaces, steep networks and digits it was more. The other way round, at uneven curves, they may
# differ a thousandfold.
_OLDER = 2.0


def in_doubt(
    evidence: Evidence, level: Level, claims: Claims, statuses: np.ndarray, rtol: float
) -> np.ndarray:
    """``(q,)`` bool: curves about to be accepted on little evidence."""
    wobble = level.measure.wobble
    uneven = wobble * level.length > _UNEXPLAINED * claims.error
    close = claims.worst > _CLOSE * rtol * level.length
    accepted = statuses == Status.CONVERGED
    return accepted & (uneven | close) & evidence.thin(level.rows, wobble)


def foreseen(
    space: Space,
    solver: Foresighted,
    state: Any,
    level: Level,
    claims: Claims,
    rows: np.ndarray,
    rtol: float,
    at_once: Callable[[Tensor], int],
) -> np.ndarray:  # -> (len(rows),)
    """What further levels may take off the curves at ``rows`` of a level; NaN where unknown.

    Args:
        space: The space.
        solver: The solver.
        state: Its progress on the level.
        level: The level.
        claims: What is claimed of it.
        rows: Which of its curves.
        rtol: The relative accuracy.
        at_once: How many curves with such nodes ``(p, n + 1, m)`` one step may work on.
    """
    whole = level.measure
    measure = whole.select(rows, placed(rows, whole.speed))
    every = np.ones(len(rows), dtype=bool)
    nodes = even(
        curve=measure.curve,
        speed=measure.speed,
        weights=measure.weights,
        segments=2 * measure.curve.segments,
        wanted=every,
    )
    size = at_once(nodes)
    scale = _BEYOND * measure.length
    known = refined(solver, select(state, rows), nodes, ~every)
    ahead = _OLDER * scale * _promised(space, solver, known, size)
    settled = ahead <= np.minimum(claims.error, allowed(level.length, rtol))[rows]
    rest = (~settled).nonzero()[0]  # NaN among them
    if len(rest):
        new = solver.begin(nodes[placed(rest, nodes)])
        ahead[rest] = scale[rest] * _promised(space, solver, new, size)
    return ahead


def _promised(space: Space, solver: Foresighted, state: Any, size: int) -> np.ndarray:  # -> (q,)
    """What steps from a state promise, of some curves at a time."""
    p = len(state.nodes)
    if p <= size:
        return on_host(solver.foreseen(space, state))
    groups = np.split(np.arange(p), range(size, p, size))
    shares = [solver.foreseen(space, select(state, group)) for group in groups]
    return on_host(torch.cat(shares))
