"""Which curve of a pair counts: the shortest of all levels, with the better of two velocities."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import velocities_of
from riemae.solvers.measure import Evidence, Measure
from riemae.solvers.space import Space
from riemae.solvers.state import placed

# On the first level, curves whose speed wobbles by more than this get the geodesic's own velocities
# at once.
_WOBBLE = 3e-2
# A curve may be longer than what a coarser level has measured by this share of what is allowed
# before that is measured again. The reported error is no smaller than the difference.
_LONGER = 0.05


class Best:
    """The shortest curve of each pair so far.

    Where tangents nearly vanish, a finer level may end with a longer curve than a coarser one.

    Args:
        space: The space.
        p: How many pairs.
        rtol: Relative accuracy of the lengths.
    """

    def __init__(self, space: Space, p: int, rtol: float) -> None:
        self.space = space
        self.slack = 1 + _LONGER * rtol
        self.length = np.full(p, np.inf)
        self.shelf: list[Curve] = []
        self.level, self.place = np.zeros((2, p), dtype=np.int64)

    def take(self, rows: np.ndarray, measure: Measure) -> np.ndarray:
        """Take in a level's curves of the pairs at ``rows``.

        Returns:
            The shortest lengths so far, NaN where there is none.
        """
        longer = measure.length > self.slack * self.length[rows]
        doubted = longer.nonzero()[0]
        if len(doubted):
            # What a coarse level has seen of a curve may be too little: look again, as closely as
            # now.
            known = self.curve(rows[doubted])
            curve = known.resample(measure.curve.segments)
            again = Measure.of(self.space, curve)
            self.length[rows[doubted]] = again.length
        kept = self.slack * self.length[rows] < measure.length
        kept[doubted] = self.length[rows[doubted]] <= measure.length[doubted]
        better = (~kept).nonzero()[0]
        self.length[rows[better]] = measure.length[better]
        self.place[rows[better]] = better
        self.level[rows[better]] = len(self.shelf)
        self.shelf.append(measure.curve)
        return self.length[rows]

    def curves(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Curve]]:
        """The shortest curves of the pairs at ``rows``, in groups of pairs."""
        for level in np.unique(self.level[rows]):
            pairs = rows[self.level[rows] == level]
            curve = self.shelf[level]
            places = self.place[pairs]
            ascending = (np.diff(places) > 0).all()
            whole = len(pairs) == len(curve.nodes) and ascending
            yield pairs, curve if whole else curve[placed(self.place[pairs], curve.nodes)]

    def curve(self, rows: np.ndarray) -> Curve:
        """The shortest curves of the pairs at ``rows``, on the finest grid among them."""
        groups = list(self.curves(rows))
        segments = max(curve.segments for _, curve in groups)
        fine = [curve.resample(segments) for _, curve in groups]
        order = np.concatenate([pairs for pairs, _ in groups])
        ascending = np.sort(order)
        rank = np.searchsorted(ascending, rows)
        found = np.argsort(order)[rank]
        where = placed(found, fine[0].nodes)
        nodes = torch.cat([curve.nodes for curve in fine])[where]
        slopes = torch.cat([curve.slopes for curve in fine])[where]
        return Curve(nodes, slopes)


def recovered(
    space: Space, measure: Measure, best: Best, rows: np.ndarray, rtol: float
) -> tuple[Measure, np.ndarray]:
    """Go on with the shortest curves where this level's are longer.

    A start of uneven speed has more energy than its length says, enough to slide into a longer
    geodesic.

    Returns:
        The curves, and which ``(q,)`` have been exchanged.
    """
    limit = (1 + rtol) * best.length[rows]
    lost = measure.length > limit
    those = lost.nonzero()[0]
    if len(those):
        known = best.curve(rows[those])
        shorter = known.resample(measure.curve.segments)
        where = placed(those, measure.speed)
        again = Measure.of(space, shorter)
        measure = measure.put(those, where, again)
    return measure, lost


def straightened(
    space: Space, measure: Measure, evidence: Evidence, rows: np.ndarray, rtol: float
) -> Measure:
    """The curves, with the geodesic's own velocities where these make them shorter.

    A spline overshoots where the coordinates move unevenly, even if its nodes are right: its length
    then exceeds by far what the nodes say. The velocities cost one Jacobian per node, so they are
    computed only there.
    """
    first = np.isnan(evidence.lengths[1, rows])
    allowed = rtol / 2 * measure.length
    over = evidence.unexplained(rows) > allowed
    uneven = measure.wobble > _WOBBLE
    wanted = np.where(first, uneven, over).nonzero()[0]
    if not len(wanted):
        return measure
    where = placed(wanted, measure.speed)
    nodes = measure.curve.nodes[where]
    slopes = velocities_of(space, nodes)
    if slopes is None:
        return measure
    finite = slopes.isfinite().flatten(1).all(1)
    sound = finite[:, None, None]
    known = measure.curve.slopes[where]
    slopes = torch.where(sound, slopes, known)
    other = Measure.of(space, Curve(nodes, slopes))
    gains = other.length < measure.length[wanted]
    shorter = gains.nonzero()[0]
    if not len(shorter):
        return measure
    wanted = wanted[shorter]
    other = other.select(shorter, placed(shorter, nodes))
    evidence.replace(rows[wanted], other.length)
    return measure.put(wanted, placed(wanted, nodes), other)
