"""How much shorter a curve may be than the geodesic that is known: brackets of the distance.

On a lattice in a box, edges lead from each node to many others around it, and the shortest way of
all is found for certain. Where the metric is constant, any displacement is a sum of the two (in
three dimensions three) edges next to its direction, with whole numbers, for these are bases of the
lattice; and the way along two edges that are an angle θ apart is longer than the displacement by
the factor ``σ = 1 / cos(θ/2)`` at most. So the shortest way by edges of ``1/σ`` of their length is
no longer than any curve: that is proved. The metric of a space varies, and is looked at at the
nodes alone. What is wrong with the lengths of edges falls with the square of the spacing, and is
estimated by the difference to a lattice of twice the spacing, which is three times as much.

A curve that leaves the box goes to its rim and back: it is no shorter than the way from one end to
the rim and that from the rim to the other end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
from scipy.sparse import csgraph, csr_array
from torch import Tensor

from riemae.exceptions import OptionError
from riemae.solvers.curve import Curve
from riemae.solvers.lattice import detours, shifted
from riemae.solvers.result import GeodesicResult
from riemae.solvers.space import Space
from riemae.solvers.state import on_host, placed

# Nodes along each axis, by dimensions; odd, so that every second one is a lattice again.
_NODES = {1: 257, 2: 65, 3: 25}
# How far the box reaches beyond a start curve's, relative to its longest side: the next margin is
# taken where a curve that leaves the box might be shorter.
_MARGINS = (0.5, 1.0, 2.0)
# Edges of two dimensions lead so many spacings along each axis.
_REACH = 3
# An end is joined to the nodes within a few spacings. The way that goes on from the best of them is
# longer than without that turn by this share of a spacing at most.
_TURN = 0.05
# Directions in which a metric without length would be divided by.
_LEAST = 1e-300


@dataclass(frozen=True)
class Lattice:
    """A box of nodes.

    Attributes:
        low: ``(m,)``, the first corner.
        sides: ``(m, m)``, one row for each axis: the step from node to node.
        metric: ``(n_1, …, n_m, m, m)``; NaN where it is not positive.
    """

    low: np.ndarray
    sides: np.ndarray
    metric: np.ndarray

    @classmethod
    def of(cls, space: Space, low: np.ndarray, edges: np.ndarray, like: Tensor) -> Lattice:
        """A lattice in a space.

        Args:
            space: The space.
            low: ``(m,)``, the first corner.
            edges: ``(m, m)``, one row for each axis: the edges of the box from there.
            like: For dtype and device.
        """
        m = len(low)
        count = _NODES[m]
        sides = edges / (count - 1)
        nodes = low + np.indices((count,) * m).reshape(m, -1).T @ sides
        metric = on_host(space.metric(torch.as_tensor(nodes).to(like))).astype(np.float64)
        sound = np.isfinite(metric).all((1, 2))
        lowest = np.full(len(metric), -1.0)
        lowest[sound] = np.linalg.eigvalsh(metric[sound])[:, 0]
        metric = np.where((lowest > 0)[:, None, None], metric, np.nan)
        return cls(low, sides, metric.reshape(*[count] * m, m, m))

    @property
    def shape(self) -> tuple[int, ...]:
        """Nodes along each axis."""
        return self.metric.shape[:-2]

    @property
    def size(self) -> int:
        """Nodes in all."""
        return math.prod(self.shape)

    @cached_property
    def nodes(self) -> np.ndarray:  # (n_1, …, n_m, m)
        """Coordinates of all nodes."""
        return self.low + np.moveaxis(np.indices(self.shape), 0, -1) @ self.sides

    @cached_property
    def coarse(self) -> Lattice:
        """Every second node along each axis."""
        every = tuple(slice(None, None, 2) for _ in self.shape)
        return Lattice(self.low, 2 * self.sides, self.metric[every])

    @cached_property
    def detour(self) -> np.ndarray:  # (n_1, …, n_m)
        """How much longer than a straight line a way along edges may be, at each node."""
        m = len(self.shape)
        bases = np.array(_bases(m)) @ self.sides
        known = np.isfinite(self.metric).all((-1, -2))
        most = np.full(self.shape, np.inf)
        metric = self.metric[known]
        worst = np.ones(len(metric))
        for basis in bases:
            gram = basis @ metric @ basis.T
            sides = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
            # The covector that measures all edges of the basis rightly, and its norm.
            weights = np.linalg.solve(gram, sides[..., None])[..., 0]
            worst = np.maximum(worst, np.sqrt(np.einsum("ki,ki->k", sides, weights)))
        most[known] = worst
        return most

    @cached_property
    def _entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Edges between nodes, in both directions: from, to, and length."""
        number = np.arange(self.size).reshape(self.shape)
        rows: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        for offset in _edges(len(self.shape)):
            here, there = shifted(self.shape, offset)
            long = _norms(np.array(offset) @ self.sides, self.metric)
            rows.append(number[here].ravel())
            columns.append(number[there].ravel())
            lengths.append(((long[here] + long[there]) / 2).ravel())
        return np.concatenate(rows), np.concatenate(columns), np.concatenate(lengths)

    def with_ends(self, ends: np.ndarray, lower: bool) -> csr_array:  # (2, m)
        """The graph with two more nodes, joined to those near them.

        Args:
            ends: Where they are.
            lower: Whether edges are to be shorter by what a way along edges is longer at most.
        """
        metric = self.metric.reshape(self.size, *self.metric.shape[-2:])
        detour = np.append(self.detour.ravel(), [1.0, 1.0])
        rows, columns, lengths = ([x] for x in self._entries)
        every = self.nodes.reshape(self.size, -1)
        for k, end in enumerate(ends):
            away = every - end
            steps = away @ np.linalg.inv(self.sides)
            near = (np.abs(steps) <= _REACH + 1).all(-1).nonzero()[0]
            away = away[near]
            joined = (_norms(away, metric[near]) + _norms(away, self.at(end))) / 2
            joined = np.maximum(joined, _LEAST)
            own = np.full(len(near), self.size + k)
            rows += [own, near]
            columns += [near, own]
            lengths += [joined, joined]
        weights = np.concatenate(lengths)
        sound = np.isfinite(weights)
        weights = weights[sound]
        places = np.concatenate(rows)[sound], np.concatenate(columns)[sound]
        if lower:
            weights = weights / np.maximum(detour[places[0]], detour[places[1]])
        return csr_array((weights, places), shape=(self.size + 2, self.size + 2))

    def at(self, point: np.ndarray) -> np.ndarray:  # (m,) -> (m, m)
        """The metric in the cell of a point, between that at its corners."""
        place = np.linalg.solve(self.sides.T, point - self.low)
        corner = np.clip(np.floor(place), 0, np.array(self.shape) - 2).astype(np.int64)
        share = place - corner
        found = np.zeros(self.metric.shape[-2:])
        for side in itertools.product((0, 1), repeat=len(corner)):
            weight = np.prod(np.where(side, share, 1 - share))
            if weight:
                found = found + weight * self.metric[tuple(corner + np.array(side))]
        return found


@dataclass(frozen=True)
class Search:
    """The shortest ways between two points of a box, and what no curve is shorter than.

    Attributes:
        lattice: The box.
        ends: ``(2, m)``.
    """

    lattice: Lattice
    ends: np.ndarray

    @cached_property
    def _graph(self) -> csr_array:
        return self.lattice.with_ends(self.ends, lower=False)

    @cached_property
    def least(self) -> tuple[float, float]:
        """Lengths of the shortest ways by the edges' lower bounds.

        From end to end; and from one end to the rim and from the rim to the other. Infinite where
        there is none.
        """
        size = self.lattice.size
        graph = self.lattice.with_ends(self.ends, lower=True)
        found = csgraph.dijkstra(graph, indices=[size, size + 1])
        on_rim = np.ones(self.lattice.shape, dtype=bool)
        on_rim[(slice(1, -1),) * on_rim.ndim] = False
        out = found[:, :-2][:, on_rim.ravel()].min(1)
        return float(found[0, -1]), float(out.sum())

    def ways(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Corners ``(k, m)``, with both ends, of up to ``count`` ways, and when each is passed."""
        size = self.lattice.size
        every = self.lattice.nodes.reshape(size, -1)
        for path, passed in detours(self._graph, size, size + 1, np.inf, count):
            inner = every[path[1:-1]]
            yield np.concatenate([self.ends[:1], inner, self.ends[1:]]), passed

    def bounds(self, upper: float) -> tuple[float, float]:
        """What no curve is shorter than that stays in the box, and none that leaves it.

        NaN where the metric of a node is not known.

        Args:
            upper: The length of a curve between the ends.
        """
        if not np.isfinite(self.lattice.metric).all() or not math.isfinite(upper):
            return math.nan, math.nan
        within, out = self.least
        half = Search(self.lattice.coarse, self.ends)
        wrong = abs(half.least[0] - within)
        if len(self.lattice.shape) > 1:
            wrong += _TURN * self._spacing()
        return min(max(within - wrong, 0.0), upper), max(out - 2 * wrong, 0.0)

    def _spacing(self) -> float:
        """Of both ends together, along the longest edges of a cell."""
        sides = self.lattice.sides
        return sum(float(_norms(sides, self.lattice.at(end)).max()) for end in self.ends)


def searches(space: Space, start: Curve, region: tuple[Tensor, Tensor] | None) -> list[Search]:
    """A search for each pair.

    Args:
        space: The space.
        start: Start curves ``(p,)``.
        region: The lowest and the highest corner of the box of all pairs; None for a box around
            each start curve.

    Raises:
        OptionError: When an end is not inside the region.
    """
    nodes = on_host(start.nodes).astype(np.float64)
    ends = nodes[:, [0, -1]]
    if region is None:
        return [_around(space, start.nodes[row], ends[row]) for row in range(len(nodes))]
    low, high = region
    beyond = ((start.nodes[:, [0, -1]] <= low) | (start.nodes[:, [0, -1]] >= high)).any(-1).any(-1)
    if bool(beyond.any()):
        first = int(beyond.nonzero()[0, 0])
        got = f"{ends[first].tolist()} for {low.tolist()} to {high.tolist()}"
        raise OptionError("geodesic", "both ends of a pair inside the region", got, "Widen it.")
    corner, far = (on_host(x).astype(np.float64) for x in region)
    lattice = Lattice.of(space, corner, np.diag(far - corner), start.nodes)
    return [Search(lattice, pair) for pair in ends]


def _around(space: Space, nodes: Tensor, ends: np.ndarray) -> Search:  # (n + 1, m), (2, m)
    """A search in a box around a curve, as large as it must be for shorter ones to stay in it.

    The box is one of the coordinates in which the mean metric of the curve is the identity: edges
    of a lattice stand upright on each other there, on the average.
    """
    metric = on_host(space.metric(nodes)).astype(np.float64)
    metric = metric[np.isfinite(metric).all((1, 2))]
    frame = np.eye(nodes.shape[-1])
    if len(metric) and np.linalg.eigvalsh(metric.mean(0))[0] > 0:
        frame = np.linalg.cholesky(metric.mean(0))
    back = np.linalg.inv(frame)
    points = on_host(nodes).astype(np.float64) @ frame
    low = points.min(0)
    high = points.max(0)
    longest = max(float((high - low).max()), _LEAST)
    for margin in _MARGINS:
        first = low - margin * longest
        edges = np.diag(high - low + 2 * margin * longest) @ back
        found = Search(Lattice.of(space, first @ back, edges, nodes), ends)
        within, out = found.least
        if out >= within:
            break
    return found


@cache
def _bases(m: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Bases of the lattice whose cones fill the space, of short vectors."""
    if m == 1:
        return (((1,),),)
    if m == 2:
        every = itertools.product(range(-_REACH, _REACH + 1), repeat=2)
        short = [v for v in every if math.gcd(*v) == 1]
        around = sorted(short, key=lambda v: math.atan2(*v))
        return tuple(zip(around, [*around[1:], around[0]], strict=True))
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((-1, 1), repeat=3):
            sides = np.eye(3, dtype=np.int64)[list(order)] * np.array(signs)[list(order)][:, None]
            a, b, c = sides.cumsum(0)
            for basis in (
                (a, a + b, a + c),
                (a + b, c, a + c),
                (a + b, b, b + c),
                (a + b, b + c, c),
            ):
                found.append(tuple(tuple(int(x) for x in v) for v in basis))
    return tuple(found)


@cache
def _edges(m: int) -> tuple[tuple[int, ...], ...]:
    """All vectors of the bases, and their opposites."""
    every = {v for basis in _bases(m) for v in basis}
    return tuple(sorted(every | {tuple(-x for x in v) for v in every}))


def _norms(v: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """``sqrt(vᵀ G v)``."""
    return np.sqrt(np.einsum("...i,...ij,...j->...", v, metric, v))


def starts(found: list[Search], start: Curve, count: int, segments: int) -> tuple[Tensor, Tensor]:
    """Start curves along the shortest ways of all pairs.

    Args:
        found: A search for each pair.
        start: The first start curves ``(p,)``, for dtype and device.
        count: Ways per pair, at most.
        segments: Of the curves.

    Returns:
        Which pairs ``(k,)``, and nodes ``(k, segments + 1, m)`` at nearly constant speed.
    """
    pairs: list[int] = []
    nodes: list[Tensor] = []
    for pair, one in enumerate(found):
        for corners, passed in one.ways(count):
            way = torch.as_tensor(corners).to(start.nodes)
            way[[0, -1]] = start.nodes[pair, [0, -1]]
            curve = Curve.through(way, segments, torch.as_tensor(passed))
            pairs.append(pair)
            nodes.append(curve.nodes)
    if not nodes:
        return placed(np.zeros(0, dtype=np.int64), start.nodes), start.resample(segments).nodes[:0]
    return placed(np.array(pairs), start.nodes), torch.stack(nodes)


def bracketed(found: list[Search], result: GeodesicResult) -> GeodesicResult:
    """The result with lower bounds in its ``stats``."""
    lengths = on_host(result.length).astype(np.float64)
    bounds = [one.bounds(upper) for one, upper in zip(found, lengths, strict=True)]
    inside, leaving = np.array(bounds).reshape(-1, 2).T
    stats = {
        name: torch.as_tensor(x).to(result.length)
        for name, x in (("inside", inside), ("leaving", leaving))
    }
    return replace(result, stats={**result.stats, **stats})
