"""What Newton's method does with curves whose Hessian is indefinite: go to the saddle, or leave it.

See the phases SADDLE and LEAVING in ``newton``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.energy import Expansion, discrete_energy
from riemae.solvers.methods.newton_limits import LIMITS
from riemae.solvers.model import QuadraticModel
from riemae.solvers.space import Space
from riemae.solvers.state import curves_at, moved, on_host, placed, read, relative_length


def undamped(
    expansion: Expansion, model: QuadraticModel, nodes: Tensor, rows: np.ndarray
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Newton's step with the Hessian itself, towards a stationary point of any kind.

    Args:
        expansion: Of all curves.
        model: Of all curves.
        nodes: ``(q, n + 1, m)``, those of the curves at ``rows``.
        rows: ``(q,)``.

    Returns:
        Nodes after the step, the decrements as a share of the lengths, and whether there was a
        step.
    """
    where = placed(rows, nodes)
    gradient = expansion.gradient[where]
    matrix = model.full.select(where).dense()
    right = -gradient.flatten(1)[..., None]
    step, info = torch.linalg.solve_ex(matrix, right, check_errors=False)
    solved = info == 0
    found = step[..., 0].view_as(gradient)
    step = torch.where(solved[:, None, None], found, 0.0)
    slope = (gradient * step).sum((-1, -2))
    promised = torch.maximum(slope.abs(), model.decrement[where])
    relative = relative_length(promised, expansion.energy[where])
    left, sure = read(relative, solved)
    return moved(nodes, step), left, sure


def escape(
    space: Space, expansion: Expansion, model: QuadraticModel, nodes: Tensor, rows: np.ndarray
) -> tuple[Tensor, np.ndarray]:
    """Moves along the direction of most negative curvature, to the lower of its two sides.

    Args:
        space: The space.
        expansion: Of all curves.
        model: Of all curves.
        nodes: ``(p, n + 1, m)``, of all curves.
        rows: ``(q,)``, the curves that leave.

    Returns:
        All nodes, and which curves have found a lower energy.
    """
    where = placed(rows, nodes)
    escaped: list[np.ndarray] = []
    direction, size = _downhill(expansion, model, where)
    for attempt in range(1, LIMITS.attempts):
        stride = 0.5**attempt * size[:, None, None] * direction
        both = torch.stack([moved(nodes[where], sign * stride) for sign in (1, -1)])
        energies = [discrete_energy(space.squared_chords(trial)) for trial in both]
        reached = torch.stack(energies).nan_to_num(torch.inf)
        lower, side = reached.min(0)
        before = expansion.energy[where]
        found = lower < before - expansion.noise[where]
        fallen = on_host(found)
        better = fallen.nonzero()[0]
        if len(better):
            those = placed(better, nodes)
            nodes = nodes.clone()
            nodes[where[those]] = both[side[those], those]
            escaped.append(rows[better])
        rest = (~fallen).nonzero()[0]
        rows = rows[rest]
        if not len(rows):
            break
        where, size, direction = curves_at(rest, where, size, direction)
    return nodes, np.concatenate([rows[:0], *escaped])


def _downhill(
    expansion: Expansion, model: QuadraticModel, where: Tensor
) -> tuple[Tensor, Tensor]:  # -> (q, n - 1, m), (q,)
    """Directions of most negative curvature, and how far along them is as far as the curve."""
    hessian = model.full.select(where).dense()
    vectors = torch.linalg.eigh(hessian).eigenvectors
    softest = vectors[..., 0]
    direction = softest.view_as(expansion.gradient[where])
    bent = expansion.gauss_newton.select(where).product(direction)
    stiffness = (direction * bent).sum((-1, -2))
    size = (expansion.energy[where] / stiffness).sqrt()
    return direction, size
