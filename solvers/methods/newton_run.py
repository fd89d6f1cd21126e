"""A run: several Newton steps with one matrix, which costs one gradient per step.

After every trial step each curve of the run is in one of these states:

=======  ==========================================  ==========================================
outcome  when                                        what follows
=======  ==========================================  ==========================================
BACK     the energy is not lower                     the step is undone; the matrix is stale
ARRIVED  what is left is within the tolerance or     one more step, unlooked at, where the
         rounding, and the matrix can be trusted     matrix converges fast; the curve ends
SLOW     the step left too much                      the curve keeps the step; the matrix is
                                                     stale. On its first level it may end
ON       anything else                               the next step, unless the curve has spent
                                                     its steps or the run is at its longest
=======  ==========================================  ==========================================

The decrement at the new nodes is measured: their gradient costs one reverse pass besides the energy
that a step is judged by anyway. What the gradients show of the Hessian corrects the matrix (BFGS).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from riemae.numerics.tolerances import Tolerance
from riemae.solvers.hooks import energy_and_gradient, precision_of
from riemae.solvers.methods.newton_limits import LIMITS
from riemae.solvers.model import Look, QuadraticModel, Secants
from riemae.solvers.result import Status
from riemae.solvers.space import Space
from riemae.solvers.state import curves_at, flags, masked, moved, put, read, relative_length


class Outcome:
    """What a trial step of a run has come to: plain numbers, as in ``Phase``."""

    BACK = 0
    ARRIVED = 1
    SLOW = 2
    ON = 3


def ended(decrement: np.ndarray, known: Tolerance, tol: float) -> np.ndarray:
    """CONVERGED, or PRECISION where rounding stopped a curve far above its tolerance."""
    acceptable = max(LIMITS.acceptable * tol, 4 * known.length)
    return np.where(decrement > acceptable, int(Status.PRECISION), int(Status.CONVERGED))


@dataclass
class _Curves:
    """The curves that are still in the run, ``q`` of them.

    Attributes:
        rows: ``(q,)``, which curves of the batch.
        nodes: ``(q, n + 1, m)``, where they are.
        step: ``(q, n − 1, m)``, the next step.
        slope: ``(q, n − 1, m)``, the gradient at the nodes.
        energy: ``(q,)``.
        noise: ``(q,)``, rounding error of the energy.
        promised: ``(q,)``, the decrement.
        entry: ``(q,)``, their entries of the book.
        carried: ``(q,)`` bool: the matrix comes from a coarser level.
        informed: ``(q,)`` bool: second derivatives are known, so that the curve may end.
        stiff: ``(q,)`` bool: the matrix has shown less curvature than it promised.
    """

    rows: np.ndarray
    nodes: Tensor
    step: Tensor
    slope: Tensor
    energy: np.ndarray
    noise: np.ndarray
    promised: np.ndarray
    entry: np.ndarray
    carried: np.ndarray
    informed: np.ndarray
    stiff: np.ndarray


@dataclass
class _Trial:
    """What one step has come to.

    Attributes:
        nodes: ``(q, n + 1, m)``, after the step.
        gradient: ``(q, n − 1, m)``, there.
        ahead: ``(q, n − 1, m)``, the step that would follow.
        energy: ``(q,)``, there.
        left: ``(q,)``, the decrement there.
        relative: ``(q,)``, as a share of the length.
        share: ``(q,)``, what the step left of the decrement.
        outcome: ``(q,)``, an :class:`Outcome`.
    """

    nodes: Tensor
    gradient: Tensor
    ahead: Tensor
    energy: np.ndarray
    left: np.ndarray
    relative: np.ndarray
    share: np.ndarray
    outcome: np.ndarray

    @property
    def lower(self) -> np.ndarray:
        """Which curves have a lower energy."""
        return self.outcome != Outcome.BACK

    @property
    def fast(self) -> np.ndarray:
        """Which have arrived so fast that one more step can be taken without a look."""
        return (self.outcome == Outcome.ARRIVED) & (self.share <= LIMITS.slow)


class Run:
    """Steps with one matrix.

    Args:
        space: The space.
        allowed: Steps that a curve may take in all: with and without second derivatives.
        tol: Relative decrement that ends a curve.
        nodes: ``(p, n + 1, m)``, all curves of the batch.
        book: ``(p,)``, their entries; those of the curves that run are written to.
        refused: ``(p,)`` bool; marked where the first step finds no lower energy.
    """

    def __init__(
        self,
        space: Space,
        allowed: tuple[int, int],
        tol: float,
        nodes: Tensor,
        book: np.ndarray,
    ) -> None:
        self.space = space
        self.allowed = allowed
        self.tol = tol
        self.nodes = nodes
        self.book = book
        self.refused = np.zeros(len(book), dtype=bool)

    def __call__(
        self,
        rows: np.ndarray,
        look: Look,
        model: QuadraticModel,
        carried: np.ndarray,
        informed: np.ndarray,
    ) -> None:
        """Run the curves at ``rows`` as long as they converge fast."""
        at, step, slope = curves_at(rows, self.nodes, model.step, model.gradient)
        curves = _Curves(
            rows=rows,
            nodes=at,
            step=step,
            slope=slope,
            energy=look.energy[rows],
            noise=look.noise[rows],
            promised=model.promised[rows],
            entry=self.book[rows],
            carried=carried[rows],
            informed=informed[rows],
            stiff=np.zeros(len(rows), dtype=bool),
        )
        secants = Secants(model, rows)
        for taken in range(LIMITS.longest_run):
            trial = self._tried(curves, secants, taken)
            self._entered(curves, trial, taken)
            on = self._going_on(curves, trial, taken)
            if not on.all():
                self._leave(curves, trial, (~on).nonzero()[0])
            on = on.nonzero()[0]
            if not len(on):
                return
            curves = _next(curves, trial, on)
            secants.keep(on)

    def _tried(self, curves: _Curves, secants: Secants, taken: int) -> _Trial:
        """Take the step, and look at what is left."""
        nodes = moved(curves.nodes, curves.step)
        value, gradient = energy_and_gradient(self.space, nodes)
        curvature = secants.add(curves.step, gradient - curves.slope)
        ahead, decrement = secants.newton(gradient)
        energy, bend, left = read(value, curvature, decrement)
        lower = curves.energy - energy >= LIMITS.enough * curves.promised - curves.noise
        curves.stiff |= bend < LIMITS.stiff * curves.promised
        relative = relative_length(left, energy)
        share = left / curves.promised
        outcome = self._judged(
            curves=curves, lower=lower, left=left, relative=relative, share=share, taken=taken
        )
        return _Trial(
            nodes=nodes,
            gradient=gradient,
            ahead=ahead,
            energy=energy,
            left=left,
            relative=relative,
            share=share,
            outcome=outcome,
        )

    def _judged(
        self,
        curves: _Curves,
        lower: np.ndarray,
        left: np.ndarray,
        relative: np.ndarray,
        share: np.ndarray,
        taken: int,
    ) -> np.ndarray:
        """The outcomes; ``lower`` is False for NaN."""
        # One more step with this matrix would leave about the same share again. A matrix from a
        # coarser level has a say in whether the curve is done only if it foresees its steps: one
        # that is too stiff promises too little.
        good = share <= LIMITS.slow
        doubted = curves.carried & curves.stiff
        foreseen = relative * share.clip(LIMITS.trusted_gain, 1.0)
        met = (foreseen <= self.tol) & (good | ~curves.carried)
        within_rounding = left <= 2 * curves.noise
        arrived = lower & (met | within_rounding) & ~doubted
        learnt = (~good & (taken >= LIMITS.learning)) | doubted
        outcome = np.full(len(lower), Outcome.ON)
        outcome[lower & ~arrived & learnt] = Outcome.SLOW
        outcome[arrived] = Outcome.ARRIVED
        outcome[~lower] = Outcome.BACK
        return outcome

    def _entered(self, curves: _Curves, trial: _Trial, taken: int) -> None:
        """Write the outcomes into the entries."""
        entry = curves.entry
        arrived = trial.outcome == Outcome.ARRIVED
        slow = trial.outcome == Outcome.SLOW
        further = trial.relative * np.maximum(trial.share, LIMITS.trusted_gain)
        remaining = np.where(trial.fast, further, trial.relative)
        # The first level is not for its own sake: where it converges slowly, the finer one has less
        # to do.
        rough = slow & entry["first"] & (trial.relative <= LIMITS.rough)
        # Without second derivatives there is no index: they are looked at before a curve may end.
        entry["status"][curves.informed & rough] = Status.CONVERGED
        verdict = ended(remaining, precision_of(self.space, trial.nodes.dtype), self.tol)
        entry["status"] = np.where(curves.informed & arrived, verdict, entry["status"])
        entry["decrement"] = np.where(trial.lower, remaining, entry["decrement"])
        entry["stale"] = slow | ~trial.lower
        little = entry["first"] & (trial.relative <= LIMITS.close)
        entry["near"] = arrived | (entry["rough"] & little)
        entry["steps"] += trial.lower & (taken > 0)
        self.refused[curves.rows] = ~trial.lower & (not taken)

    def _going_on(self, curves: _Curves, trial: _Trial, taken: int) -> np.ndarray:
        """Which curves take another step."""
        free = curves.informed | curves.entry["rough"]
        allowed = np.where(free, *self.allowed)
        on = trial.outcome == Outcome.ON
        return on & (curves.entry["steps"] < allowed) & (taken + 1 < LIMITS.longest_run)

    def _leave(self, curves: _Curves, trial: _Trial, off: np.ndarray) -> None:
        """Put the curves at ``off`` of the run back into the batch."""
        final = trial.nodes
        if trial.fast.any():
            final = moved(final, masked(trial.fast, trial.ahead))
        if not trial.lower.all():
            final = torch.where(flags(trial.lower, trial.nodes), final, curves.nodes)
        rows = curves.rows[off]
        self.nodes = put(self.nodes, rows, curves_at(off, final)[0])
        self.book[rows] = curves.entry[off]


def _next(curves: _Curves, trial: _Trial, on: np.ndarray) -> _Curves:
    """The curves at ``on``, after their step."""
    nodes, step, slope = curves_at(on, trial.nodes, trial.ahead, trial.gradient)
    return _Curves(
        rows=curves.rows[on],
        nodes=nodes,
        step=step,
        slope=slope,
        energy=trial.energy[on],
        noise=curves.noise[on],
        promised=trial.left[on],
        entry=curves.entry[on],
        carried=curves.carried[on],
        informed=curves.informed[on],
        stiff=curves.stiff[on],
    )
