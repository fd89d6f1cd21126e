"""Short ways on lattices: where a shorter geodesic may run, whatever lies between.

A lattice has the whole multiples of a spacing as nodes, in the coordinates of the latent space: so
all pairs that are looked at on one spacing share the nodes, and each is decoded once. The
way of a pair is looked for on the nodes around the curve that is known for it, which depend on this
pair alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.sparse import csgraph, csr_array
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import embedding_of
from riemae.solvers.space import Space
from riemae.solvers.state import on_host, placed

# Around a curve, nodes reach so far beyond its box, relative to the longest side.
_MARGIN = 0.5
# Spacings in the longest side of a curve's box: this many, and up to 1.4 times as many.
_FINENESS = 14
# Edges lead so many spacings along each axis, at most.
_REACH = 2
# Edges that touch a way already found count this much longer when the next one is looked for.
_DETOUR = 1.6
# A way is not looked for beyond so many lengths of the known curve, nor a detour, whose edges that
# touch another way count longer.
_LONGEST = 1.3
# Numbers of images that are held at once.
_NUMBERS = 2**23


@dataclass(frozen=True)
class _Box:
    """The nodes that one pair looks at.

    Attributes:
        level: The spacing is the root of two to this power.
        low: ``(m,)``, whole numbers: the corner in spacings.
        shape: Nodes along each axis.
    """

    level: int
    low: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def around(cls, nodes: np.ndarray) -> _Box:  # (n + 1, m)
        """The nodes around a curve."""
        low = nodes.min(0)
        high = nodes.max(0)
        longest = float((high - low).max())
        level = math.floor(2 * math.log2(longest / _FINENESS))
        spacing = _spacing(level)
        first = np.floor((low - _MARGIN * longest) / spacing).astype(np.int64)
        last = np.ceil((high + _MARGIN * longest) / spacing).astype(np.int64)
        return cls(level, tuple(first.tolist()), tuple((last - first + 1).tolist()))

    def numbers(self) -> np.ndarray:  # -> (k, m)
        """Whole coordinates of all nodes."""
        axes = [np.arange(a, a + n) for a, n in zip(self.low, self.shape, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def _spacing(level: int) -> float:
    return 2.0 ** (level / 2)


def ways(
    space: Space, known: Curve, length: Tensor, count: int, segments: int
) -> tuple[Tensor, Tensor]:
    """Short ways between the ends of curves, and detours from them.

    An edge is as long as the chord between the images of its ends; where there are no images, the
    metric along it is the mean of that at its ends. Ends are joined to the nearest node.

    Args:
        space: The space.
        known: Curves ``(p,)``.
        length: Their lengths.
        count: Ways per curve, at most.
        segments: Of the ways.

    Returns:
        Which curves ``(k,)``, and nodes ``(k, segments + 1, m)`` at nearly constant speed.
    """
    ends = known.nodes[:, [0, -1]]
    nodes = on_host(known.nodes).astype(np.float64)
    limits = _LONGEST * on_host(length)
    extended = (np.ptp(nodes, axis=1).max(1) > 0) & np.isfinite(nodes).all((1, 2))
    boxes = {int(row): _Box.around(nodes[row]) for row in np.flatnonzero(extended)}
    images = _Images(space)
    found: list[tuple[int, Tensor]] = []
    for rows in _grouped(boxes, images.most(known.nodes[:1, 0])):
        table = _Table(images, [boxes[row] for row in rows], known.nodes)
        for row in rows:
            patch = _Patch(table, boxes[row])
            start, stop = nodes[row, [0, -1]]
            for corners, times in patch.ways(start, stop, float(limits[row]), count):
                way = torch.as_tensor(corners).to(known.nodes)
                way = torch.cat([ends[row, :1], way, ends[row, 1:]])
                curve = Curve.through(way, segments, torch.as_tensor(times))
                found.append((row, curve.nodes))
    if not found:
        none = known.nodes.new_empty(0, segments + 1, known.nodes.shape[-1])
        return torch.empty(0, dtype=torch.int64, device=none.device), none
    curves = np.array([row for row, _ in found])
    return placed(curves, known.nodes), torch.stack([way for _, way in found])


def _grouped(boxes: dict[int, _Box], most: int) -> Iterator[list[int]]:
    """Boxes of one level, so many nodes together at most, or one box."""
    group: list[int] = []
    total = 0
    for row in sorted(boxes, key=lambda row: boxes[row].level):
        size = math.prod(boxes[row].shape)
        if group and (boxes[row].level != boxes[group[0]].level or total + size > most):
            yield group
            group = []
            total = 0
        group.append(row)
        total += size
    if group:
        yield group


class _Images:
    """What the lengths of edges are computed from."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.embedded = embedding_of(space)

    def most(self, point: Tensor) -> int:  # (1, m)
        """How many nodes may be held at once."""
        images = self._of(point)
        numbers = point.shape[-1] ** 2 if images is None else images.shape[-1]
        return max(1, _NUMBERS // numbers)

    def _of(self, points: Tensor) -> Tensor | None:  # (k, m) -> (k, D)
        if self.embedded is None:
            return None
        images = self.embedded(points[:, None], _itself)
        return None if images is None else images[:, 0]

    def edges(self, points: Tensor, steps: list[tuple[Tensor, np.ndarray]]) -> np.ndarray:
        """Lengths ``(k, s)`` of the edges from all points along steps.

        A step is a vector ``(m,)`` and the number ``(k,)`` of the point that it leads to from each
        point, −1 where there is none.
        """
        images = self._of(points)
        metric = self.space.metric(points) if images is None else None
        lengths = []
        for step, there in steps:
            beyond = torch.as_tensor(there, device=points.device)
            if images is None:
                speed = torch.einsum("kij,i,j->k", metric, step, step).sqrt()
                long = (speed + speed[beyond]) / 2
            else:
                long = torch.linalg.vector_norm(images - images[beyond], dim=-1)
            lengths.append(torch.where(beyond >= 0, long, torch.nan))
        return on_host(torch.stack(lengths, 1)).astype(np.float64)


def _itself(images: Tensor) -> Tensor:
    return images


class _Table:
    """The edges at the nodes of some boxes of one level, each once."""

    def __init__(self, images: _Images, boxes: list[_Box], like: Tensor) -> None:
        self.spacing = _spacing(boxes[0].level)
        reach = _REACH
        low = np.min([box.low for box in boxes], 0) - reach
        high = np.max([np.add(box.low, box.shape) for box in boxes], 0) + reach
        self.low = low
        self.stride = np.append(np.cumprod((high - low)[:0:-1])[::-1], 1)
        numbers = np.concatenate([box.numbers() for box in boxes])
        self.keys, first = np.unique(self._key(numbers), return_index=True)
        every = numbers[first]
        points = torch.as_tensor(every * self.spacing).to(like)
        steps = []
        for offset in _offsets(every.shape[1], reach):
            step = torch.as_tensor(self.spacing * np.array(offset)).to(like)
            steps.append((step, self._place(self._key(every + offset))))
        self.lengths = images.edges(points, steps)

    def _key(self, numbers: np.ndarray) -> np.ndarray:  # (k, m) -> (k,)
        key: np.ndarray = (numbers - self.low) @ self.stride
        return key

    def _place(self, keys: np.ndarray) -> np.ndarray:
        """Where keys stand, −1 for those that are missing."""
        place = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[place] == keys, place, -1)

    def of(self, box: _Box) -> np.ndarray:
        """The edges at the nodes of a box, ``(n_1, …, n_m, s)``."""
        place = self._place(self._key(box.numbers()))
        return self.lengths[place].reshape(*box.shape, -1)


class _Patch:
    """A box of nodes and the edges between them."""

    def __init__(self, table: _Table, box: _Box) -> None:
        self.box = box
        self.spacing = table.spacing
        edges = table.of(box)
        number = np.arange(math.prod(box.shape)).reshape(box.shape)
        rows: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        lengths: list[np.ndarray] = []
        for k, offset in enumerate(_offsets(len(box.shape), _REACH)):
            here, there = shifted(box.shape, offset)
            rows.append(number[here].ravel())
            columns.append(number[there].ravel())
            lengths.append(edges[..., k][here].ravel())
        ends = np.concatenate(rows), np.concatenate(columns)
        weights = np.concatenate(lengths)
        sound = np.isfinite(weights) & (weights > 0)
        start, stop = (x[sound] for x in ends)
        places = np.concatenate([start, stop]), np.concatenate([stop, start])
        entries = np.tile(weights[sound], 2), places
        self.graph = csr_array(entries, shape=(number.size, number.size))

    def ways(
        self, start: np.ndarray, stop: np.ndarray, limit: float, count: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Up to ``count`` ways: inner corners ``(k, m)``, and when ``(k + 2,)`` each is passed."""
        first = self._nearest(start)
        last = self._nearest(stop)
        if first == last:
            return []
        found = []
        for path, passed in detours(self.graph, first, last, limit, count):
            corners = np.stack(np.unravel_index(path[1:-1], self.box.shape), -1)
            found.append(((corners + self.box.low) * self.spacing, passed))
        return found

    def _nearest(self, point: np.ndarray) -> int:
        place = np.rint(point / self.spacing).astype(np.int64) - self.box.low
        return int(np.ravel_multi_index(tuple(place), self.box.shape))


def detours(
    graph: csr_array, first: int, last: int, limit: float, count: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """The shortest path, and others, with the lengths at which their nodes are passed.

    Edges that touch the inner nodes of a path are made longer before the next one is looked for.

    Args:
        graph: Lengths of edges, in both directions.
        first: Number of the first node.
        last: Of the last one.
        limit: Longer ones are not looked for, as edges count.
        count: How many, at most.
    """
    graph = graph.copy()
    for _ in range(count):
        passed, before = csgraph.dijkstra(
            graph, indices=first, return_predecessors=True, limit=limit
        )
        if before[last] < 0:
            return
        path = [last]
        while path[-1] != first:
            path.append(int(before[path[-1]]))
        path = path[::-1]
        yield path, passed[path]
        touched = np.zeros(graph.shape[0], dtype=bool)
        touched[path[1:-1]] = True
        longer = touched[graph.indices] | np.repeat(touched, np.diff(graph.indptr))
        graph.data[longer] *= _DETOUR


def shifted(
    shape: tuple[int, ...], offset: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The nodes that have another one at an offset, and those others."""
    sides = list(zip(offset, shape, strict=True))
    here = tuple(slice(max(0, -k), n - max(0, k)) for k, n in sides)
    there = tuple(slice(max(0, k), n - max(0, -k)) for k, n in sides)
    return here, there


@cache
def _offsets(m: int, reach: int) -> tuple[tuple[int, ...], ...]:
    """Directions of edges, one of each opposite two, without whole multiples of shorter ones."""
    every = itertools.product(range(-reach, reach + 1), repeat=m)
    return tuple(x for x in every if x > (0,) * m and math.gcd(*x) == 1)
