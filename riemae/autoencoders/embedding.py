"""Coordinates from a sparse matrix of edge lengths: Isomap and Laplacian eigenmaps."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from riemae.exceptions import DisconnectedGraphWarning, GraphError, stack_level

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def joined(where: str, lengths: csr_array, data: np.ndarray | None) -> csr_array:
    """The graph with its components joined, each by one edge to the nearest sample outside it.

    The smallest component is joined first.

    Args:
        where: The call that asks, for the error.
        lengths: Symmetric ``(n, n)``.
        data: ``(n, D)``, whose distances decide where components are joined.

    Raises:
        GraphError: When there are several components and no data.

    Warns:
        DisconnectedGraphWarning: When components were joined.
    """
    from scipy.sparse import csgraph, csr_array
    from scipy.spatial import KDTree

    n = lengths.shape[0]
    parts, labels = csgraph.connected_components(lengths, directed=False)
    if parts == 1:
        return lengths
    if data is None:
        hint = (
            "Pass the data, x=, so that the components can be joined by their nearest samples, "
            "or add edges."
        )
        raise GraphError(where, "a connected graph", f"{parts} components", hint)
    starts: list[int] = []
    ends: list[int] = []
    added: list[float] = []
    for _ in range(parts - 1):
        inside = labels == labels[_of_smallest(labels)]
        inner = np.flatnonzero(inside)
        outer = np.flatnonzero(~inside)
        near, place = KDTree(data[~inside]).query(data[inside])
        closest = int(near.argmin())
        partner = int(outer[place[closest]])
        starts.append(int(inner[closest]))
        ends.append(partner)
        added.append(float(near[closest]))
        labels[inside] = labels[partner]
    warnings.warn(
        f"The graph has {parts} components; for the embedding they were joined by "
        f"{parts - 1} edge(s) between their nearest samples.",
        DisconnectedGraphWarning,
        stacklevel=stack_level(),
    )
    ties = csr_array((added, (starts, ends)), shape=(n, n))
    both_ways = lengths.maximum(ties).maximum(ties.T)
    return both_ways.tocsr()


def isomap(lengths: csr_array, m: int, landmarks: int) -> np.ndarray:  # -> (n, m)
    """Multidimensional scaling of shortest-path lengths, by landmarks for many samples.

    The landmarks are placed by classical scaling, the other samples by distance-based
    triangulation: ``x = −½ L# (δ − mean δ)`` with squared distances δ to the landmarks (de Silva &
    Tenenbaum 2003). With all samples as landmarks it is Isomap itself.

    Args:
        lengths: Symmetric ``(n, n)``, of a connected graph.
        m: Number of coordinates.
        landmarks: How many there are at most.
    """
    from scipy.linalg import eigh
    from scipy.sparse import csgraph

    n = lengths.shape[0]
    chosen = np.arange(n) if n <= landmarks else _spread(lengths, landmarks)
    count = len(chosen)
    squared = csgraph.dijkstra(lengths, directed=False, indices=chosen) ** 2  # (l, n)
    own = squared[:, chosen]
    mean = own.mean(1)
    column = mean[:, None]
    gram = -(own - mean - column + own.mean()) / 2
    symmetric = (gram + gram.T) / 2
    values, vectors = eigh(symmetric, subset_by_index=[count - m, count - 1])
    # eigh sorts upwards; the largest comes first here.
    values = values[::-1]
    vectors = vectors[:, ::-1]
    # Where the graph has no extent, rounding errors would make a coordinate: it is set to 0.
    has_extent = values > 1e-12 * values[0]
    roots = np.sqrt(np.maximum(values, 1e-300))
    scale = np.where(has_extent, roots, np.inf)
    triangulation = -(vectors / scale).T
    x = triangulation @ (squared - column) / 2
    x = _oriented(x.T - x.mean(1))
    return x / x.std(0).max()


def laplacian(lengths: csr_array, m: int) -> np.ndarray:  # -> (n, m)
    """Eigenvectors of the random-walk Laplacian after the constant one, with weight 1 per edge.

    Args:
        lengths: Symmetric ``(n, n)``, of a connected graph; only its pattern matters.
        m: Number of coordinates.
    """
    from scipy.linalg import eigh
    from scipy.sparse import csgraph, csr_array, diags_array
    from scipy.sparse.linalg import eigsh

    n = lengths.shape[0]
    weights = np.ones_like(lengths.data)
    adjacency = csr_array((weights, lengths.indices, lengths.indptr), shape=(n, n))
    degree = np.asarray(adjacency.sum(1)).reshape(-1)
    root = np.sqrt(degree)
    normal = csgraph.laplacian(adjacency, normed=True)
    if n <= 500:
        _, vectors = eigh(normal.toarray(), subset_by_index=[1, m])
    else:
        # The smallest eigenvalues of L are the largest of 2 I − L, which need no factorisation. The
        # start is fixed, so that the result repeats.
        shifted = 2 * diags_array(np.ones(n)) - normal
        start = root + np.cos(np.arange(n))
        values, found = eigsh(shifted, k=m + 1, which="LA", v0=start)
        descending = np.argsort(-values)
        vectors = found[:, descending[1:]]
    x = vectors / root[:, None]
    x = _oriented(x - x.mean(0))
    return x / x.std(0)


def _of_smallest(labels: np.ndarray) -> int:
    """A node of the smallest component."""
    names, counts = np.unique(labels, return_counts=True)
    smallest = names[counts.argmin()]
    members = np.flatnonzero(labels == smallest)
    return int(members[0])


def _spread(lengths: csr_array, count: int) -> np.ndarray:
    """Landmarks: evenly spaced samples in the order of their distance from one end of the graph."""
    from scipy.sparse import csgraph

    from_first = csgraph.dijkstra(lengths, directed=False, indices=0)
    end = int(from_first.argmax())
    from_end = csgraph.dijkstra(lengths, directed=False, indices=end)
    order = np.argsort(from_end, kind="stable")
    places = np.linspace(0, len(order) - 1, count).round().astype(int)
    return np.sort(order[places])


def _oriented(x: np.ndarray) -> np.ndarray:
    """Each column with its largest entry positive, because eigenvectors come with any sign."""
    rows = np.abs(x).argmax(0)
    columns = np.arange(x.shape[1])
    largest = x[rows, columns]
    signs = np.where(largest < 0, -1.0, 1.0)
    return x * signs
