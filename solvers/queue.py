"""Pairs that wait for a resolution at which their start curve can be seen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import embedding_of
from riemae.solvers.solver import Solver
from riemae.solvers.space import Space
from riemae.solvers.speeds import equalized
from riemae.solvers.state import on_host, placed

# A pair starts on the first level whose chords show this share of the true length, and at the
# latest on the limit.
_RESOLVED = 0.8
_COARSEST_LIMIT = 64
# A curve whose speed exceeds the mean by more than this factor is walked anew.
_UNEVEN = 1.5


class Queue:
    """Pairs that wait for a resolution at which their start curve can be seen.

    On too few nodes a chord cuts through the ambient space where the manifold folds, and the energy
    rewards it: the solver would converge to a curve that jumps. A pair joins once its chords show
    most of what fine ones show.

    Attributes:
        rows: ``(q,)``, which pairs wait.
        start: ``(q,)``, their start curves.
        chords: ``(q, n)``, lengths of the chords of the start curves, by the number of segments
            n. They are summed up for all levels to come while the decoder's values are at hand.
        size: ``(q,)``, norm of the larger end point.
        speed: ``(q, n)``, the chords of the fine start curve stand for its speed: values of the
            decoder only, no derivatives.
        weights: ``(n,)``, of these speeds.
        lengths: ``(q,)``, of the start curves' own polygons: no result may be longer.
    """

    def __init__(self, space: Space, start: Curve, rows: np.ndarray, solver: Solver) -> None:
        self.space = space
        self.solver = solver
        self.rows = rows
        if len(rows) == len(start.nodes):
            self.start = start
        else:
            self.start = start[placed(rows, start.nodes)]
        points = self.start.nodes
        fine = self.start.segments
        self.chords: dict[int, Tensor] = {}
        self.size = np.zeros(0)
        self.speed = points.diff(dim=1)[..., 0]
        if len(rows):
            self._look(points, fine)
            self.speed = fine * self.chords[fine]
        self.weights = points.new_full((fine,), 1 / fine)
        mean = on_host(self.speed.mean(-1))
        self.lengths = mean.astype(np.float64)

    def _look(self, points: Tensor, fine: int) -> None:
        """Chords and sizes: from images of the points where there are any."""
        count = fine.bit_length()
        coarse = (self.solver.segments * 2**i for i in range(count))
        levels = [fine, *(n for n in coarse if n < fine and fine % n == 0)]

        def seen_by(x: Tensor) -> Tensor:
            return torch.cat([*(_chords(x, fine // n) for n in levels), _sizes(x)], 1)

        embedded = embedding_of(self.space)
        if embedded is None:
            seen = None
        else:
            seen = embedded(points, seen_by)
        if seen is None:
            self.chords = {fine: self.space.squared_chords(points).sqrt()}
            start = points[:, 0]
            self.size = on_host(self.space.norm(start, start))
            return
        *chords, size = seen.split([*levels, 1], 1)
        self.chords = dict(zip(levels, chords, strict=True))
        self.size = on_host(size[:, 0])

    def admit(self, segments: int) -> tuple[np.ndarray, Tensor]:
        """The pairs that join at this resolution, and their nodes; they leave the queue."""
        nodes, moved = even(
            curve=self.start, speed=self.speed, weights=self.weights, segments=segments
        )
        if not len(self.rows):
            return self.rows, nodes
        known = segments in self.chords and not bool(moved.any())
        if known:
            seen = self.chords[segments]
        else:
            seen = self.space.squared_chords(nodes).sqrt()
        share = on_host(seen.sum(-1))
        true = on_host(self.speed.mean(-1))
        ready = ~(share < _RESOLVED * true)  # NaN joins, to be reported by the solver
        limit = min(_COARSEST_LIMIT, self.solver.max_segments)
        if ready.all() or 2 * segments > limit:
            joined = self.rows
            self.rows = self.rows[:0]
            return joined, nodes
        joined = self.rows[ready]
        join = placed(ready.nonzero()[0], nodes)
        self.keep(~ready)
        return joined, nodes[join]

    def keep(self, those: np.ndarray) -> None:
        """Go on with some of the pairs that wait."""
        where = placed(those.nonzero()[0], self.speed)
        self.rows = self.rows[those]
        self.size = self.size[those]
        self.lengths = self.lengths[those]
        self.start = self.start[where]
        self.speed = self.speed[where]
        self.chords = {n: x[where] for n, x in self.chords.items()}


def even(
    curve: Curve, speed: Tensor, weights: Tensor, segments: int, wanted: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Nodes for the next level.

    A curve of uneven speed hides a jump: it is walked at constant speed first, and so are those
    ``wanted``.

    Returns:
        Nodes ``(p, segments + 1, m)``, and which curves ``(p,)`` were walked anew.
    """
    nodes = curve.knots(segments)
    mean = (speed * weights).sum(-1)
    uneven = speed.amax(-1) > _UNEVEN * mean
    if wanted is not None and wanted.any():
        uneven = uneven | placed(wanted, uneven)
    if bool(uneven.any()):
        anew = equalized(
            curve=curve[uneven], speed=speed[uneven], weights=weights, segments=segments
        )
        nodes = nodes.clone()
        nodes[uneven, 1:-1] = anew.nodes[:, 1:-1]
    return nodes, uneven


def _sizes(x: Tensor) -> Tensor:  # (p, n + 1, D) -> (p, 1)
    """Norm of the larger end point."""
    ends = x[:, [0, -1]]
    norms = torch.linalg.vector_norm(ends, dim=-1)
    return norms.amax(-1, keepdim=True)


def _chords(x: Tensor, stride: int) -> Tensor:  # (p, n + 1, D) -> (p, n / stride)
    """Lengths of the chords between every ``stride``-th points."""
    before = x[:, :-stride:stride]
    after = x[:, stride::stride]
    return torch.linalg.vector_norm(after - before, dim=-1)
