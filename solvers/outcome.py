"""What is known of pairs while they are solved: lengths, errors, statuses, and their curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import revealing
from riemae.solvers.budget import bare
from riemae.solvers.curve import Curve
from riemae.solvers.result import GeodesicResult, Status
from riemae.solvers.space import Space
from riemae.solvers.state import RUNNING, on_host, placed, read


@dataclass
class Outcome:
    """What is known of all ``p`` pairs so far, on the host.

    Attributes:
        length: ``(p,)``.
        error: ``(p,)``, absolute.
        decrement: ``(p,)``, the relative length that the solver has left over.
        speed_deviation: ``(p,)``.
        status: ``(p,)``; RUNNING before the verdict.
        index: ``(p,)``, Morse index.
        segments: ``(p,)``, of the curve that is kept.
        steps: ``(p,)``.
        curves: Curves that are done, with their pairs, by the number of segments.
    """

    length: np.ndarray
    error: np.ndarray
    decrement: np.ndarray
    speed_deviation: np.ndarray
    status: np.ndarray
    index: np.ndarray
    segments: np.ndarray
    steps: np.ndarray
    curves: dict[int, list[tuple[np.ndarray, Curve]]]

    @classmethod
    def unknown(cls, p: int) -> Outcome:
        """Nothing is known yet."""
        length, error, decrement, deviation = np.full((4, p), np.nan)
        status, index, segments, steps = np.zeros((4, p), dtype=np.int64)
        status[:] = RUNNING
        index[:] = -1
        return cls(
            length=length,
            error=error,
            decrement=decrement,
            speed_deviation=deviation,
            status=status,
            index=index,
            segments=segments,
            steps=steps,
            curves={},
        )

    def running(self) -> np.ndarray:
        """Pairs without a verdict."""
        return (self.status == RUNNING).nonzero()[0]

    def give_up(self, start: Curve) -> None:
        """The start curves ``(p,)`` of all pairs without a verdict; their budget is spent."""
        rows = self.running()
        self.status[rows] = Status.BUDGET
        every = np.arange(len(self.status))
        self.keep(every, start)

    def keep(self, rows: np.ndarray, curve: Curve) -> None:
        """Keep the curves of the pairs at ``rows``."""
        self.segments[rows] = curve.segments
        self.curves.setdefault(curve.segments, []).append((rows, curve))

    def curve(self, like: Tensor, coarsest: int) -> Curve:  # (p, m)
        """All curves on the finest grid that any of them needs.

        Subdividing a spline changes no point of it.
        """
        segments = max(self.curves, default=coarsest)
        groups = [group for groups in self.curves.values() for group in groups]
        if len(groups) == 1:
            rows, curve = groups[0]
            if (np.diff(rows) > 0).all():
                return curve
        m = like.shape[-1]
        nodes = like.new_empty(len(like), segments + 1, m)
        slopes = torch.empty_like(nodes)
        for rows, curve in groups:
            fine = curve.resample(segments)
            where = placed(rows, like)
            nodes[where] = fine.nodes
            slopes[where] = fine.slopes
        return Curve(nodes, slopes)

    def result(
        self, space: Space, like: Tensor, coarsest: int, bound: Tensor | None, rtol: float
    ) -> GeodesicResult:
        """The result, for points ``like`` ``(p, m)`` and lower bounds ``(p,)`` of their lengths."""

        def number(x: np.ndarray) -> Tensor:
            return placed(x, like).to(like.dtype)

        return GeodesicResult(
            length=number(self.length),
            error=number(self.error),
            status=placed(self.status, like),
            index=placed(self.index, like),
            curve=self.curve(like, coarsest),
            lower_bound=like.new_full((len(like),), torch.nan) if bound is None else bound,
            speed_deviation=number(self.speed_deviation),
            rtol=rtol,
            stats={
                "segments": placed(self.segments, like),
                "steps": placed(self.steps, like),
                "decrement": number(self.decrement),
            },
            space=bare(space),
        )


def started(start: Curve, bound: Tensor | None) -> tuple[Outcome, np.ndarray]:
    """The outcome before anything is solved, and lower bounds of the lengths, NaN where unknown.

    Pairs with invalid points, with NaN in their start curve, or of one point only, are done.

    Args:
        start: The start curves ``(p,)``.
        bound: ``(p,)``, lower bounds; None where the space knows none.
    """
    nodes = start.nodes
    out = Outcome.unknown(len(nodes))
    # Equal end points may ask for a closed geodesic, but not with a start curve that never leaves
    # them.
    returns = (nodes[:, 0] == nodes[:, -1]).all(-1)
    known = [] if bound is None else [bound]
    total, closes, *bounds = read(revealing(nodes), returns, *known)
    least = np.full(len(nodes), np.nan)
    for told in bounds:
        least = told.astype(np.float64)
    if not np.isfinite(total):
        finite = on_host(nodes.isfinite().all(-1))
        out.status[~finite.all(-1)] = Status.NON_FINITE
        ends_finite = finite[:, 0] & finite[:, -1]
        out.status[~ends_finite] = Status.INVALID_POINT
    closed = closes.nonzero()[0]
    if len(closed):
        part = nodes[placed(closed, nodes)]
        way = part - part[:, :1]
        span, size = read(way.abs().amax((1, 2)), part.abs().amax((1, 2)))
        rounding = 16 * tolerance(nodes.dtype).eps * size
        still = closed[span <= rounding]
        for column in (out.length, out.error, out.decrement, out.speed_deviation, out.index):
            column[still] = 0
        out.status[still] = Status.CONVERGED
    return out, least
