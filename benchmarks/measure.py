"""What is compared: lengths by one quadrature for all curves, errors relative to the best curve
known, and growth exponents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.integrate import solve_bvp
from torch import Tensor
from torch.func import jvp

from riemae import Manifold, solvers
from riemae.solvers import Curve

_SEGMENTS = 256  # of three Gauss points, whose error is far below that of any curve here


def lengths(manifold: Manifold, nodes: Tensor) -> Tensor:
    """Lengths ``(p,)`` of the C² splines through nodes ``(p, n + 1, m)`` at equal times, by one
    fine quadrature.
    """
    n = nodes.shape[1] - 1
    return solvers.length(manifold, Curve.from_nodes(nodes).resample(n * -(-_SEGMENTS // n)))


def quantiles(errors: Tensor) -> tuple[float, float, float]:
    """Median, 95 % and maximum; infinite where a length is not finite."""
    errors = errors.nan_to_num(torch.inf)
    worst = errors.sort().values
    # The smallest error that 95 % of the pairs do not exceed, without interpolation, which a single
    # pair could change.
    return (
        float(worst[(len(worst) - 1) // 2]),
        float(worst[-(-95 * len(worst) // 100) - 1]),
        float(worst[-1]),
    )


def fastest(times: Sequence[float], errors: Sequence[float], accuracy: float) -> int | None:
    """Which of a contender's settings reaches an accuracy first, or None."""
    good = [i for i, error in enumerate(errors) if error <= accuracy]
    return min(good, key=lambda i: times[i], default=None)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms: 1 for linear growth, 2 for
    quadratic.
    """
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def by_collocation(
    f: Callable[[Tensor], Tensor], z0: Tensor, z1: Tensor, tol: float = 1e-6
) -> np.ndarray:
    """A geodesic by an independent method: scipy's collocation on ``z̈ = −J⁺ ∂²f(ż, ż)``, from the
    straight line.

    Args:
        f: Maps ``(k, m)`` to ``(k, D)``; torch must be able to differentiate it forward twice.
        z0: Start, ``(m,)``.
        z1: End, ``(m,)``.
        tol: Of the collocation's residual.

    Returns:
        Nodes ``(513, m)`` at equal times.

    Raises:
        RuntimeError: When the collocation does not converge.
    """
    m = len(z0)

    def system(_: np.ndarray, state: np.ndarray) -> np.ndarray:
        z, v = torch.from_numpy(state.T.copy()).split(m, -1)
        bend = jvp(lambda z: jvp(f, (z,), (v,))[1], (z,), (v,))[1]
        columns = [jvp(f, (z,), (e.expand_as(z),))[1] for e in torch.eye(m, dtype=z.dtype)]
        acceleration = -torch.linalg.lstsq(torch.stack(columns, -1), bend[..., None]).solution[
            ..., 0
        ]
        return torch.cat([v, acceleration], -1).T.numpy()

    t = np.linspace(0, 1, 17)
    a, b = z0.numpy(), z1.numpy()
    start = np.concatenate(
        [a[:, None] + (b - a)[:, None] * t, np.repeat((b - a)[:, None], len(t), 1)]
    )
    with torch.no_grad():
        ends = solve_bvp(
            system, lambda x, y: np.concatenate([x[:m] - a, y[:m] - b]), t, start, tol=tol
        )
    if not ends.success:
        raise RuntimeError(ends.message)
    return ends.sol(np.linspace(0, 1, 513))[:m].T
