"""Pairs that wait for a resolution at which their start curve can be seen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import embedding_of
from riemae.solvers.measure import uneven
from riemae.solvers.solver import Solver
from riemae.solvers.space import Space
from riemae.solvers.speeds import equalized
from riemae.solvers.state import on_host, placed, read

# A pair starts on the first level whose chords show this share of the true length, and at the
# latest on the limit.
_RESOLVED = 0.8
_COARSEST_LIMIT = 64


class Queue:
    """Pairs that wait for a resolution at which their start curve can be seen.

    On too few nodes a chord cuts through the ambient space where the manifold folds, and the energy
    rewards it: the solver would converge to a curve that jumps. A pair joins once its chords show
    most of what fine ones show.

    Attributes:
        rows: ``(q,)``, which pairs wait.
        start: ``(q,)``, their start curves.
        polygons: ``(q,)``, lengths of the polygons of the start curves, by their number of
            segments: for all levels to come, while the decoder's values are at hand.
        size: ``(q,)``, norm of the larger end point.
        speed: ``(q, n)``, the chords of the fine start curve stand for its speed: values of the
            decoder only, no derivatives.
        weights: ``(n,)``, of these speeds.
        mean: ``(q,)``, of these speeds.
        uneven: ``(q,)`` bool: they differ so much that a jump may be hidden.
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
        self.weights = points.new_full((fine,), 1 / fine)
        if len(rows):
            self._look(points, fine)
        else:
            self.polygons: dict[int, np.ndarray] = {}
            self.speed = points.diff(dim=1)[..., 0]
            self.size, self.mean = np.zeros((2, 0))
            self.uneven = np.zeros(0, dtype=bool)
        self.lengths = self.mean.astype(np.float64)

    def _look(self, points: Tensor, fine: int) -> None:
        """Speeds, polygons and sizes: from images of the points where there are any."""
        chords, size = self._chords(points, fine)
        self.speed = fine * chords[fine]
        length = (self.speed * self.weights).sum(-1)
        summed = [x.sum(-1) for x in chords.values()]
        told = read(size, self.speed.mean(-1), self.speed.amax(-1), length, *summed)
        self.size, self.mean, fastest, length_on_host, *polygons = told
        self.uneven = uneven(fastest, length_on_host)
        self.polygons = dict(zip(chords, polygons, strict=True))

    def _chords(self, points: Tensor, fine: int) -> tuple[dict[int, Tensor], Tensor]:
        """Chords ``(q, n)`` by their number, and sizes ``(q,)``."""
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
            start = points[:, 0]
            only = self.space.squared_chords(points).sqrt()
            return {fine: only}, self.space.norm(start, start)
        *chords, size = seen.split([*levels, 1], 1)
        return dict(zip(levels, chords, strict=True)), size[:, 0]

    def admit(self, segments: int) -> tuple[np.ndarray, Tensor]:
        """The pairs that join at this resolution, and their nodes; they leave the queue."""
        nodes = even(
            curve=self.start,
            speed=self.speed,
            weights=self.weights,
            segments=segments,
            wanted=self.uneven,
        )
        if not len(self.rows):
            return self.rows, nodes
        if segments in self.polygons and not self.uneven.any():
            share = self.polygons[segments]
        else:
            chords = self.space.squared_chords(nodes).sqrt()
            share = on_host(chords.sum(-1))
        ready = ~(share < _RESOLVED * self.mean)  # NaN joins, to be reported by the solver
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
        self.mean = self.mean[those]
        self.uneven = self.uneven[those]
        self.lengths = self.lengths[those]
        self.start = self.start[where]
        self.speed = self.speed[where]
        self.polygons = {n: x[those] for n, x in self.polygons.items()}


def even(
    curve: Curve, speed: Tensor, weights: Tensor, segments: int, wanted: np.ndarray
) -> Tensor:  # -> (p, segments + 1, m)
    """Nodes for the next level; curves ``wanted`` are walked at constant speed first.

    A curve of uneven speed may hide a jump.
    """
    nodes = curve.knots(segments)
    rows = wanted.nonzero()[0]
    if not len(rows):
        return nodes
    where = placed(rows, nodes)
    anew = equalized(curve=curve[where], speed=speed[where], weights=weights, segments=segments)
    nodes = nodes.clone()
    nodes[where, 1:-1] = anew.nodes[:, 1:-1]
    return nodes


def _sizes(x: Tensor) -> Tensor:  # (p, n + 1, D) -> (p, 1)
    """Norm of the larger end point."""
    ends = x[:, :: x.shape[1] - 1]
    norms = torch.linalg.vector_norm(ends, dim=-1)
    return norms.amax(-1, keepdim=True)


def _chords(x: Tensor, stride: int) -> Tensor:  # (p, n + 1, D) -> (p, n / stride)
    """Lengths of the chords between every ``stride``-th points."""
    before = x[:, :-stride:stride]
    after = x[:, stride::stride]
    return torch.linalg.vector_norm(after - before, dim=-1)
