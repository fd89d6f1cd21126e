"""Which pairs of a chunk have jumped, and those that wait to begin anew: see ``unroll``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.measure import Measure
from riemae.solvers.solver import Solver, unrolls
from riemae.solvers.space import Space
from riemae.solvers.state import RUNNING, numbers, placed
from riemae.solvers.unroll import first_resolution, jumped, unrolled


@dataclass
class Watch:
    """Curves of one level that may jump.

    Attributes:
        space: Measures curves.
        start: ``(q,)``, lengths of their start curves; NaN where a jump does not matter.
        gone: ``(q,)`` bool: curves that have jumped, to be left alone.
        allowed: Steps that a pair may take in total.
        looks: ``(q,)``, steps at this level after which a curve is looked at next, and again after
            twice as many.
        before: ``(q,)``, steps at levels before.
        beat: Called after every step.
    """

    space: Space | None
    start: np.ndarray
    gone: np.ndarray
    allowed: int
    looks: np.ndarray
    before: np.ndarray
    beat: Callable[[], None] | None = None

    @classmethod
    def of_none(cls, count: int) -> Watch:
        """Nothing is watched."""
        nothing = np.zeros(count, dtype=bool)
        unknown = np.full(count, np.nan)
        none = np.zeros(count, dtype=np.int64)
        return cls(None, unknown, nothing, 0, none, none)

    def see(self, state: Any, told: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """Look at curves that take long.

        Args:
            state: Of all curves.
            told: ``(q,)``, their statuses and steps, where these have been read.
        """
        if self.beat is not None:
            self.beat()
        if self.space is None or not (self.start > 0).any():
            return
        status, steps = told or numbers(state, "status", "steps")
        running = (status == RUNNING) & ~self.gone
        taken = steps - self.before
        late = (taken >= self.looks) & (steps < self.allowed)
        due = (running & late & (self.start > 0)).nonzero()[0]
        if not len(due):
            return
        self.looks[due] = 2 * taken[due]
        nodes = state.nodes[placed(due, state.nodes)]
        measure = Measure.of(self.space, Curve.from_nodes(nodes))
        self.gone[due] = jumped(measure, self.start[due])

    def late(self, rows: np.ndarray, measure: Measure, steps: np.ndarray) -> np.ndarray:
        """Which of the curves at ``rows`` have jumped by the end of the level."""
        late: np.ndarray = jumped(measure, self.start[rows]) & (steps[rows] < self.allowed)
        return late


@dataclass
class Unrolling:
    """Pairs that begin anew; if they jump again, once more on twice as many nodes.

    Attributes:
        space: The space.
        solver: The solver.
        start: ``(p,)``, the start curves.
        waiting: By the number of segments at which they go on: pairs, their nodes, steps so far.
    """

    space: Space
    solver: Solver
    start: Curve
    waiting: dict[int, list[tuple[np.ndarray, Tensor, np.ndarray]]] = field(default_factory=dict)

    @property
    def rows(self) -> np.ndarray:
        """The pairs that wait."""
        groups = [pairs for groups in self.waiting.values() for pairs, _, _ in groups]
        return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *groups]))

    def watch(self, lengths: np.ndarray, steps: np.ndarray, segments: int) -> Watch:
        """For pairs that begin a level.

        Args:
            lengths: ``(q,)``, of their start curves, or of shorter ones that are known.
            steps: ``(q,)``, taken so far.
            segments: Of the level.
        """
        watch = Watch.of_none(len(steps))
        patience = unrolls(self.solver)
        if patience and self._first(segments) is not None:
            watch.space = self.space
            watch.looks += patience
            watch.before = steps.copy()
            watch.start = lengths
            watch.allowed = self.solver.max_steps
        return watch

    def _first(self, segments: int) -> int | None:
        return first_resolution(segments, self.solver.segments, self.solver.max_segments)

    def begin(
        self, rows: np.ndarray, steps: np.ndarray, segments: int
    ) -> Iterator[tuple[np.ndarray, Measure]]:
        """Shorten the start curves of the pairs at ``rows``, which have jumped at this level.

        Yields:
            Pairs, and their curves.
        """
        first = self._first(segments)
        assert first is not None
        start = self.start[placed(rows, self.start.nodes)]
        found = unrolled(self.space, start, first, self.solver.max_segments)
        for finer, (those, measure) in found.items():
            entry = (rows[those], measure.curve.nodes, steps[those])
            self.waiting.setdefault(finer, []).append(entry)
            yield rows[those], measure

    def admit(self, segments: int) -> list[tuple[np.ndarray, Tensor, np.ndarray]]:
        """The pairs that go on at this resolution, their nodes and steps; they wait no longer."""
        return self.waiting.pop(segments, [])
