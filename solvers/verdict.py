"""What a level says of its pairs: the error of their lengths, and whether they are done."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from riemae.solvers.measure import Evidence, Measure
from riemae.solvers.result import Status
from riemae.solvers.state import RUNNING


@dataclass(frozen=True)
class Level:
    """Pairs after the solver has ended at one resolution, ``q`` of them.

    Attributes:
        rows: ``(q,)``, which pairs.
        measure: This level's curves.
        length: ``(q,)``, the shortest lengths so far.
        status: ``(q,)``, how the solver left them.
        left: ``(q,)``, the relative length that it has left over, if it knows.
        spent: ``(q,)`` bool: no steps are left.
        least: ``(q,)``, lower bounds of all curves' lengths, NaN where unknown.
        last: Whether no finer level is allowed.
    """

    rows: np.ndarray
    measure: Measure
    length: np.ndarray
    status: np.ndarray
    left: np.ndarray
    spent: np.ndarray
    least: np.ndarray
    last: bool

    @property
    def ended(self) -> np.ndarray:
        """``(q,)`` bool: the solver did what it can at this resolution."""
        return (self.status == Status.CONVERGED) | (self.status == Status.PRECISION)

    @property
    def rest(self) -> np.ndarray:
        """``(q,)``, the length that the solver has left over, absolute; 0 where it is unknown."""
        known = self.ended & (self.left > 0)
        return np.where(known, self.left * self.length, 0.0)


@dataclass(frozen=True)
class Claims:
    """What is claimed of the error of the shortest lengths, absolute; NaN where unknown.

    Attributes:
        error: ``(q,)``, what is reported.
        worst: ``(q,)``, what it may be: lengths are accepted by this.
        beyond: ``(q,)``, distance from the lower bound.
    """

    error: np.ndarray
    worst: np.ndarray
    beyond: np.ndarray

    @classmethod
    def of(cls, evidence: Evidence, level: Level, ratio: float) -> Claims:
        """The claims after a level.

        Args:
            evidence: Of all pairs.
            level: The level.
            ratio: By which the solver's error falls from level to level.
        """
        length = level.length
        grain = level.measure.grain
        rest = level.rest
        # A length below the bound has been measured too coarsely, by as much at least.
        short = level.least - length
        excess = np.maximum(level.measure.length - length, grain)
        floor = np.fmax(excess, short - grain)
        above = np.maximum(-short, 0.0)
        beyond = np.where(short > grain, np.inf, above)
        # Where the solver did not finish, only the bound says anything.
        floor = np.where(level.ended, floor, np.nan)
        flat = beyond <= 4 * grain  # nothing is shorter: no second level is needed to say so
        claims = []
        measure = level.measure
        dimension = measure.curve.nodes.shape[-1]
        for claim in evidence.error(level.rows, measure.wobble, ratio, dimension):
            found = np.maximum(claim + rest, floor)
            # NaN stays where it was.
            least = np.maximum(beyond, grain)
            found = np.where(beyond < found, least, found)
            claims.append(np.where(flat, grain, found))
        error, worst = claims
        # The bound is rounded as well, which is reported but decides nothing.
        bounded = np.maximum(beyond, error) + level.measure.blur
        error = np.where(flat | (beyond <= error), bounded, error)
        return cls(error, worst, beyond)

    def raised(self, rows: np.ndarray, ahead: np.ndarray) -> Claims:
        """The claims, at ``rows`` at least what has been foreseen, NaN where nothing has."""
        error, worst = self.error.copy(), self.worst.copy()
        # Nothing is shorter than the lower bound.
        beyond = self.beyond[rows]
        known = np.where(beyond < ahead, beyond, ahead)
        for claim in (error, worst):
            claim[rows] = np.fmax(claim[rows], known)
        return replace(self, error=error, worst=worst)


def allowed(length: np.ndarray, rtol: float) -> np.ndarray:
    """The largest error that is at most ``rtol`` of the distance.

    The distance is the length less its error.
    """
    return length * (rtol / (1 + rtol))


def verdict(level: Level, worst: np.ndarray, rtol: float) -> np.ndarray:
    """The statuses of pairs after a level; RUNNING where a finer one is needed."""
    met = level.status == Status.CONVERGED
    solved = met | (level.status == Status.PRECISION)
    accurate = worst <= allowed(level.length, rtol)  # False while the error is NaN
    at_floor = worst <= 2 * level.measure.grain

    unmet = int(Status.RESOLUTION) if level.last else RUNNING
    found = np.where(solved, unmet, level.status)
    found[solved & (accurate | at_floor)] = Status.PRECISION
    found[met & accurate] = Status.CONVERGED
    exhausted = (level.status == RUNNING) | ((found == RUNNING) & level.spent)
    found[exhausted] = Status.MAX_STEPS
    return found


def reported_error(claims: Claims, level: Level, statuses: np.ndarray, rtol: float) -> np.ndarray:
    """The errors that go with these statuses: never NaN where a lower bound is known."""
    met = statuses == Status.CONVERGED
    within = np.minimum(claims.error, allowed(level.length, rtol))
    larger = np.fmax(claims.error, claims.worst)
    error = np.where(met, within, larger)
    known = np.maximum(claims.beyond, level.measure.grain)
    return np.where(np.isnan(error), known, error)
