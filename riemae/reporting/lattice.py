"""Values on a lattice of latent points, and the metric between its nodes by cubic splines.

A browser has no decoder. It gets the metric of a two-dimensional latent space at the nodes of a
lattice, and interpolates its logarithm, whose exponential is positive definite everywhere:

    ``log G = s I + [[d, b], [b, −d]]``,  ``G = eˢ (cosh r I + sinh r / r [[d, b], [b, −d]])``,
    ``r² = d² + b²``.

``s``, ``d`` and ``b`` are tensor products of uniform cubic B-splines that pass through the nodes,
with the not-a-knot condition at the sides: fourth-order accurate up to them, twice continuously
differentiable (de Boor, A Practical Guide to Splines, 2001). Along a coordinate that comes round
the lattice covers one period, its last nodes are its first ones, and the splines are periodic.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import (
    NonFiniteError,
    PrecisionWarning,
    SingularMetricError,
    SmoothnessWarning,
)
from riemae.manifold import Manifold
from riemae.reporting.periods import Periods

_ROWS = 1024  # of a lattice at a time, so that one bad node spoils few
_FLAT = 1e-12  # eigenvalues below this share of the largest are as good as none


def where_defined(
    function: Callable[[Tensor], Tensor],
    z: Tensor,
    rows: int = _ROWS,
    told: Callable[[int, int], object] | None = None,
    known: Tensor | None = None,
) -> Tensor:  # (k, m) -> (k, *s)
    """Values of a function that refuses bad points: NaN there, after halving the batch.

    Args:
        function: ``(k, m) -> (k, *s)``; raises NonFiniteError or SingularMetricError.
        z: Points.
        rows: Points at a time.
        told: Called with (points done, points in all).
        known: Which points are worth a try, ``(k,)``; all by default.
    """
    if known is not None and not bool(known.all()):
        inner = where_defined(function, z[known], rows, told)
        out = inner.new_full((len(z), *inner.shape[1:]), torch.nan)
        out[known] = inner
        return out
    parts: list[tuple[int, Tensor]] = []
    waiting = [range(k, min(k + rows, len(z))) for k in range(0, len(z), rows)][::-1]
    done = 0
    with warnings.catch_warnings(), torch.no_grad():
        # A report has entries of its own for kinks and for conditioning.
        warnings.simplefilter("ignore", SmoothnessWarning)
        warnings.simplefilter("ignore", PrecisionWarning)
        while waiting:
            part = waiting.pop()
            try:
                parts.append((part.start, function(z[part.start : part.stop])))
            except (NonFiniteError, SingularMetricError):
                if len(part) > 1:
                    half = len(part) // 2
                    waiting += [part[half:], part[:half]]
                    continue
            done += len(part)
            if told is not None:
                told(done, len(z))
    if not parts:
        return z.new_full((len(z),), torch.nan)
    first = parts[0][1]
    out = first.new_full((len(z), *first.shape[1:]), torch.nan)
    for start, values in parts:
        out[start : start + len(values)] = values
    return out


def outputs_defined(M: Manifold, z: Tensor) -> Tensor:  # (k, m) -> (k,)
    """Where the decoder gives numbers, as far as one call tells: halving batches takes longer."""
    every = torch.ones(len(z), dtype=torch.bool, device=z.device)
    if M.latent_shape is not None:
        return every
    with torch.no_grad():
        parts = [M.decoder(rows) for rows in z.split(_ROWS)]
    if not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
        return every
    finite = torch.cat([part.flatten(1).isfinite().all(1) for part in parts])
    return finite if len(finite) == len(z) else every


@dataclass(frozen=True, eq=False)
class Lattice:
    """Equally spaced points of a rectangle.

    Attributes:
        low: Its lower left corner, ``(x, y)``.
        high: Its upper right corner.
        counts: Nodes along x and y.
        periods: Of x and y; None for a coordinate that does not come round. A side with a period
            is as long as that, and its last nodes are its first ones.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    counts: tuple[int, int]
    periods: Periods = (None, None)

    @classmethod
    def around(
        cls, z: Tensor, counts: tuple[int, int], margin: float, periods: Periods = (None, None)
    ) -> Lattice:  # (n, 2)
        """The box of points with a margin, a share of its larger side.

        A box that is flat in one direction gets a width; one that comes round has its period.
        """
        low, high = z.amin(0), z.amax(0)
        extent = (high - low).clamp(min=float((high - low).max()) * 0.05)
        extent = torch.where(extent > 0, extent, torch.ones_like(extent))
        center = (low + high) / 2
        half = extent / 2 + margin * extent.max()
        for axis, period in enumerate(periods):
            if period is not None:
                half[axis] = period / 2
        corner, other = (center - half).tolist(), (center + half).tolist()
        return cls((corner[0], corner[1]), (other[0], other[1]), counts, periods)

    @property
    def steps(self) -> tuple[float, float]:
        """Distances between nodes along x and y."""
        spans = [b - a for a, b in zip(self.low, self.high, strict=True)]
        return spans[0] / (self.counts[0] - 1), spans[1] / (self.counts[1] - 1)

    def nodes(self, like: Tensor) -> Tensor:  # -> (nx·ny, 2)
        """All nodes, y running first."""
        axes = [
            torch.linspace(a, b, n, dtype=torch.float64)
            for a, b, n in zip(self.low, self.high, self.counts, strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        return grid.reshape(-1, 2).to(like)

    def resized(self, counts: tuple[int, int]) -> Lattice:
        """The same rectangle with other nodes."""
        return replace(self, counts=counts)

    def cells(self, z: Tensor) -> tuple[list[np.ndarray], list[np.ndarray]]:  # (k, 2)
        """The cells in which points lie, and their places in them as shares of a step.

        Outside the rectangle the nearest cell is meant, and along a period the one that is the
        same.
        """
        points = z.detach().cpu().double().numpy()
        cells, shares = [], []
        for axis, period in enumerate(self.periods):
            at = (points[:, axis] - self.low[axis]) / self.steps[axis]
            last = self.counts[axis] - 1
            if period is not None:
                at = at % last
            cell = np.clip(np.floor(at).astype(int), 0, last - 1)
            cells.append(cell)
            shares.append(at - cell)
        return cells, shares


@dataclass(frozen=True, eq=False)
class MetricTable:
    """A metric of the plane from its values at the nodes of a lattice.

    Attributes:
        lattice: The nodes.
        coefficients: Of the B-splines, ``(nx + 2, ny + 2, 3)``, for s, d and b.
        defined: Where the metric is known, ``(nx, ny)``.
    """

    lattice: Lattice
    coefficients: np.ndarray
    defined: np.ndarray

    @classmethod
    def of(cls, lattice: Lattice, metric: Tensor) -> MetricTable:  # (nx·ny, 2, 2)
        """The table with these values at the nodes, NaN where there is none."""
        logs = _log_parts(metric.double().cpu().numpy().reshape(*lattice.counts, 2, 2))
        defined = np.isfinite(logs).all(-1)
        filled = _filled(logs, defined)
        first, second = (
            _interpolation(n) if period is None else _periodic_interpolation(n)
            for n, period in zip(lattice.counts, lattice.periods, strict=True)
        )
        coefficients = np.einsum("ai,bj,ijc->abc", first, second, filled, optimize=True)
        return cls(lattice, coefficients, defined)

    def metric(self, z: Tensor) -> Tensor:  # (k, 2) -> (k, 2, 2)
        """The metric at points of the rectangle."""
        total = np.zeros((len(z), 3))
        places, shares = self.lattice.cells(z)
        weights = [_weights(share) for share in shares]
        for a in range(4):
            for b in range(4):
                share = weights[0][:, a] * weights[1][:, b]
                total += share[:, None] * self.coefficients[places[0] + a, places[1] + b]
        return torch.as_tensor(_exponential(total)).to(z)

    def knows(self, z: Tensor) -> Tensor:  # (k, 2) -> (k,)
        """Whether the metric is known at all corners of the cell of a point."""
        if self.defined.all():
            return torch.ones(len(z), dtype=torch.bool, device=z.device)
        i, j = self.lattice.cells(z)[0]
        known = self.defined[i, j] & self.defined[i + 1, j]
        known &= self.defined[i, j + 1] & self.defined[i + 1, j + 1]
        return torch.as_tensor(known, device=z.device)


def tabulated(
    M: Manifold, lattice: Lattice, like: Tensor, told: Callable[[int, int], object] | None = None
) -> MetricTable:
    """The metric of a two-dimensional latent space at the nodes of a lattice."""
    nodes = lattice.nodes(like)
    known = outputs_defined(M, nodes)
    return MetricTable.of(lattice, where_defined(M.metric, nodes, told=told, known=known))


def _log_parts(g: np.ndarray) -> np.ndarray:  # (*b, 2, 2) -> (*b, 3)
    """s, d and b of the logarithm; NaN where the metric has no finite value or is singular."""
    finite = np.isfinite(g).all((-1, -2))
    safe = np.where(finite[..., None, None], g, np.eye(2))
    a, b, c = safe[..., 0, 0], safe[..., 0, 1], safe[..., 1, 1]
    half = (a - c) / 2
    radius = np.hypot(half, b)
    mean = (a + c) / 2
    large, small = mean + radius, mean - radius
    # The small eigenvalue from the determinant has more digits.
    with np.errstate(all="ignore"):
        small = np.where(mean > 0, (a * c - b * b) / large, small)
        usable = finite & (small > _FLAT * large) & (large > 0)
        logs = np.log(large), np.log(np.where(usable, small, 1.0))
        r = (logs[0] - logs[1]) / 2
        ratio = np.where(radius > 0, r / np.where(radius > 0, radius, 1.0), 1 / mean)
        parts = np.stack([(logs[0] + logs[1]) / 2, ratio * half, ratio * b], -1)
    return np.where(usable[..., None], parts, np.nan)


def _exponential(parts: np.ndarray) -> np.ndarray:  # (k, 3) -> (k, 2, 2)
    s, d, b = parts.T
    r = np.hypot(d, b)
    size = np.exp(s)
    ratio = np.where(r > 1e-8, np.sinh(r) / np.where(r > 1e-8, r, 1.0), 1.0)
    even = size * np.cosh(r)
    odd = size * ratio
    first = np.stack([even + odd * d, odd * b], -1)
    second = np.stack([odd * b, even - odd * d], -1)
    return np.stack([first, second], -2)


def _filled(values: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Values with the nearest known one where there is none, so that splines do not swing."""
    if defined.all():
        return values
    if not defined.any():
        return np.zeros_like(values)
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~defined, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def _weights(u: np.ndarray) -> np.ndarray:  # (k,) -> (k, 4)
    """The four cubic B-splines that are not 0 at share ``u`` of a cell."""
    v = 1 - u
    return np.stack(
        [
            v**3 / 6,
            (3 * u**3 - 6 * u**2 + 4) / 6,
            (3 * v**3 - 6 * v**2 + 4) / 6,
            u**3 / 6,
        ],
        -1,
    )


@lru_cache(maxsize=16)
def _interpolation(n: int) -> np.ndarray:  # -> (n + 2, n)
    """From values at n nodes to the coefficients of the spline through them.

    Not a knot: the third derivative does not jump at the second node and the last but one.
    """
    system = np.zeros((n + 2, n + 2))
    system[0, :5] = (1, -4, 6, -4, 1)
    system[-1, -5:] = (1, -4, 6, -4, 1)
    for k in range(n):
        system[k + 1, k : k + 3] = (1 / 6, 4 / 6, 1 / 6)
    inverse: np.ndarray = np.linalg.inv(system)[:, 1:-1]
    return inverse


@lru_cache(maxsize=16)
def _periodic_interpolation(n: int) -> np.ndarray:  # -> (n + 2, n)
    """From values at n nodes to a periodic spline's coefficients; the last node is the first."""
    period = n - 1
    rows = np.arange(period)
    system = np.zeros((period, period))
    for shift, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        system[rows, (rows + shift) % period] += weight
    inverse = np.linalg.inv(system)
    # Coefficient a of a cell belongs to the node before its own.
    wrapped = inverse[(np.arange(n + 2) - 1) % period]
    return np.concatenate([wrapped, np.zeros((n + 2, 1))], 1)


def refined(counts: tuple[int, int], most: int) -> tuple[int, int] | None:
    """Half as many nodes again a side, or None at the limit."""
    finer = tuple(min(most, math.ceil(1.5 * n)) for n in counts)
    return None if finer == counts else (finer[0], finer[1])


# Moves on a lattice: sixteen neighbours keep paths within 3 % of the shortest ones.
_MOVES = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2))


def routes(
    table: MetricTable, a: Tensor, b: Tensor, nodes: int = 48, corners: int = 33
) -> Tensor:  # (p, 2), (p, 2) -> (p, corners, 2)
    """Shortest paths on a lattice of the tabulated metric, with corners at equal lengths.

    Start curves for geodesics that find round what the straight line crosses. Straight lines for
    pairs without a path.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra

    grid = table.lattice.resized((nodes, nodes))
    places = grid.nodes(torch.zeros(1, dtype=torch.float64))
    number = np.arange(nodes * nodes).reshape(nodes, nodes)
    first, second = [], []
    for i, j in _MOVES:
        down, up = max(0, -j), nodes - max(0, j)
        first.append(number[: nodes - i, down:up].ravel())
        second.append(number[i:, down + j : up + j].ravel())
    start, stop = np.concatenate(first), np.concatenate(second)
    weights = _edge_lengths(table, places[start], places[stop])
    kept = np.isfinite(weights)
    graph = coo_matrix(
        (weights[kept], (start[kept], stop[kept])), shape=(nodes * nodes, nodes * nodes)
    ).tocsr()
    ends = [_nearest_node(grid, z) for z in (a, b)]
    sources, which = np.unique(ends[0], return_inverse=True)
    _, before = dijkstra(graph, directed=False, indices=sources, return_predecessors=True)
    found = []
    for k in range(len(a)):
        path = [int(ends[1][k])]
        while (node := int(before[which[k], path[-1]])) >= 0:
            path.append(node)
        # The nodes next to the ends are left out: the ends themselves take their place.
        inner = places[path[::-1]][1:-1]
        line = torch.cat([a[k : k + 1].to(places), inner, b[k : k + 1].to(places)])
        found.append(_evenly(table, line, corners))
    return torch.stack(found).to(a)


def _edge_lengths(table: MetricTable, a: Tensor, b: Tensor) -> np.ndarray:  # (k, 2) x 2 -> (k,)
    """Lengths of short straight lines by Simpson's rule; infinite next to undefined nodes."""
    way = b - a
    total = torch.zeros(len(a), dtype=a.dtype)
    for t, weight in ((0.0, 1 / 6), (0.5, 4 / 6), (1.0, 1 / 6)):
        points = a + t * way
        g = table.metric(points)
        speed = torch.einsum("ki,kij,kj->k", way, g, way).clamp(min=0).sqrt()
        total += weight * torch.where(table.knows(points), speed, torch.inf)
    return total.numpy()


def _nearest_node(grid: Lattice, z: Tensor) -> np.ndarray:  # (p, 2) -> (p,)
    at = []
    for axis in range(2):
        place = (z[:, axis].double().cpu().numpy() - grid.low[axis]) / grid.steps[axis]
        at.append(np.clip(place.round().astype(int), 0, grid.counts[axis] - 1))
    return at[0] * grid.counts[1] + at[1]


def _evenly(table: MetricTable, line: Tensor, corners: int) -> Tensor:  # (k, 2) -> (corners, 2)
    """Points of a polyline at equal lengths, as the table has them."""
    passed = np.concatenate([[0.0], np.cumsum(_edge_lengths(table, line[:-1], line[1:]))])
    if not np.isfinite(passed).all():
        passed = np.arange(len(line), dtype=float)
    wanted = np.linspace(0, passed[-1], corners)
    columns = [np.interp(wanted, passed, line[:, axis].numpy()) for axis in range(2)]
    return torch.as_tensor(np.stack(columns, -1))
