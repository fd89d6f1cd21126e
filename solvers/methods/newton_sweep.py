"""One step of damped Newton, for all curves of a batch.

A step looks at every curve once (an expansion of its energy and a quadratic model), and each curve
is then in one phase:

=========  ===========================================  ============================================
phase      when                                         what happens, and what follows
=========  ===========================================  ============================================
FAILED     the metric is singular, or a number is not   nothing: its status says so, and the driver
           finite                                       takes it out of the batch
SADDLE     ``target="stationary"`` keeps it near the    undamped Newton towards the saddle; it ends
           saddle where it started                      when the decrement is small
LEAVING    it has converged to a saddle, and            it moves along the direction of negative
           ``target="minimum"``                         curvature and goes on; STILL where no such
                                                        move lowers the energy
STILL      what is left is too little for a step        it ends
LAST       it has converged on its first level, by      one step that is not judged, and it ends
           the Hessian itself
RUN        the matrix is sound and undamped             steps with this matrix as long as they
                                                        converge fast (see ``newton_run``). It ends
                                                        when it has converged; DESCENT where the
                                                        first step finds no lower energy
DESCENT    the matrix is not sound, or damped           the longest damped step that lowers the
                                                        energy; STALLED where there is none
=========  ===========================================  ============================================

*Rough* is a curve that was in DESCENT by the Hessian, or by a matrix from a coarser level. It goes
on without second derivatives. Where no coarser level has shown that it minimises, the Hessian is
looked at again once it is *near*: once Gauss-Newton's matrix leaves little to gain.

*Quiet* is a curve whose decrement is within the tolerance or within rounding of 0: it ends in this
step unless it is LEAVING. On fine levels with a sharp tolerance, a curve that ends is polished: it
gets one more step, on the residual of a sixth-order discretisation.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.energy import discrete_energy
from riemae.solvers.hooks import precision_of
from riemae.solvers.methods.newton_expansion import expand, sound
from riemae.solvers.methods.newton_limits import LIMITS
from riemae.solvers.methods.newton_run import Run, ended
from riemae.solvers.methods.newton_saddles import escape, undamped
from riemae.solvers.model import QuadraticModel, decrement_of
from riemae.solvers.result import Status
from riemae.solvers.space import Space
from riemae.solvers.state import (
    RUNNING,
    PathState,
    curves_at,
    masked,
    moved,
    on_host,
    put,
    read,
    relative_length,
)


class Phase:
    """What a step does with a curve: see the table at the top of this module.

    Plain numbers: numpy compares an array with a member of an enumeration four times slower.
    """

    FAILED = 0
    SADDLE = 1
    LEAVING = 2
    STILL = 3
    LAST = 4
    RUN = 5
    DESCENT = 6


class Settings(Protocol):
    """What a step reads of the settings of :class:`~riemae.solvers.methods.newton.Newton`."""

    @property
    def max_steps(self) -> int:
        """Steps that a pair may take in total."""
        ...

    @property
    def gauss_newton_steps(self) -> int:
        """Steps without second derivatives from a new start."""
        ...

    @property
    def second_order(self) -> bool:
        """Whether second derivatives are taken at all."""
        ...

    @property
    def target(self) -> Literal["minimum", "stationary"]:
        """Whether saddles are left."""
        ...


class Sweep:
    """One step of all curves: what is known of them, and one method per phase.

    Attributes:
        nodes: ``(p, n + 1, m)``.
        book: ``(p,)`` entries, a copy.
        carried: ``(p,)`` bool: the matrix comes from elsewhere on the way.
        fresh: ``(p,)`` bool: the expansion has second derivatives at the present nodes.
        informed: ``(p,)`` bool: second derivatives are known (or not wanted), so a curve may end.
        look: At the expansion of the energy.
        expansion: Of the energy.
        model: The quadratic model.
        energy: ``(p,)``.
        noise: ``(p,)``, rounding error of the energy.
        step: ``(p, n − 1, m)``, damped where the curve is.
        promised: ``(p,)``, the decrement that it promises.
        relative: ``(p,)``, the undamped decrement as a share of the length.
        sound: ``(p,)`` bool: the matrix is the energy's own, positive definite and undamped.
        quiet: ``(p,)`` bool: the decrement is within the tolerance or rounding.
        refused: ``(p,)`` bool: the first step of a run found no lower energy.
        phase: ``(p,)``, a :class:`Phase`.
    """

    def __init__(self, solver: Settings, space: Space, state: PathState, tol: float) -> None:
        self.solver = solver
        self.space = space
        self.tol = tol
        self.nodes = state.nodes
        self.book = state.book.copy()
        self.refused = np.zeros(len(self.book), dtype=bool)
        self.book["rough"] &= self._does_without()
        self._look(state)
        self._promise()
        self._assign()

    def _look(self, state: PathState) -> None:
        """The expansion and its model; curves without either have failed."""
        book = self.book
        self.carried = book["known"] & ~book["stale"]
        self.fresh = self._wants_second_order()
        first_look = (book["steps"] == 0) | ~book["first"]
        unseen = ~self.carried & first_look
        expansion = expand(space=self.space, state=state, carried=self.carried, fresh=self.fresh)
        self.look, finite = sound(expansion, unseen)
        self.model = QuadraticModel.of(self.look, reused=self.carried, fresh=self.fresh)
        self.expansion = self.look.expansion
        self.energy = self.look.energy
        self.noise = self.look.noise
        book["status"][self.model.singular] = Status.SINGULAR
        book["status"][~finite] = Status.NON_FINITE
        settled = book["rough"] & book["sure"] & ~self.fresh
        book["index"] = np.where(settled, 0, self.model.index)
        book["noise"] = self.noise
        book["scalable"] = self.expansion.scalable
        book["separate"] = self.expansion.separate
        book["known"] |= self.fresh
        book["stale"] &= ~self.fresh

    def _wants_second_order(self) -> np.ndarray:
        book = self.book
        if not self.solver.second_order:
            return np.zeros_like(book["known"])
        # Far from the geodesic they are not worth having. But a start curve that may be kept as it
        # is must be judged by the full Hessian at once.
        minimising = self.solver.target == "minimum"
        if minimising:
            # What begins anew after steps elsewhere has jumped.
            book["rough"] |= book["first"] & (book["steps"] > 0) & np.isnan(book["seen"])
            wait = self.solver.gauss_newton_steps * book["first"]
        else:
            wait = 0
        begins = book["near"] | (book["steps"] >= wait)
        begins &= ~book["rough"] | (book["near"] & ~book["sure"])
        return np.where(book["known"], book["stale"], begins)

    def _does_without(self) -> np.ndarray:
        """Where curves may be rough: digits come fastest by second derivatives."""
        return self.book["first"] | (self.tol >= LIMITS.loose)

    def _promise(self) -> None:
        """The step of the model, and the decrement that it promises."""
        damping = self.book["damping"]
        self.step = self.model.step
        self.promised = self.model.promised
        # What is left is told by the undamped model alone: a damped one does not see what long
        # waves of a curve have to gain.
        self.relative = relative_length(self.promised, self.energy)
        if (damping != 0).any():
            self.step, decrement = self.model.solve(damping)
            self.promised = on_host(decrement)

    def _assign(self) -> None:
        """The phase of every curve."""
        book = self.book
        indefinite = self.model.indefinite
        undamped = book["damping"] == 0
        live = book["status"] == RUNNING
        saddle = live & self._kept()
        rest = live & ~saddle
        self.informed = (book["index"] >= 0) | (not self.solver.second_order)
        negligible = self.model.promised <= 2 * self.noise
        small = (self.relative <= self.tol) | negligible
        self.quiet = rest & self.informed & small
        # Rough curves are looked at again where Gauss-Newton has little left to gain.
        enough = np.where(book["first"], LIMITS.close, self.tol)
        book["near"] |= book["rough"] & ~self.informed & (self.relative <= enough)
        trusted = self.informed | ~self.carried
        self.sound = trusted & ~indefinite & undamped
        # What a step leaves is known only once it has been taken: one that promises more than
        # rounding is taken, however short. A matrix from a coarser level may promise too little by
        # far. On the first level, whose curve is not the answer, the Hessian itself is believed,
        # and its last step is taken without a look.
        settled = self.quiet & self.sound
        last = settled & self.fresh & book["first"]
        factor = np.where(self.carried, LIMITS.believed, 2.0)
        believed = factor * self.noise
        little = self.promised <= believed
        still = self.quiet & (~self.sound | little)
        self.phase = np.full(len(book), Phase.FAILED)
        self.phase[rest & self.sound] = Phase.RUN
        self.phase[rest & ~self.sound] = Phase.DESCENT
        self.phase[still] = Phase.STILL
        self.phase[last] = Phase.LAST
        if self.solver.target == "minimum":
            self.phase[self.quiet & indefinite] = Phase.LEAVING
        self.phase[saddle] = Phase.SADDLE

    def _kept(self) -> np.ndarray:
        """Which curves converge to a saddle on purpose."""
        book = self.book
        indefinite = self.model.indefinite
        if self.solver.target != "stationary":
            return np.zeros_like(indefinite)
        new = book["steps"] == 0
        close = self.relative < LIMITS.near
        at_start = new & indefinite & close
        return at_start | (book["kept"] & indefinite)

    def _live(self) -> np.ndarray:
        """Which curves follow the model's step, or end."""
        return self.phase > Phase.LEAVING

    def towards_saddles(self) -> None:
        """SADDLE: undamped Newton."""
        saddle = self.phase == Phase.SADDLE
        if not saddle.any():
            return
        rows = saddle.nonzero()[0]
        (nodes,) = curves_at(rows, self.nodes)
        reached, relative, solved = undamped(self.expansion, self.model, nodes, rows)
        book = self.book
        book["decrement"][rows] = relative
        book["status"][rows[relative <= self.tol]] = Status.CONVERGED
        book["status"][rows[~solved]] = Status.SINGULAR
        book["stale"] |= saddle
        self.nodes = put(self.nodes, rows, reached)

    def leave_saddles(self) -> None:
        """LEAVING: along the direction of most negative curvature.

        To the side where the energy falls further. A curve for which no such move lowers the energy
        is STILL.
        """
        leaving = self.phase == Phase.LEAVING
        if not leaving.any():
            return
        rows = leaving.nonzero()[0]
        self.nodes, escaped = escape(self.space, self.expansion, self.model, self.nodes, rows)
        left = np.zeros_like(leaving)
        left[escaped] = True
        self.book["stale"] |= left
        self.quiet &= ~left
        self.phase[leaving & ~left] = Phase.STILL

    def count(self) -> None:
        """Enter the step and its decrement into the book."""
        book = self.book
        book["decrement"] = np.where(self._live(), self.relative, book["decrement"])
        book["steps"] += 1
        book["kept"] = self.phase == Phase.SADDLE

    def last(self) -> None:
        """LAST: one step that is not judged."""
        last = self.phase == Phase.LAST
        if last.any():
            self.nodes = moved(self.nodes, masked(last, self.step))

    def run(self) -> None:
        """RUN: steps with one matrix; DESCENT for those whose first one is refused."""
        rows = (self.phase == Phase.RUN).nonzero()[0]
        if not len(rows):
            return
        allowed = (self.solver.max_steps, self.solver.gauss_newton_steps)
        run = Run(self.space, allowed, self.tol, self.nodes, self.book)
        run(rows, self.look, self.model, self.carried, self.informed)
        self.nodes = run.nodes
        self.refused = run.refused
        again = self.refused & ~self.quiet
        self.phase[again] = Phase.DESCENT

    def descend(self) -> None:
        """DESCENT: the longest damped step that lowers the energy; STALLED without one."""
        descent = self.phase == Phase.DESCENT
        if not descent.any():
            return
        lowered = self._descended(descent.nonzero()[0])
        self.book["stale"] |= descent
        self._retreat(descent & lowered)
        self.book["status"][descent & ~lowered] = Status.STALLED

    def _retreat(self, set_back: np.ndarray) -> None:
        """Go on without second derivatives where they have not served.

        Far from the geodesic the Hessian is as likely to be indefinite after the next step as
        before it; Gauss-Newton's matrix is always positive definite, and costs half or a third.
        """
        if self.solver.target != "minimum":
            return
        book = self.book
        seen = self.fresh | self.carried
        back = set_back & seen & self._does_without() & (self.relative > LIMITS.close)
        book["sure"] |= back & self.fresh & book["near"] & (self.model.index == 0)
        book["rough"] |= back
        book["near"] &= ~back
        book["known"] &= ~back
        book["damping"][back] = 0.0

    def _descended(self, rows: np.ndarray) -> np.ndarray:
        """Take damped steps of the curves at ``rows``; which of them have found a lower energy.

        Of the curves that a run has refused, the undamped step is known not to.
        """
        start = self.nodes
        damping = self.book["damping"]
        lowered = np.zeros_like(self.refused)
        step, promised = self._first_step(rows)
        for attempt in range(LIMITS.attempts):
            if attempt:
                step, less = self.model.solve(damping[rows], rows)
            (before,) = curves_at(rows, start)
            trial = moved(before, step)
            energies = discrete_energy(self.space.squared_chords(trial))
            if attempt:
                reached, promised = read(energies, less)
            else:
                reached = on_host(energies)
            gain = self.energy[rows] - reached
            needed = LIMITS.enough * promised - self.noise[rows]
            enough = gain >= needed  # False for NaN
            taken = enough.nonzero()[0]
            if len(taken):
                better = curves_at(taken, trial)[0]
                self.nodes = put(self.nodes, rows[taken], better)
            lowered[rows[taken]] = True
            clear = gain >= LIMITS.good * promised - self.noise[rows]
            good = rows[enough & clear]
            damping[good] = _relaxed(damping[good])
            rows = rows[~enough]
            damping[rows] = np.maximum(4 * damping[rows], LIMITS.damping_start)
            if not len(rows):
                break
        return lowered

    def _first_step(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """The steps of the curves at ``rows``, damped where a run has refused the undamped one.

        And the decrements that they promise.
        """
        damping = self.book["damping"]
        (step,) = curves_at(rows, self.step)
        promised = self.promised[rows]
        known = self.refused[rows].nonzero()[0]
        if len(known):
            those = rows[known]
            damping[those] = LIMITS.damping_start
            damped, less = self.model.solve(damping[those], those)
            step = put(step, known, damped)
            promised = promised.copy()
            promised[known] = on_host(less)
        return step, promised

    def end(self) -> None:
        """Give quiet curves their verdict, unless a run has found their matrix wanting."""
        book = self.book
        running = book["status"] == RUNNING
        wanting = self.carried & book["stale"]
        ending = self.quiet & running & ~wanting
        known = precision_of(self.space, self.nodes.dtype)
        verdict = ended(book["decrement"], known, self.tol)
        book["status"] = np.where(ending, verdict, book["status"])

    def give_up(self) -> None:
        """STALLED are curves that would not get far in all the steps that are left to them.

        Where a decoder has a kink, each step may be good as far as the kink only: the energy then
        falls by ever smaller shares of what is left to gain.
        """
        book = self.book
        running = book["status"] == RUNNING
        due = running & ~(book["steps"] - book["then"] < LIMITS.patience)
        gained = (book["seen"] - self.energy) / (book["steps"] - book["then"])
        expected = gained * (self.solver.max_steps - book["steps"])
        # False for NaN, before a first look. Of an indefinite model's promise little is known.
        hopeless = expected < LIMITS.headway * self.model.promised / 2
        book["status"][due & hopeless & ~self.model.indefinite] = Status.STALLED
        first = running & np.isnan(book["seen"])
        book["seen"] = np.where(due | first, self.energy, book["seen"])
        book["then"] = np.where(due | first, book["steps"], book["then"])

    def polish(self) -> None:
        """Correct the nodes of finished curves for the second order of the energy."""
        coarse = self.nodes.shape[1] <= LIMITS.sharp_segments
        if self.tol > LIMITS.sharp or coarse:
            return
        status = self.book["status"]
        finished = (status != RUNNING) & (status != Status.STALLED)
        ending = self._live() & self.sound & finished
        rows = ending.nonzero()[0]
        if not len(rows):
            return
        at, energy = curves_at(rows, self.nodes, self.expansion.energy)
        residual = self.space.residual(at)
        if residual is None:
            return
        step = self.model.newton(residual, rows)
        size = relative_length(decrement_of(residual, step), energy)
        small = (size < LIMITS.sharp_limit)[:, None, None]
        correction = torch.where(small, step, 0.0)
        self.nodes = put(self.nodes, rows, moved(at, correction))

    def state(self) -> PathState:
        """The state after the step."""
        gn = self.model.gauss_newton
        correction = self.model.correction
        return PathState(
            book=self.book,
            nodes=self.nodes,
            tangents=gn.diagonal,
            crossings=gn.upper,
            diagonal=correction.diagonal,
            upper=correction.upper,
        )


def _relaxed(damping: np.ndarray) -> np.ndarray:
    """Less damping after a good step; none at all once it is small."""
    relaxed = damping / 8
    return np.where(relaxed < LIMITS.damping_floor, 0.0, relaxed)
