"""What first-order path solvers share: parameters, an optimiser, and the common yardstick."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riemae.solvers.hooks import energy_and_gradient
from riemae.solvers.result import Status
from riemae.solvers.solver import State, newton_decrement
from riemae.solvers.space import Space
from riemae.solvers.state import RUNNING

# Parameters (q, k, m) of the curves at some rows of the batch -> their energies (q,) and gradients
# (q, k, m).
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class DescentState(State):
    """Progress of an optimiser.

    Attributes:
        parameters: ``(p, k, m)``, what moves: displacements of the interior nodes, or of the
            spline's knots.
        base: ``(p, n − 1, m)``, interior nodes at zero displacement.
        memory: ``(p, s, k, m)``, the optimiser's vectors.
        scalars: ``(p, r)``, its numbers.
    """

    parameters: Tensor
    base: Tensor
    memory: Tensor
    scalars: Tensor


class Optimizer(ABC):
    """A first-order method that treats every curve of a batch alone."""

    @abstractmethod
    def memory(self, x: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:  # (p, k, m), (p,)
        """Vectors ``(p, s, k, m)`` and numbers ``(p, r)`` for curves of latent size ``extent``."""

    @abstractmethod
    def advance(
        self, objective: Objective, x: Tensor, memory: Tensor, scalars: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` iterations: parameters, vectors and numbers after them."""


class Descent(ABC):
    """A path solver that minimises the discrete energy by an :class:`Optimizer`, in bursts.

    After every burst the curves are judged by the Hessian: those that have arrived leave the batch.
    """

    burst: int

    @property
    @abstractmethod
    def method(self) -> Optimizer:
        """The optimiser."""

    def basis(self, nodes: Tensor) -> Tensor | None:  # -> (n - 1, k)
        """Maps parameters to interior nodes; None when the nodes themselves are the parameters."""
        return None

    def begin(self, nodes: Tensor) -> DescentState:
        """A state about new curves."""
        basis = self.basis(nodes)
        base = nodes[:, 1:-1]
        x = torch.zeros_like(base)
        if basis is not None:
            x = base.new_zeros(len(base), basis.shape[1], base.shape[2])
        extent = (nodes - nodes[:, :1]).abs().amax((1, 2))
        memory, scalars = self.method.memory(x, extent)
        return DescentState.start(
            nodes, parameters=x, base=base.clone(), memory=memory, scalars=scalars
        )

    def step(self, space: Space, state: DescentState, tol: float) -> DescentState:
        """A burst of iterations of every curve, and the verdict on it."""
        basis = self.basis(state.nodes)

        def placed(x: Tensor, rows: Tensor) -> Tensor:
            if basis is None:
                shift = x
            else:
                shift = torch.einsum("ij,pjm->pim", basis, x)
            first = state.nodes[rows, :1]
            last = state.nodes[rows, -1:]
            return torch.cat([first, state.base[rows] + shift, last], 1)

        def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            energy, gradient = energy_and_gradient(space, placed(x, rows))
            if basis is not None:
                gradient = torch.einsum("ij,pim->pjm", basis, gradient)
            return energy, gradient

        before = state.parameters
        advance = self.method.advance
        x, memory, scalars = advance(objective, before, state.memory, state.scalars, self.burst)
        everyone = torch.arange(len(x), device=x.device)
        # A step out of the domain leaves NaN behind: such a curve stays where it was, and ends.
        lost = ~x.isfinite().flatten(1).all(1)
        x = torch.where(lost[:, None, None], before, x)
        state = replace(
            state,
            nodes=placed(x, everyone),
            parameters=x,
            memory=memory,
            scalars=scalars,
            steps=state.steps + self.burst,
        )
        state = newton_decrement(space, state, tol, basis)
        running = state.status == RUNNING
        stuck = running & (x == before).flatten(1).all(1)
        status = torch.where(stuck, int(Status.STALLED), state.status)
        return replace(state, status=torch.where(running & lost, int(Status.NON_FINITE), status))
