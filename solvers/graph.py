"""Shortest paths on a neighbourhood graph.

They are a cheap, global, approximate answer, and a start for the path solver.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import (
    DisconnectedGraphWarning,
    GraphError,
    NonFiniteError,
    OptionError,
    stack_level,
)
from riemae.numerics.checks import expect_choice, expect_rtol, expect_shape, expect_values
from riemae.numerics.html import table
from riemae.numerics.precision import in_full_precision
from riemae.solvers.curve import Curve
from riemae.solvers.edges import chord_lengths, line_lengths
from riemae.solvers.nearest import Search, nearest
from riemae.solvers.progress import Progress, reported
from riemae.solvers.space import HasSpace, Space, space_of

if TYPE_CHECKING:
    import networkx
    from scipy.sparse import csr_array

Weight = Literal["length", "chord"]

# A path through neighbours is longer than the geodesic by several per cent: more digits of its
# edges would say nothing.
GRAPH_RTOL = 1e-2
_REPORTED = 256  # edges between two reports of progress


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected neighbourhood graph on latent points.

    Its edges are weighted by their length in the space.

    Attributes:
        points: ``(n, m)``.
        adjacency: Sparse symmetric ``(n, n)`` matrix of edge lengths; never stored densely.
        components: ``(n,)`` int64, the connected component of each point.
    """

    points: Tensor
    adjacency: csr_array
    components: Tensor

    def _repr_html_(self) -> str:
        """What the graph is as a table, for notebooks."""
        lengths = self.adjacency.data
        reach = f"{lengths.min():.4g} to {lengths.max():.4g}" if len(lengths) else "none"
        parts = len(self.components.unique())
        rows = [
            ("points", " × ".join(map(str, self.points.shape))),
            ("edges", self.adjacency.nnz // 2),
            ("lengths", reach),
            ("components", parts),
        ]
        return table("Graph", rows)

    def distances(self, sources: Tensor | Sequence[int] | None = None) -> Tensor:  # -> (s, n)
        """Shortest-path lengths from ``sources`` to every point.

        By default from all points. Infinite between components.

        Raises:
            GraphError: For a source that is not a point of the graph.
        """
        from scipy.sparse import csgraph

        rows = None
        if sources is not None:
            numbers = torch.as_tensor(sources).reshape(-1).tolist()
            rows = [self._checked(i) for i in numbers]
        if not len(self.points) or rows == []:
            return self.points.new_empty(0, len(self.points))
        d = csgraph.dijkstra(self.adjacency, indices=rows)
        return torch.as_tensor(d).to(self.points)

    def path(self, i: int, j: int) -> list[int]:
        """The points along the shortest path from ``i`` to ``j``, both included.

        ``graph.points[graph.path(i, j)]`` are nodes for ``Manifold.geodesic(..., init=)``.

        Raises:
            GraphError: When no path joins them, or one is not a point of the graph.
        """
        i = self._checked(i)
        j = self._checked(j)
        before = self._tree(i)[1]
        return self._walk(before, i, j)[::-1]

    def paths(self, i: int, j: int, k: int = 3, overlap: float = 0.5) -> list[Tensor]:
        """The shortest path from ``i`` to ``j`` and alternatives to it, shortest first.

        Each alternative is the shortest way from ``i`` to ``j`` via some third point (a single-via
        path: Abraham et al., "Alternative routes in road networks", 2013) that runs apart from all
        paths before it. Apart means: neither on such a path nor on points joined to it, but for a
        share ``overlap`` of its length.

        Args:
            i: First point.
            j: Last point.
            k: Paths wanted; fewer come back where there are no more.
            overlap: At 1, no alternatives but the ``k`` shortest paths without loops (Yen's, by
                networkx): they mostly differ in a point or two, and take a while on more than a few
                thousand points.

        Returns:
            The points along each path, ``(length,)`` int64; ``graph.points[path]`` are nodes for
            ``init=``.

        Raises:
            GraphError: When no path joins them, or one is not a point of the graph.
            OptionError: When ``k`` is less than 1, or ``overlap`` not between 0 and 1.
        """
        i = self._checked(i)
        j = self._checked(j)
        if not isinstance(k, int) or k < 1 or not 0 <= overlap <= 1:
            got = f"k={k!r}, overlap={overlap!r}"
            wanted = "k of at least 1 and overlap from 0 to 1"
            raise OptionError("Graph.paths", wanted, got, "Try k=3, overlap=0.5.")
        if overlap == 1 and i != j:
            import networkx

            self.path(i, j)  # says what is wrong where there is none
            simple = networkx.shortest_simple_paths(self.to_networkx(), i, j, weight="weight")
            return [torch.tensor(path) for path in itertools.islice(simple, k)]
        away, to_i = self._tree(i)
        back, to_j = self._tree(j)
        found = [self._walk(to_i, i, j)[::-1]]
        total = away + back
        # Via a dead end, one would walk the same edge twice.
        barred = ~np.isfinite(total) | (to_i == to_j)
        near = np.zeros(len(self.points), dtype=bool)
        while len(found) < k:
            near[found[-1]] = True
            near[self.adjacency[found[-1]].indices] = True
            shared = _along(to_i, away, near) + _along(to_j, back, near)
            apart = shared <= overlap * total
            for via in self._by_length(total, ~barred & apart):
                outward = self._walk(to_i, i, via)[::-1]
                onward = self._walk(to_j, j, via)[1:]
                path = outward + onward
                if len(set(path)) == len(path):
                    found.append(path)
                    break
                barred[via] = True
            else:
                break
        return [torch.tensor(path) for path in found]

    def curves(
        self, i: Tensor | Sequence[int], j: Tensor | Sequence[int], segments: int = 32
    ) -> Curve:
        """Shortest paths from points ``i`` to points ``j`` ``(p,)`` as curves.

        Their speed is nearly constant. Made for
        ``Manifold.geodesic(z[i], z[j], init=graph.curves(i, j))``.

        Raises:
            GraphError: When no path joins a pair, or a number is not a point of the graph.
        """
        curves = []
        starts = torch.as_tensor(i).tolist()
        stops = torch.as_tensor(j).tolist()
        for a, b in zip(starts, stops, strict=True):
            if a != b:
                nodes = self.path(a, b)
            else:
                nodes = [a, b]
            strides = [self.adjacency[s, t] for s, t in itertools.pairwise(nodes)]
            passed = np.concatenate([[0.0], np.cumsum(strides)])
            times = torch.as_tensor(passed).to(self.points)
            curve = Curve.through(self.points[nodes], segments, times)
            curves.append(curve.nodes)
        if not curves:
            m = self.points.shape[-1]
            nothing = self.points.new_empty(0, segments + 1, m)
            return Curve.from_nodes(nothing)
        return Curve.from_nodes(torch.stack(curves))

    def to_networkx(self) -> networkx.Graph:
        """A ``networkx.Graph`` with the lengths as edge attribute ``weight``."""
        import networkx

        graph = networkx.from_scipy_sparse_array(self.adjacency)
        graph.add_nodes_from(range(len(self.points)))
        return graph

    def __repr__(self) -> str:
        if len(self.points):
            parts = int(self.components.max()) + 1
        else:
            parts = 0
        edges = self.adjacency.nnz // 2
        return f"Graph({len(self.points)} points, {edges} edges, {parts} component(s))"

    def _tree(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances from ``i``, and the point before each on its shortest path.

        Negative where there is none.
        """
        from scipy.sparse import csgraph

        tree = csgraph.dijkstra(self.adjacency, indices=i, return_predecessors=True)
        distances, before = tree
        return distances, before

    def _walk(self, before: np.ndarray, root: int, end: int) -> list[int]:
        """The points from ``end`` back to the root of a tree.

        Raises:
            GraphError: When they lie in different components.
        """
        nodes = [int(end)]
        while nodes[-1] != root:
            if before[nodes[-1]] < 0:
                raise GraphError(
                    "Graph.path",
                    f"points {root} and {end} in one component",
                    f"components {int(self.components[root])} and {int(self.components[end])}",
                    "Raise k, or build the graph on more points.",
                )
            nodes.append(int(before[nodes[-1]]))
        return nodes

    @staticmethod
    def _by_length(total: np.ndarray, allowed: np.ndarray) -> Iterator[int]:
        candidates = np.flatnonzero(allowed)
        order = np.argsort(total[candidates], kind="stable")
        yield from candidates[order].tolist()

    def _checked(self, i: int) -> int:
        try:
            if isinstance(i, bool):
                number = -1
            else:
                number = operator.index(i)
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


@in_full_precision
def graph(
    space: Space | HasSpace,
    points: Tensor,
    k: int = 10,
    weight: Weight = "length",
    coordinates: Tensor | None = None,
    search: Search = "auto",
    rtol: float = GRAPH_RTOL,
    progress: Progress | bool | None = None,
) -> Graph:
    """Join every point to its ``k`` nearest neighbours.

    Memory grows with n k, whatever the decoder.

    Args:
        space: Gives the edges their lengths.
        points: Latent points ``(n, m)``.
        k: Neighbours per point; the graph is the union of both directions.
        weight: ``"length"``: Riemannian length of the straight latent line; ``"chord"``: distance
            in the ambient space.
        coordinates: Where neighbours are looked for, ``(n, d)``; by default the latent points
            themselves.
        search: How: ``"tree"`` (scipy), ``"brute"`` (scikit-learn, for many dimensions), both
            exact; ``"approximate"`` (pynndescent) misses a few; ``"auto"`` is exact.
        rtol: Relative accuracy of the edges' lengths. 1e-2 is far below what a path through
            neighbours is longer than the geodesic; from 1e-3 on no edge is measured by a few points
            alone, which takes some ten times as long. Chords are exact.
        progress: Called with (edges measured, edges in all); True shows a bar.

    Raises:
        DTypeError: When ``points`` is not a dense tensor of float32 or float64, or ``rtol`` not a
            number.
        DeviceError: When ``points`` has no values.
        ShapeError: When ``points`` is not ``(n, m)``, or ``coordinates`` has another number of
            rows.
        NonFiniteError: When a point is NaN or infinite.
        OptionError: When ``k`` is not between 1 and n − 1, ``rtol`` not positive, or ``weight`` or
            ``search`` unknown.
        MissingExtraError: When the library for ``search`` is not installed.
        GraphError: When ``weight="chord"`` and the space knows no ambient distance.

    Warns:
        DisconnectedGraphWarning: When the graph has several components; their sizes are named.
    """
    space = space_of(space, points, where="graph")
    from scipy.sparse import csgraph

    expect_values("graph", "points", points)
    rtol = expect_rtol("graph", rtol)
    check_weight("graph", weight)
    expect_shape("graph", "points", points, ("n", "m"), "Flatten the batch axes.")
    if coordinates is None:
        coordinates = points
    n = len(points)
    _check_points(points, coordinates, k)
    pairs = np.empty((0, 2), dtype=np.int64)
    if n > 1:
        pairs = nearest(coordinates.detach().cpu().numpy(), k, search)
    ends = torch.as_tensor(pairs, device=points.device)
    lengths: list[Tensor] = []
    with torch.no_grad(), reported("graph", progress, "edges") as report:
        for part in ends.split(_REPORTED):
            start, stop = points.detach()[part.T]
            if weight == "chord":
                lengths.append(chord_lengths(space, start, stop))
            else:
                lengths.append(line_lengths(space, start, stop, rtol))
            if report is not None:
                report(sum(map(len, lengths)), len(ends))
    if lengths:
        values = torch.cat(lengths).double().cpu().numpy()
    else:
        values = np.empty(0)
    # A line that leaves the domain of the decoder joins nothing.
    finite = np.isfinite(values)
    adjacency = _symmetric(pairs[finite], values[finite], n)
    _, labels = csgraph.connected_components(adjacency, directed=False)
    _warn_if_disconnected(labels)
    components = torch.as_tensor(labels, dtype=torch.int64)
    return Graph(points.detach(), adjacency, components)


def _check_points(points: Tensor, coordinates: Tensor, k: int) -> None:
    n = len(points)
    expect_shape("graph", "coordinates", coordinates, (n, "d"), "Give one row per point.")
    known = points.isfinite().all(1)
    sought = coordinates.isfinite().all(1)
    finite = known & sought
    bad = (~finite).nonzero().flatten().tolist()
    if bad:
        got = f"NaN or infinity at rows {bad[:5]}"
        raise NonFiniteError("graph", "finite points", got, "Remove these rows.")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < max(n, 2):
        wanted = f"1 <= k < {n}, the number of points"
        alone = f"k=1 for {n} point(s), which have no neighbours"
        hint = "Lower k: a point has no more neighbours than there are other points."
        raise OptionError("graph", wanted if n > 1 else alone, f"k={k}", hint)


def _symmetric(pairs: np.ndarray, values: np.ndarray, n: int) -> csr_array:
    """The adjacency matrix of undirected edges."""
    from scipy.sparse import csr_array

    backwards = pairs[:, ::-1]
    both = np.concatenate([pairs, backwards])
    entries = np.concatenate([values, values])
    rows = both[:, 0]
    columns = both[:, 1]
    return csr_array((entries, (rows, columns)), shape=(n, n))


def check_weight(where: str, weight: object) -> None:
    """How edges are weighted.

    Raises:
        OptionError: For an unknown way.
    """
    expect_choice(where, "weight", weight, ("length", "chord"))


def _along(before: np.ndarray, distance: np.ndarray, near: np.ndarray) -> np.ndarray:
    """How much of the way from the root of a tree to each point runs between near points."""
    root = before < 0
    above = np.where(root, np.arange(len(before)), before)
    joined = near & near[above] & ~root
    edge = distance - distance[above]
    way = np.where(joined, edge, 0.0)
    while not root[above].all():  # each turn doubles how many edges are summed
        way = way + way[above]
        above = above[above]
    return way


def _warn_if_disconnected(labels: np.ndarray) -> None:
    sizes = np.bincount(labels)
    if len(sizes) > 1:
        shown = min(len(sizes), 5)
        first = [int(np.flatnonzero(labels == c)[0]) for c in range(shown)]
        named = ", ".join(
            f"component {c}: {sizes[c]} points with point {i}" for c, i in enumerate(first)
        )
        if len(sizes) <= 5:
            more = ""
        else:
            more = f", and {len(sizes) - 5} more"
        warnings.warn(
            f"The graph falls into {len(sizes)} components ({named}{more}); distances between "
            "them are infinite. Raise k, or add points.",
            DisconnectedGraphWarning,
            stacklevel=stack_level(),
        )
