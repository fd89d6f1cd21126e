"""Gradient-only minimisation of a discrete curve energy: preconditioned limited-memory BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.hooks import energy_and_gradient, precision_of
from riemae.solvers.path_metric import FEW_SAMPLES, SAMPLES, PathMetric, laplacian, sampled_metric
from riemae.solvers.result import Status
from riemae.solvers.secants import BOLDEST, descent, looked, remaining
from riemae.solvers.solver import State, check_settings
from riemae.solvers.space import Space
from riemae.solvers.state import RUNNING

_MISSES = 12  # trials in a row that were too long, after which a curve counts as stalled
_ACCEPTABLE = 50  # how far above its tolerance rounding may stop a curve
# Rounding of an energy, relative to it: so many units per segment, where chords are differences of
# points not much larger than the curve. Where those are larger, trials are missed in a row.
_ROUNDING = 16
# Of the floor under the metric's eigenvalues, as a share of their mean: the first one, how it rises
# where the model promises too much and falls where it is right, where it ends, and which shares of
# what the model promises decide on it. Of an MLP m → m → m → 4m with a condition of 1e12, curves
# are as long after 20 steps with such a floor as after 200 without one; the numbers matter little.
_FIRST, _RISE, _FALL = 1e-3, 4.0, 3.0
_LEAST, _HIGHEST = 1e-8, 1.0
_POOR, _RICH = 0.2, 0.6
# After so many steps at one resolution the curve has moved far, and the metric is looked at anew.
_REFRESH = 24
# Curves end with so many times their tolerance left, slow ones with more: it counts as an error.
_LEFT, _LEFT_SLOW = 3, 30
# Latent dimensions from which on what follows holds. Of fewer, curves that have not converged are
# likelier to have met kinks or folds, where levels agree by accident.
WIDE = 16
# A curve that is not done after _PATIENCE steps at one resolution goes on at a finer one, with what
# is left as its error. Chords on few nodes cut through a manifold that is flat in many directions,
# and the energy rewards it. After so many levels it gets twice as many steps on each.
_COARSE = 2
# Steps that show how slowly a curve converges.
_WINDOW = 20
# A curve that has taken more than so many has not ended as others do.
_CREEPING = 12
# Up to so many dimensions the metric's blocks along the curve are factorised at every step. Up to
# so many its mean is taken in full: as many tangents as a sketch takes products, and a matrix per
# curve.
_BLOCKS, _FULL = 32, 768
_PATIENCE = 24  # steps at one resolution after which a curve is looked at; most end before


@dataclass
class QuasiNewtonState(State):
    """Progress of a quasi-Newton method.

    Attributes:
        trial: ``(p, n + 1, m)``, nodes to be looked at next.
        energy: ``(p,)``, at ``nodes``; infinite before the first look.
        gradient: ``(p, n − 1, m)``, there.
        slope: ``(p,)``, of the energy along the direction to ``trial``; negative.
        stride: ``(p,)``, the share of the direction that ``trial`` goes.
        misses: ``(p,)``, trials in a row that were too long.
        gains: ``(p, 20)``, by how much the last steps have lowered the energy, newest first; NaN
            before there are so many.
        moves: ``(p, h, n − 1, m)``, differences of nodes, newest first; zeros for none.
        changes: ``(p, h, n − 1, m)``, of their gradients.
        samples: ``(p, s, m, m)``, the metric along the curve: see :func:`sampled_metric`; none in
            many dimensions.
        basis: ``(p, m, r)``, with the next two: there, its mean, see :class:`PathMetric`.
        values: ``(p, r)``.
        rest: ``(p,)``; NaN before the metric is known, 0 where there is none.
        floor: ``(p,)``, added to the metric, as a share of its mean eigenvalue.
        age: ``(p,)``, steps since the metric was looked at.
        taken: ``(p,)``, steps at this resolution.
        level: ``(p,)``, how many resolutions have been before.
    """

    trial: Tensor
    energy: Tensor
    gradient: Tensor
    slope: Tensor
    stride: Tensor
    misses: Tensor
    gains: Tensor
    moves: Tensor
    changes: Tensor
    samples: Tensor
    basis: Tensor
    values: Tensor
    rest: Tensor
    floor: Tensor
    age: Tensor
    taken: Tensor
    level: Tensor

    def refined(self, nodes: Tensor, moved: np.ndarray) -> QuasiNewtonState:
        """The state about finer nodes ``(p, 2 n + 1, m)``.

        Metric and secants of curves that were not placed anew (``moved``) hold there too: where
        new nodes move as their neighbours do on average, the gradient changes at the old ones.
        """
        new = begun(nodes, self.moves.shape[1], self.samples.shape[1], self.basis.shape[2])
        anew = torch.as_tensor(moved, device=nodes.device)[:, None, None, None]
        moves = torch.where(anew, 0.0, _interpolated(self.moves))
        changes = torch.where(anew, 0.0, _spread(self.changes))
        return replace(
            new,
            moves=moves,
            changes=changes,
            # Curves that creep do so on finer levels, too.
            gains=self.gains if nodes.shape[-1] >= WIDE else new.gains,
            samples=self.samples,
            basis=self.basis,
            values=self.values,
            rest=self.rest,
            floor=self.floor,
            age=self.age,
            level=self.level + 1,
            index=self.index,
        )


def begun(nodes: Tensor, history: int, samples: int, rank: int) -> QuasiNewtonState:
    """A state about new curves."""
    p, _, m = nodes.shape
    interior = torch.zeros_like(nodes[:, 1:-1])
    zero = nodes.new_zeros(p)
    none = interior[:, None].expand(-1, history, -1, -1)
    return QuasiNewtonState.start(
        nodes,
        trial=nodes.clone(),
        energy=torch.full_like(zero, torch.inf),
        gradient=interior,
        slope=zero,
        stride=torch.ones_like(zero),
        misses=zero,
        gains=torch.full_like(zero, torch.nan)[:, None].expand(-1, _WINDOW).clone(),
        moves=none.clone(),
        changes=none.clone(),
        samples=nodes.new_zeros(p, samples, m, m),
        basis=nodes.new_zeros(p, m, rank),
        values=nodes.new_ones(p, rank),
        rest=torch.full_like(zero, torch.nan),
        floor=zero,
        age=zero,
        taken=zero,
        level=zero,
    )


@dataclass(frozen=True)
class QuasiNewton:
    """Settings of the quasi-Newton path solver, which takes gradients only.

    Limited-memory BFGS whose first inverse Hessian is that of the path's Laplacian in the metric at
    four places of the curve, from 16 dimensions on at two: the Hessian itself where the metric is
    constant. A step costs one decoding and one reverse pass along the path, whatever the number of
    dimensions; secants and metric are handed on to finer levels. A trial that does not lower its
    energy is shortened, and its secant is learned from as well.

    Where the metric promises more than a step brings, as in directions in which it nearly vanishes,
    a multiple of the identity is added to it, which follows the promises as Levenberg's and
    Marquardt's does; after 24 steps at one resolution the metric is taken anew. So it need not have
    full rank, nor be well conditioned.

    A curve ends when its Newton decrement, by the same inverse Hessian, is small, and its last
    steps do not promise more. From 16 dimensions on, one that takes more than 24 steps goes on at a
    finer resolution, and what is left counts as an error. There is no factorisation, hence no Morse
    index: it is −1.

    Args:
        segments: Segments of the coarsest level.
        max_segments: Segments of the finest level allowed.
        max_steps: Gradients that a pair may take in total.
        history: Secants that are remembered.
        sketch: Beyond 32 latent dimensions the mean metric stands for the metric everywhere; beyond
            768, a sketch of it by so many products with it.

    Raises:
        OptionError: For a value out of range.

    References:
        D. C. Liu, J. Nocedal, On the limited memory BFGS method for large scale optimization,
        Mathematical Programming 45, 1989. J. Nocedal, S. J. Wright, Numerical Optimization,
        chapter 7, 2006.
    """

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 500
    history: int = 10
    sketch: int = 32

    def __post_init__(self) -> None:
        check_settings("QuasiNewton", self, "history", "sketch")

    @property
    def unrolls(self) -> int:
        """Pairs that have jumped begin anew."""
        return _PATIENCE

    def begin(self, nodes: Tensor) -> QuasiNewtonState:  # (p, n + 1, m)
        """A state about new curves."""
        if nodes.shape[-1] <= _BLOCKS:
            few = nodes.shape[-1] >= WIDE
            return begun(nodes, self.history, FEW_SAMPLES if few else SAMPLES, 0)
        m = nodes.shape[-1]
        return begun(nodes, self.history, 0, m if m <= _FULL else self.sketch)

    def step(self, space: Space, state: QuasiNewtonState, tol: float) -> QuasiNewtonState:
        """One look at the trial nodes of every curve, and the next ones.

        A curve ends when its relative decrement is at most ``tol``, or within rounding of 0: with
        PRECISION where that is more than 50 ``tol``.
        """
        state = self._prepared(space, state)
        energy, gradient = energy_and_gradient(space, state.trial)
        known = precision_of(space, energy.dtype)
        eps = _ROUNDING * known.eps * (state.nodes.shape[1] - 1)
        state, good = _compared(state, energy, gradient, eps)
        live = state.energy.isfinite()
        regular = (state.rest > 0) & (state.energy > 0)
        first = _first_inverse(state)
        g = torch.where(live[:, None, None], state.gradient, 0.0)
        direction = descent(g, state.moves, state.changes, first)
        slope = (g * direction).sum((1, 2))
        status, decrement = _judged(state, slope, tol, eps, 4 * known.length)
        status = torch.where(live, status, int(Status.NON_FINITE))
        status = torch.where(live & ~regular, int(Status.SINGULAR), status)
        boldest = (BOLDEST / decrement).sqrt().clamp(max=1)
        stride = torch.where(good, boldest, state.stride)
        trial = state.nodes.clone()
        trial[:, 1:-1] += stride[:, None, None] * direction
        running = state.status == RUNNING
        return replace(
            state,
            trial=trial,
            slope=slope,
            stride=stride,
            status=torch.where(running, status, state.status),
            decrement=torch.where(live, decrement, torch.nan),
            steps=state.steps + 1,
            taken=state.taken + 1,
        )

    def _prepared(self, space: Space, state: QuasiNewtonState) -> QuasiNewtonState:
        """The state with a preconditioner, where it is yet unknown, or out of date."""
        stale = (state.age >= _REFRESH) & (state.rest > 0) & state.energy.isfinite()
        rows = (state.rest.isnan() | stale).nonzero().flatten()
        age = torch.where(stale, 1.0, state.age + 1)
        if not len(rows):
            return replace(state, age=age)
        nodes = state.nodes[rows]
        rest = state.rest.clone()
        if state.samples.shape[1]:
            found = sampled_metric(space, nodes, state.samples.shape[1])
            samples = state.samples.clone()
            samples[rows] = found
            rest[rows] = torch.where(found.isfinite().flatten(1).all(1), 1.0, 0.0).to(rest)
            return replace(state, samples=samples, rest=rest, age=age)
        rank = state.basis.shape[2]
        if rank == nodes.shape[2]:
            mean = PathMetric.exact(space, nodes)
        else:
            mean = PathMetric.sketched(space, nodes, rank)
        basis = state.basis.clone()
        values = state.values.clone()
        basis[rows] = mean.basis
        values[rows] = mean.values
        rest[rows] = mean.rest.nan_to_num(0.0)
        return replace(state, basis=basis, values=values, rest=rest, age=age)


def _first_inverse(state: QuasiNewtonState) -> Callable[[Tensor], Tensor]:
    """The inverse Hessian before any secant; of no meaning where there is no metric."""
    if not state.samples.shape[1]:
        metric = PathMetric(state.basis, state.values, state.rest)
        return metric.raised(state.floor).solve
    eye = torch.eye(state.nodes.shape[-1]).to(state.nodes)
    known = (state.rest > 0)[:, None, None, None]
    samples = torch.where(known, state.samples, eye)
    # Row by row, so that every curve has the same bits as alone.
    mean = samples.diagonal(dim1=2, dim2=3).flatten(1).mean(1)
    samples = samples + (state.floor * mean)[:, None, None, None] * eye
    return laplacian(samples, state.nodes.shape[1] - 1).cholesky().solve


def _compared(
    state: QuasiNewtonState, energy: Tensor, gradient: Tensor, eps: float
) -> tuple[QuasiNewtonState, Tensor]:
    """The state after a look at its trial nodes, and ``(p,)`` bool: where they are taken.

    Energies are rounded by ``eps``, relatively.
    """
    move = (state.trial - state.nodes)[:, 1:-1]
    found, good = looked(state, move, energy, gradient, eps)
    nodes = torch.where(good[:, None, None], state.trial, state.nodes)
    floor = _floor(state, energy, state.energy.isinf())
    return replace(state, nodes=nodes, floor=floor, **found), good


def _floor(state: QuasiNewtonState, energy: Tensor, fresh: Tensor) -> Tensor:  # -> (p,)
    """The floor under the metric after a look at trial nodes.

    As of Levenberg and Marquardt: where the model promises too much, it is in directions that are
    flat in the metric alone.
    """
    t = state.stride
    promised = -t * (1 - t / 2) * state.slope
    share = (state.energy - energy) / promised
    poor = ~fresh & ~(share >= _POOR)  # True for NaN
    rich = ~fresh & (share >= _RICH)
    raised = (_RISE * state.floor).clamp(_FIRST, _HIGHEST)
    lowered = torch.where(state.floor > _LEAST, state.floor / _FALL, 0.0)
    return torch.where(poor, raised, torch.where(rich, lowered, state.floor))


def _judged(
    state: QuasiNewtonState, slope: Tensor, tol: float, eps: float, rounding: float
) -> tuple[Tensor, Tensor]:
    """Statuses of curves with an energy and a metric, and their relative decrements."""
    relative = remaining(slope, state.gains) / (2 * state.energy)
    # Steps of a curve that creeps are uneven: a short one says little.
    creeping = ~state.gains[:, _CREEPING].isnan() & state.decrement.isfinite()
    smooth = (relative * state.decrement).sqrt()
    relative = torch.where(creeping, torch.fmax(relative, smooth), relative)
    grain = eps * state.energy
    # The last steps count as well: those that have gained much may be followed by others. What they
    # gain is known beyond the rounding of energies, by their slopes.
    silent = (-slope <= 2 * grain) & (state.gains[:, :3].amax(1) <= grain / _ROUNDING)
    slow = ~state.gains[:, -1].isnan()
    wide = state.nodes.shape[-1] >= WIDE
    enough = torch.where(slow, _LEFT_SLOW * tol, _LEFT * tol) if wide else tol
    # What a slow curve gains on few nodes is not its length: it bends between them.
    rough = wide & (state.taken >= _PATIENCE * 2 ** (state.level - _COARSE).clamp(min=0))
    quiet = (relative <= enough) | silent | rough
    coarse = relative > max(_ACCEPTABLE * tol, rounding)
    stalled = state.misses >= _MISSES
    # Rounding hides how much lower the trials are.
    spent = stalled & ~coarse
    status = torch.where(quiet | spent, int(Status.CONVERGED), int(RUNNING))
    status = torch.where(quiet & coarse & ~rough, int(Status.PRECISION), status)
    status = torch.where(stalled & coarse & ~quiet, int(Status.STALLED), status)
    return status, relative


def _interpolated(x: Tensor) -> Tensor:  # (p, h, n - 1, m) -> (p, h, 2 n - 1, m)
    """Displacements of interior nodes at twice as many; the ends do not move."""
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1))
    between = (padded[:, :, 1:] + padded[:, :, :-1]) / 2
    fine = _spread(x)
    fine[:, :, 0::2] = between
    return fine


def _spread(x: Tensor) -> Tensor:  # (p, h, n - 1, m) -> (p, h, 2 n - 1, m)
    """Covectors of interior nodes at twice as many; 0 at the new ones."""
    p, h, count, m = x.shape
    fine = x.new_zeros(p, h, 2 * count + 1, m)
    fine[:, :, 1::2] = x
    return fine
