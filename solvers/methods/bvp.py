"""The geodesic equation as a two-point boundary value problem for scipy's collocation solver."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.certificate import sound_acceleration
from riemae.solvers.curve import Curve
from riemae.solvers.result import Status
from riemae.solvers.solver import State, check_settings, with_index
from riemae.solvers.space import Space

_STATUS = {0: Status.CONVERGED, 1: Status.RESOLUTION, 2: Status.SINGULAR}
_TIGHTEST = 1e-12


class _NoValue(Exception):
    """The geodesic equation has no value where scipy asked for one."""


@dataclass(frozen=True)
class BVP:
    """``scipy.integrate.solve_bvp`` on ``z̈ = −Γ(ż, ż)``, pair by pair.

    That is fourth-order collocation with its own mesh. A reference more than a tool: it runs on the
    CPU in double precision, one pair after the other, and finds any geodesic near its start curve,
    minimising or not. Steps count its iterations.

    Args:
        segments: Segments of the coarsest level, the initial mesh.
        max_segments: Segments of the finest level allowed.
        max_steps: Iterations that a pair may take in total.
        max_nodes: Mesh points that scipy may use.

    Raises:
        OptionError: For a value out of range.

    References:
        J. Kierzenka, L. F. Shampine, A BVP solver based on residual control and the MATLAB PSE,
        2001.
    """

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 200
    max_nodes: int = 2000

    def __post_init__(self) -> None:
        check_settings("BVP", self, "max_nodes")

    def begin(self, nodes: Tensor) -> State:
        """A state about new curves."""
        return State.start(nodes)

    def step(self, space: Space, state: State, tol: float) -> State:
        """Solve every curve at once to the end."""
        slopes = Curve.from_nodes(state.nodes).slopes
        nodes = state.nodes.clone()
        status = state.status.clone()
        steps = state.steps.clone()
        for row in range(len(nodes)):
            found, code, iterations = self._solve(
                space=space, nodes=state.nodes[row], slopes=slopes[row], tol=tol
            )
            nodes[row, 1:-1] = found[1:-1]
            status[row] = int(code)
            steps[row] += iterations
        done = status == Status.CONVERGED
        unknown = torch.full_like(state.decrement, torch.nan)
        state = replace(state, nodes=nodes, status=status, decrement=unknown, steps=steps)
        return with_index(space, state, done)

    def _solve(
        self, space: Space, nodes: Tensor, slopes: Tensor, tol: float
    ) -> tuple[Tensor, Status, int]:
        from scipy.integrate import solve_bvp

        m = nodes.shape[-1]
        start = nodes[0].double().cpu().numpy()
        stop = nodes[-1].double().cpu().numpy()

        def equation(_: np.ndarray, y: np.ndarray) -> np.ndarray:
            z = torch.as_tensor(y[:m].T).to(nodes)
            v = torch.as_tensor(y[m:].T).to(nodes)
            known = z.isfinite().all() & v.isfinite().all()
            finite = bool(known)
            if finite:
                force = sound_acceleration(space, z, v)
            else:
                force = torch.full_like(z, torch.nan)
            if not bool(force.isfinite().all()):
                raise _NoValue
            force_on_host = force.T.double().cpu().numpy()
            return np.concatenate([y[m:], force_on_host])

        def ends(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            before = left[:m] - start
            after = right[:m] - stop
            return np.concatenate([before, after])

        t = np.linspace(0, 1, len(nodes))
        both = torch.cat([nodes, slopes], 1)
        guess = both.T.double().cpu().numpy()
        try:
            found = solve_bvp(
                equation, ends, t, guess, tol=max(tol, _TIGHTEST), max_nodes=self.max_nodes
            )
        except _NoValue:
            return nodes, Status.NON_FINITE, 1
        positions = found.sol(t)[:m].T
        solution = torch.as_tensor(positions).to(nodes)
        iterations = max(int(found.niter), 1)
        return solution, _STATUS[found.status], iterations
