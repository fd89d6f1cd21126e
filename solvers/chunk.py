"""Pairs that are solved together, from level to level of resolution.

A pair is in one of four states:

=======  =====================================================  ====================================
state    when                                                   what follows
=======  =====================================================  ====================================
WAITING  its start curve cannot be seen at this resolution      LEVEL, once it can
         (:class:`~riemae.solvers.queue.Queue`)
LEVEL    the solver works on it at this resolution              the verdict: OVER, or LEVEL with
                                                                twice as many segments; UNROLLED
                                                                where it has jumped
UNROLLED its start curve has been shortened on more nodes       LEVEL at their resolution
         (:mod:`~riemae.solvers.unroll`)
OVER     it has a verdict, or was settled before anything was   its shortest curve is kept
         solved, or the budget of the call is spent
=======  =====================================================  ====================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from riemae.numerics.offers import offers
from riemae.solvers.budget import Exhausted, spent, strict
from riemae.solvers.curve import Curve
from riemae.solvers.foresight import foreseen, in_doubt
from riemae.solvers.hooks import between
from riemae.solvers.measure import Evidence, Measure
from riemae.solvers.near import keep_near
from riemae.solvers.outcome import started
from riemae.solvers.progress import Progress
from riemae.solvers.queue import Queue, even
from riemae.solvers.result import GeodesicResult, Status
from riemae.solvers.shortest import Best, recovered, straightened
from riemae.solvers.solver import (
    Attempt,
    Foresighted,
    HasAttempt,
    Solver,
    refined,
    refinement_ratio,
)
from riemae.solvers.space import Space
from riemae.solvers.state import RUNNING, curves_at, hand_on, numbers, placed, select, update
from riemae.solvers.unrolling import Unrolling, Watch
from riemae.solvers.verdict import Claims, Level, reported_error, verdict
from riemae.solvers.verification import verified

# The solver's own error must be small compared to the discretisation error that is being estimated;
# rounding may stop it at 50 times as much.
_SOLVER_SHARE = 3e-3
_ACCEPTABLE = 50
# A curve this much shorter than the distance of its end points has run away to where rounding
# rules.
_RUNAWAY = 1e-3


@np.errstate(all="ignore")  # what comes of NaN is NaN, and has a status
def solve_chunk(
    space: Space,
    solver: Solver,
    start: Curve,
    rtol: float,
    progress: Progress | None,
    at_once: Callable[[Tensor], int],
    verify: bool = False,
) -> tuple[GeodesicResult, np.ndarray]:  # a flat batch (p,)
    """Solve some pairs.

    Args:
        space: The space.
        solver: The solver.
        start: Start curves ``(p,)``.
        rtol: Relative accuracy of the lengths.
        progress: Called with (pairs done, pairs in all) after every step and every level.
        at_once: How many curves with such nodes ``(p, n + 1, m)`` one step may work on.
        verify: Whether start curves that are accurate enough are kept.

    Returns:
        The result, and the lengths of the start curves' polygons, NaN where unknown.
    """
    if spent(space):
        return untouched(space, solver, start, rtol)
    chunk = _Chunk(space, solver, start, rtol, at_once, verify)
    while chunk.unfinished():
        chunk.level(progress)
        if spent(space):
            chunk.stop()
            break
        chunk.admit()
    return chunk.result(), chunk.begun


def untouched(
    space: Space, solver: Solver, start: Curve, rtol: float
) -> tuple[GeodesicResult, np.ndarray]:  # a flat batch (p,)
    """Pairs for which the budget has left nothing: their start curves, whose length is unknown."""
    outcome, _ = started(start, None)
    outcome.give_up(start)
    z0 = start.nodes[:, 0]
    result = outcome.result(space, z0, solver.segments, None, rtol)
    return result, np.full(len(z0), np.nan)


class _Chunk:
    """Pairs that are solved together; arrays ``(p,)`` for all of them, ``(q,)`` for those in LEVEL.

    Attributes:
        given: The space.
        space: The same, which may know these pairs' ends.
        outcome: What is known of all pairs.
        bound: ``(p,)``, lower bounds of the lengths; None where the space knows none.
        least: ``(p,)``, the same on the host, NaN where unknown.
        queue: The pairs in WAITING.
        begun: ``(p,)``, lengths of the start curves' polygons.
        evidence: Lengths of the last levels.
        best: The shortest curves.
        segments: Of the present level.
        rows: ``(q,)``, the pairs in LEVEL.
        anew: The pairs in UNROLLED.
        state: The solver's progress on them.
    """

    def __init__(
        self,
        space: Space,
        solver: Solver,
        start: Curve,
        rtol: float,
        at_once: Callable[[Tensor], int],
        verify: bool,
    ) -> None:
        self.given = space
        self.solver = solver
        self.rtol = rtol
        self.at_once = at_once
        self.z0 = start.nodes[:, 0]
        self.z1 = start.nodes[:, -1]
        self.space = space = between(space, self.z0, self.z1)
        p = len(self.z0)
        if p:
            self.bound = space.ambient_distance(self.z0, self.z1)
        else:
            self.bound = None
        self.outcome, self.least = started(start, self.bound)
        self._keep_settled()
        if verify:
            self._attempt(start, verified)
        straight = start
        if offers(self.solver, HasAttempt):
            start = self._attempt(start, self.solver.attempt)
        self.queue = Queue(space, start, self.outcome.running(), solver)
        self.begun = np.full(p, np.nan)
        self.begun[self.queue.rows] = self.queue.lengths
        tolerated = _ACCEPTABLE * _SOLVER_SHARE * rtol
        keep_near(
            space=space,
            solver=solver,
            queue=self.queue,
            out=self.outcome,
            least=self.least,
            rtol=rtol,
            tolerated=tolerated,
        )
        self.evidence = Evidence(p)
        self.best = Best(space, p, rtol)
        self.segments = solver.segments
        self.rows, nodes = self.queue.admit(self.segments)
        self.state: Any = solver.begin(nodes)
        self.anew = Unrolling(space, solver, straight)

    def _attempt(self, start: Curve, attempt: Callable[..., Attempt | None]) -> Curve:
        """Pairs that can be done as a whole are OVER before anything else is looked at.

        Returns:
            Start curves for the others, shorter ones where there are.
        """
        rows = self.outcome.running()
        if not len(rows):
            return start
        part = start if len(rows) == len(start.nodes) else start[placed(rows, start.nodes)]
        try:
            found = attempt(strict(self.space), part, self.least[rows], self.rtol)
        except Exhausted:
            return start
        if found is None:
            return start
        out = self.outcome
        done = rows[found.rows]
        out.length[done] = found.length
        out.error[done] = found.error
        out.decrement[done] = found.left
        out.speed_deviation[done] = found.unevenness
        out.steps[done] = found.steps
        out.index[done] = found.index
        out.status[done] = Status.CONVERGED
        for places, curve in found.curves:
            out.keep(done[places], curve)
        for places, curve in found.starts:
            start = start.exchanged(placed(rows[places], start.nodes), curve)
        return start

    def _keep_settled(self) -> None:
        """Straight lines for the pairs that are OVER before anything is solved."""
        settled = (self.outcome.status != RUNNING).nonzero()[0]
        if len(settled):
            those = placed(settled, self.z0)
            line = Curve.line(self.z0[those], self.z1[those], self.solver.segments)
            self.outcome.keep(settled, line)

    def unfinished(self) -> bool:
        """Whether a pair is in LEVEL, WAITING or UNROLLED."""
        return bool(len(self.rows) or len(self.queue.rows) or self.anew.waiting)

    def level(self, progress: Progress | None) -> None:
        """Solve the pairs in LEVEL at this resolution; those that go on get the next one."""
        if not len(self.rows):
            return
        share = _SOLVER_SHARE * self.rtol
        (steps,) = numbers(self.state, "steps")
        known = np.fmin(self.begun[self.rows], self.best.length[self.rows])
        watch = self.anew.watch(known, steps, self.segments)
        watch.beat = partial(self._report, progress, len(self.rows))
        self.state = solve_level(
            space=strict(self.space),
            solver=self.solver,
            state=self.state,
            tol=share,
            at_once=self.at_once,
            watch=watch,
        )
        measure = self._without_jumps(watch)
        if not len(self.rows):
            return
        self.evidence.add(self.rows, measure.length, measure.root_energy)
        measure = straightened(
            space=self.space,
            measure=measure,
            evidence=self.evidence,
            rows=self.rows,
            rtol=self.rtol,
        )
        running = self._judged(measure)
        self._conclude(measure, (~running).nonzero()[0])
        on = running.nonzero()[0]
        self._report(progress, len(on))
        self._refine(measure, on)

    def _without_jumps(self, watch: Watch) -> Measure:
        """The measure of the pairs that stay in LEVEL; LEVEL → UNROLLED for those that jumped."""
        nodes = self.state.nodes
        seen = (~watch.gone).nonzero()[0]
        measure = Measure.of(self.space, Curve.from_nodes(*curves_at(seen, nodes)))
        (steps,) = numbers(self.state, "steps")
        gone = watch.gone.copy()
        gone[seen] = watch.late(seen, measure, steps)
        if not gone.any():
            return measure
        for pairs, anew in self.anew.begin(self.rows[gone], steps[gone], self.segments):
            self.outcome.length[pairs] = self.best.take(pairs, anew)
        stay = ~gone
        kept = stay[seen].nonzero()[0]
        measure = measure.select(kept, placed(kept, nodes))
        self.rows = self.rows[stay]
        self.state = select(self.state, stay.nonzero()[0])
        return measure

    def _report(self, progress: Progress | None, in_level: int) -> None:
        """Tell how many pairs are OVER."""
        if progress is not None:
            unfinished = in_level + len(self.queue.rows) + len(self.anew.rows)
            progress(len(self.z0) - unfinished, len(self.z0))

    def _judged(self, measure: Measure) -> np.ndarray:
        """Enter what the level says of its pairs; which of them go on."""
        rows = self.rows
        out = self.outcome
        status, left, steps = numbers(self.state, "status", "decrement", "steps")
        level = Level(
            rows=rows,
            measure=measure,
            length=self.best.take(rows, measure),
            status=status,
            left=left,
            spent=steps >= self.solver.max_steps,
            least=self.least[rows],
            last=2 * self.segments > self.solver.max_segments,
        )
        self.evidence.end(rows, measure.wobble, level.rest)
        claims = Claims.of(self.evidence, level, refinement_ratio(self.solver))
        statuses = verdict(level, claims.worst, self.rtol)
        doubted = in_doubt(self.evidence, level, claims, statuses, self.rtol).nonzero()[0]
        if len(doubted) and offers(self.solver, Foresighted) and not spent(self.space):
            ahead = foreseen(
                space=self.space,
                solver=self.solver,
                state=self.state,
                level=level,
                claims=claims,
                rows=doubted,
                rtol=self.rtol,
                at_once=self.at_once,
            )
            claims = claims.raised(doubted, ahead)
            statuses = verdict(level, claims.worst, self.rtol)
        if spent(self.space):
            cut_short = (statuses == RUNNING) | ((status == RUNNING) & ~level.spent)
            statuses[cut_short] = Status.BUDGET
        out.length[rows] = level.length
        out.error[rows] = reported_error(
            claims=claims, level=level, statuses=statuses, rtol=self.rtol
        )
        out.steps[rows] = steps
        out.status[rows] = statuses
        return statuses == RUNNING

    def _conclude(self, measure: Measure, over: np.ndarray) -> None:
        """LEVEL → OVER."""
        if not len(over):
            return
        rows = self.rows[over]
        out = self.outcome
        index, decrement = numbers(self.state, "index", "decrement")
        out.index[rows] = index[over]
        out.decrement[rows] = decrement[over]
        out.speed_deviation[rows] = measure.unevenness[over]
        for pairs, curve in self.best.curves(rows):
            out.keep(pairs, curve)

    def _refine(self, measure: Measure, on: np.ndarray) -> None:
        """LEVEL → LEVEL with twice as many segments."""
        if not len(on):
            self.rows = self.rows[on]
            return
        (steps,) = numbers(self.state, "steps")
        if len(on) < len(self.rows):
            self.rows = self.rows[on]
            self.state = select(self.state, on)
            measure = measure.select(on, placed(on, self.z0))
            steps = steps[on]
        measure, lost = recovered(
            space=self.space, measure=measure, best=self.best, rows=self.rows, rtol=self.rtol
        )
        anew = lost | measure.may_hide_a_jump
        finer = even(
            curve=measure.curve,
            speed=measure.speed,
            weights=measure.weights,
            segments=2 * self.segments,
            wanted=anew,
        )
        self.state = refined(self.solver, self.state, finer, anew)
        hand_on(self.state, steps)

    def admit(self) -> None:
        """WAITING → LEVEL and UNROLLED → LEVEL, at the next resolution."""
        self.segments *= 2
        if len(self.queue.rows):
            joined, nodes = self.queue.admit(self.segments)
            self._join(joined, self.solver.begin(nodes))
        for joined, nodes, steps in self.anew.admit(self.segments):
            new: Any = self.solver.begin(nodes)
            hand_on(new, steps)
            self._join(joined, new)

    def _join(self, joined: np.ndarray, new: Any) -> None:
        if len(self.rows):
            self.state = type(new).cat([self.state, new])
        else:
            self.state = new
        self.rows = np.concatenate([self.rows, joined])

    def stop(self) -> None:
        """WAITING → OVER and UNROLLED → OVER, when the budget is spent."""
        rows = self.anew.rows
        if len(rows):
            out = self.outcome
            out.status[rows] = Status.BUDGET
            out.error[rows] = np.maximum(out.length[rows] - self.least[rows], 0.0)
            for pairs, curve in self.best.curves(rows):
                out.keep(pairs, curve)
            self.anew.waiting.clear()
        waiting = self.queue.rows
        if len(waiting):
            self.outcome.status[waiting] = Status.BUDGET
            self.outcome.keep(waiting, self.queue.start)
            self.queue.keep(np.zeros(len(waiting), dtype=bool))

    def result(self) -> GeodesicResult:
        """The result of all pairs."""
        out = self.outcome
        # A curve that ran away has no length to speak of.
        out.length[(out.status > 0) & (out.length < (1 - _RUNAWAY) * self.least)] = np.nan
        return out.result(self.given, self.z0, self.solver.segments, self.bound, self.rtol)


def solve_level(
    space: Space,
    solver: Solver,
    state: Any,
    tol: float,
    at_once: Callable[[Tensor], int],
    watch: Watch | None = None,
) -> Any:
    """Iterate at one resolution until every curve has ended or spent its steps.

    Those that have leave the batch. When the budget does not allow a step, curves stay as they were
    before it.

    Args:
        space: The space.
        solver: The solver.
        state: Its progress.
        tol: As in ``solver.step``.
        at_once: As in :func:`solve_chunk`.
        watch: Sees the state after every step, and says which curves are to be left alone.
    """
    watch = watch or Watch.of_none(len(state.nodes))
    try:
        for reached, told in _steps(space, solver, state, tol, at_once, watch):
            state = reached
            watch.see(state, told)
    except Exhausted:
        pass
    return state


def _steps(
    space: Space,
    solver: Solver,
    state: Any,
    tol: float,
    at_once: Callable[[Tensor], int],
    watch: Watch,
) -> Iterator[tuple[Any, Any]]:
    """The states after each step, in the end none, and their statuses and steps on the host."""
    size = at_once(state.nodes)
    told = numbers(state, "status", "steps")
    while True:
        status, steps = told
        running = (status == RUNNING) & (steps < solver.max_steps) & ~watch.gone
        active = running.nonzero()[0]
        if not len(active):
            return
        if len(active) == len(running) <= size:
            state = solver.step(space, state, tol)
            told = numbers(state, "status", "steps")
            yield state, told
            continue
        for first in range(0, len(active), size):
            rows = active[first : first + size]
            update(state, rows, solver.step(space, select(state, rows), tol))
            told = numbers(state, "status", "steps")
            yield state, told
