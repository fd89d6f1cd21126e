"""A look ahead, before a curve is accepted that two levels alone speak for.

Two levels may agree by accident, and where a curve has just left one valley for another, so may
three: the differences before tell nothing of the new one. What the level before has to say is then
worth little. What the next level would say can be asked of it: the curve's points on twice as many
segments, at equal distances along it, have a gradient, and a Newton decrement. It is what the next
level would take off in its first step. It costs an expansion, a part of what that level costs.

Most curves need no look: their speed is even, and nothing is left between the levels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.measure import Evidence
from riemae.solvers.queue import even
from riemae.solvers.result import Status
from riemae.solvers.solver import Foresighted
from riemae.solvers.space import Space
from riemae.solvers.state import on_host, placed
from riemae.solvers.verdict import Claims, Level

# A look is worth its cost where the error may be this share of what is allowed, or where the speed
# is more uneven than the error that is claimed can explain, by this factor.
_CLOSE = 0.05
_UNEXPLAINED = 4.0
# What a level of twice as many segments takes off is most of what all of them would. Measured on
# steep networks: the error is at most this many times as large in 99 % of cases.
_BEYOND = 2.0


def in_doubt(
    evidence: Evidence, level: Level, claims: Claims, statuses: np.ndarray, rtol: float
) -> np.ndarray:
    """``(q,)`` bool: curves about to be accepted on little evidence."""
    allowed = rtol * level.length
    wobble = level.measure.wobble
    uneven = wobble * level.length > _UNEXPLAINED * claims.error
    close = claims.worst > _CLOSE * allowed
    accepted = statuses == Status.CONVERGED
    return accepted & (uneven | close) & evidence.thin(level.rows, wobble)


def foreseen(
    space: Space,
    solver: Foresighted,
    level: Level,
    rows: np.ndarray,
    at_once: Callable[[Tensor], int],
) -> np.ndarray:  # -> (len(rows),)
    """What further levels may take off the curves at ``rows`` of a level; NaN where unknown.

    Args:
        space: The space.
        solver: The solver.
        level: The level.
        rows: Which of its curves.
        at_once: How many curves with such nodes ``(p, n + 1, m)`` one step may work on.
    """
    whole = level.measure
    measure = whole.select(rows, placed(rows, whole.speed))
    nodes = even(
        curve=measure.curve,
        speed=measure.speed,
        weights=measure.weights,
        segments=2 * measure.curve.segments,
        wanted=np.ones(len(rows), dtype=bool),
    )
    shares = [solver.foreseen(space, part) for part in nodes.split(at_once(nodes))]
    ahead: np.ndarray = _BEYOND * on_host(torch.cat(shares)) * measure.length
    return ahead
