"""Curves across landscapes so rough that coarse chords cut through them.

On few nodes a chord may pass through the ambient space where the manifold folds. The discrete
energy rewards it, and a solver that descends comes to nodes in two heaps with a jump between them:
however exactly it converges there, the curve through its nodes is longer than the start curve.
Finer levels only make the jump shorter.

Such a pair begins anew. The start curve is shortened on more nodes than it has freedom: it moves in
splines with a quarter as many knots, which cannot jump from one node to the next. L-BFGS does it,
by gradients alone, in coordinates in which the Hessian of a flat space is the identity. Nodes and
knots double until the nodes show all of the curve's length, and there the solver takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.budget import Exhausted, spent, strict
from riemae.solvers.curve import Curve
from riemae.solvers.energy import discrete_energy
from riemae.solvers.hooks import energy_and_gradient
from riemae.solvers.measure import Measure
from riemae.solvers.methods.lbfgs import LBFGS
from riemae.solvers.methods.spline import spline_basis
from riemae.solvers.queue import even
from riemae.solvers.space import Space
from riemae.solvers.state import placed, read

# A curve has jumped when its nodes show less than this share of its length.
_SHOWN = 0.8
# The solver takes over where nodes and curve differ by this share of the length at most. Measured
# on random sines of frequencies 10 and 30: from 0.3 % on no curve jumped again, at 1 % all did.
_RESOLVED = 5e-3
# Segments between two knots of the spline, of the coarsest unrolling, and of the finest.
_PER_KNOT = 4
_COARSEST = 32
_FINEST = 256
# Iterations between two looks at the energy, at most so many looks at one resolution; it ends when
# the length has fallen by less than this share in between.
_BURST = 8
_MOST_BURSTS = 16
_ENOUGH = 5e-5
# Nodes at which the metric of the coordinates is taken, and its least eigenvalue.
_LOOKS = 5
_RIDGE = 1e-6


def jumped(measure: Measure, start: np.ndarray) -> np.ndarray:  # (q,) -> (q,) bool
    """Curves that are longer than their start, by a part which their nodes do not show.

    Args:
        measure: The curves.
        start: Lengths of their start curves, NaN where unknown.
    """
    hidden = measure.root_energy < _SHOWN * measure.length
    return hidden & (measure.length > start)  # False for NaN


def first_resolution(segments: int, coarsest: int, most: int) -> int | None:
    """The number of segments at which unrolling begins, or None where there are too few.

    Args:
        segments: Of the level at which a curve has jumped.
        coarsest: Of the solver's coarsest level.
        most: Of its finest.
    """
    wanted = coarsest
    while wanted < _COARSEST or wanted <= segments:
        wanted *= 2
    divides = wanted % _PER_KNOT == 0
    return wanted if divides and wanted <= min(most, _FINEST) else None


def unrolled(
    space: Space, start: Curve, segments: int, most: int
) -> dict[int, tuple[np.ndarray, Measure]]:
    """Start curves, shortened without jumps.

    Args:
        space: The space.
        start: The start curves ``(p,)``.
        segments: Where to begin: see :func:`first_resolution`.
        most: Segments of the solver's finest level.

    Returns:
        By the number of segments at which they are resolved: which of the curves, and these.
    """
    found: dict[int, tuple[np.ndarray, Measure]] = {}
    rows = np.arange(len(start.nodes))
    measure = Measure.of(space, start)
    while True:
        nodes = even(
            curve=measure.curve,
            speed=measure.speed,
            weights=measure.weights,
            segments=segments,
            wanted=measure.may_hide_a_jump,
        )
        nodes = _descended(space, nodes)
        measure = Measure.of(space, Curve.from_nodes(nodes))
        gap = np.abs(measure.length - measure.root_energy)
        ready = ~(gap > _RESOLVED * measure.length)  # NaN leaves, to be reported by the solver
        if 2 * segments > min(most, _FINEST) or spent(space):
            ready[:] = True
        done = ready.nonzero()[0]
        if len(done):
            found[segments] = rows[done], measure.select(done, placed(done, nodes))
        rest = (~ready).nonzero()[0]
        if not len(rest):
            return found
        rows = rows[rest]
        measure = measure.select(rest, placed(rest, nodes))
        segments *= 2


def _descended(space: Space, nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, n + 1, m)
    """Nodes after a descent in splines; as far as the budget goes."""
    space = strict(space)
    method = LBFGS()
    active = torch.arange(len(nodes), device=nodes.device)
    nodes = nodes.clone()
    try:
        frame = _Frame.of(space, nodes)
        energy = discrete_energy(space.squared_chords(nodes))
        x = frame.origin()
        slope = frame.objective(space)(x, active)[1]
        # L-BFGS begins with a step of a hundredth of this: here of the whole gradient.
        extent = 100 * slope.square().sum((1, 2)).sqrt()
        memory, scalars = method.memory(x, extent)
        for _ in range(_MOST_BURSTS):
            objective = frame.objective(space)
            x, memory, scalars = method.advance(objective, x, memory, scalars, _BURST)
            every = torch.arange(len(x), device=x.device)
            moved = frame.nodes(x, every)
            reached = discrete_energy(space.squared_chords(moved))
            lower = reached < energy  # False for NaN
            far = energy - reached > 2 * _ENOUGH * energy
            better, on = (placed(x.nonzero()[0], nodes) for x in read(lower, far))
            nodes[active[better]] = moved[better]
            if not len(on):
                break
            active, x, memory, scalars = (y[on] for y in (active, x, memory, scalars))
            frame = frame.select(on)
            energy = reached[on]
    except Exhausted:
        pass
    return nodes


@dataclass(frozen=True)
class _Frame:
    """Coordinates of splines in which the Hessian of a flat space is the identity.

    Attributes:
        base: ``(p, n + 1, m)``, the nodes at the origin.
        modes: ``(n − 1, k)``, orthonormal with respect to ``2n T``, T the second differences.
        axes: ``(p, m, m)``, orthonormal with respect to the curve's mean metric.
    """

    base: Tensor
    modes: Tensor
    axes: Tensor

    @classmethod
    def of(cls, space: Space, nodes: Tensor) -> _Frame:
        """About these nodes."""
        p, count, m = nodes.shape
        where = torch.linspace(0, count - 1, _LOOKS + 2)[1:-1].round().long()
        metric = space.metric(nodes[:, where].flatten(0, 1))
        mean = metric.view(p, _LOOKS, m, m).mean(1)
        size = mean.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        eye = torch.eye(m).to(mean)
        factor, info = torch.linalg.cholesky_ex(mean + _RIDGE * size * eye)
        sound = ((info == 0) & factor.isfinite().all((1, 2)))[:, None, None]
        factor = torch.where(sound, factor, eye)
        axes = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).mT
        return cls(nodes, _modes(count - 1).to(nodes), axes)

    def origin(self) -> Tensor:  # (p, k, m)
        """Where nothing has moved."""
        p, _, m = self.base.shape
        return self.base.new_zeros(p, self.modes.shape[1], m)

    def select(self, on: Tensor) -> _Frame:
        """Of some of the curves."""
        return _Frame(self.base[on], self.modes, self.axes[on])

    def nodes(self, x: Tensor, rows: Tensor) -> Tensor:  # (q, k, m), (q,) -> (q, n + 1, m)
        """The nodes of the curves at ``rows``."""
        shift = torch.einsum("ij,pjm->pim", self.modes, x)
        nodes = self.base[rows].clone()
        nodes[:, 1:-1] += torch.einsum("pim,plm->pil", shift, self.axes[rows])
        return nodes

    def objective(self, space: Space) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Energies and their gradients in these coordinates."""

        def value(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            energy, slope = energy_and_gradient(space, self.nodes(x, rows))
            along = torch.einsum("ij,pim->pjm", self.modes, slope)
            return energy, torch.einsum("pjm,pml->pjl", along, self.axes[rows])

        return value


@lru_cache(maxsize=16)
def _modes(segments: int) -> Tensor:  # -> (n - 1, k)
    basis = spline_basis(segments, segments // _PER_KNOT)
    padded = torch.nn.functional.pad(basis, (0, 0, 1, 1))
    step = padded.diff(dim=0)
    factor = torch.linalg.cholesky(2 * segments * step.T @ step)
    return torch.linalg.solve_triangular(factor, basis.T, upper=False).T
