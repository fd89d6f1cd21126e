"""Shortest paths on a neighbourhood graph: a cheap, global, approximate answer, and a start for the path solver."""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve, length
from riemae.solvers.exceptions import (
    DisconnectedGraphWarning,
    GraphError,
    NonFiniteError,
    OptionError,
    ShapeError,
    stack_level,
)
from riemae.solvers.space import Space
from riemae.solvers.tolerances import tolerance

if TYPE_CHECKING:
    import networkx
    from scipy.sparse import csr_array

_EDGE_ACCURACY, _MAX_PIECES = 1e-4, 256


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected neighbourhood graph on latent points, its edges weighted by their length in the space.

    Attributes:
        points: ``(n, m)``.
        adjacency: Sparse symmetric ``(n, n)`` matrix of edge lengths; never stored densely.
        components: ``(n,)`` int64, the connected component of each point.
    """

    points: Tensor
    adjacency: csr_array
    components: Tensor

    def distances(self, sources: Tensor | Sequence[int] | None = None) -> Tensor:  # -> (s, n)
        """Shortest-path lengths from ``sources`` (all points unless given) to every point; inf between components.

        Raises:
            GraphError: For a source that is no point of the graph.
        """
        from scipy.sparse import csgraph

        rows = None if sources is None else [self._checked(i) for i in torch.as_tensor(sources).reshape(-1).tolist()]
        if not len(self.points) or rows == []:
            return self.points.new_empty(0, len(self.points))
        d = csgraph.dijkstra(self.adjacency, directed=False, indices=rows)
        return torch.as_tensor(d).to(self.points)

    def path(self, i: int, j: int) -> list[int]:
        """The points along the shortest path from ``i`` to ``j``, both included.

        ``graph.points[graph.path(i, j)]`` are nodes for ``Manifold.geodesic(..., init=)``.

        Raises:
            GraphError: When no path joins them, or one is no point of the graph.
        """
        from scipy.sparse import csgraph

        i, j = self._checked(i), self._checked(j)
        _, before = csgraph.dijkstra(self.adjacency, directed=False, indices=i, return_predecessors=True)
        nodes = [j]
        while nodes[-1] != i:
            if before[nodes[-1]] < 0:
                raise GraphError(
                    "Graph.path",
                    f"points {i} and {j} in one component",
                    f"components {int(self.components[i])} and {int(self.components[j])}",
                    "Raise k, or build the graph on more points.",
                )
            nodes.append(int(before[nodes[-1]]))
        return nodes[::-1]

    def curves(self, i: Tensor | Sequence[int], j: Tensor | Sequence[int], segments: int = 32) -> Curve:
        """Shortest paths from points ``i`` to points ``j`` ``(p,)`` as curves of nearly constant speed.

        Made for ``Manifold.geodesic(z[i], z[j], init=graph.curves(i, j))``.

        Raises:
            GraphError: When no path joins a pair, or a number is no point of the graph.
        """
        curves = []
        for a, b in zip(torch.as_tensor(i).tolist(), torch.as_tensor(j).tolist(), strict=True):
            nodes = self.path(a, b) if a != b else [a, b]
            strides = [self.adjacency[s, t] for s, t in itertools.pairwise(nodes)]
            times = torch.as_tensor(np.concatenate([[0.0], np.cumsum(strides)])).to(self.points)
            curves.append(Curve.through(self.points[nodes], segments, times).nodes)
        if not curves:
            return Curve.from_nodes(self.points.new_empty(0, segments + 1, self.points.shape[-1]))
        return Curve.from_nodes(torch.stack(curves))

    def to_networkx(self) -> networkx.Graph:
        """A ``networkx.Graph`` with the lengths as edge attribute ``weight``."""
        import networkx

        graph = networkx.from_scipy_sparse_array(self.adjacency)
        graph.add_nodes_from(range(len(self.points)))
        return graph

    def __repr__(self) -> str:
        parts = int(self.components.max()) + 1 if len(self.points) else 0
        return f"Graph({len(self.points)} points, {self.adjacency.nnz // 2} edges, {parts} component(s))"

    def _checked(self, i: int) -> int:
        try:
            number = -1 if isinstance(i, bool) else operator.index(i)
        except TypeError:
            number = -1
        if not 0 <= number < len(self.points):
            raise GraphError(
                "Graph",
                f"a point from 0 to {len(self.points) - 1}",
                str(i),
                "Points are counted from 0; of a mask take mask.nonzero().",
            )
        return number


def graph(
    space: Space,
    points: Tensor,
    k: int = 10,
    weight: Literal["length", "chord"] = "length",
    coordinates: Tensor | None = None,
) -> Graph:
    """Join every point to its ``k`` nearest neighbours.

    Args:
        space: Gives the edges their lengths.
        points: Latent points ``(n, m)``.
        k: Neighbours a point; the graph is the union of both directions.
        weight: ``"length"``: Riemannian length of the straight latent line; ``"chord"``: distance in the ambient space.
        coordinates: Where neighbours are looked for, ``(n, d)``; the latent points themselves unless given.

    Raises:
        ShapeError: When ``points`` is not ``(n, m)``, or ``coordinates`` has another number of rows.
        NonFiniteError: When a point is NaN or infinite.
        OptionError: When ``k`` is not between 1 and n − 1, or ``weight`` is unknown.
        GraphError: When ``weight="chord"`` and the space knows no ambient distance.

    Warns:
        DisconnectedGraphWarning: When the graph has several components; their sizes are named.
    """
    from scipy.sparse import csgraph, csr_array

    tolerance(points.dtype)
    if points.ndim != 2:
        raise ShapeError("graph", "points of shape (n, m)", str(tuple(points.shape)), "Flatten the batch axes.")
    coordinates = points if coordinates is None else coordinates
    n = len(points)
    if coordinates.ndim != 2 or len(coordinates) != n:
        raise ShapeError("graph", f"coordinates of shape ({n}, d)", str(tuple(coordinates.shape)), "One row a point.")
    bad = (~(points.isfinite().all(1) & coordinates.isfinite().all(1))).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError("graph", "finite points", f"NaN or infinity at rows {bad[:5]}", "Remove these rows.")
    if not isinstance(k, int) or not 1 <= k < max(n, 2):
        raise OptionError(
            "graph",
            f"1 <= k < {n}, the number of points" if n > 1 else f"k=1 for {n} point(s), which have no neighbours",
            f"k={k}",
            "Lower k: a point has no more neighbours than there are other points.",
        )
    if weight not in ("length", "chord"):
        raise OptionError("graph", "weight 'length' or 'chord'", repr(weight), "")
    pairs = _neighbours(coordinates.detach().cpu().numpy(), k) if n > 1 else np.empty((0, 2), dtype=np.int64)
    start, stop = (points.detach()[torch.as_tensor(pairs[:, c], device=points.device)] for c in (0, 1))
    with torch.no_grad():
        lengths = _chords(space, start, stop) if weight == "chord" else _straight(space, start, stop)
    values = lengths.double().cpu().numpy()
    # A line that leaves the domain of the decoder joins nothing.
    pairs, values = pairs[np.isfinite(values)], values[np.isfinite(values)]
    both = np.concatenate([pairs, pairs[:, ::-1]])
    adjacency = csr_array((np.concatenate([values, values]), (both[:, 0], both[:, 1])), shape=(n, n))
    _, labels = csgraph.connected_components(adjacency, directed=False)
    _warn_if_disconnected(labels)
    return Graph(points.detach(), adjacency, torch.as_tensor(labels, dtype=torch.int64))


def _neighbours(coordinates: np.ndarray, k: int) -> np.ndarray:
    """Undirected edges ``(e, 2)`` with the smaller index first, each once."""
    from scipy.spatial import cKDTree

    n = len(coordinates)
    _, found = cKDTree(coordinates).query(coordinates, k=k + 1)
    # A point is its own nearest neighbour, unless duplicates come first: then the farthest is one too many.
    own = found == np.arange(n)[:, None]
    own[~own.any(1), -1] = True
    edges = np.stack([np.repeat(np.arange(n), k), found[~own]], 1)
    return np.unique(np.sort(edges, 1), axis=0)


def _straight(space: Space, start: Tensor, stop: Tensor) -> Tensor:
    """Lengths of straight lines, on more pieces until two resolutions agree."""
    lengths = length(space, torch.stack([start, stop], 1))
    pending = torch.arange(len(start), device=start.device)
    pieces = 1
    while len(pending) and pieces < _MAX_PIECES:
        pieces *= 2
        finer = length(space, Curve.line(start[pending], stop[pending], pieces))
        unsettled = (finer - lengths[pending]).abs() > _EDGE_ACCURACY * finer  # False for NaN
        lengths[pending] = finer
        pending = pending[unsettled]
    return lengths


def _chords(space: Space, start: Tensor, stop: Tensor) -> Tensor:
    chords = space.ambient_distance(start, stop)
    if chords is None:
        raise GraphError(
            "graph", "a space with an ambient distance for weight='chord'", type(space).__name__, "Use weight='length'."
        )
    return chords


def _warn_if_disconnected(labels: np.ndarray) -> None:
    sizes = np.bincount(labels)
    if len(sizes) > 1:
        first = [int(np.flatnonzero(labels == c)[0]) for c in range(min(len(sizes), 5))]
        named = ", ".join(f"component {c}: {sizes[c]} points with point {i}" for c, i in enumerate(first))
        more = "" if len(sizes) <= 5 else f", and {len(sizes) - 5} more"
        warnings.warn(
            f"The graph falls into {len(sizes)} components ({named}{more}); distances between them are infinite. "
            "Raise k, or add points.",
            DisconnectedGraphWarning,
            stacklevel=stack_level(),
        )
